"""Rated dialogues: how much harm a dialogue does, from 0 (none) to 4, by the person who tried to
provoke it.

The published file (hh-rlhf, red-team-attempts; "tfds:cai_hh_rlhf/red_team_attempts") holds
`{"transcript", "rating"}` next to other annotations; a rating is how well the attempt succeeded, so
4 is the most harmful. Our own rows are `{"id", "dialogue", "rating"}`.
"""

from __future__ import annotations

import dataclasses
import math

from cai_jax.data import chats, records
from cai_jax.data.files import Row
from cai_jax.structs import Dialogue

LOWEST, HIGHEST = 0.0, 4.0


@dataclasses.dataclass(frozen=True)
class RatedDialogue:
    """`dialogue` ends in an assistant turn; `rating` from 0 (harmless) to 4."""

    id: str
    dialogue: Dialogue
    rating: float


def _rated(row: Row, name: str) -> RatedDialogue | str:
    rating = float(row.require("rating", float))
    if not (math.isfinite(rating) and LOWEST <= rating <= HIGHEST):
        raise row.error("rating", f"expected a number from 0 (harmless) to 4, got {rating:g}")
    key = row.first("dialogue") or "transcript"
    value = row.require(key)
    is_text = key == "transcript" and isinstance(value, str)
    dialogue = chats.split_turns(value) if is_text else chats.read(value, row.at(key))
    if not dialogue:
        return chats.EMPTY
    if dialogue[-1].role == "human":  # the transcript breaks off before the answer
        dialogue = dialogue[:-1]
    if reason := chats.fault(chats.without_system(dialogue)):
        return reason
    return RatedDialogue(row.label("id") or f"{name}:{row.line}", dialogue, rating)


RATINGS = records.Kind("rated dialogues", _rated)


def load_ratings(source: str, **options) -> tuple[list[RatedDialogue], dict[str, int]]:
    """(rated dialogues, dropped rows by reason) of `source`, with the options of `records.load`."""
    return records.load(RATINGS, source, **options)
