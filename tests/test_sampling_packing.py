"""Several questions in one forward pass: the same log-probabilities as one by one, and the same bits whatever is left to do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_jax.sampling import packing
from cai_jax.structs import ScoreRequest
from tests.test_sampling_engine import HEADER, engine, some_tokens

LENGTHS = (5, 70, 33, 100, 64, 12, 90, 150, 41)


def questions(header=()):
    return [ScoreRequest(f"q{i}", (*([header] if header else []), some_tokens(length)),
                         tuple(some_tokens(1 + (i + j) % 3) for j in range(2 + i % 3))) for i, length in enumerate(LENGTHS)]


@given(st.lists(st.integers(1, 100), max_size=30))
@settings(max_examples=60, deadline=None)
def test_every_question_once_and_no_row_too_long(lengths):
    groups = packing.pack(lengths, 100)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in group) <= 100 for group in groups)
    half_full = sum(sum(lengths[index] for index in group) <= 50 for group in groups)
    assert half_full <= 1, "two of them would have shared a row"
    assert packing.pack(lengths, 100) == groups


@pytest.mark.parametrize("header", [(), HEADER], ids=["alone", "behind a header"])
@pytest.mark.parametrize("size", [512, 128])  # of 128: some questions stand alone, and the longest in pieces
def test_the_same_numbers_as_one_by_one(monkeypatch, header, size):
    monkeypatch.setattr(packing, "PACK", size)
    asked = questions(header)
    alone = {score.id: score.token_logprobs for score in engine().score(asked)}
    together = {score.id: score.token_logprobs for score in engine().score(asked, together=True)}
    assert set(alone) == set(together) == {request.id for request in asked}
    for request in asked:
        assert list(map(len, together[request.id])) == list(map(len, request.options))
        for ours, theirs in zip(together[request.id], alone[request.id], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_what_is_left_gets_the_same_bits(monkeypatch):
    monkeypatch.setattr(packing, "PACK", 256)
    asked, told = questions(), []
    whole = {score.id: score.token_logprobs for score in engine().score(asked, together=True)}
    left = {"q1", "q4", "q7"}
    found = list(engine().score(asked, lambda done, total: told.append((done, total)), together=True, wanted=left))
    assert {score.id for score in found} == left and told == [(1, 3), (2, 3), (3, 3)]
    assert all(score.token_logprobs == whole[score.id] for score in found)
    assert not list(engine().score(asked, together=True, wanted=set()))
