"""Elo ratings from pairwise outcomes: a Bradley–Terry fit with a Bayesian bootstrap over prompts
(Figures 2, 3 and 8).

P(i beats j) = 1 / (1 + 10^(−(e_i − e_j)/400)) = σ(θ_i − θ_j) with e = 400/ln 10 · θ, the scale of
the paper. One model is the anchor and stands at zero, in the paper SL-CAI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cai_jax.evals.intervals import Estimate

ELO_PER_LOGIT = 400.0 / math.log(10.0)
# Half a virtual tie for every pair that was compared keeps a rating finite where one side won every
# match.
PRIOR = 0.5
TINY = 1e-6  # matches
TIES = {"drop": "ties dropped", "half": "ties a half"}


def outcomes_from_scores(
    scores: Mapping[str, Mapping[str, float]],
) -> dict[tuple[str, str], dict[str, float]]:
    """A scalar judge on model → prompt id → score: (a, b) → prompt id → 1 where a wins, ½ for a
    tie, 0 where b does."""
    names = list(scores)
    return {
        (a, b): {
            p: 0.5 if scores[a][p] == scores[b][p] else float(scores[a][p] > scores[b][p])
            for p in sorted(set(scores[a]) & set(scores[b]))
        }
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def bradley_terry(wins: np.ndarray, *, anchor: int = 0, num_steps: int = 100) -> np.ndarray:
    """Maximum-likelihood θ [..., K] from win counts wins [..., K, K] (i over j; ties half each),
    θ[anchor] = 0.

    Newton on the concave log-likelihood Σ_ij w_ij log σ(θ_i − θ_j). Raises ValueError where the
    models are not all connected by matches.
    """
    w = np.asarray(wins, np.float64)
    n = w + np.swapaxes(w, -1, -2)
    met = (n > 0).any(axis=tuple(range(w.ndim - 2)))
    if len(_reachable(met, anchor)) < w.shape[-1]:
        raise ValueError(
            "some models never met, directly or through others: their ratings cannot be compared"
        )
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


def _reachable(met: np.ndarray, start: int) -> list[int]:
    """The models [K] that `start` met, directly or through others, by met [K, K]; sorted, with
    itself."""
    reach = np.linalg.matrix_power(np.eye(len(met)) + met, len(met)) > 0
    return np.flatnonzero(reach[start]).tolist()


def win_matrices(
    outcomes: Mapping[tuple[str, str], Mapping[str, float]],
    names: Sequence[str],
    prompts: Sequence[str],
    weights: np.ndarray,
) -> np.ndarray:
    """Wins [R, K, K] for R resamples in which prompt p weighs `weights[r, p]`."""
    index = {name: i for i, name in enumerate(names)}
    column = {prompt: i for i, prompt in enumerate(prompts)}
    wins = np.zeros((len(weights), len(names), len(names)))
    for (a, b), by_prompt in outcomes.items():
        if by_prompt:
            where = np.array([column[p] for p in by_prompt])
            won = np.array(list(by_prompt.values()))
            wins[:, index[a], index[b]] += weights[:, where] @ won
            wins[:, index[b], index[a]] += weights[:, where] @ (1 - won)
    return wins


def elo(
    outcomes: Mapping[tuple[str, str], Mapping[str, float]],
    anchor: str,
    *,
    ties: str = "half",
    seed: int = 0,
    num_resamples: int = 1000,
) -> dict[str, Estimate]:
    """Model → Elo against `anchor`, with a 95 % interval from a Bayesian bootstrap over prompts.

    The bootstrap (Rubin 1981) draws an exponential weight for each prompt, so a prompt's matches
    stay together, and adds to every pair that met a virtual win and loss of weight Gamma(½). For
    two models that is Jeffreys' interval of the share of wins; it has width after a clean sweep
    too, where resampled prompts all agree. The rating itself has PRIOR virtual ties.

    Args:
        outcomes: (a, b) → prompt id → share of the match that a won. anchor: the model whose Elo is
        zero by definition; it has no interval, nor has any model from a single prompt. ties: "half"
        counts a tie as half a win of each; "drop" leaves it out, as the paper does. seed: of the
        resamples. num_resamples: how many of them.

    Returns: An estimate for every model; without a value where no match connects the model with the
        anchor.

    Raises:
        ValueError: for another word in `ties`, and where the anchor played no match.
    """
    if ties not in TIES:
        raise ValueError(f"ties is one of {', '.join(TIES)}")
    names = sorted({name for pair in outcomes for name in pair})
    if anchor not in names:
        raise ValueError(f"the anchor {anchor!r} played no match")
    kept = {
        pair: {p: won for p, won in by_prompt.items() if ties == "half" or won != 0.5}
        for pair, by_prompt in outcomes.items()
    }
    met = np.zeros((len(names), len(names)))
    for (a, b), by_prompt in kept.items():
        met[names.index(a), names.index(b)] = met[names.index(b), names.index(a)] = bool(by_prompt)
    connected = [names[i] for i in _reachable(met, names.index(anchor))]
    kept = {pair: by_prompt for pair, by_prompt in kept.items() if set(pair) <= set(connected)}
    prompts = sorted({p for by_prompt in kept.values() for p in by_prompt})
    ratings = {name: Estimate(None, None, None, len(prompts)) for name in names}
    if len(connected) > 1:
        ratings |= _rated(kept, connected, prompts, anchor, seed, num_resamples)
    return ratings | {anchor: Estimate(0.0, None, None, len(prompts))}


def _rated(outcomes, names, prompts, anchor: str, seed: int, num_resamples: int):
    """Model → Elo for models that matches connect, the fit and its bootstrap as `elo` describes
    them."""
    zero, count = names.index(anchor), len(prompts)
    point = win_matrices(outcomes, names, prompts, np.ones((1, count)))
    met = (point + np.swapaxes(point, -1, -2) > 0)[0]
    rng = np.random.default_rng([seed, count])
    wins = win_matrices(outcomes, names, prompts, rng.exponential(size=(num_resamples, count)))
    wins += met * rng.gamma(0.5, size=wins.shape)
    wins += met * TINY  # a Gamma variate may round to zero, which would make a rating infinite
    value = ELO_PER_LOGIT * bradley_terry(point + PRIOR / 2 * met, anchor=zero)[0]
    fitted = ELO_PER_LOGIT * bradley_terry(wins, anchor=zero)
    low, high = np.quantile(fitted, [0.025, 0.975], axis=0)
    return {
        name: Estimate(float(v), min(float(v), float(a)), max(float(v), float(b)), count)
        if count > 1
        else Estimate(float(v), None, None, count)
        for name, v, a, b in zip(names, value, low, high, strict=True)
    }
