"""Preference pairs: two answers to a dialogue and the probability that the first is better, from AI
labels, from people's comparisons (section 4.1), and from revisions.

Targets are derived here from the raw log-probabilities of the label records (soft, hard, clamped,
averaged over orders), so that an ablation costs no new generation.
"""

from __future__ import annotations

import collections
import dataclasses

import jax.numpy as jnp
import numpy as np

from cai_jax.core import labels, losses
from cai_jax.data.comparisons import load_comparisons
from cai_jax.errors import UserError
from cai_jax.seeds import row_rng
from cai_jax.structs import (
    Dialogue,
    as_ended,
    dialogue_from_json,
    dialogue_to_json,
    responses_of,
    sampled_turn,
)
from cai_jax.training import batching, examples, feed

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


@dataclasses.dataclass(frozen=True)
class PairSet:
    """Pairs to train on in order of id, pairs that are held out by prompt, and for each side of
    both its tokens, `tokens[pair.id, side]`, and which of them are the answer. `reads_cut`: see
    `learns_cut`."""

    train: list[Pair]
    held: list[Pair]
    tokens: dict[tuple[str, int], np.ndarray]
    answers: dict[tuple[str, int], np.ndarray]
    reads_cut: bool

    @property
    def lengths(self) -> list[list[int]]:
        return [[len(self.tokens[pair.id, side]) for side in (0, 1)] for pair in self.train]


def check_labels(inputs, config, where: str) -> None:
    """Raises UserError where the labels are not those of the comparisons."""
    labels, comparisons = inputs.labels, inputs.comparisons
    judged = config.graph[labels].inputs.get("comparisons", "") if labels else comparisons
    if labels and judged != comparisons:
        raise UserError(
            f"{where}.inputs: '{labels}' labels the comparisons of '{judged}', not of "
            f"'{comparisons}'; name the same stage in both"
        )


def load(ctx, model, ended: bool | None = None) -> PairSet:
    """The pairs of a stage's inputs and config; what is left out is counted by reason. `ended`:
    whether cut answers are read as if they had ended; None: as `learns_cut` says."""
    config = ctx.config
    pairs = ai_pairs(ctx) + human_pairs(ctx) + revision_pairs(ctx)
    if config.cut_answers == "drop":
        complete = [pair for pair in pairs if not any(pair.cut)]
        ctx.drop("an answer cut at the limit of tokens", len(pairs) - len(complete))
        pairs = complete
    sides = [(pair, side) for pair in pairs for side in (0, 1)]
    reads_cut = learns_cut(pairs) if ended is None else not ended
    dialogues = [pair.answered(side) for pair, side in sides]
    if not reads_cut:
        dialogues = [as_ended(dialogue) for dialogue in dialogues]
    encoded = feed.encode(model.format, dialogues)
    names = [(pair.id, side) for pair, side in sides]
    tokens = dict(zip(names, (item.tokens for item in encoded), strict=True))
    answers = dict(zip(names, (item.target_mask for item in encoded), strict=True))
    longest = [max(len(tokens[pair.id, side]) for side in (0, 1)) for pair in pairs]
    kept = examples.short_enough(ctx, longest, model.config.max_length)
    fits = [pair for pair, fit in zip(pairs, kept, strict=True) if fit]
    train, held = examples.split(fits, config.holdout_fraction, ctx.seed, ctx.name)
    mixed = mix(train, config.human_fraction, ctx.seed, ctx.name)
    ctx.drop("beyond human_fraction", len(train) - len(mixed))
    ctx.require_rows(mixed, "training comparisons")
    return PairSet(sorted(mixed, key=lambda pair: pair.id), held, tokens, answers, reads_cut)


def ai_pairs(ctx) -> list[Pair]:
    """A pair for every labelled pair of a comparison record, its target derived from all its label
    records."""
    config = ctx.config
    if "labels" not in ctx.inputs:
        return []
    comparisons = {record["id"]: record for record in ctx.inputs["comparisons"].records()}
    grouped = collections.defaultdict(list)
    for label in ctx.inputs["labels"].records():
        grouped[label["comparison_id"], tuple(label["pair"])].append(label)
    ctx.drop("comparison without a label", len(set(comparisons) - {name for name, _ in grouped}))
    clamp = tuple(config.clamp) or None
    pairs = []
    for (name, (first, second)), judged in sorted(grouped.items()):
        record = comparisons[name]
        responses = responses_of(record)
        texts, stops = zip(responses[first], responses[second], strict=True)
        if texts[0] == texts[1]:
            ctx.drop("equal responses")
            continue
        try:
            target = labels.target(
                judged, kind=config.label_kind, clamp=clamp, average_orders=config.average_orders
            )
        except ValueError as error:
            raise UserError(
                f"stage '{ctx.name}': labels of comparison '{name}': {error}"
            ) from error
        dialogue, pair_id = dialogue_from_json(record["dialogue"]), f"ai {name}#{first}-{second}"
        group = examples.group_of(dialogue)
        pairs.append(Pair(pair_id, "ai", group, dialogue, texts, target, stops))
    return pairs


def human_pairs(ctx) -> list[Pair]:
    """People's comparisons. Which side comes first is drawn, so that "the first" is no answer."""
    config = ctx.config
    if not config.human.source or config.human.limit == 0:
        return []
    pairs = []
    for item in ctx.load(load_comparisons, config.human, "human comparison"):
        first = bool(row_rng(ctx.seed, ctx.name, "side", item.id).integers(2))
        texts = (item.chosen, item.rejected) if first else (item.rejected, item.chosen)
        group = examples.group_of(item.dialogue)
        name = f"human {item.id}"
        pairs.append(Pair(name, item.source, group, item.dialogue, texts, float(first)))
    return pairs


def revision_pairs(ctx) -> list[Pair]:
    """Revisions over what they revise: the last over the initial answer, or each over the text
    before it."""
    if "revisions" not in ctx.inputs:
        return []
    pairs = []
    for record in ctx.inputs["revisions"].records():
        dialogue = dialogue_from_json(record["dialogue"])
        texts = [(record["initial"], record["initial_stop"])]
        texts += [(item["revision"], item["revision_stop"]) for item in record["rounds"]]
        each = ctx.config.revision_pairs == "each"
        steps = zip(texts, texts[1:], strict=False) if each else [(texts[0], texts[-1])]
        for number, (before, after) in enumerate(steps, 1):
            if before[0] == after[0] or not after[0].strip():
                ctx.drop("revision equal to the text before it, or empty")
                continue
            name, group = f"revision {record['id']}#{number}", examples.group_of(dialogue)
            (text, stop), (other, other_stop) = after, before
            sides = (text, other), 1.0, (stop, other_stop)
            pairs.append(Pair(name, "revision", group, dialogue, *sides))
    return pairs


def mix(pairs: list[Pair], human_fraction: float | None, seed: int, stage: str) -> list[Pair]:
    """Reduces the larger side so that the human share is `human_fraction`.

    Args:
      pairs: those of source "ai" and "revision" are one side, all others the other.
      human_fraction: of the result; None: all pairs.
      seed, stage: what the draw depends on, with the ids.
    Returns:
      The pairs that stay.
    """
    made = ("ai", "revision")
    human = [pair for pair in pairs if pair.source not in made]
    ai = [pair for pair in pairs if pair.source in made]
    return examples.mix(human, ai, human_fraction, seed, stage)


def count_sides(pairs: list[Pair]) -> dict[str, int]:
    """{"cut", "of"}: how many of the pairs' answers were cut at the limit of tokens."""
    return {"cut": sum(sum(pair.cut) for pair in pairs), "of": 2 * len(pairs)}


def learns_cut(pairs: list[Pair]) -> bool:
    """Whether a model that is trained on the pairs reads a cut answer at its last token, without an
    end token that it never had.

    Where such answers are (almost) absent, as among people's, the head would not learn to score at
    a token that ends nothing, and RL could exploit that: every answer is read as ended then, in
    training and after it.
    """
    sides = count_sides(pairs)
    return sides["cut"] > 0 and sides["cut"] >= MIN_CUT * sides["of"]


def make_batch(
    chosen: list[Pair],
    tokens: dict,
    shape: batching.Shape,
    answers: dict | None = None,
    numbers: np.ndarray | None = None,
) -> dict:
    """Pairs packed into sequences [R, T] with N slots each: `tokens` and `segments` [R, T];
    `ends` [R, N, 2], the index of each side's last token; `target` [R, N]; `valid` [R, N], whether
    the slot holds a pair.

    Args:
      chosen, tokens, shape: of the batch.
      answers: where given, `answers` [R, T] has what they mark.
      numbers: where given, [pairs, 2], `numbers` [R, N, 2] has them.
    Returns:
      The arrays by name.
    """
    sides = [tokens[pair.id, side] for pair in chosen for side in (0, 1)]
    packing = batching.pack(list(map(len, sides)), shape, group=2)
    first = dataclasses.replace(packing, sequences=packing.sequences[::2], slots=packing.slots[::2])
    last = packing.starts + packing.lengths - 1

    def by_side(values_Bx2, dtype):
        return np.stack([first.by_slot(values_Bx2[:, side], dtype) for side in (0, 1)], axis=-1)

    batch = {
        "tokens": packing.spread(sides),
        "segments": packing.segments(),
        "ends": by_side(last.reshape(-1, 2), np.int32),
        "target": first.by_slot([pair.target for pair in chosen], np.float32),
        "valid": first.by_slot(True, bool),
    }
    if answers is not None:
        marked = [answers[pair.id, side] for pair in chosen for side in (0, 1)]
        batch["answers"] = packing.spread(marked, bool)
    if numbers is not None:
        batch["numbers"] = by_side(numbers, numbers.dtype)
    return batch


def loss(scores_RxNx2, batch: dict):
    """−p·log σ(Δ) − (1 − p)·log σ(−Δ) of the scores of a batch's pairs, with the share of pairs on
    the label's side (ties count a half), as (sum, (count, sums))."""
    scores_Bx2 = scores_RxNx2.reshape(-1, 2)
    target_B, valid_B = batch["target"].reshape(-1), batch["valid"].reshape(-1)
    total, count = losses.preference_loss(scores_Bx2[:, 0], scores_Bx2[:, 1], target_B, valid_B)
    sides_B = jnp.sign(scores_Bx2[:, 0] - scores_Bx2[:, 1]) * jnp.sign(target_B - 0.5)
    agreement = losses.masked_sum(0.5 + 0.5 * sides_B, valid_B)[0]
    tokens = jnp.sum(batch["segments"] > 0, dtype=jnp.float32)
    return total, (count, {"agreement": agreement, "tokens": tokens})


def to_record(pair: Pair, scores) -> dict:
    """The record of a held-out pair with a score for each side."""
    return {
        "id": pair.id,
        "prompt_id": pair.group,
        "source": pair.source,
        "target": pair.target,
        "dialogue": dialogue_to_json(pair.dialogue),
        "texts": list(pair.texts),
        "stops": list(pair.stops),
        "scores": [float(score) for score in scores],
    }
