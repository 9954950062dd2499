"""Pair accuracy with its baseline, ties and calibration."""

import numpy as np
import pytest

from cai_jax.core.accuracy import calibration_error, confidence, of_pairs, reliability, wins


def test_accuracy_longer_and_ties():
    result = of_pairs(
        [2.0, 1.0, 0.0, 5.0], [1.0, 1.0, 3.0, 1.0], ["aa", "b", "cc", "d"], ["a", "bb", "c", "d"]
    )
    assert result.accuracy.value == (1 + 0.5 + 0 + 1) / 4 and result.accuracy.n == 4
    assert result.always_longer.value == (1 + 0 + 1 + 0.5) / 4
    assert result.wins == [1.0, 0.5, 0.0, 1.0] and result.longer == [1.0, 0.0, 1.0, 0.5]


def test_margins_far_from_zero_are_safe_and_miscalibration_shows():
    sure_and_wrong = of_pairs([-1000.0] * 10, [1000.0] * 10, ["a"] * 10, ["b"] * 10)
    assert sure_and_wrong.calibration_error == 1.0 and sure_and_wrong.accuracy.value == 0.0
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 1, 4000)
    sign = np.where(rng.random(4000) < 1 / (1 + np.exp(-margin)), 1.0, -1.0)
    assert (
        of_pairs(margin * sign, np.zeros(4000), [""] * 4000, [""] * 4000).calibration_error < 0.03
    )


def test_calibration_is_of_raw_differences():
    """Raw differences are log-odds by construction; scores divided by their deviation are
    calibrated once scaled back."""
    rng = np.random.default_rng(1)
    raw = rng.normal(0, 3, 8000)
    sign = np.where(rng.random(8000) < 1 / (1 + np.exp(-raw)), 1.0, -1.0)
    scores, texts = raw * sign / 3, [""] * 8000
    assert of_pairs(scores, np.zeros(8000), texts, texts, scale=3.0).calibration_error < 0.02
    assert of_pairs(scores, np.zeros(8000), texts, texts).calibration_error > 0.1


def test_no_pairs():
    result = of_pairs([], [], [], [])
    assert (
        result.accuracy.value is None and result.calibration_error is None and result.points == []
    )
    assert wins([], []).shape == (0,)


def test_bins_by_hand():
    bins = reliability([0.1, 0.15, 0.9, 1.0], [0, 1, 1, 1], num_bins=2, span=(0, 1))
    assert [b["n"] for b in bins] == [2, 2]
    assert bins[0]["predicted"] == 0.125 and bins[0]["observed"] == 0.5
    np.testing.assert_allclose(calibration_error(bins), 0.5 * 0.375 + 0.5 * 0.05)


def test_calibrated_probabilities_have_a_small_error():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = (rng.random(20_000) < p).astype(float)
    bins = reliability(p, y, num_bins=10, span=(0, 1))
    assert calibration_error(bins) < 0.015
    assert sum(b["low"] <= b["predicted"] <= b["high"] for b in bins) >= 8
    assert calibration_error(reliability(p**4, y, num_bins=10, span=(0, 1))) > 0.2


def test_edges_and_nothing():
    assert [b["n"] for b in reliability([0.5, 1.0], [1, 1], num_bins=5, span=(0.5, 1.0))] == [
        1,
        1,
    ]
    assert calibration_error([]) is None
    with pytest.raises(ValueError):
        reliability([1.2], [1])
    with pytest.raises(ValueError):
        reliability([0.2], [1, 0])


def test_confidence_does_not_depend_on_the_side():
    p = np.array([0.2, 0.5, 0.7])
    c, right = confidence(p)
    np.testing.assert_allclose(c, [0.8, 0.5, 0.7])
    np.testing.assert_allclose(right, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(confidence(1 - p)[0], c)
