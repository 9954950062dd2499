"""Rated dialogues: how much harm a whole dialogue does, from 0 (none) to 4, by the person who tried to provoke it.

The published file (hh-rlhf, red-team-attempts) holds `{"transcript", "rating"}` beside other annotations; a rating is how
well the attempt succeeded, so 4 is the most harmful. Our own rows are `{"id", "dialogue", "rating"}`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from cai_jax.data.comparisons import EMPTY, fault, split_turns
from cai_jax.data.hh_rlhf import read_attempts
from cai_jax.data.jsonl import field
from cai_jax.data.selection import name_of, take
from cai_jax.data.tables import read_rows
from cai_jax.errors import UserError, located
from cai_jax.structs import Dialogue, dialogue_from_json

LOWEST, HIGHEST = 0.0, 4.0


@dataclasses.dataclass(frozen=True)
class RatedDialogue:
    """`dialogue` ends in an assistant turn; `rating` from 0 (harmless) to 4."""

    id: str
    dialogue: Dialogue
    rating: float


def load_ratings(
    source: str, *, split: str | None = None, offset: int = 0, limit: int | None = None
) -> tuple[list[RatedDialogue], dict[str, int]]:
    """(rated dialogues, dropped rows by reason) of `source`.

    `source`: the published `red_team_attempts.jsonl[.gz]` (one JSON array) or a .jsonl, .jsonl.gz or .parquet file of such
    rows or of ours; "tfds:cai_hh_rlhf/red_team_attempts"; either with "#field=column,…" behind it. `split`, `offset` and
    `limit` are those of `load_comparisons`. Transcripts that break off before the answer lose their last human turn.

    Raises UserError `file:line: field …` for a malformed row or a rating outside [0, 4], and where nothing is left.
    """
    return take(
        source,
        source,
        _rows(source, name_of(split)),
        lambda row, line: _rated(row, source, line),
        "rated dialogues",
        split=split,
        offset=offset,
        limit=limit,
    )


def _rows(source: str, split: str | None):
    """The published file is a JSON array in spite of its name."""
    path = Path(source)
    if path.is_file() and source.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        return read_attempts(path)
    return read_rows(source, split)


def _rated(row: dict, source: str, line: int) -> RatedDialogue | str:
    """One row, checked, or the reason why it is dropped."""
    rating = float(field(row, "rating", float, source, line))
    if not (math.isfinite(rating) and LOWEST <= rating <= HIGHEST):
        raise UserError(
            f"{located(source, line, 'rating')}: expected a number from 0 (harmless) to 4, found {rating:g}"
        )
    if "dialogue" in row:
        dialogue = dialogue_from_json(row["dialogue"], located(source, line, "dialogue"))
    elif isinstance(row.get("transcript"), str) and not row["transcript"].strip():
        return EMPTY
    else:
        dialogue = split_turns(field(row, "transcript", str, source, line))
    if dialogue and dialogue[-1].role == "human":
        dialogue = dialogue[:-1]
    start = 1 if dialogue and dialogue[0].role == "system" else 0
    if reason := fault(dialogue[start:]):
        return reason
    name = (
        field(row, "id", str, source, line)
        if row.get("id") is not None
        else f"{Path(source).name.partition('.')[0]}:{line}"
    )
    return RatedDialogue(name, dialogue, rating)
