"""Elo ratings from pairwise outcomes: a Bradley–Terry fit with a bootstrap over prompts (Figures 2, 3 and 8).

P(i beats j) = 1 / (1 + 10^(−(e_i − e_j)/400)) = σ(θ_i − θ_j) with e = 400/ln 10 · θ, the scale of the paper.
One model is the anchor and stands at zero, in the paper SL-CAI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cai_jax.evals.intervals import Estimate

ELO_PER_LOGIT = 400.0 / math.log(10.0)
# Half a virtual tie for every pair that was compared keeps a rating finite where one side won every match.
PRIOR = 0.5


def outcomes_from_scores(
    scores: Mapping[str, Mapping[str, float]],
) -> dict[tuple[str, str], dict[str, float]]:
    """A scalar judge on model → prompt id → score: (a, b) → prompt id → 1 where a wins, ½ for a tie, 0 where b does."""
    names = list(scores)
    return {
        (a, b): {
            p: 0.5 if scores[a][p] == scores[b][p] else float(scores[a][p] > scores[b][p])
            for p in sorted(set(scores[a]) & set(scores[b]))
        }
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def outcomes_from_judge(
    judge: Callable[[str, str, str], float], answers: Mapping[str, Mapping[str, str]]
):
    """A judge that is shown two texts: `judge(prompt_id, first, second)` → P(first is better). Both orders are asked
    and averaged, so a preference for a place cancels. `answers`: model → prompt id → text."""
    names = list(answers)
    return {
        (a, b): {
            p: (judge(p, answers[a][p], answers[b][p]) + 1 - judge(p, answers[b][p], answers[a][p]))
            / 2
            for p in sorted(set(answers[a]) & set(answers[b]))
        }
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def bradley_terry(
    wins: np.ndarray, *, anchor: int = 0, prior: float = 0.0, num_steps: int = 100
) -> np.ndarray:
    """Maximum-likelihood θ [..., K] from win counts wins [..., K, K] (i over j; ties half each), θ[anchor] = 0.

    Newton on the concave log-likelihood Σ_ij w_ij log σ(θ_i − θ_j); `prior` virtual ties are added to every pair that
    met. Raises ValueError where the models are not all connected by matches.
    """
    w = np.asarray(wins, np.float64)
    met = (w + np.swapaxes(w, -1, -2)) > 0
    total = met.any(axis=tuple(range(w.ndim - 2)))
    reach = np.linalg.matrix_power(np.eye(w.shape[-1]) + total, w.shape[-1]) > 0
    if not reach.all():
        raise ValueError(
            "some models never met, directly or through others: their ratings cannot be compared"
        )
    w = w + prior / 2 * met
    n = w + np.swapaxes(w, -1, -2)
    free = [i for i in range(w.shape[-1]) if i != anchor]
    theta = np.zeros(w.shape[:-1])
    for _ in range(num_steps):
        p = 0.5 * (1 + np.tanh((theta[..., :, None] - theta[..., None, :]) / 2))  # σ(θ_i − θ_j)
        gradient = (w - n * p).sum(-1)
        weight = n * p * (1 - p)
        hessian = weight - np.eye(w.shape[-1]) * weight.sum(-1)[..., None, :]
        block = hessian[..., free, :][..., :, free] - 1e-12 * np.eye(len(free))
        step = np.linalg.solve(block, -gradient[..., free, None])[..., 0]
        theta[..., free] += np.clip(step, -2.0, 2.0)  # far from the optimum a full step overshoots
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    return theta


def win_matrices(
    outcomes: Mapping[tuple[str, str], Mapping[str, float]],
    names: Sequence[str],
    prompts: Sequence[str],
    counts: np.ndarray,
    ties: str,
) -> np.ndarray:
    """Wins [R, K, K] for R resamples that take prompt p `counts[r, p]` times."""
    place = {name: i for i, name in enumerate(names)}
    column = {prompt: i for i, prompt in enumerate(prompts)}
    wins = np.zeros((len(counts), len(names), len(names)))
    for (a, b), by_prompt in outcomes.items():
        kept = [(column[p], y) for p, y in by_prompt.items() if not (ties == "drop" and y == 0.5)]
        if kept:
            where, y = np.array([i for i, _ in kept]), np.array([y for _, y in kept])
            wins[:, place[a], place[b]] += counts[:, where] @ y
            wins[:, place[b], place[a]] += counts[:, where] @ (1 - y)
    return wins


def elo(
    outcomes: Mapping[tuple[str, str], Mapping[str, float]],
    anchor: str,
    *,
    ties: str = "half",
    seed: int = 0,
    num_resamples: int = 1000,
    prior: float = PRIOR,
) -> dict[str, Estimate]:
    """Model → Elo against `anchor` with a 95 % percentile bootstrap over prompts (a prompt's matches stay together).

    `outcomes`: (a, b) → prompt id → share of the match that a won. ties: "half" counts them, "drop" is the paper's.
    """
    if ties not in ("half", "drop"):
        raise ValueError("ties is 'half' or 'drop'")
    names = sorted({name for pair in outcomes for name in pair})
    if anchor not in names:
        raise ValueError(f"the anchor {anchor!r} played no match")
    prompts = sorted({p for by_prompt in outcomes.values() for p in by_prompt})
    rng = np.random.default_rng([seed, len(prompts)])
    counts = np.concatenate(
        [
            np.ones((1, len(prompts))),
            rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), num_resamples),
        ]
    )
    wins = win_matrices(outcomes, names, prompts, counts, ties)
    fitted = ELO_PER_LOGIT * bradley_terry(wins, anchor=names.index(anchor), prior=prior)
    low, high = np.quantile(fitted[1:], [0.025, 0.975], axis=0)
    return {
        name: Estimate(float(fitted[0, i]), float(low[i]), float(high[i]), len(prompts))
        for i, name in enumerate(names)
    }
