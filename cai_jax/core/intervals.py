"""95 % intervals: Wilson for shares, seeded bootstrap for means, and paired differences on the same
items of both.

Every number that a run reports is an `Estimate`. `low` and `high` are None where the data cannot
give an interval (fewer than two items, or values that are all equal), so a table never shows a
false certainty: no interval has zero width.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

Z = statistics.NormalDist().inv_cdf(0.975)
NUM_RESAMPLES = 4000
ROUNDING = 1e-6  # scores are float32: values that differ by less are equal
FEW = 4  # fewer items than this are not resampled
# Units of means of values that are 0 or 1 (or ½), whose intervals are those of shares.
SHARES = ("share", "accuracy")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its interval; `n` is the count of independent items behind it (prompts, not
    samples)."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def covers_zero(self) -> bool:
        """True where zero is not excluded, a null result (also where no interval is known)."""
        return self.low is None or self.high is None or self.low <= 0.0 <= self.high


def wilson(successes: float, n: int) -> Estimate:
    """Wilson score interval of a proportion (Wilson 1927, eq. 4). `successes` may be fractional
    (ties count a half).

    centre = (p + z²/2n) / (1 + z²/n),  half width = Z / (1 + z²/n) · √(p(1−p)/n + z²/4n²).
    """
    if n == 0:
        return Estimate(None, None, None, 0)
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes among {n}")
    p = successes / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def net_wins(differences: Sequence[float]) -> Estimate:
    """P(> 0) − P(< 0) among `differences` [n], by Wilson's interval of wins in which a tie is a
    half: unlike a resampled mean it is not certain where all of a few agree."""
    won = sum(0.5 * (1 + float(d > 0) - float(d < 0)) for d in differences)
    share = wilson(won, len(differences))
    if share.value is None:
        return share
    return Estimate(2 * share.value - 1, 2 * share.low - 1, 2 * share.high - 1, share.n)


def bootstrap_mean(
    values: Sequence[float],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """Mean of `values` [n] with the wider of two intervals on each side: bootstrap-t (Efron &
    Tibshirani 1993, section 12.5) and Student's t.

    The first follows skewed values, the second does not shrink where a few resamples agree;
    together they cover a mean of normal, uniform or exponential values at least 93 times of 100
    from eight items on. Below four items Student's is the only one. All-equal values have no
    interval: they say nothing of how far another item would be from them.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not np.all(np.isfinite(x)):
        raise ValueError("bootstrap_mean takes a vector of finite numbers")
    n = len(x)
    if n == 0:
        return Estimate(None, None, None, 0)
    mean = float(x.mean())
    if n == 1:
        return Estimate(mean, None, None, 1)
    error = float(x.std(ddof=1)) / math.sqrt(n)
    if error <= ROUNDING * max(1.0, abs(mean)):
        return Estimate(mean, None, None, n)
    half = float(stdtrit(n - 1, 0.975)) * error
    low, high = mean - half, mean + half
    if n < FEW:
        return Estimate(mean, low, high, n)
    rng = np.random.default_rng([seed, n])
    t = np.empty(0)
    for start in range(0, num_resamples, 256):  # blocks bound the memory for many items
        resamples = x[rng.integers(0, n, (min(256, num_resamples - start), n))]
        spread = resamples.std(axis=1, ddof=1) / math.sqrt(n)
        usable = spread > 0.05 * error  # a resample of nearly equal values has no meaningful t
        t = np.concatenate([t, (resamples[usable].mean(axis=1) - mean) / spread[usable]])
    t_low, t_high = np.quantile(t, [0.025, 0.975])
    return Estimate(
        mean, min(low, mean - float(t_high) * error), max(high, mean - float(t_low) * error), n
    )


def share_difference(differences: Sequence[float]) -> Estimate:
    """Mean of `differences` [n] between two shares of the same items, each in [−1, 1] (Bonett &
    Price 2012, eq. 5).

    Wald's interval after one item of −1 and one of +1 are added: it covers from two items on and
    has width where all agree.
    """
    d = np.asarray(differences, np.float64)
    if d.ndim != 1 or not np.all(np.abs(d) <= 1):  # also refuses NaN
        raise ValueError("share_difference takes a vector of numbers in [-1, 1]")
    n = len(d)
    if n < 2:
        return Estimate(float(d[0]) if n else None, None, None, n)
    padded = np.concatenate([d, [-1.0, 1.0]])
    half = Z * float(padded.std()) / math.sqrt(n + 2)
    value, centre = float(d.mean()), float(padded.mean())
    return Estimate(
        value, min(value, max(-1.0, centre - half)), max(value, min(1.0, centre + half)), n
    )


def cluster_means(values: Iterable[float], clusters: Iterable[str]) -> dict[str, float]:
    """Cluster → the mean of its values, sorted: the samples of a prompt are averaged, as the prompt
    is the unit that is independent."""
    groups: dict[str, list[float]] = {}
    for value, name in zip(values, clusters, strict=True):
        groups.setdefault(name, []).append(float(value))
    return {name: float(np.mean(groups[name])) for name in sorted(groups)}


def paired_difference(
    a: dict[str, float], b: dict[str, float], *, seed: int = 0, shares: bool = False
) -> Estimate:
    """Mean of b − a over the items that both have: pairing removes the spread between items.

    Args:
        a, b: item id → value.
        seed: of the bootstrap.
        shares: the values are in [0, 1] (right or wrong, refused or not), so `share_difference`
            gives the interval.

    Returns:
        The mean difference; n counts the common items.
    """
    differences = [b[name] - a[name] for name in sorted(set(a) & set(b))]
    return share_difference(differences) if shares else bootstrap_mean(differences, seed=seed)


def mcnemar(a: dict[str, float], b: dict[str, float]) -> float | None:
    """Exact two-sided McNemar p-value for two models' right (1) and wrong (0) answers on the same
    items.

    Only items that exactly one of them got right count: under the null they split as Binomial(m,
    ½). None without any.
    """
    only_a = sum(a[name] > b[name] for name in a if name in b)
    only_b = sum(b[name] > a[name] for name in a if name in b)
    decided = only_a + only_b
    tail = sum(math.comb(decided, k) for k in range(min(only_a, only_b) + 1)) / 2**decided
    return min(1.0, 2 * tail) if decided else None


def mean_estimate(values: Sequence[float], unit: str, seed: int) -> Estimate:
    """The mean of a metric with this unit: all zeros among n prompts do not make a share zero, and
    Wilson says how large it may still be. A share of 4-grams varies less than a share of answers,
    so it is treated as one only where all values are equal."""
    if unit in SHARES:
        return wilson(sum(values), len(values))
    estimate = bootstrap_mean(values, seed=seed)
    equal = unit.startswith("share") and estimate.low is None
    return wilson(sum(values), len(values)) if equal else estimate


def difference_estimate(
    before: Mapping[str, float], after: Mapping[str, float], unit: str, seed: int
) -> Estimate:
    """The paired difference after − before of a metric with this unit, as in `mean_estimate`.

    Args:
        before, after: item id → value.
        unit: of the values.
        seed: of the bootstrap.

    Returns:
        The mean difference.
    """
    estimate = paired_difference(before, after, seed=seed, shares=unit in SHARES)
    if unit.startswith("share") and estimate.low is None:
        return paired_difference(before, after, shares=True)
    return estimate
