"""The preference model: AI labels for harmlessness mixed with human comparisons for helpfulness
(section 4.1).

Labels are derived here from the raw log-probabilities in the label records (soft, hard, clamped,
order-averaged), so an ablation costs no new generation. Without AI labels this trains the
preference models of the RLHF baselines.
"""

from __future__ import annotations

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax import seeds
from cai_jax.configuration import auto
from cai_jax.core import labels, losses
from cai_jax.data.comparisons import load_comparisons
from cai_jax.errors import UserError
from cai_jax.evals import preference
from cai_jax.io import progress
from cai_jax.models import heads
from cai_jax.planning import throughput
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.stages.context import StageContext, fits_training, resolve_role
from cai_jax.structs import (
    Dialogue,
    as_ended,
    dialogue_from_json,
    dialogue_to_json,
    responses_of,
    sampled_turn,
)
from cai_jax.training import batching, feed, loop, scalar
from cai_jax.training import state as state_lib
from cai_jax.training.scalar import group_of, split

SCHEMA = 2
MIN_CUT = 0.01  # share of cut answers from which on a preference model learns where to score them


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two answers to a dialogue and the target p = P(the first is better). `group` names the
    prompt, `stops` say how each answer ended (None: by itself)."""

    id: str
    source: str
    group: str
    dialogue: tuple
    texts: tuple[str, str]
    target: float
    stops: tuple[str | None, str | None] = (None, None)

    def answered(self, side: int) -> Dialogue:
        """The dialogue with the answer of that side."""
        return (*self.dialogue, sampled_turn(self.texts[side], self.stops[side]))

    @property
    def cut(self) -> tuple[bool, bool]:
        return self.answered(0)[-1].cut, self.answered(1)[-1].cut


def ai_pairs(ctx: StageContext) -> list[Pair]:
    """One pair a labelled pair of a comparison record, its target derived from all its label
    records."""
    config = ctx.config
    if "labels" not in ctx.inputs:
        return []
    comparisons = {row["id"]: row for row in ctx.inputs["comparisons"].records()}
    grouped = collections.defaultdict(list)
    for row in ctx.inputs["labels"].records():
        grouped[row["comparison_id"], tuple(row["pair"])].append(row)
    ctx.drop("comparison without a label", len(set(comparisons) - {name for name, _ in grouped}))
    clamp = tuple(config.clamp) or None
    pairs = []
    for (name, (first, second)), rows in sorted(grouped.items()):
        record = comparisons[name]
        responses = responses_of(record)
        texts, stops = zip(responses[first], responses[second], strict=True)
        if texts[0] == texts[1]:
            ctx.drop("equal responses")
            continue
        try:
            target = labels.target(
                rows, kind=config.label_kind, clamp=clamp, average_orders=config.average_orders
            )
        except ValueError as error:
            raise UserError(
                f"stage '{ctx.name}': labels of comparison '{name}': {error}"
            ) from error
        dialogue, pair_id = dialogue_from_json(record["dialogue"]), f"ai {name}#{first}-{second}"
        pairs.append(Pair(pair_id, "ai", group_of(dialogue), dialogue, texts, target, stops))
    return pairs


def human_pairs(ctx: StageContext) -> list[Pair]:
    """Human comparisons. Which side comes first is drawn, so that "the first" is no answer."""
    config = ctx.config
    if not config.human.source or config.human.limit == 0:
        return []
    comparisons, dropped = load_comparisons(**config.human.to_dict())
    for reason, count in dropped.items():
        ctx.drop(f"human comparison: {reason}", count)
    pairs = []
    for item in comparisons:
        first = bool(seeds.row_rng(ctx.seed, ctx.name, "side", item.id).integers(2))
        texts = (item.chosen, item.rejected) if first else (item.rejected, item.chosen)
        name = f"human {item.id}"
        pairs.append(
            Pair(name, item.source, group_of(item.dialogue), item.dialogue, texts, float(first))
        )
    return pairs


def count_sides(pairs: list[Pair]) -> dict[str, int]:
    """{"cut", "of"}: how many of the pairs' answers were cut at the limit of tokens."""
    return {"cut": sum(sum(pair.cut) for pair in pairs), "of": 2 * len(pairs)}


def learns_cut(pairs: list[Pair]) -> bool:
    """Whether a model that is trained on the pairs reads an answer that was cut at its last token,
    not after an end token that it never had. Where such answers are (almost) absent, as among
    people's, the head would not learn to score at a token that ends nothing, and RL could live on
    that: then every answer is read as ended, in training and after it."""
    sides = count_sides(pairs)
    return sides["cut"] > 0 and sides["cut"] >= MIN_CUT * sides["of"]


def mix(pairs: list[Pair], human_fraction: float | None, seed: int, stage: str) -> list[Pair]:
    """Leaves out pairs of the side that there is too much of, so that the human share is
    `human_fraction`."""
    human = [pair for pair in pairs if pair.source != "ai"]
    return feed.mix(
        human, [pair for pair in pairs if pair.source == "ai"], human_fraction, seed, stage
    )


def make_batch(chosen: list[Pair], tokens_of, shape: batching.Shape) -> dict:
    """tokens, segments [R, T], several pairs a row; of its N places for pairs: ends [R, N, 2],
    where each side's last token is, target [R, N], and valid [R, N], whether there is a pair."""
    rows = [tokens_of(pair, side) for pair in chosen for side in (0, 1)]
    packing = batching.pack(list(map(len, rows)), shape, group=2)
    first = dataclasses.replace(packing, rows=packing.rows[::2], slots=packing.slots[::2])
    last = packing.starts + packing.lengths - 1
    return {
        "tokens": packing.spread(rows),
        "segments": packing.segments(),
        "ends": np.stack([first.by_slot(last[side::2], np.int32) for side in (0, 1)], axis=-1),
        "target": first.by_slot([pair.target for pair in chosen], np.float32),
        "valid": first.by_slot(True, bool),
    }


def make_loss(config, dtype, **options):
    """−p·log σ(Δ) − (1 − p)·log σ(−Δ), with the share of pairs on the label's side. Ties count a
    half."""

    def loss(params, batch):
        params = state_lib.cast(params, dtype)
        R, N, _ = batch["ends"].shape
        scores_Rx2N = heads.packed_scores(
            params,
            batch["tokens"],
            batch["segments"],
            batch["ends"].reshape(R, 2 * N),
            config,
            **options,
        )
        scores_Bx2, target_B, valid_B = (
            scores_Rx2N.reshape(-1, 2),
            batch["target"].reshape(-1),
            batch["valid"].reshape(-1),
        )
        total, count = losses.preference_loss(scores_Bx2[:, 0], scores_Bx2[:, 1], target_B, valid_B)
        agree_B = 0.5 + 0.5 * jnp.sign(scores_Bx2[:, 0] - scores_Bx2[:, 1]) * jnp.sign(
            target_B - 0.5
        )
        return total, (
            count,
            {
                "agree": losses.masked_sum(agree_B, valid_B)[0],
                "tokens": jnp.sum(batch["segments"] > 0, dtype=jnp.float32),
            },
        )

    return loss


def run(ctx: StageContext) -> dict:
    """Trains a head on `init` and publishes decoder, head and normalisation as `@stage`; held-out
    pairs are records."""
    # ---- Data ------------------------------------------------------------------------------------
    config = ctx.config
    target = resolve_role(ctx.run_config, config.init)
    stage = target[1:].partition(":")[0] if target.startswith("@") else ""
    pretrained = (
        bool(stage) and ctx.run_config.graph[stage].kind == "pm"
    )  # a preference model trained further (PMP)
    model = ctx.load_model(config.init, "reward" if pretrained else "policy", config.format)
    pairs = ai_pairs(ctx) + human_pairs(ctx)
    if config.cut_answers == "drop":
        ended = [pair for pair in pairs if not any(pair.cut)]
        ctx.drop("an answer cut at the limit of tokens", len(pairs) - len(ended))
        pairs = ended
    sides = [(pair, side) for pair in pairs for side in (0, 1)]
    reads_cut = learns_cut(pairs)
    dialogues = [pair.answered(side) for pair, side in sides]
    if not reads_cut:
        dialogues = list(map(as_ended, dialogues))
    encoded = {
        (pair.id, side): item.tokens
        for (pair, side), item in zip(sides, ctx.encode(model.format, dialogues), strict=True)
    }
    longest = [max(len(encoded[pair.id, side]) for side in (0, 1)) for pair in pairs]
    kept = fits_training(ctx, longest, model.config.max_length)
    fits = [pair for pair, fit in zip(pairs, kept, strict=True) if fit]
    train, held = split(fits, config.holdout_fraction, ctx.seed, ctx.name)
    mixed = sorted(mix(train, config.human_fraction, ctx.seed, ctx.name), key=lambda pair: pair.id)
    ctx.drop("beyond human_fraction", len(train) - len(mixed))
    ctx.require_rows(mixed, "training comparisons")

    # ---- Training --------------------------------------------------------------------------------
    def tokens_of(pair, side):
        return encoded[pair.id, side]

    def batch(indices, shape):
        return make_batch([mixed[index] for index in indices], tokens_of, shape)

    def told(scalars):
        agreement = scalars.pop("agree") / scalars["count"]
        return {**scalars, "agreement": agreement}

    options = state_lib.forward_options(ctx.run_config)
    key = jax.random.wrap_key_data(seeds.row_key(ctx.seed, ctx.name, "head"))
    head = None if pretrained else heads.init_head(model.config, key)
    lengths = {pair.id: [len(tokens_of(pair, side)) for side in (0, 1)] for pair in mixed}
    meter = throughput.training(
        ctx.mesh,
        model.config,
        float(np.mean(list(lengths.values()))),
        ctx.adapters(model),
        head=False,
    )
    params, num_steps = scalar.fit(
        ctx, model, lengths, make_loss(model.config, ctx.dtype, **options), batch, head, told, meter
    )

    # ---- Held-out prompts: scores, normalisation, accuracy by source -----------------------------
    judge = RewardModel(state_lib.cast(params, ctx.dtype), model.config, model.format, ctx.mesh)
    judged = held or mixed[:64]
    raw = judge.score_tokens(
        [encoded[pair.id, side] for pair in judged for side in (0, 1)]
    ).reshape(-1, 2)
    normalisation = (float(raw.mean()), max(float(raw.std()), 1e-6)) if config.normalise else None
    ctx.publish(model, "reward", normalisation, reads_cut)
    about_labels = check_clamp(ctx, mixed, raw, normalisation)
    digest = record(ctx, held, raw)
    counts = collections.Counter("ai" if pair.source == "ai" else "human" for pair in mixed)
    more = {
        "examples": len(mixed),
        "examples_ai": counts["ai"],
        "examples_human": counts["human"],
        "normalisation": normalisation,
        "cut": {"answers": count_sides(mixed)},
        "reads_cut": reads_cut,
        **about_labels,
        "held_out": held_out(held, raw),
    }
    result = loop.summary(ctx, num_steps, more)
    told = [
        f"{source} {_shown(found)}"
        for source, found in sorted(result["held_out"].items())
        if source != "all"
    ]
    return {
        **result,
        "sha256": {"records": digest},
        "headline": f"held out: {', '.join(told) or 'nothing'}; " + result["headline"],
    }


def check_clamp(ctx: StageContext, mixed: list[Pair], raw, normalisation) -> dict:
    """Warns where clamping is missing or has no effect; returns what the report needs for that.

    "unclamped_chains": True where soft labels come after chains of thought and are not clamped.
    "clamp_undone": the mean difference between two answers {"raw", "scaled"} where all pairs are
    clamped AI labels and scores are scaled to std 1.
    """
    found, clamped = {}, bool(ctx.config.clamp) and ctx.config.label_kind == "soft"
    if not clamped and auto.after_chains(ctx.run_config, ctx.config):
        found["unclamped_chains"] = True
        progress.warn(
            f"[{ctx.name}] labels after chains of thought are nearly 0 or 1 and are not clamped "
            f"(the paper: config.graph.{ctx.name}.clamp=(0.4,0.6))"
        )
    if clamped and normalisation and all(pair.source == "ai" for pair in mixed):
        gap = float(np.mean(np.abs(raw[:, 0] - raw[:, 1])))
        found["clamp_undone"] = {"raw": gap, "scaled": gap / normalisation[1]}
        progress.warn(
            f"[{ctx.name}] normalise=True scales the scores to a standard deviation of 1, "
            "which undoes the scale that "
            "clamped labels give them, since all pairs are AI labels: two answers differ by "
            f"{gap:.3f} raw, by "
            f"{gap / normalisation[1]:.3f} scaled; mix in people's comparisons or set "
            f"config.graph.{ctx.name}.normalise=False"
        )
    return found


def record(ctx: StageContext, held: list[Pair], raw) -> str:
    """Writes the held-out pairs with their raw scores; returns the digest of the file."""
    journal = ctx.directory.journal()
    journal.discard(lambda row: False)
    for pair, scores in zip(held, raw, strict=False):
        journal.append(
            {
                "id": pair.id,
                "prompt_id": pair.group,
                "source": pair.source,
                "target": pair.target,
                "dialogue": dialogue_to_json(pair.dialogue),
                "texts": list(pair.texts),
                "stops": list(pair.stops),
                "scores": [float(score) for score in scores],
            }
        )
    return journal.finish()


def held_out(held: list[Pair], raw) -> dict:
    """By source and over all: accuracy with its interval and count (pairs without a preferred side
    are left out), mean loss, calibration error, and the baselines "always the longer answer" and
    "always the same side"."""
    found = {}
    for source in sorted({pair.source for pair in held}) + ["all"] * bool(held):
        chosen = [
            (pair, scores)
            for pair, scores in zip(held, raw, strict=False)
            if source in (pair.source, "all")
        ]
        deltas = np.array([scores[0] - scores[1] for _, scores in chosen], np.float64)
        targets = np.array([pair.target for pair, _ in chosen])
        loss = np.mean(targets * np.logaddexp(0, -deltas) + (1 - targets) * np.logaddexp(0, deltas))
        told = [
            (pair, scores, 0 if pair.target > 0.5 else 1)
            for pair, scores in chosen
            if pair.target != 0.5
        ]
        result = preference.pair_accuracy(
            [scores[side] for _, scores, side in told],
            [scores[1 - side] for _, scores, side in told],
            [pair.texts[side] for pair, _, side in told],
            [pair.texts[1 - side] for pair, _, side in told],
        )
        sides = sum(side for *_, side in told)
        found[source] = {
            "loss": float(loss),
            "n": len(chosen),
            "accuracy": dataclasses.asdict(result.accuracy),
            "ece": result.ece,
            "longer": dataclasses.asdict(result.longer),
            "bins": [dataclasses.asdict(item) for item in result.bins],
            "majority": max(sides, len(told) - sides) / len(told) if told else None,
        }
    return found


def _shown(found: dict) -> str:
    estimate = found["accuracy"]
    if not estimate["n"]:
        return "no preference"
    low, high = estimate["low"], estimate["high"]
    return (
        f"{estimate['value']:.0%} [{low:.0%}, {high:.0%}] of {estimate['n']} (longer "
        f"{found['longer']['value']:.0%})"
    )
