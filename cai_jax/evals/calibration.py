"""Is a probability worth its number? Reliability bins and expected calibration error (ECE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax.evals.intervals import Estimate, wilson

HALF_TO_ONE = (0.5, 1.0)  # the span of a confidence: the probability of the likelier side


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
    num_bins: int = 5,
    span: tuple[float, float] = HALF_TO_ONE,
) -> list[Bin]:
    """Bins of equal width over `span`, those that are not empty.

    Args:
        probabilities: [n].
        outcomes: [n]; ½ is a tie.
        num_bins: how many.
        span: of the probabilities.

    Returns:
        The bins, from the lowest on.

    Raises:
        ValueError: probabilities outside [0, 1], or another number of outcomes.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(outcomes, np.float64)
    if p.shape != y.shape or p.ndim != 1 or not np.all((p >= 0) & (p <= 1) & np.isfinite(y)):
        raise ValueError("calibration takes probabilities in [0, 1] and as many outcomes")
    edges = np.linspace(*span, num_bins + 1)
    which = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, num_bins - 1)
    bins = []
    for index in np.unique(which):
        inside = which == index
        observed = wilson(float(y[inside].sum()), int(inside.sum()))
        ends = float(edges[index]), float(edges[index + 1])
        bins.append(Bin(*ends, float(p[inside].mean()), observed))
    return bins


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


def curve(bins: Sequence[Bin]) -> tuple[list[dict], Estimate]:
    """(points of a reliability diagram, calibration error) of bins."""
    points = []
    for b in bins:
        interval = dataclasses.asdict(b.observed)
        points.append({"predicted": b.predicted, "observed": interval.pop("value"), **interval})
    n = sum(b.observed.n for b in bins)
    return points, Estimate(expected_calibration_error(bins), None, None, n)
