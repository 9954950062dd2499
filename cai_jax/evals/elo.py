"""Elo ratings from pairwise outcomes: a Bradley–Terry fit with a Bayesian bootstrap over prompts
(Figures 2, 3 and 8).

P(i beats j) = 1 / (1 + 10^(−(e_i − e_j)/400)) = σ(θ_i − θ_j) with e = 400/ln 10 · θ, the scale of
the paper. One model is the anchor with Elo zero, in the paper SL-CAI.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from cai_jax.core.intervals import Estimate, wilson
from cai_jax.evals.rows import Column

ELO_PER_LOGIT = 400.0 / math.log(10.0)
# Half a virtual tie for every pair that was compared keeps a rating finite where one side won every
# match.
PRIOR = 0.5
TINY = 1e-6  # matches: a Gamma variate may round to zero, which would make a rating infinite
TIES = {"drop": "ties dropped", "half": "ties a half"}


def outcomes_from_scores(
    scores: Mapping[str, Mapping[str, float]],
) -> dict[tuple[str, str], dict[str, float]]:
    """A scalar judge on model → prompt id → score: (a, b) → prompt id → 1 where a wins, ½ for a
    tie, 0 where b does."""
    return {
        (a, b): {
            p: 0.5 if scores[a][p] == scores[b][p] else float(scores[a][p] > scores[b][p])
            for p in sorted(set(scores[a]) & set(scores[b]))
        }
        for a, b in itertools.combinations(scores, 2)
    }


def bradley_terry(wins: np.ndarray, *, anchor: int = 0, num_steps: int = 100) -> np.ndarray:
    """Maximum-likelihood θ [..., K] from win counts wins [..., K, K] (i over j; ties half each),
    θ[anchor] = 0, of models that matches connect: Newton on the concave log-likelihood
    Σ_ij w_ij log σ(θ_i − θ_j)."""
    w = np.asarray(wins, np.float64)
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
        outcomes: (a, b) → prompt id → share of the match that a won.
        anchor: the model whose Elo is zero by definition; it has no interval, nor has any model
            from a single prompt.
        ties: "half" counts a tie as half a win of each; "drop" leaves it out, as the paper does.
        seed: of the resamples.
        num_resamples: how many of them.

    Returns:
        An estimate for every model; without a value where no match connects the model with the
        anchor.

    Raises:
        ValueError: for another word in `ties`, and where the anchor played no match.
    """
    if ties not in TIES:
        raise ValueError(f"ties is one of {', '.join(TIES)}")
    everybody = list(dict.fromkeys(name for pair in outcomes for name in pair))  # in one order
    if anchor not in everybody:
        raise ValueError(f"the anchor {anchor!r} played no match")

    # ---- The matches of models that are connected with the anchor --------------------------------
    matches = [
        (a, b, prompt, won)
        for (a, b), by_prompt in outcomes.items()
        for prompt, won in by_prompt.items()
        if ties == "half" or won != 0.5
    ]
    connected, size = {anchor}, 0
    while size < len(connected):
        size = len(connected)
        connected |= {name for a, b, *_ in matches if {a, b} & connected for name in (a, b)}
    matches = [match for match in matches if match[0] in connected]
    names, prompts = sorted(connected), sorted({prompt for _, _, prompt, _ in matches})
    count = len(prompts)
    ratings = {name: Estimate(None, None, None, count) for name in everybody}
    if size == 1:
        return ratings | {anchor: Estimate(0.0, None, None, count)}

    # ---- Wins by prompt [P, K, K], the winner's row and the loser's column -----------------------
    wins, position = np.zeros((count, size, size)), {p: i for i, p in enumerate(prompts)}
    for a, b, prompt, won in matches:
        at, i, j = position[prompt], names.index(a), names.index(b)
        wins[at, i, j] += won
        wins[at, j, i] += 1 - won

    # ---- The fit, and its bootstrap --------------------------------------------------------------
    rng, zero = np.random.default_rng([seed, count]), names.index(anchor)
    point = wins.sum(0)
    met = point + point.T > 0
    resampled = np.tensordot(rng.exponential(size=(num_resamples, count)), wins, 1)
    resampled += met * (rng.gamma(0.5, size=resampled.shape) + TINY)
    value = ELO_PER_LOGIT * bradley_terry(point + PRIOR / 2 * met, anchor=zero)
    fitted = ELO_PER_LOGIT * bradley_terry(resampled, anchor=zero)
    low, high = np.quantile(fitted, [0.025, 0.975], axis=0)
    for name, v, a, b in zip(names, value.tolist(), low.tolist(), high.tolist(), strict=True):
        ends = (min(v, a), max(v, b)) if count > 1 else (None, None)
        ratings[name] = Estimate(v, *ends, count)
    return ratings | {anchor: Estimate(0.0, None, None, count)}


@dataclasses.dataclass(frozen=True)
class Matches:
    """How matches are counted. `whose`: verdicts; the first of `anchors` that played has Elo 0."""

    whose: str
    anchors: Sequence[str | None]
    ties: str
    seed: int

    def rows(
        self, columns: tuple[Column, Column], on: str, won: Mapping[tuple, Mapping]
    ) -> list[dict]:
        """Every model's Elo on a set of prompts, and how often the second model of each pair beats
        the first; `columns` of both. `won`: as in `outcomes_from_scores`; a tie is half a win."""
        rating, win_rate = columns
        zero = next(name for name in self.anchors if any(name in pair for pair in won))
        note = f"Bradley–Terry on {self.whose}, {zero} = 0, {TIES[self.ties]}"
        ratings = elo(won, zero, ties=self.ties, seed=self.seed)
        out = [rating.row(on, name, value, note=note) for name, value in ratings.items()]
        for (a, b), by_prompt in won.items():
            share = wilson(sum(1 - of_a for of_a in by_prompt.values()), len(by_prompt))
            out.append(win_rate.row(on, b, share, over=a, baseline={"even": 0.5}))
        return out
