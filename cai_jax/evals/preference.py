"""Preference models on pairs whose better answer is known: accuracy, its baselines, and calibration
of σ(Δ)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax.evals.calibration import Bin, confidence, expected_calibration_error, reliability
from cai_jax.evals.intervals import Estimate, wilson


@dataclasses.dataclass(frozen=True)
class PairAccuracy:
    """`accuracy` with its Wilson interval; `longer`: always preferring the longer text; both count
    ties a half. `wins` and `longer_wins` [n] are the same pair by pair: 1, ½ or 0."""

    accuracy: Estimate
    longer: Estimate
    mean_margin: float | None
    ece: float | None
    bins: list[Bin]
    wins: list[float]
    longer_wins: list[float]


def wins(better: Sequence[float], worse: Sequence[float]) -> np.ndarray:
    """1 where better > worse, ½ where equal, 0 otherwise; float64 [n]."""
    a, b = np.asarray(better, np.float64), np.asarray(worse, np.float64)
    return np.where(a == b, 0.5, (a > b).astype(np.float64))


def pair_accuracy(
    chosen: Sequence[float],
    rejected: Sequence[float],
    chosen_texts: Sequence[str],
    rejected_texts: Sequence[str],
    *,
    scale: float = 1.0,
) -> PairAccuracy:
    """Accuracy on pairs, and calibration of P(chosen better) = σ(r_chosen − r_rejected) for raw
    scores r (2204 eq. 2.1): confidence max(P, 1−P) in [½, 1] against how often the preferred one is
    the chosen one.

    Args:
        chosen, rejected: scores [n].
        chosen_texts, rejected_texts: their texts, for the baseline that prefers the longer one.
        scale: what differences of these scores are multiplied by to be those of raw ones: the
            standard deviation that the scores were divided by. A rescaled difference is no logit.

    Returns:
        Numbers of all pairs, and `wins` by pair.
    """
    chosen, rejected = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    n = len(chosen)
    won = wins(chosen, rejected)
    longer = wins([len(t) for t in chosen_texts], [len(t) for t in rejected_texts])
    probability = 0.5 * (1 + np.tanh(scale * (chosen - rejected) / 2))  # σ without overflow
    bins = reliability(*confidence(probability))
    return PairAccuracy(
        wilson(float(won.sum()), n),
        wilson(float(longer.sum()), n),
        float(np.mean(chosen - rejected)) if n else None,
        expected_calibration_error(bins),
        bins,
        won.tolist(),
        longer.tolist(),
    )
