"""Human comparisons: pairs of answers to the same dialogue of which a person preferred one.

The published hh-rlhf files hold whole dialogues, `{"chosen", "rejected"}`, as "\\n\\nHuman: …\\n\\nAssistant: …"; the
two share all but the last turn. Our own rows are `{"id", "dialogue", "chosen", "rejected"}`. Pairs that carry no
information or no answer are dropped and counted by reason.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from pathlib import Path

from cai_jax.data.columns import MARK, chat_turns
from cai_jax.data.jsonl import field
from cai_jax.data.selection import name_of, take
from cai_jax.data.tables import NAMED, read_rows
from cai_jax.errors import UserError, located
from cai_jax.structs import Dialogue, Message, dialogue_from_json

EMBEDDED = Path(__file__).parent / "embedded"
# Only these two headings: in hh-rlhf every other heading is something that a person wrote.
_HEADING = re.compile(r"(?:^|\n\n)(Human|Assistant):")

EQUAL = "equal pair"
DIFFERENT = "different prompts"
OPEN = "not ending in the assistant"
ODD = "odd turns"
EMPTY = "empty turn"


@dataclasses.dataclass(frozen=True)
class HumanComparison:
    """`dialogue` ends in a human turn; `chosen` was preferred to `rejected`. `source` says where it is from."""

    id: str
    dialogue: Dialogue
    chosen: str
    rejected: str
    source: str


def load_comparisons(
    source: str,
    *,
    split: str | None = None,
    offset: int = 0,
    limit: int | None = None,
    max_characters: int | None = None,
) -> tuple[list[HumanComparison], dict[str, int]]:
    """(comparisons, dropped rows by reason) of `source`.

    `source`: "embedded:helpful_comparisons"; a .jsonl, .jsonl.gz or .parquet file of hh-rlhf rows or of our rows;
    "tfds:cai_hh_rlhf/helpful_base"; "hf:ORG/NAME"; any of them with "#field=column,…" behind it (`columns.py`). `split` keeps
    the rows with that "split" field or names the data set's; it may name parts of the first human turns (`selection.py`).
    `offset` and `limit` count comparisons that were kept, of at most `max_characters`; reading stops at the limit, and so does
    the count of dropped rows. "a+b" reads several sources, each with this split, offset and limit.

    Raises UserError `file:line: field …` for a malformed row, and where no comparison is left.
    """
    if "+" in source and not Path(source).exists():
        options = {
            "split": split,
            "offset": offset,
            "limit": limit,
            "max_characters": max_characters,
        }
        return _joined(
            source, [load_comparisons(part.strip(), **options) for part in source.split("+")]
        )
    path, name = _resolve(source)
    if limit == 0:  # none are asked for
        return [], {}
    rows = read_rows(path, name_of(split))
    return take(
        source,
        path,
        rows,
        lambda row, line: _comparison(row, path, line, name),
        "comparisons",
        split=split,
        offset=offset,
        limit=limit,
        max_characters=max_characters,
    )


def _joined(source: str, parts: list) -> tuple[list[HumanComparison], dict[str, int]]:
    """Comparisons one source after the other."""
    kept = [item for items, _ in parts for item in items]
    if len({item.id for item in kept}) < len(kept):
        raise UserError(f"{source}: two sources have a comparison of the same id; ids must differ")
    dropped = sum((collections.Counter(counts) for _, counts in parts), collections.Counter())
    return kept, dict(sorted(dropped.items()))


def _resolve(source: str) -> tuple[str, str]:
    """(what read_rows reads, the name that ids and `source` get)."""
    if source.startswith("embedded:"):
        path = EMBEDDED / f"{source.removeprefix('embedded:')}.jsonl"
        if not path.is_file():
            have = ", ".join(
                f"embedded:{p.stem}" for p in sorted(EMBEDDED.glob("*comparisons*.jsonl"))
            )
            raise UserError(f"{source}: no such embedded comparisons; there are {have}")
        return str(path), path.stem
    name = source.partition(MARK)[0]
    if source.startswith(NAMED):
        return source, name.partition(":")[2].partition("@")[0]
    return source, re.sub(r"(\.jsonl|\.json|\.parquet)?(\.gz)?$", "", Path(name).name)


def _comparison(row: dict, path: str, line: int, name: str) -> HumanComparison | str:
    """One row as a comparison, or the reason why it is dropped."""
    if "dialogue" not in row:
        return _from_pair(row, path, line, name)
    dialogue = _turns(row["dialogue"], located(path, line, "dialogue"))
    if dialogue[-1:] == (
        Message("assistant", ""),
    ):  # an open heading at the end says whose turn it is
        dialogue = dialogue[:-1]
    if not dialogue:
        return EMPTY
    if dialogue[-1].role != "human":
        raise UserError(
            f"{located(path, line, 'dialogue')}: ends in '{dialogue[-1].role}'; expected a human turn last"
        )
    chosen, rejected = (field(row, key, str, path, line).strip() for key in ("chosen", "rejected"))
    if chosen == rejected:
        return EQUAL
    return HumanComparison(_id(row, path, line, name), dialogue, chosen, rejected, name)


def _from_pair(row: dict, path: str, line: int, name: str) -> HumanComparison | str:
    if any(
        isinstance(row.get(key), str) and not row[key].strip() for key in ("chosen", "rejected")
    ):
        return EMPTY
    kind = list if isinstance(row.get("chosen"), list) else str
    chosen, rejected = (field(row, key, kind, path, line) for key in ("chosen", "rejected"))
    if chosen == rejected:
        return EQUAL
    pair = [_turns(row[key], located(path, line, key)) for key in ("chosen", "rejected")]
    for turns in pair:
        if reason := fault(turns):
            return reason
    (*start, good), (*other, bad) = pair
    if start != other:
        return DIFFERENT
    if good == bad:
        return EQUAL
    return HumanComparison(_id(row, path, line, name), tuple(start), good.text, bad.text, name)


def _id(row: dict, path: str, line: int, name: str) -> str:
    return field(row, "id", str, path, line) if "id" in row else f"{name}:{line}"


def _turns(value, where: str) -> Dialogue:
    """A dialogue given as a text of the published form or as a list of turns."""
    return (
        split_turns(value)
        if isinstance(value, str)
        else dialogue_from_json(chat_turns(value), where)
    )


def split_turns(text: str) -> Dialogue:
    """The turns of an hh-rlhf text, stripped. Text before the first heading becomes a system turn."""
    pieces = _HEADING.split(text)
    turns = [Message("system", pieces[0].strip())] if pieces[0].strip() else []
    turns += [
        Message(who.lower(), said.strip())
        for who, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    return tuple(turns)


def fault(turns: Dialogue) -> str | None:
    """Why this is not a dialogue that alternates from a human's turn to an assistant's answer, or None."""
    if not turns or turns[-1].role != "assistant":
        return OPEN
    if any(turn.role != ("human", "assistant")[i % 2] for i, turn in enumerate(turns)):
        return ODD
    return EMPTY if any(not turn.text for turn in turns) else None
