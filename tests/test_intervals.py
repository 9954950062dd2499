"""Intervals against scipy, closed forms and their own coverage."""

import math

import numpy as np
import pytest

from cai_jax.core.intervals import (
    Estimate,
    bootstrap_mean,
    cluster_means,
    mcnemar,
    net_wins,
    paired_difference,
    share_difference,
    wilson,
)

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("successes,n", [(0, 10), (1, 10), (5, 10), (10, 10), (307, 438), (3, 3)])
def test_wilson_equals_scipy(successes, n):
    ours = wilson(successes, n)
    theirs = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert ours.value == successes / n
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=1e-12)


def test_wilson_of_nothing_and_of_ties():
    assert wilson(0, 0) == Estimate(None, None, None, 0)
    assert wilson(2.5, 10).value == 0.25
    with pytest.raises(ValueError):
        wilson(11, 10)


def test_paper_standard_error():
    """Section 5: the standard error on 438 items at 70 % is 2.2 points."""
    interval = wilson(0.7 * 438, 438)
    assert math.isclose((interval.high - interval.low) / 2 / 1.96, 0.022, abs_tol=5e-4)


def test_bootstrap_agrees_with_student_t_on_normal_data():
    x = np.random.default_rng(0).normal(3.0, 2.0, 200)
    ours = bootstrap_mean(x)
    low, high = scipy_stats.t.interval(0.95, 199, x.mean(), scipy_stats.sem(x))
    np.testing.assert_allclose([ours.low, ours.high], [low, high], atol=0.04)


def test_few_items_get_the_student_t_interval():
    x = np.array([0.2, 1.4, 0.7])
    ours = bootstrap_mean(x)
    expected = scipy_stats.t.interval(0.95, 2, x.mean(), scipy_stats.sem(x))
    np.testing.assert_allclose([ours.low, ours.high], expected, rtol=1e-9)


def test_bootstrap_is_seeded_and_honest_about_few_items():
    x = [0.1, 0.5, 0.2, 0.9, 0.4, 0.6, 0.3, 0.8]
    assert bootstrap_mean(x, seed=3) == bootstrap_mean(x, seed=3)
    assert bootstrap_mean(x, seed=3) != bootstrap_mean(x, seed=4)
    assert bootstrap_mean([]).value is None
    assert bootstrap_mean([2.0]) == Estimate(2.0, None, None, 1)
    assert bootstrap_mean([2.0] * 9) == Estimate(2.0, None, None, 9)  # nothing tells of a tenth
    with pytest.raises(ValueError):
        bootstrap_mean([1.0, float("nan")])


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("draw", ["normal", "exponential", "random"])
def test_bootstrap_covers_from_eight_items_on(draw, size):
    rng = np.random.default_rng(1)
    truth, hits, trials = {"normal": 0.0, "exponential": 1.0, "random": 0.5}[draw], 0, 400
    for trial in range(trials):
        interval = bootstrap_mean(getattr(rng, draw)(size=size), seed=trial, num_resamples=500)
        hits += interval.low <= truth <= interval.high
    assert hits / trials >= 0.93  # 0.94 to 0.97; the percentile bootstrap: 0.88 to 0.92


# Of two models' right and wrong answers to an item: shares of (neither, only the second, only the
# first, both).
PAIRS = ([0.9, 0.0, 0.1, 0.0], [0.25] * 4, [0.9, 0.08, 0.02, 0.0], [0.05, 0.9, 0.0, 0.05])


@pytest.mark.parametrize("size", [2, 8, 24])
@pytest.mark.parametrize("cells", PAIRS)
def test_differences_of_shares_cover(cells, size):
    rng, hits, trials = np.random.default_rng(3), 0, 1000
    for _ in range(trials):
        drawn = rng.choice(4, size, p=cells)
        interval = share_difference((drawn % 2).astype(float) - (drawn >= 2))
        hits += interval.low <= cells[1] - cells[2] <= interval.high
    assert hits / trials >= 0.93


def test_differences_of_shares_by_hand_and_never_certain():
    """Twelve items that agree: 0 ± 1.96 · √(2 / 14) / √14."""
    none = share_difference([0.0] * 12)
    assert none.value == 0 and none.high == pytest.approx(1.96 * math.sqrt(2) / 14, abs=1e-4)
    assert none.low == -none.high
    won = share_difference([1.0, 1.0])
    assert won.value == won.high == 1.0 and won.covers_zero, "two items prove nothing"
    assert share_difference([1.0] * 12).low > 0.4
    assert share_difference([0.5]).low is None and share_difference([]).value is None
    one = paired_difference(
        {str(i): float(i < 2) for i in range(48)}, {str(i): 0.0 for i in range(48)}, shares=True
    )
    assert one.low < one.value < one.high, "the estimate is no end of its interval"
    with pytest.raises(ValueError, match="-1, 1"):
        share_difference([2.0])


def test_equal_differences_of_scores_have_no_interval():
    found = paired_difference({"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 1.0})
    assert found == Estimate(1.0, None, None, 2) and found.covers_zero


def test_samples_of_a_prompt_count_once():
    assert cluster_means([1.0, 3.0, 10.0], ["b", "b", "a"]) == {"a": 10.0, "b": 2.0}


def test_pairing_finds_what_two_intervals_hide():
    rng = np.random.default_rng(2)
    items = {str(i): float(v) for i, v in enumerate(rng.normal(0, 5, 40))}
    better = {k: v + 0.3 + rng.normal(0, 0.1) for k, v in items.items()}
    difference = paired_difference(items, better)
    assert not difference.covers_zero and 0.25 < difference.value < 0.35
    assert (
        bootstrap_mean(list(items.values())).high > bootstrap_mean(list(better.values())).low
    )  # unpaired: overlap
    assert paired_difference({"x": 1.0}, {"y": 2.0}).n == 0
    assert paired_difference({"x": 1.0}, {"x": 2.0}).covers_zero  # one item proves nothing


def test_mcnemar_equals_the_binomial_test():
    a = {str(i): float(i < 30) for i in range(50)}
    b = {str(i): float(i < 20 or i >= 45) for i in range(50)}
    assert math.isclose(mcnemar(a, b), scipy_stats.binomtest(5, 15).pvalue)
    assert mcnemar(a, a) is None


def test_net_wins_are_wilsons_and_never_certain():
    found = net_wins([0.3] * 60 + [-2.0] * 30 + [0.0] * 10)
    share = wilson(65, 100)
    assert (
        found.value == pytest.approx(0.3)
        and found.low == pytest.approx(2 * share.low - 1)
        and found.n == 100
    )
    assert net_wins([-1.0] * 3).value == -1.0 and net_wins([-1.0] * 3).high > -0.5
    assert net_wins([]).value is None
