"""The server, driven by the openai client, against the engine that it serves."""

import asyncio
import concurrent.futures
import json
import logging
import random
import time

import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest

from cai_jax import seeds, serve
from cai_jax.exporting import folder
from cai_jax.models import decoder, heads
from cai_jax.serving.app import _Stream
from cai_jax.serving.fields import ApiError
from cai_jax.serving.texts import INCOMPLETE, Offsets, Texts
from cai_jax.structs import Message, SampleRequest, Sampling, ScoreRequest
from tests import serving

LONG = "Once upon a time there was a red bird in a tree. " * 7


@pytest.fixture(scope="module")
def server(tiny_model):
    with serving.running(f"random:{tiny_model}", batch_size=4, max_length=512) as made:
        yield made


@pytest.fixture(scope="module")
def model(tiny_model):
    """(models, loaded model) with the server's weights."""
    models, loaded, _ = serve.load(f"random:{tiny_model}", "policy", "")
    return models, loaded


@pytest.fixture(scope="module")
def tiny_classifier(model, tmp_path_factory):
    """A directory of the same decoder with a head."""
    _, loaded = model
    directory = tmp_path_factory.mktemp("classifier")
    params = {"decoder": loaded.params, "head": heads.init_head(loaded.config, jax.random.key(1))}
    folder.export_reward(directory, loaded.config, params, loaded.format, (0.7, 1.9))
    return str(directory)


@pytest.fixture(scope="module")
def engine(model):
    return model[0].engine(model[1], batch_size=4, max_length=512)


def user(text):
    return [{"role": "user", "content": text}]


def chat(server, text, **body):
    fields = ("return_token_ids", "prompt_logprobs", "top_k", "continue_final_message")
    extra = {name: body.pop(name) for name in fields if name in body}
    messages = user(text) if isinstance(text, str) else text
    return server.openai.chat.completions.create(
        model="tiny", messages=messages, extra_body=extra, **{"max_tokens": 12, **body}
    )


def complete(server, prompt, **body):
    extra = {
        name: body.pop(name) for name in ("return_token_ids", "prompt_logprobs") if name in body
    }
    return server.openai.completions.create(
        model="tiny", prompt=prompt, extra_body=extra, **{"max_tokens": 12, **body}
    )


def prompt_of(model, *texts):
    roles = ("human", "assistant")
    messages = [Message(roles[n % 2], text) for n, text in enumerate(texts)]
    return sum(model[1].format.prompt(messages), ())


# Sampling -----------------------------------------------------------------------------------------


def test_greedy_answers_are_the_engines_in_any_company(server, engine, model):
    texts = ["Hello", "What is a lock?", LONG, "Why?", LONG + "And then?", "Tell me\nmore."] * 2
    with concurrent.futures.ThreadPoolExecutor(len(texts)) as pool:
        served = list(
            pool.map(lambda text: chat(server, text, temperature=0, return_token_ids=True), texts)
        )
    requests = [
        SampleRequest(str(n), (prompt_of(model, text),), seeds.row_key(0, n))
        for n, text in enumerate(texts)
    ]
    local = {done.id: done for done in engine.generate(requests, Sampling(12, 0.0))}
    for n, answer in enumerate(served):
        (choice,), done = answer.choices, local[str(n)]
        assert tuple(choice.token_ids) == done.tokens
        assert choice.message.content == done.text
        assert tuple(answer.prompt_token_ids) == requests[n].segments[0]
        assert answer.usage.completion_tokens == len(done.tokens)
        assert answer.usage.prompt_tokens == requests[n].num_tokens


def test_each_sequence_of_a_batch_draws_in_its_own_way(server):
    ways = [
        {"temperature": 0},
        {"temperature": 1.5, "seed": 3},
        {"top_k": 2, "seed": 4},
        {"top_p": 0.2, "seed": 5},
        {"temperature": 0.7, "seed": 6, "n": 2},
    ]
    alone = [chat(server, "Hello", **way) for way in ways]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda way: chat(server, "Hello", **way), ways))
    texts = [[choice.message.content for choice in answer.choices] for answer in alone]
    assert texts == [[c.message.content for c in answer.choices] for answer in together]
    assert len({text for each in texts for text in each}) == 6


@pytest.mark.long  # by hand in test_sampling_draw.py
def test_top_k_and_top_p_keep_the_likeliest(server):
    way = {"logprobs": True, "top_logprobs": 20, "max_tokens": 24}
    for extra in ({"top_k": 2}, {"top_p": 1e-6}):
        answer = chat(server, "Hello", temperature=2.0, **way, **extra)
        most = extra.get("top_k", 1)
        for at in answer.choices[0].logprobs.content:
            assert at.token in [top.token for top in at.top_logprobs[:most]]
            values = [top.logprob for top in at.top_logprobs]
            assert len(values) == 20 and values == sorted(values, reverse=True)


def test_logprobs_are_at_temperature_1_and_of_the_text_itself(server):
    answer = chat(server, "Hello", temperature=0.5, seed=1, logprobs=True, return_token_ids=True)
    (choice,) = answer.choices
    read = complete(
        server, answer.prompt_token_ids + choice.token_ids, echo=True, logprobs=1, max_tokens=0
    )
    sampled = [at.logprob for at in choice.logprobs.content]
    expected = read.choices[0].logprobs.token_logprobs[len(answer.prompt_token_ids) :]
    np.testing.assert_allclose(sampled, expected, atol=1e-4)


def test_streams_say_what_complete_answers_say(server):
    ways = [
        {"seed": 1, "n": 2, "temperature": 1.2},
        {"seed": 2, "logprobs": True, "top_logprobs": 2},
        {"temperature": 0, "stop": ["e", "th"]},
        {"seed": 3, "temperature": 2.0, "max_tokens": 60},  # half characters
    ]
    for way in ways:
        complete_ = chat(server, "Hello", **way)
        with chat(server, "Hello", stream=True, stream_options={"include_usage": True}, **way) as s:
            *chunks, last = list(s)
        assert last.usage.completion_tokens == complete_.usage.completion_tokens
        for choice in complete_.choices:
            own = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
            assert "".join(c.delta.content for c in own) == choice.message.content
            assert own[-1].finish_reason == choice.finish_reason
            assert [c.finish_reason for c in own[:-1]] == [None] * (len(own) - 1)
            if way.get("logprobs"):
                assert [at for c in own for at in c.logprobs.content] == choice.logprobs.content


def test_stop_strings_end_an_answer(server):
    text = chat(server, "Hello", temperature=0).choices[0].message.content
    (choice,) = chat(server, "Hello", temperature=0, stop=[text[5:8], "never"]).choices
    assert choice.message.content == text[: text.index(text[5:8])]
    assert choice.finish_reason == "stop" and choice.stop_reason == text[5:8]
    assert chat(server, "Hello", temperature=0).choices[0].finish_reason == "length"


def test_an_answer_goes_on_from_its_beginning(server, model):
    begun = [*user("Hello"), {"role": "assistant", "content": "Once upon"}]
    answer = chat(server, begun, return_token_ids=True)
    expected = model[1].format.prompt([Message("human", "Hello")], start="Once upon")
    assert tuple(answer.prompt_token_ids) == sum(expected, ())
    new = chat(server, begun, return_token_ids=True, continue_final_message=False)
    assert tuple(new.prompt_token_ids) == prompt_of(model, "Hello", "Once upon")


def test_what_users_write_is_text(server, model):
    format = model[1].format
    special = format.tokenizer.control_tokens[0]
    answer = chat(server, f"a{special}b", return_token_ids=True)
    plain = chat(server, "ab", return_token_ids=True)
    control = format.tokenizer.control_ids

    def count(ids):
        return sum(token in control for token in ids)

    assert count(answer.prompt_token_ids) == count(plain.prompt_token_ids)
    echoed = complete(server, f"a{special}b", echo=True, max_tokens=0, return_token_ids=True)
    assert count(echoed.choices[0].prompt_token_ids) == 0
    assert echoed.choices[0].text == f"a{special}b"


# Reading ------------------------------------------------------------------------------------------


def test_echoed_logprobs_are_the_engines_and_the_decoders(server, engine, model):
    _, loaded = model
    text = LONG + "déjà vu 🙂 end"
    tokens = loaded.format.tokenizer.encode(text)
    assert len(tokens) > 140
    answers = [
        complete(server, prompt, echo=True, logprobs=3, max_tokens=0, return_token_ids=True)
        for prompt in (text, list(tokens))
    ]
    hidden = decoder.hidden_states(
        loaded.params, np.array([tokens]), np.ones((1, len(tokens)), bool), loaded.config
    )
    logits = hidden[0] @ decoder.unembedding(loaded.params, loaded.config).T
    full = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)))
    (score,) = engine.score([ScoreRequest("", (tokens[:1],), (tokens[1:],))])
    for answer in answers:
        (choice,) = answer.choices
        assert tuple(choice.prompt_token_ids) == tokens and choice.text == text
        found = choice.logprobs
        assert found.token_logprobs[0] is found.top_logprobs[0] is None
        np.testing.assert_allclose(found.token_logprobs[1:], score.token_logprobs[0], atol=1e-5)
        expected = full[np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(found.token_logprobs[1:], expected, atol=1e-4)
        for at, top in enumerate(found.top_logprobs[1:]):
            best = np.sort(full[at])[-3:]
            np.testing.assert_allclose(sorted(top.values())[-3:], best, atol=1e-4)
        for token, start in zip(found.tokens, found.text_offset, strict=True):
            assert text[start:].startswith(token) or not token.isascii()
        assert answer.usage.completion_tokens == 0


def test_prompt_logprobs_are_those_of_echo(server):
    echoed = complete(server, "a red bird", echo=True, logprobs=1, max_tokens=1).choices[0].logprobs
    for top in (0, 2):
        (choice,) = complete(server, "a red bird", max_tokens=1, prompt_logprobs=top).choices
        assert choice.prompt_logprobs[0] is None
        firsts = [next(iter(at.values())) for at in choice.prompt_logprobs[1:]]
        assert [at["decoded_token"] for at in firsts] == echoed.tokens[1:-1]
        found = [at["logprob"] for at in firsts]
        np.testing.assert_allclose(found, echoed.token_logprobs[1:-1], atol=1e-6)
        assert all(len(at) in (top, top + 1) or top == 0 for at in choice.prompt_logprobs[1:])
    (alone,) = complete(server, [5], max_tokens=1, prompt_logprobs=0).choices
    assert alone.prompt_logprobs == [None]
    of_chat = chat(server, "a red bird", prompt_logprobs=0, return_token_ids=True, max_tokens=1)
    ids = [int(next(iter(at))) for at in of_chat.prompt_logprobs[1:]]
    assert ids == of_chat.prompt_token_ids[1:]


def test_prompts_with_the_same_beginning_are_prefilled_once(server, model):
    text = LONG.replace("red", "blue")
    cold = chat(server, text + "one", temperature=0, max_tokens=6)
    assert cold.usage.prompt_tokens_details.cached_tokens == 0
    warm = chat(server, text + "two", temperature=0, max_tokens=6)
    assert warm.usage.prompt_tokens_details.cached_tokens == 128 < warm.usage.prompt_tokens
    again = chat(server, text + "one", temperature=0, max_tokens=6)
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    assert again.choices[0].message.content == cold.choices[0].message.content


# Bounds -------------------------------------------------------------------------------------------


def test_a_full_queue_answers_429(tiny_model):
    with serving.running(
        f"random:{tiny_model}", batch_size=4, max_length=256, queue=3, started=False
    ) as server:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(chat, server, "Hello", temperature=0) for _ in range(3)]
            deadline = time.monotonic() + 30
            while len(server.worker._new) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            with pytest.raises(openai.RateLimitError) as refused:
                chat(server, "Hello")
            assert refused.value.response.headers["retry-after"] == "1"
            assert refused.value.code == "queue_full"
            server.worker.start()
            assert len({done.result().choices[0].message.content for done in waiting}) == 1
        with pytest.raises(openai.BadRequestError, match="more than this server queues"):
            chat(server, "Hello", n=4)
        assert chat(server, "Hello", n=3).choices[2]


def test_choices_of_no_tokens_count_as_texts(server):
    with pytest.raises(openai.BadRequestError, match="8192 texts are more than this server"):
        complete(server, ["x"] * 64, n=128, max_tokens=0)


@pytest.mark.long  # the same queue as a policy's
def test_sequences_of_a_preference_model_count_as_texts(tiny_classifier):
    with serving.running(tiny_classifier, what="pm", queue=3, started=False) as server:
        four = server.post("/pooling", {"input": [[5, 6]] * 4})
        assert four.status_code == 400 and "4 texts are more" in four.json()["error"]["message"]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.post, "/pooling", {"input": [[5, 6], [5] * 300]})
            deadline = time.monotonic() + 30
            while len(server.worker._new) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert [job.num_texts for job in server.worker._new] == [1, 1]  # by length
            assert server.post("/pooling", {"input": [[5, 6]] * 2}).status_code == 429
            server.worker.start()
            first, second = (each["data"][0] for each in waiting.result().json()["data"])
        (alone,) = server.post("/pooling", {"input": [[5] * 300]}).json()["data"]
        assert second == pytest.approx(alone["data"][0], abs=1e-5) and first != second


def test_bytes_that_write_no_character_are_few_to_decode(model):
    texts = Texts(model[1].format)
    half = next(token for token in range(1000) if texts.decode_prompt([token]) == INCOMPLETE)
    longest, decode = 0, texts.decode_prompt

    def watched(tokens):
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode(tokens)

    texts.decode_prompt = watched
    offsets = Offsets(texts)
    assert len(offsets.add([half] * 100)) == 100 and longest <= 4
    assert offsets.end == len(decode([half] * 4)) * 25


def test_a_stream_ends_with_an_error_where_a_number_is_none():
    class Broken:
        async def chunks(self):
            yield {"first": 1}
            raise ApiError("no number", status=500)

    async def lines():
        return [line async for line in _Stream._lines(Broken())]

    first, error, last = asyncio.run(lines())
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "no number"
    assert "first" in first and last == "data: [DONE]\n\n"


def test_a_client_that_leaves_frees_its_place(server):
    long = {"max_tokens": 400, "temperature": 0}
    stream = chat(server, "Hello", stream=True, **long)
    next(iter(stream))
    stream.close()
    impatient = server.openai.with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(
            model="tiny", messages=user("Hello"), n=8, max_tokens=400, temperature=1
        )
    deadline = time.monotonic() + 20
    while server.worker._sampling and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not server.worker._sampling and not server.worker._batch.busy
    assert chat(server, "Hello").choices


def refused_ones(server, count, seed, caplog):
    """Sends malformed requests; every answer is an error in OpenAI's form."""
    rng = random.Random(seed)
    with caplog.at_level(logging.WARNING):
        for _ in range(count):
            path, body = serving.malformed(rng)
            answer = server.http.post(
                path, content=body, headers={"content-type": "application/json"}
            )
            assert answer.status_code in (400, 404), (path, body[:300], answer.text[:300])
            error = answer.json()["error"]
            assert error["message"] and error["type"] == "invalid_request_error"
            assert "Traceback" not in answer.text and "{0" not in error["message"]
    assert not caplog.records


def test_malformed_requests_are_refused_in_words(server, caplog):
    refused_ones(server, 100, 0, caplog)
    assert chat(server, "Hello").choices


def test_other_refusals(server):
    plain = server.http.post(
        "/v1/completions", content=b"{}", headers={"content-type": "text/plain"}
    )
    assert plain.status_code == 415
    large = server.post("/v1/completions", {"prompt": "x" * (4 * 2**20)})
    assert large.status_code == 413 and large.json()["error"]["message"]
    assert server.http.get("/v1/completions").status_code == 405
    assert server.http.get("/nothing").json()["error"]["message"] == "Not Found"
    with pytest.raises(openai.NotFoundError, match="'tiny' is"):
        server.openai.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="512 tokens") as refused:
        complete(server, "x", max_tokens=512)
    assert refused.value.code == "context_length_exceeded"


def test_keys_are_asked_for(tiny_model):
    with serving.running(f"random:{tiny_model}", key="s3cret", started=False) as server:
        assert [model.id for model in server.openai.models.list()] == ["tiny"]
        for key in (b"Bearer wrong", b"Bearer s3cret1", b"s3cre", b"Bearer \xff", b""):
            refused = server.http.post("/v1/completions", headers={b"Authorization": key})
            assert refused.status_code == 401 and "s3cret" not in refused.text
        with pytest.raises(openai.AuthenticationError):
            server.openai.with_options(api_key="wrong").models.list()
        assert server.http.get("/health").status_code == 200


def test_a_preference_model_scores_by_pooling(tiny_classifier):
    models, loaded, _ = serve.load(tiny_classifier, "pm", "")
    dialogues = [
        (Message("human", "Hello"), Message("assistant", answer)) for answer in ("Yes.", "No, no.")
    ]
    expected = models.scorer(loaded).score(dialogues)
    with serving.running(tiny_classifier, what="pm") as server:
        chats = [[*user("Hello"), {"role": "assistant", "content": m[1].text}] for m in dialogues]
        scores = server.post("/pooling", {"messages": chats}).json()["data"]
        np.testing.assert_allclose([each["data"][0] for each in scores], expected, atol=1e-5)
        tokens = [list(loaded.format.score_input(dialogue)) for dialogue in dialogues]
        again = server.post("/v1/pooling", {"input": tokens}).json()
        assert again["data"] == scores and again["usage"]["prompt_tokens"] == sum(map(len, tokens))
        for body in ({}, {"messages": user("Hello")}, {"input": []}, {"input": "x", "n": 2}):
            assert server.post("/pooling", body).status_code == 400
        assert server.post("/v1/completions", {"prompt": "x"}).status_code == 404


@pytest.mark.long
def test_10000_malformed_requests_leave_memory_as_it_was(server, caplog):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    refused_ones(server, 1000, 1, caplog)
    before = resident()
    refused_ones(server, 9000, 2, caplog)
    assert resident() - before < 100 * 2**20
    assert chat(server, "Hello").choices
