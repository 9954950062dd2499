"""The preference model: AI labels for harmlessness mixed with human comparisons for helpfulness
(section 4.1).

Without AI labels this trains the preference models of the RLHF baselines.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from cai_jax import seeds
from cai_jax.configuration import auto
from cai_jax.core import accuracy
from cai_jax.io import progress
from cai_jax.models import heads
from cai_jax.planning import throughput
from cai_jax.references import resolve, stage_of
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.stages.context import StageContext
from cai_jax.training import pairs, supervised
from cai_jax.training import state as state_lib
from cai_jax.training.pairs import Pair

SCHEMA = 2


def make_loss(config, dtype, **options):
    """The loss of `pairs.loss` on the scores of a decoder with a head, as (sum, (count, sums))."""

    def loss(params, batch):
        params = state_lib.cast(params, dtype)
        R, N, _ = batch["ends"].shape
        ends_Rx2N = batch["ends"].reshape(R, 2 * N)
        scores_Rx2N = heads.packed_scores(
            params, batch["tokens"], batch["segments"], ends_Rx2N, config, **options
        )
        return pairs.loss(scores_Rx2N.reshape(R, N, 2), batch)

    return loss


def check(fields, config, where: str) -> None:
    """Labels are those of the comparisons."""
    pairs.check_labels(fields.inputs, config, where)


def run(ctx: StageContext) -> dict:
    """Trains a head on `init` and publishes decoder, head and normalisation as `@stage`; held-out
    pairs are records."""
    # ---- Data ------------------------------------------------------------------------------------
    config = ctx.config
    continued = continues(ctx)
    model = ctx.models.load(config.init, "reward" if continued else "policy", config.format)
    data = pairs.load(ctx, model)
    steps = supervised.Steps.of(ctx, [pair.id for pair in data.train], data.lengths)

    # ---- Training --------------------------------------------------------------------------------
    def batch(indices):
        return pairs.make_batch([data.train[index] for index in indices], data.tokens, steps.shape)

    loss = make_loss(model.config, ctx.dtype, **state_lib.forward_options(ctx.run_config))
    key = jax.random.wrap_key_data(seeds.row_key(ctx.seed, ctx.name, "head"))
    head = None if continued else heads.init_head(model.config, key)
    meter = throughput.training(
        ctx.mesh, model.config, steps.mean_length, ctx.adapters(model), head=False
    )
    params = supervised.fit(
        ctx, model, steps, batch, loss, kind="reward", head=head, means=("agreement",), meter=meter
    )

    # ---- Held-out prompts: scores, normalisation, accuracy by source -----------------------------
    judge = RewardModel(state_lib.cast(params, ctx.dtype), model.config, model.format, ctx.mesh)
    # Without held-out pairs the normalisation still needs scores of some answers.
    judged = data.held or data.train[:64]
    raw = judge.score_tokens([data.tokens[pair.id, side] for pair in judged for side in (0, 1)])
    raw = raw.reshape(-1, 2)
    normalisation = (float(raw.mean()), max(float(raw.std()), 1e-6)) if config.normalise else None
    ctx.publish(model, "reward", normalisation=normalisation, reads_cut=data.reads_cut)
    clamping = check_clamp(ctx, data.train, raw, normalisation)
    ctx.write_records(
        pairs.to_record(pair, scores) for pair, scores in zip(data.held, raw, strict=False)
    )

    # ---- Summary ---------------------------------------------------------------------------------
    num_ai = sum(pair.source == "ai" for pair in data.train)
    more = {
        "examples": len(data.train),
        "examples_ai": num_ai,
        "examples_human": len(data.train) - num_ai,
        "normalisation": normalisation,
        "cut": {"answers": pairs.count_sides(data.train)},
        "reads_cut": data.reads_cut,
        **clamping,
        "held_out": held_out(data.held, raw),
    }
    result = supervised.summary(ctx, steps.num_steps, more)
    sources = [item for item in sorted(result["held_out"].items()) if item[0] != "all"]
    shown = ", ".join(f"{source} {_shown(numbers)}" for source, numbers in sources) or "nothing"
    headline = f"held out: {shown}; {result['headline']}"
    return {**result, "headline": headline}


def continues(ctx: StageContext) -> bool:
    """Whether `init` is a preference model, which is trained further (PMP)."""
    stage = stage_of(resolve(ctx.run_config.models, ctx.config.init))
    return bool(stage) and ctx.run_config.graph[stage].kind == "pm"


def check_clamp(ctx: StageContext, train: list[Pair], raw, normalisation) -> dict:
    """Warns where clamping is missing or has no effect; returns what the report needs for that.

    Args:
      ctx: the stage's context.
      train: the pairs that were trained on.
      raw: scores [n, 2] of the held-out pairs.
      normalisation: (mean, std) of the scores, or None.

    Returns:
      "unclamped_chains": True where soft labels come after chains of thought and are not clamped;
      "clamp_undone": the mean difference between two answers {"raw", "scaled"} where all pairs are
      clamped AI labels and scores are scaled to std 1.
    """
    result, clamped = {}, bool(ctx.config.clamp) and ctx.config.label_kind == "soft"
    if not clamped and auto.after_chains(ctx.run_config, ctx.config):
        result["unclamped_chains"] = True
        progress.warn(
            f"[{ctx.name}] labels after chains of thought are nearly 0 or 1 and are not clamped "
            f"(the paper: config.graph.{ctx.name}.clamp=(0.4,0.6))"
        )
    if clamped and normalisation and all(pair.source == "ai" for pair in train):
        gap = float(np.mean(np.abs(raw[:, 0] - raw[:, 1])))
        scaled = gap / normalisation[1]
        result["clamp_undone"] = {"raw": gap, "scaled": scaled}
        progress.warn(
            f"[{ctx.name}] normalise=True scales the scores to a standard deviation of 1, which "
            "undoes the scale that clamped labels give them, since all pairs are AI labels: two "
            f"answers differ by {gap:.3f} raw, by {scaled:.3f} scaled; mix in people's comparisons "
            f"or set config.graph.{ctx.name}.normalise=False"
        )
    return result


def held_out(held: list[Pair], raw) -> dict:
    """By source and over all: accuracy with its interval and count (pairs without a preferred side
    are left out), mean loss, calibration error, and the baselines "always the longer answer" and
    "always the same side"."""
    scored = list(zip(held, raw, strict=False))
    result = {}
    for source in sorted({pair.source for pair in held}) + ["all"] * bool(held):
        chosen = [item for item in scored if source in (item[0].source, "all")]
        deltas = np.array([scores[0] - scores[1] for _, scores in chosen], np.float64)
        targets = np.array([pair.target for pair, _ in chosen])
        loss = np.mean(targets * np.logaddexp(0, -deltas) + (1 - targets) * np.logaddexp(0, deltas))
        # A label of one half prefers neither side, so it has no right answer.
        preferred = [
            (pair, scores, 0 if pair.target > 0.5 else 1)
            for pair, scores in chosen
            if pair.target != 0.5
        ]
        judged = accuracy.of_pairs(
            [scores[side] for _, scores, side in preferred],
            [scores[1 - side] for _, scores, side in preferred],
            [pair.texts[side] for pair, _, side in preferred],
            [pair.texts[1 - side] for pair, _, side in preferred],
        )
        seconds, count = sum(side for *_, side in preferred), len(preferred)
        result[source] = {
            "loss": float(loss),
            "n": len(chosen),
            "accuracy": dataclasses.asdict(judged.accuracy),
            "ece": judged.calibration_error,
            "longer": dataclasses.asdict(judged.always_longer),
            "majority": max(seconds, count - seconds) / count if count else None,
        }
    return result


def _shown(numbers: dict) -> str:
    accuracy = numbers["accuracy"]
    if not accuracy["n"]:
        return "no preference"
    low, high, longer = accuracy["low"], accuracy["high"], numbers["longer"]["value"]
    interval = f"[{low:.0%}, {high:.0%}] of {accuracy['n']}"
    return f"{accuracy['value']:.0%} {interval} (longer {longer:.0%})"
