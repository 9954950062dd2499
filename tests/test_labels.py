"""Labels from raw log-probabilities: the formula by hand, swaps, clamps, averages."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai_jax.core import labels

LOGPROB = st.floats(-50, 0)


def record(*entries):
    return {"logprobs": [{"order": order, "chain": 0, "a": a, "b": b} for order, a, b in entries]}


def test_softmax_by_hand():
    assert labels.probability_first(
        {"order": "ab", "a": math.log(0.3), "b": math.log(0.1)}
    ) == pytest.approx(0.75)
    assert labels.probability_first(
        {"order": "ba", "a": math.log(0.3), "b": math.log(0.1)}
    ) == pytest.approx(0.25)
    assert labels.probability_first({"order": "ab", "a": -1000.0, "b": 0.0}) == 0.0


@given(LOGPROB, LOGPROB)
def test_swapping_the_options_swaps_the_label(a, b):
    p = labels.probability_first({"order": "ab", "a": a, "b": b})
    q = labels.probability_first({"order": "ab", "a": b, "b": a})
    assert p + q == pytest.approx(1)
    assert labels.probability_first({"order": "ba", "a": a, "b": b}) == q


def test_orders_chains_and_principles_are_averaged_as_probabilities():
    one = record(("ab", math.log(0.9), math.log(0.1)), ("ba", math.log(0.5), math.log(0.5)))
    two = record(("ab", math.log(0.2), math.log(0.8)))
    assert labels.target([one]) == pytest.approx((0.9 + 0.5) / 2)
    assert labels.target([one], average_orders=False) == pytest.approx(0.9)
    assert labels.target([one, two]) == pytest.approx((0.7 + 0.2) / 2)
    chains = record(("ab", math.log(0.9), math.log(0.1)), ("ab", math.log(0.5), math.log(0.5)))
    assert labels.target([chains]) == pytest.approx(0.7)


@given(LOGPROB, LOGPROB)
def test_the_clamp_of_the_paper_keeps_40_to_60_percent(a, b):
    p = labels.target([record(("ab", a, b))])
    clamped = labels.target([record(("ab", a, b))], clamp=(0.4, 0.6))
    assert 0.4 <= clamped <= 0.6
    assert clamped == pytest.approx(p) if 0.4 <= p <= 0.6 else clamped in (0.4, 0.6)


def test_hard_labels():
    assert labels.target([record(("ab", -1.0, -2.0))], kind="hard") == 1.0
    assert labels.target([record(("ab", -2.0, -1.0))], kind="hard") == 0.0
    assert labels.target([record(("ab", -1.0, -1.0))], kind="hard") == 0.5
    with pytest.raises(ValueError):
        labels.target([record(("ab", -1.0, -1.0))], kind="firm")
