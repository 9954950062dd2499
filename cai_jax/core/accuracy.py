"""Accuracy where the right answer is known, next to its baselines, and calibration: is a
probability worth its number? Shared by what trains a judge and what evaluates it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cai_jax.core.intervals import Estimate, bootstrap_mean, wilson

HALF_TO_ONE = (0.5, 1.0)  # the span of a confidence: the probability of the likelier side


@dataclasses.dataclass(frozen=True)
class PairAccuracy:
    """Of pairs whose better side is known, pair by pair, 1, ½ for a tie or 0: `wins`, whether the
    better side has the higher score, and `longer`, whether it is the longer text. `points`: see
    `reliability`."""

    wins: list[float]
    longer: list[float]
    points: list[dict]

    @property
    def accuracy(self) -> Estimate:
        return wilson(sum(self.wins), len(self.wins))

    @property
    def always_longer(self) -> Estimate:
        """The accuracy of always preferring the longer text."""
        return wilson(sum(self.longer), len(self.longer))

    @property
    def calibration_error(self) -> float | None:
        return calibration_error(self.points)


def wins(better: Sequence[float], worse: Sequence[float]) -> np.ndarray:
    """1 where better > worse, ½ where equal, 0 otherwise; float64 [n]."""
    a, b = np.asarray(better, np.float64), np.asarray(worse, np.float64)
    return np.where(a == b, 0.5, (a > b).astype(np.float64))


def of_pairs(
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
        Numbers by pair.
    """
    chosen, rejected = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    longer = wins([len(t) for t in chosen_texts], [len(t) for t in rejected_texts])
    probability = 0.5 * (1 + np.tanh(scale * (chosen - rejected) / 2))  # σ without overflow
    points = reliability(*confidence(probability))
    return PairAccuracy(wins(chosen, rejected).tolist(), longer.tolist(), points)


# Calibration --------------------------------------------------------------------------------------


def confidence(probabilities: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """For "the right one wins" probabilities [n]: (confidence max(p, 1−p) in [½, 1], correctness 1
    / ½ / 0).

    Of a pair, which side is called first is arbitrary; confidence against correctness is the
    diagram that does not depend on it.
    """
    p = np.asarray(probabilities, np.float64)
    return np.maximum(p, 1 - p), wins(p, 1 - p)


def reliability(
    probabilities: Sequence[float],
    outcomes: Sequence[float],
    *,
    num_bins: int = 5,
    span: tuple[float, float] = HALF_TO_ONE,
) -> list[dict]:
    """The points of a reliability diagram: bins of equal width over `span`, those that are not
    empty.

    Args:
        probabilities: [n].
        outcomes: [n]; ½ is a tie.
        num_bins: how many.
        span: of the probabilities.

    Returns:
        From the lowest bin on its mean probability "predicted", the share "observed" that came
        true, the ends "low" and "high" of that share's interval, and "n".

    Raises:
        ValueError: probabilities outside [0, 1], or another number of outcomes.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(outcomes, np.float64)
    if p.shape != y.shape or p.ndim != 1 or not np.all((p >= 0) & (p <= 1) & np.isfinite(y)):
        raise ValueError("calibration takes probabilities in [0, 1] and as many outcomes")
    edges = np.linspace(*span, num_bins + 1)
    which = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, num_bins - 1)
    points = []
    for index in np.unique(which):
        inside = which == index
        observed = dataclasses.asdict(wilson(float(y[inside].sum()), int(inside.sum())))
        predicted = float(p[inside].mean())
        points.append({"predicted": predicted, "observed": observed.pop("value"), **observed})
    return points


def calibration_error(points: Sequence[Mapping]) -> float | None:
    """ECE = Σ_b (n_b / n) · |mean probability − frequency| (Guo et al. 2017, eq. 3). None without
    items."""
    n = sum(b["n"] for b in points)
    return sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in points) / n if n else None


def calibration(points: Sequence[Mapping]) -> Estimate:
    """The calibration error as a number without an interval."""
    return Estimate(calibration_error(points), None, None, sum(b["n"] for b in points))


# Regression ---------------------------------------------------------------------------------------


def regression_errors(records: Iterable[Mapping], mean: float, *, seed: int = 0) -> dict[str, dict]:
    """By source of the records {"rating", "predicted", "source"}: "l2" (mean squared error with its
    interval), "mean_predictor" (that of always saying `mean`), "difference" (paired, ours − the
    mean's) and "correlation"."""
    groups = collections.defaultdict(list)
    for record in records:
        groups[record["source"]].append((record["rating"], record["predicted"]))
    errors = {}
    for source, pairs in sorted(groups.items()):
        rating, predicted = np.array(pairs, np.float64).T
        ours, constant = np.square(predicted - rating), np.square(mean - rating)
        varies = rating.std() > 0 and predicted.std() > 0
        errors[source] = {
            "l2": dataclasses.asdict(bootstrap_mean(ours, seed=seed)),
            "mean_predictor": float(constant.mean()),
            "difference": dataclasses.asdict(bootstrap_mean(ours - constant, seed=seed)),
            "correlation": float(np.corrcoef(rating, predicted)[0, 1]) if varies else None,
        }
    return errors
