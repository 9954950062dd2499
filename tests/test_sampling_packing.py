"""Several questions in one forward pass: the same log-probabilities as one by one, and the same
bits whatever is left to do."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_jax.core import losses
from cai_jax.engine import packed_reader, packing
from cai_jax.engine.engine import Engine
from cai_jax.models import decoder
from cai_jax.structs import ScoreRequest
from tests.test_sampling_engine import CONFIG, HEADER, Format, model, some_tokens

LENGTHS = (5, 70, 33, 100, 64, 12, 90, 150, 41)
LONG = HEADER + some_tokens(190)  # more than a row
BEGINNING = some_tokens(30)


def questions(header=()):
    """Every third one begins as the others of that kind do."""
    return [
        ScoreRequest(
            f"q{i}",
            (*([header] if header else []), BEGINNING * (i % 3 == 1) + some_tokens(length)),
            tuple(some_tokens(1 + (i + j) % 3) for j in range(2 + i % 3)),
        )
        for i, length in enumerate(LENGTHS)
    ]


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows of 256 tokens, read in several blocks; questions of more stand alone."""
    sizes = {"TOKENS": 128, "QUERIES": 32, "KEYS": 32, "PREFIX_KEYS": 64, "TARGETS": 16}
    for name, size in sizes.items():
        monkeypatch.setattr(packed_reader, name, size)
    monkeypatch.setattr(packing, "BLOCKWISE", 256)
    packed_reader.read.clear_cache()
    yield
    packed_reader.read.clear_cache()


@given(st.lists(st.integers(1, 100), max_size=30))
@settings(max_examples=60, deadline=None)
def test_every_question_once_and_no_row_too_long(lengths):
    groups = packing.pack(lengths, 100)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in group) <= 100 for group in groups)
    half_full = sum(sum(lengths[index] for index in group) <= 50 for group in groups)
    assert half_full <= 1, "two of them would have shared a row"
    assert packing.pack(lengths, 100) == groups


few_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=6)  # so few that texts begin alike


@given(
    st.lists(
        st.tuples(few_tokens, st.lists(few_tokens, min_size=1, max_size=3)), min_size=1, max_size=6
    )
)
@settings(max_examples=100, deadline=None)
def test_each_token_sees_its_own_text(asked):
    row = packing.several(asked)

    def text(place):
        return [row.tokens[i] for i in range(place + 1) if row.ends[i] > place]

    for (prompt, options), found in zip(asked, row.scored, strict=True):
        for option, indices in zip(options, found, strict=True):
            assert [row.targets[index] for index in indices] == option
            for number, index in enumerate(indices):
                assert text(row.indices[index]) == prompt + option[:number]
                assert row.offsets[row.indices[index]] == len(prompt) + number - 1
    texts = {
        tuple((*prompt, *option[:-1])[:end])
        for prompt, options in asked
        for option in options
        for end in range(1, len(prompt) + len(option))
    }
    assert len(row.tokens) == len(texts), "what texts begin with stands there once"
    assert len(set(zip(row.indices, row.targets, strict=True))) == len(row.targets)


@given(
    st.lists(st.tuples(few_tokens, st.lists(few_tokens, min_size=1, max_size=3)), max_size=12),
    st.integers(6, 40),
)
@settings(max_examples=60, deadline=None)
def test_rows_hold_what_fits(asked, size):
    rows = packing.together(asked, size)
    fits = [
        index
        for index, question in enumerate(asked)
        if len(packing.several([question]).tokens) <= size
    ]
    assert sorted(index for row in rows for index in row) == fits
    assert all(len(packing.several([asked[index] for index in row]).tokens) <= size for row in rows)


def test_questions_that_begin_alike_share_a_row():
    one, other = list(range(100)), list(range(200, 300))
    asked = [(start + [number], [[1, 2], [1, 3]]) for number in range(3) for start in (one, other)]
    rows = packing.together(asked, 120)
    assert sorted(map(sorted, rows)) == [[0, 2, 4], [1, 3, 5]]
    assert len(packing.several([asked[index] for index in rows[0]]).tokens) == 100 + 3 * 2


def expected(request, config):
    """Of all options' tokens, from one pass over each whole text."""
    prompt = sum(request.segments, ())
    tokens = np.zeros((len(request.options), 512), np.int32)
    for row, option in zip(tokens, request.options, strict=True):
        row[: len(prompt) + len(option)] = prompt + option
    hidden = decoder.hidden_states(model(), tokens, np.ones_like(tokens, bool), config)
    found = losses.next_token_logprobs(hidden, decoder.unembedding(model(), config), tokens)
    return [
        np.asarray(row)[len(prompt) : len(prompt) + len(option)]
        for row, option in zip(found, request.options, strict=True)
    ]


@pytest.mark.parametrize(
    ("header", "window"),
    [((), 0), (LONG, 0), (LONG, 40)],
    ids=["alone", "behind a header", "windows"],
)
def test_the_numbers_are_those_of_whole_texts(small_blocks, header, window):
    config = dataclasses.replace(CONFIG, windows=(window, 0) if window else ())
    asked = questions(header)
    found = {
        score.id: score.token_logprobs
        for score in Engine(model(), config, Format).score(asked, together=True)
    }
    assert set(found) == {request.id for request in asked}
    for request in asked:
        for ours, theirs in zip(found[request.id], expected(request, config), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_without_blocks_they_are_the_same(small_blocks, monkeypatch):
    """As on accelerators and meshes, where all of a row is multiplied; one question is too long for
    that."""
    monkeypatch.setattr(packing, "PACK", 128)
    asked, way = questions(HEADER)[1:5], Engine(model(), CONFIG, Format)
    monkeypatch.setattr(way.runner, "kernel", "")
    read = {
        score.id: score.token_logprobs
        for score in Engine(model(), CONFIG, Format).score(asked, together=True)
    }
    for score in way.score(asked, together=True):
        for ours, theirs in zip(score.token_logprobs, read[score.id], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_what_is_left_gets_the_same_bits(small_blocks):
    asked, way = questions(), Engine(model(), CONFIG, Format)
    whole = {score.id: score.token_logprobs for score in way.score(asked, together=True)}
    left = {"q1", "q4", "q7"}
    found = list(way.score(asked, together=True, wanted=left))
    assert {score.id for score in found} == left
    assert all(score.token_logprobs == whole[score.id] for score in found)
    assert not list(way.score(asked, together=True, wanted=set()))
