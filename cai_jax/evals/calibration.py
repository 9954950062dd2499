"""Is a probability worth its number? Reliability bins and expected calibration error (ECE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax.evals.intervals import Estimate, wilson


@dataclasses.dataclass(frozen=True)
class Bin:
    """The items whose probability fell in [low, high): their mean probability and how often they
    came true."""

    low: float
    high: float
    predicted: float
    observed: Estimate


def reliability(
    probabilities: Sequence[float],
    outcomes: Sequence[float],
    *,
    num_bins: int = 10,
    span: tuple[float, float] = (0.0, 1.0),
) -> list[Bin]:
    """Non-empty bins of equal width over `span`; probabilities, outcomes float [n] (an outcome of ½
    is a tie)."""
    p, y = _checked(probabilities, outcomes)
    edges = np.linspace(*span, num_bins + 1)
    which = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, num_bins - 1)
    return [
        Bin(
            float(edges[i]),
            float(edges[i + 1]),
            float(p[which == i].mean()),
            wilson(float(y[which == i].sum()), int((which == i).sum())),
        )
        for i in range(num_bins)
        if np.any(which == i)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float | None:
    """ECE = Σ_b (n_b / n) · |mean probability − frequency| (Guo et al. 2017, eq. 3). None without
    items."""
    n = sum(b.observed.n for b in bins)
    return sum(b.observed.n * abs(b.predicted - b.observed.value) for b in bins) / n if n else None


def confidence(probabilities: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """For "the right one wins" probabilities [n]: (confidence max(p, 1−p) in [½, 1], correctness 1
    / ½ / 0).

    Of a pair, which side is called first is arbitrary; confidence against correctness is the
    diagram that does not depend on it.
    """
    p = np.asarray(probabilities, np.float64)
    return np.maximum(p, 1 - p), np.where(p == 0.5, 0.5, (p > 0.5).astype(np.float64))


def of_right_sides(probabilities: Sequence[float]) -> tuple[list[dict], Estimate]:
    """(the curve, the calibration error) of stated probabilities [n] that the right side wins, by
    five bins of confidence."""
    bins = reliability(*confidence(probabilities), num_bins=5, span=(0.5, 1.0))
    return points(bins), Estimate(expected_calibration_error(bins), None, None, len(probabilities))


def points(bins: Sequence[Bin]) -> list[dict]:
    """The bins as a curve of `metrics.json`."""
    return [
        {
            "predicted": b.predicted,
            "observed": b.observed.value,
            "low": b.observed.low,
            "high": b.observed.high,
            "n": b.observed.n,
        }
        for b in bins
    ]


def _checked(probabilities, outcomes) -> tuple[np.ndarray, np.ndarray]:
    p, y = np.asarray(probabilities, np.float64), np.asarray(outcomes, np.float64)
    if p.shape != y.shape or p.ndim != 1 or np.any((p < 0) | (p > 1)) or not np.all(np.isfinite(p)):
        raise ValueError("calibration takes probabilities in [0, 1] and as many outcomes")
    return p, y
