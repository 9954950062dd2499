"""Which examples a stage trains on: held out by prompt, mixed by share, short enough. What is drawn
depends on names and the seed only."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence

from cai_jax.data import fitting
from cai_jax.io.artefacts import dump
from cai_jax.seeds import row_rng
from cai_jax.structs import Dialogue, dialogue_to_json


def group_of(dialogue: Dialogue) -> str:
    """A name of the prompt itself: the same prompt in two sources, or twice in the same source, is
    one group."""
    return hashlib.blake2b(dump(dialogue_to_json(dialogue)).encode(), digest_size=8).hexdigest()


def split(items: Sequence, fraction: float, seed: int, stage: str) -> tuple[list, list]:
    """Holds out `fraction` of the prompts of every source.

    All items of a prompt are on the same side, whatever their source.

    Args:
      items: have a `source` and a `group`, the name of their prompt.
      fraction: of the prompts of a source; at least one is held out where there are two.
      seed, stage: what the draw depends on, with the groups' names.
    Returns:
      (training, held out).
    """
    by_source = collections.defaultdict(set)
    for item in items:
        by_source[item.source].add(item.group)
    held = set()
    for source in sorted(by_source):
        groups = sorted(
            by_source[source], key=lambda group: row_rng(seed, stage, "holdout", group).random()
        )
        if fraction > 0 and len(groups) > 1:
            held.update(groups[: min(max(1, round(fraction * len(groups))), len(groups) - 1)])
    training = [item for item in items if item.group not in held]
    return training, [item for item in items if item.group in held]


def mix(first: Sequence, second: Sequence, fraction: float | None, seed: int, stage: str) -> list:
    """Reduces at random the side that is too large, so that `first` is `fraction` of both.

    Args:
      first, second: items with an `id`, by which it is drawn which of them stay.
      fraction: None leaves out nothing, as an empty side does.
      seed, stage: what the draw depends on, with the ids.
    Returns:
      What stays of both.
    """
    if fraction is None or not first or not second:
        return [*first, *second]
    share = fraction / (1 - fraction) if fraction < 1 else float("inf")
    keep_first = len(first)
    if share < float("inf"):
        keep_first = min(len(first), round(len(second) * share))
    keep_second = min(len(second), round(len(first) / share)) if share else len(second)

    def keep(side, number):
        return sorted(side, key=lambda item: row_rng(seed, stage, "mix", item.id).random())[:number]

    return keep(first, keep_first) + keep(second, keep_second)


def short_enough(ctx, lengths: Sequence[int], positions: int | None) -> list[bool]:
    """Whether each example of so many tokens fits the stage's max_length and the model's positions;
    the others are counted by reason."""
    kept, reasons = fitting.training_examples(lengths, ctx.config.max_length, positions)
    for reason, count in reasons.items():
        ctx.drop(reason, count)
    return kept
