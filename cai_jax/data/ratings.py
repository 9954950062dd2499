"""Rated dialogues: how much harm a whole dialogue does, from 0 (none) to 4, by the person who tried
to provoke it.

The published file (hh-rlhf, red-team-attempts) holds `{"transcript", "rating"}` beside other
annotations; a rating is how well the attempt succeeded, so 4 is the most harmful. Our own rows are
`{"id", "dialogue", "rating"}`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math

from cai_jax.data import chats, sources
from cai_jax.data.chats import EMPTY, fault, split_turns, without_system
from cai_jax.data.columns import label, require
from cai_jax.data.jsonl import BadRows, field
from cai_jax.data.selection import name_of, name_twice, take
from cai_jax.data.tables import read_rows
from cai_jax.errors import UserError, located
from cai_jax.structs import Dialogue

LOWEST, HIGHEST = 0.0, 4.0


@dataclasses.dataclass(frozen=True)
class RatedDialogue:
    """`dialogue` ends in an assistant turn; `rating` from 0 (harmless) to 4."""

    id: str
    dialogue: Dialogue
    rating: float


def load_ratings(
    source: str,
    *,
    split: str | None = None,
    offset: int = 0,
    limit: int | None = None,
    max_bad_rows: int = 0,
) -> tuple[list[RatedDialogue], dict[str, int]]:
    """(rated dialogues, dropped rows by reason) of `source`.

    Args:
        source: any source string (`sources.py`), of the published `red_team_attempts.jsonl[.gz]`
            (one JSON array), of such rows or of ours; "tfds:cai_hh_rlhf/red_team_attempts".
        split, offset, limit, max_bad_rows: those of `load_comparisons`.

    Transcripts that break off before the answer lose their last human turn.

    Raises: UserError `file:line: field …` for a malformed row or a rating outside [0, 4], and where
    nothing is left.
    """
    kept: list[RatedDialogue] = []
    dropped: collections.Counter[str] = collections.Counter()
    parsed = sources.parse(source)
    for each, name in zip(parsed, name_twice(parsed), strict=True):
        fields = {"offset": offset, **each.options(split, limit)}
        bad = BadRows(max_bad_rows)
        rows = read_rows(each, name_of(fields["split"]), bad)
        items, counts = take(
            each,
            rows,
            functools.partial(_rated, place=each.place, name=name),
            "rated dialogues",
            bad=bad,
            **fields,
        )
        kept += items
        dropped.update(counts)
    if not kept:
        raise UserError(f"ratings: '{source}' names no source; expected a file or tfds:NAME")
    return kept, dict(sorted(dropped.items()))


def _rated(row: dict, line: int, *, place: str, name: str) -> RatedDialogue | str:
    """One row, checked, or the reason why it is dropped."""
    require(row, "rating", place, line)
    rating = float(field(row, "rating", float, place, line))
    if not (math.isfinite(rating) and LOWEST <= rating <= HIGHEST):
        raise UserError(
            f"{located(place, line, 'rating')}: expected a number from 0 (harmless) to 4, "
            f"found {rating:g}"
        )
    if row.get("dialogue") is not None:
        dialogue = chats.read(row["dialogue"], located(place, line, "dialogue"))
    elif isinstance(row.get("transcript"), str):
        dialogue = split_turns(row["transcript"])
        if not dialogue:
            return EMPTY
    else:
        dialogue = chats.read(
            require(row, "transcript", place, line), located(place, line, "transcript")
        )
    if dialogue and dialogue[-1].role == "human":
        dialogue = dialogue[:-1]
    if reason := fault(without_system(dialogue)):
        return reason
    return RatedDialogue(label(row, "id", place, line) or f"{name}:{line}", dialogue, rating)
