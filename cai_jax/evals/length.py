"""Two models compared as if their answers were equally long: preference models often reward length
itself.

By prompt i: d_i the difference of two models' scores, l_i that of their lengths. Both measures fit
what length explains and read the fit at l = 0, the idea of length-controlled AlpacaEval (Dubois et
al. 2024, arXiv 2404.04475, eq. 2, without its term for the prompt's difficulty). They correct for a
length that acts evenly; they cannot tell length from what comes with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, stdtrit

from cai_jax.core.intervals import ROUNDING, Estimate, bootstrap_mean

FEWEST = 8  # prompts below which no line is fitted
RIDGE = 0.25  # on the slope: keeps it finite where length separates wins from losses


def score_difference(
    scores: Sequence[float], lengths: Sequence[float], *, seed: int = 0
) -> Estimate:
    """The intercept of d on l by least squares, with a t-interval on errors that may differ by
    prompt (HC3, MacKinnon & White 1985). The plain mean where all l are equal; no interval below
    eight prompts."""
    d, gap = _checked(scores, lengths)
    n = len(d)
    if n == 0 or np.ptp(gap) == 0:
        return bootstrap_mean(d, seed=seed)
    # Lengths in units of their spread, so that the two columns are of one size.
    design = np.stack([np.ones(n), gap / gap.std()], axis=1)
    inverse = np.linalg.inv(design.T @ design)
    fitted = inverse @ design.T @ d
    if n < FEWEST:
        return Estimate(float(fitted[0]), None, None, n)
    # HC3 divides by 1 − leverage, which is 0 for a prompt that alone fixes the slope.
    leverage = np.minimum(np.einsum("ij,jk,ik->i", design, inverse, design), 1 - 1e-9)
    weighted = design * ((d - design @ fitted) / (1 - leverage))[:, None]
    error = float(np.sqrt((inverse @ weighted.T @ weighted @ inverse)[0, 0]))
    if error <= ROUNDING * max(1.0, float(np.abs(d).max())):
        return Estimate(float(fitted[0]), None, None, n)  # all on one line: no spread to go by
    half = float(stdtrit(n - 2, 0.975)) * error
    return Estimate(float(fitted[0]), float(fitted[0]) - half, float(fitted[0]) + half, n)


def net_wins(
    scores: Sequence[float],
    lengths: Sequence[float],
    *,
    seed: int = 0,
    num_resamples: int = 1000,
) -> Estimate:
    """P(win) − P(loss) at equal length: 2 σ(a) − 1 of P(win) = σ(a + b · tanh(l / std l)), with one
    virtual tie at l = 0 and a small ridge on b. A tie is half a win; zero means that neither is
    preferred. Bayesian bootstrap over prompts, with a win and a loss of weight Gamma(½) at l = 0
    (as in `elo.elo`): it has width where one side won all.

    Args:
        scores, lengths: differences by prompt [n].
        seed: of the resamples.
        num_resamples: how many of them.

    Returns:
        Net wins in [−1, 1].
    """
    d, gap = _checked(scores, lengths)
    n = len(d)
    if n == 0:
        return Estimate(None, None, None, 0)
    won = np.where(d == 0, 0.5, (d > 0).astype(np.float64))
    x = np.tanh(gap / gap.std()) if np.ptp(gap) > 0 else np.zeros(n)
    rng = np.random.default_rng([seed, n])
    value = float(2 * expit(_fit(np.ones((1, n)), np.full((1, 2), 0.5), x, won)[0]) - 1)
    if n < FEWEST:
        return Estimate(value, None, None, n)
    counts, virtual = (
        rng.exponential(size=(num_resamples, n)),
        rng.gamma(0.5, size=(num_resamples, 2)),
    )
    shares = 2 * expit(_fit(counts, virtual + 1e-6, x, won)) - 1
    low, high = np.quantile(shares, [0.025, 0.975])
    return Estimate(value, min(value, float(low)), max(value, float(high)), n)


def _fit(
    counts: np.ndarray, virtual: np.ndarray, x: np.ndarray, won: np.ndarray, num_steps: int = 40
) -> np.ndarray:
    """The intercepts [R] of weighted logistic fits by Newton's method; counts [R, n] are the
    prompts' weights, virtual [R, 2] those of a win and a loss at l = 0."""
    a, b = np.zeros(len(counts)), np.zeros(len(counts))
    for _ in range(num_steps):
        p = expit(a[:, None] + b[:, None] * x)
        error, curve = counts * (won - p), counts * p * (1 - p)
        tie = expit(a)
        slope_a = error.sum(1) + virtual[:, 0] - virtual.sum(1) * tie
        slope_b = error @ x - RIDGE * b
        aa = curve.sum(1) + virtual.sum(1) * tie * (1 - tie) + 1e-12
        ab, bb = curve @ x, curve @ (x * x) + RIDGE
        determinant = aa * bb - ab * ab
        a = a + np.clip((bb * slope_a - ab * slope_b) / determinant, -2.0, 2.0)
        b = b + np.clip((aa * slope_b - ab * slope_a) / determinant, -2.0, 2.0)
    return a


def _checked(scores, lengths) -> tuple[np.ndarray, np.ndarray]:
    d, gap = np.asarray(scores, np.float64), np.asarray(lengths, np.float64)
    if (
        d.shape != gap.shape
        or d.ndim != 1
        or not (np.all(np.isfinite(d)) and np.all(np.isfinite(gap)))
    ):
        raise ValueError(
            "a length-controlled comparison takes as many finite differences of length as of score"
        )
    return d, gap
