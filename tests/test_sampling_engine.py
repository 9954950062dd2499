"""The engine against the decoder over whole sequences, and against itself in other company."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cai_jax import seeds
from cai_jax.core import losses
from cai_jax.engine import cached
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.engine.prompts import Prompts
from cai_jax.errors import UserError
from cai_jax.models import decoder
from cai_jax.models import params as params_lib
from cai_jax.structs import SampleRequest, Sampling, ScoreRequest
from tests.small_config import SMALL

CONFIG = dataclasses.replace(SMALL, vocab_size=300, ffw=48, max_length=512)
EOS = 7
RNG = np.random.default_rng(0)
SAMPLING = Sampling(max_new_tokens=30)


class Format:
    """One letter a token."""

    eos_ids = (EOS,)

    @staticmethod
    def decode(tokens):
        return "".join(chr(ord("a") + token % 26) for token in tokens)


def some_tokens(count):
    return tuple(map(int, RNG.integers(8, 300, count)))


@functools.cache
def model():
    params = params_lib.init_params(CONFIG, jax.random.key(0))
    params["embed"] = params["embed"] * 10  # so that the distributions are not flat
    return params


@functools.cache
def engine(batch_size=4, chunk_steps=8):
    return Engine(
        model(),
        CONFIG,
        Format,
        options=EngineOptions(batch_size=batch_size, chunk_steps=chunk_steps),
    )


HEADER = some_tokens(100)


@functools.cache
def requests():
    """Single prompts, and two samples each of prompts behind a header."""
    result = []
    for prompt in range(8):
        own = some_tokens(int(RNG.integers(2, 60)))
        segments = (HEADER, own) if prompt % 2 else (own,)
        result += [
            SampleRequest(f"{prompt}/{s}", segments, seeds.row_key(0, "test", prompt, s))
            for s in range(2)
        ]
    return result


@functools.cache
def reference():
    return {done.id: done for done in engine().generate(requests(), SAMPLING)}


@functools.partial(jax.jit, static_argnames="temperature")
def _full(params, tokens, mask, temperature):
    hidden = decoder.hidden_states(params, tokens, mask, CONFIG)
    return losses.next_token_logprobs(
        hidden, decoder.unembedding(params, CONFIG), tokens, temperature=temperature
    )


def full_logprobs(prompt, continuation, temperature=1.0):
    """Of the continuation's tokens, from one pass over the whole text."""
    text = (*prompt, *continuation)
    tokens = np.zeros((1, 384), np.int32)
    tokens[0, : len(text)] = text
    logprobs = _full(model(), tokens, jnp.arange(384)[None] < len(text), temperature)
    return np.asarray(logprobs)[0, len(prompt) : len(text)]


def test_logprobs_are_those_of_the_whole_text():
    for request in requests():
        done = reference()[request.id]
        np.testing.assert_allclose(
            done.logprobs, full_logprobs(sum(request.segments, ()), done.tokens), atol=1e-4
        )
        assert done.stop == ("eos" if done.tokens[-1] == EOS else "length")
        assert EOS not in done.tokens[:-1] and (done.stop == "eos" or len(done.tokens) == 30)
        assert done.text == Format.decode(done.tokens[:-1] if done.stop == "eos" else done.tokens)
    assert {done.stop for done in reference().values()} == {"eos", "length"}  # both happen


def test_padding_of_segments_has_room_in_the_cache():
    """The defect: 240 tokens fit 256 positions at once, but not as two segments with the padding of
    the second: its keys and values were written over those before it, without an error."""
    segments = tuple(map(some_tokens, (100, 130, 110)))
    (result,) = engine().generate(
        [SampleRequest("a", segments, seeds.row_key(0, "s", "i", "a", 0))],
        Sampling(max_new_tokens=12),
    )
    expected = full_logprobs(sum(segments, ()), result.tokens)
    np.testing.assert_allclose(result.logprobs, expected, atol=1e-4)


def test_samples_of_a_prompt_differ():
    assert reference()["1/0"].tokens != reference()["1/1"].tokens


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    order=st.permutations(range(16)), count=st.integers(1, 16), chunk_steps=st.sampled_from([3, 8])
)
def test_a_row_is_bit_equal_in_any_company(order, count, chunk_steps):
    chosen = [requests()[i] for i in order[:count]]
    again = {done.id: done for done in engine(chunk_steps=chunk_steps).generate(chosen, SAMPLING)}
    assert again == {request.id: reference()[request.id] for request in chosen}


def test_the_size_of_the_cache_changes_nothing():
    long = SampleRequest("long", (some_tokens(300),), seeds.row_key(0, "long"))
    again = {done.id: done for done in engine().generate([*requests()[:3], long], SAMPLING)}
    np.testing.assert_allclose(
        again["long"].logprobs, full_logprobs(*long.segments, again["long"].tokens), atol=1e-4
    )
    assert all(again[request.id] == reference()[request.id] for request in requests()[:3])


def test_a_prompt_that_continues_another_is_prefilled_from_its_end(monkeypatch):
    asked, rest = (HEADER, some_tokens(90)), some_tokens(50)
    first, second = (
        SampleRequest(name, segments, seeds.row_key(0, "nested"))
        for name, segments in (("first", asked), ("second", (*asked, rest)))
    )
    prefilled, prefill = [], Prompts._prefill

    def counting(self, prefix, past, tokens, size):
        prefilled.append(tokens)
        return prefill(self, prefix, past, tokens, size)

    monkeypatch.setattr(Prompts, "_prefill", counting)
    mine = Engine(model(), CONFIG, Format, options=EngineOptions(batch_size=4))
    assert len(list(mine.generate([first], SAMPLING))) == 1
    prefilled.clear()
    (done,) = mine.generate([second], SAMPLING)
    assert prefilled == [asked[1][-1:] + rest[:-1]]
    assert [done] == list(
        engine().generate([second], SAMPLING)
    )  # the same to the bit where nothing was kept
    np.testing.assert_allclose(
        done.logprobs, full_logprobs(sum(second.segments, ()), done.tokens), atol=1e-4
    )


def test_greedy_is_the_best_token_of_the_whole_text():
    request = requests()[3]
    (done,) = engine().generate([request], Sampling(5, temperature=0.0))
    text = sum(request.segments, ())
    for token in done.tokens:
        scores = [full_logprobs(text, (candidate,))[0] for candidate in {token, *some_tokens(4)}]
        assert full_logprobs(text, (token,))[0] == max(scores)
        text += (token,)


def test_temperature_and_key_matter():
    request = requests()[2]
    (done,) = engine().generate([request], Sampling(12, temperature=0.5))
    np.testing.assert_allclose(
        done.logprobs,
        full_logprobs(sum(request.segments, ()), done.tokens, temperature=0.5),
        atol=1e-4,
    )


def test_a_stop_string_ends_a_row_and_frees_its_slot():
    whole = next(done for done in reference().values() if len(done.tokens) == 30)
    stop = whole.text[10:13]
    params = Sampling(30, stop_strings=(stop,))
    stopped = {done.id: done for done in engine().generate(requests(), params)}
    assert len(stopped) == len(requests())
    for id, done in reference().items():
        place = done.text.find(stop)
        if place < 0:
            assert stopped[id] == done
        else:
            assert (stopped[id].text, stopped[id].stop) == (done.text[:place], stop)
            assert stopped[id].tokens == done.tokens[: place + len(stop)]


def test_scores_are_those_of_the_whole_text():
    asked = []
    for request in requests()[::3]:
        options = (some_tokens(1), some_tokens(3), some_tokens(40), some_tokens(2))
        asked.append(ScoreRequest(request.id, request.segments, options))
    scores = {score.id: score for score in engine().score(asked)}
    for request in asked:
        for option, logprobs in zip(
            request.options, scores[request.id].token_logprobs, strict=True
        ):
            np.testing.assert_allclose(
                logprobs, full_logprobs(sum(request.segments, ()), option), atol=1e-4
            )
        assert scores[request.id].logprobs[1] == pytest.approx(
            sum(scores[request.id].token_logprobs[1])
        )


def test_ids_come_once():
    ids = [done.id for done in engine().generate(requests(), SAMPLING)]
    assert sorted(ids) == sorted(request.id for request in requests())


def test_what_does_not_fit_is_refused():
    long = SampleRequest("long", (some_tokens(500),), seeds.row_key(0))
    assert engine().fits(long, 12) and not engine().fits(long, 13)
    assert not engine().fits(SampleRequest("empty", ((),), seeds.row_key(0)), 1)
    with pytest.raises(UserError, match="request long: a prompt of 500 tokens"):
        next(engine().generate([long], SAMPLING))


def test_new_parameters_forget_what_was_prefilled():
    mine = Engine(model(), CONFIG, Format, options=EngineOptions(batch_size=4))
    first = list(mine.generate(requests()[:2], SAMPLING))
    mine.update(jax.tree.map(lambda x: 1.5 * x, model()))
    second = list(mine.generate(requests()[:2], SAMPLING))
    mine.update(model())
    assert [done.tokens for done in first] != [done.tokens for done in second]
    other = jax.tree.map(lambda x: 1.5 * x, model())
    new = Engine(other, CONFIG, Format, options=EngineOptions(batch_size=4))
    assert list(new.generate(requests()[:2], SAMPLING)) == second, "nothing of the old parameters"
    assert list(mine.generate(requests()[:2], SAMPLING)) == first
    # The layout for decoding holds every number of the layers once.
    assert (
        mine.runner.layout_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(model()["layers"]))
        and mine.layout_seconds > 0
    )


def test_few_programs_are_compiled():
    compiled = []
    engine()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: (
            compiled.append(event) if event.endswith("backend_compile_duration") else None
        )
    )
    for program in (cached.prefill, cached.decode, cached.insert, cached.empty_cache):
        program.clear_cache()
    lengths = (1, 2, 30, 63, 64, 65, 66, 100, 140, 170)
    mixed = [SampleRequest(f"{n}", (some_tokens(n),), seeds.row_key(0, n)) for n in lengths]
    list(engine().generate(mixed, SAMPLING))
    assert 4 <= len(compiled) <= 12, len(
        compiled
    )  # decode 1, prefill ≤ 4, and what moves keys and values
    compiled.clear()
    list(engine().generate(mixed[::-1], SAMPLING))
    assert compiled == []
