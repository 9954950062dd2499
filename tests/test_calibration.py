"""Reliability bins and ECE worked by hand."""

import numpy as np
import pytest

from cai_jax.evals.calibration import confidence, expected_calibration_error, reliability


def test_bins_by_hand():
    bins = reliability([0.1, 0.15, 0.9, 1.0], [0, 1, 1, 1], num_bins=2, span=(0, 1))
    assert [(b.low, b.high, b.observed.n) for b in bins] == [(0.0, 0.5, 2), (0.5, 1.0, 2)]
    assert bins[0].predicted == 0.125 and bins[0].observed.value == 0.5
    np.testing.assert_allclose(expected_calibration_error(bins), 0.5 * 0.375 + 0.5 * 0.05)


def test_calibrated_probabilities_have_a_small_error():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = (rng.random(20_000) < p).astype(float)
    bins = reliability(p, y, num_bins=10, span=(0, 1))
    assert expected_calibration_error(bins) < 0.015
    assert sum(b.observed.low <= b.predicted <= b.observed.high for b in bins) >= 8
    assert expected_calibration_error(reliability(p**4, y, num_bins=10, span=(0, 1))) > 0.2


def test_edges_and_nothing():
    assert [b.observed.n for b in reliability([0.5, 1.0], [1, 1], num_bins=5, span=(0.5, 1.0))] == [
        1,
        1,
    ]
    assert expected_calibration_error([]) is None
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
