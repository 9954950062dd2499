"""Length-controlled comparisons: worlds in which it is known how much of a score is length."""

import numpy as np
import pytest

from cai_jax.core.intervals import bootstrap_mean
from cai_jax.evals import length

SLOPE = 0.02  # of a score by a token more


def world(rng, n, effect, longer=30.0, noise=0.5):
    """Differences of n prompts: the second model is `effect` better and about `longer` tokens
    longer."""
    gap = rng.normal(longer, 25.0, n)
    return effect + SLOPE * gap + rng.normal(0, noise, n), gap


def test_a_line_worked_by_hand():
    """d = 1 + 2 l exactly: the value, and no spread that an interval could come from."""
    gap = np.arange(-3.0, 7.0)
    found = length.score_difference(1 + 2 * gap, gap)
    assert found.value == pytest.approx(1.0) and found.low is None and found.n == 10
    same = length.score_difference([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    assert same == bootstrap_mean([1.0, 2.0, 3.0]), "where no length differs the mean is the answer"
    assert length.score_difference([1.0, 2.0], [0.0, 1.0]).low is None
    assert length.score_difference([], []).n == length.net_wins([], []).n == 0
    with pytest.raises(ValueError, match="finite"):
        length.score_difference([float("nan")], [1.0])


def test_length_alone_is_found_to_be_no_gain():
    """The plain difference is far from zero in every world; at equal length the interval covers
    zero in 95 % of them."""
    rng = np.random.default_rng(0)
    plain, fitted, wins = [], [], []
    for _ in range(300):
        d, gap = world(rng, 64, effect=0.0)
        plain.append(bootstrap_mean(d, num_resamples=200).covers_zero)
        fitted.append(length.score_difference(d, gap).covers_zero)
        if len(wins) < 60:
            wins.append(length.net_wins(d, gap, num_resamples=200).covers_zero)
    assert np.mean(plain) < 0.01
    assert 0.91 < np.mean(fitted) < 0.985
    assert np.mean(wins) > 0.85


def test_a_gain_beside_length_is_found():
    rng = np.random.default_rng(1)
    d, gap = world(rng, 400, effect=-0.5)
    assert d.mean() > 0, "it looks like a gain"
    found = length.score_difference(d, gap)
    assert found.high < 0 and abs(found.value + 0.5) < 0.15
    assert length.net_wins(d, gap).high < 0


def test_net_wins_without_a_length_difference_are_the_plain_ones():
    won = np.array([1.0] * 60 + [-1.0] * 30 + [0.0] * 10)
    found = length.net_wins(won, np.zeros(100))
    assert (
        found.value == pytest.approx(0.3, abs=0.01) and found.low > 0
    )  # one virtual tie among a hundred
    sweep = length.net_wins(np.ones(8), np.zeros(8))
    assert sweep.low < sweep.value - 0.05, "eight wins of eight are not certain"
    always = length.net_wins(np.ones(40), np.linspace(-1, 1, 40))
    assert 0.9 < always.value < 1 and always.high < 1, "a model that always wins has a finite lead"
    swapped = length.net_wins(-won, np.zeros(100))
    assert swapped.value == pytest.approx(-found.value)
