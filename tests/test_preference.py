"""Pair accuracy with its baseline, ties and calibration."""

import numpy as np

from cai_jax.evals.preference import pair_accuracy, wins


def test_accuracy_longer_and_ties():
    result = pair_accuracy(
        [2.0, 1.0, 0.0, 5.0], [1.0, 1.0, 3.0, 1.0], ["aa", "b", "cc", "d"], ["a", "bb", "c", "d"]
    )
    assert result.accuracy.value == (1 + 0.5 + 0 + 1) / 4 and result.accuracy.n == 4
    assert result.longer.value == (1 + 0 + 1 + 0.5) / 4
    assert np.isclose(result.mean_margin, (1 + 0 - 3 + 4) / 4)


def test_margins_far_from_zero_are_safe_and_miscalibration_shows():
    sure_and_wrong = pair_accuracy([-1000.0] * 10, [1000.0] * 10, ["a"] * 10, ["b"] * 10)
    assert sure_and_wrong.ece == 1.0 and sure_and_wrong.accuracy.value == 0.0
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 1, 4000)
    sign = np.where(rng.random(4000) < 1 / (1 + np.exp(-margin)), 1.0, -1.0)
    assert pair_accuracy(margin * sign, np.zeros(4000), [""] * 4000, [""] * 4000).ece < 0.03


def test_calibration_is_of_raw_differences():
    """Raw differences are log-odds by construction; scores divided by their deviation are
    calibrated once scaled back."""
    rng = np.random.default_rng(1)
    raw = rng.normal(0, 3, 8000)
    sign = np.where(rng.random(8000) < 1 / (1 + np.exp(-raw)), 1.0, -1.0)
    scores, texts = raw * sign / 3, [""] * 8000
    assert pair_accuracy(scores, np.zeros(8000), texts, texts, scale=3.0).ece < 0.02
    assert pair_accuracy(scores, np.zeros(8000), texts, texts).ece > 0.1


def test_no_pairs():
    result = pair_accuracy([], [], [], [])
    assert result.accuracy.value is None and result.ece is None and result.bins == []
    assert wins([], []).shape == (0,)
