"""Human comparisons: pairs of answers to the same dialogue of which a person preferred one.

A row has "chosen" and "rejected", in one of these forms (`chats.py` says how turns may be written):

- whole dialogues, a text "\\n\\nHuman: …\\n\\nAssistant: …" as the published hh-rlhf files have it,
  or a list of turns, in which a system turn may come first; the two share all but the last turn;
- answers alone, a text or a list of one assistant turn, to a "prompt" or "dialogue" of their own, a
  text or a list of turns. Beside whole dialogues a "prompt" only repeats them.

Our own rows are `{"id", "dialogue", "chosen", "rejected"}`. Pairs that carry no information or no
answer are dropped and counted by reason.
"""

from __future__ import annotations

import collections
import dataclasses

from cai_jax.data import chats, sources
from cai_jax.data.chats import EMPTY, ODD, OPEN, fault, split_turns, without_system
from cai_jax.data.columns import label, require
from cai_jax.data.jsonl import BadRows
from cai_jax.data.selection import name_of, name_twice, take
from cai_jax.data.sources import EMBEDDED_FOLDER, Source
from cai_jax.data.tables import read_rows
from cai_jax.errors import UserError, located
from cai_jax.structs import Dialogue, Message

EQUAL = "equal pair"
DIFFERENT = "different prompts"
__all__ = ["DIFFERENT", "EMPTY", "EQUAL", "ODD", "OPEN", "HumanComparison", "load_comparisons"]


@dataclasses.dataclass(frozen=True)
class HumanComparison:
    """`dialogue` ends in a human turn; `chosen` was preferred to `rejected`. `source` says where it
    is from."""

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
    max_bad_rows: int = 0,
) -> tuple[list[HumanComparison], dict[str, int]]:
    """(comparisons, dropped rows by reason) of `source`.

    Args:
        source: any source string (`sources.py`): "embedded:helpful_comparisons", files,
            "tfds:cai_hh_rlhf/helpful_base", "hf:ORG/NAME", "a+b". Each of several sources has its
            own split and limit where it names them, else those given here.
        split: keeps the rows with that "split" field or names the data set's; it may name parts of
            the first human turns (`selection.py`).
        offset, limit: count comparisons that were kept; reading stops at the limit, and so does the
        count of dropped rows. max_characters: longer comparisons are dropped. max_bad_rows: so many
        rows of a source that cannot be read are counted with their lines and left out.

    Raises: UserError `file:line: field …` for a malformed row, and where no comparison is left.
    """
    parsed = sources.parse(source)
    kept: list[HumanComparison] = []
    dropped: collections.Counter[str] = collections.Counter()
    for each, name in zip(parsed, name_twice(parsed), strict=True):
        fields = {"offset": offset, "max_characters": max_characters, **each.options(split, limit)}
        if fields["limit"] == 0:  # none are asked for
            continue
        items, counts = _read(each, name, max_bad_rows, fields)
        kept += items
        dropped.update(counts)
    if len({item.id for item in kept}) < len(kept):
        raise UserError(f"{source}: two sources have a comparison of the same id; ids must differ")
    if not kept and limit != 0 and not any(each.limit == 0 for each in parsed):
        raise UserError(
            f"comparisons: '{source}' names no source; expected a file or embedded:NAME"
        )
    return kept, dict(sorted(dropped.items()))


def _read(
    source: Source, name: str, max_bad_rows: int, fields: dict
) -> tuple[list, dict[str, int]]:
    """The comparisons of one source and its dropped rows."""
    if source.kind == sources.EMBEDDED and not sources.files(source.place):
        have = ", ".join(
            f"embedded:{p.stem}" for p in sorted(EMBEDDED_FOLDER.glob("*comparisons*.jsonl"))
        )
        raise UserError(f"{source.place}: no such embedded comparisons; there are {have}")
    bad = BadRows(max_bad_rows)
    return take(
        source,
        read_rows(source, name_of(fields["split"]), bad),
        lambda row, line: _comparison(row, source.place, line, name),
        "comparisons",
        bad=bad,
        **fields,
    )


def _comparison(row: dict, place: str, line: int, name: str) -> HumanComparison | str:
    """One row as a comparison, or the reason why it is dropped."""
    answers = [require(row, key, place, line) for key in ("chosen", "rejected")]
    key = next((key for key in ("dialogue", "prompt") if row.get(key) is not None), None)
    asked = chats.awaiting(row[key], located(place, line, key)) if key else None
    if any(isinstance(value, str) and not value.strip() for value in answers) or asked == ():
        return EMPTY
    pair = []
    for side, value in zip(("chosen", "rejected"), answers, strict=True):
        turns, reason = _turns(value, asked, key == "prompt", located(place, line, side))
        if reason:
            return reason
        pair.append(turns)
    (*start, good), (*other, bad) = pair
    if start != other:
        return DIFFERENT
    if good == bad:
        return EQUAL
    item_id = label(row, "id", place, line) or f"{name}:{line}"
    return HumanComparison(item_id, tuple(start), good.text, bad.text, name)


def _turns(
    value, asked: Dialogue | None, may_repeat: bool, where: str
) -> tuple[Dialogue, str | None]:
    """(the dialogue with one side's answer at its end, why it is dropped or None).

    Args:
        value: the side as the row has it: a text, a turn or a list of turns.
        asked: the dialogue before the answer, where the row has it apart.
        may_repeat: whether the side may be a whole dialogue although the row has `asked`.
        where: the head of messages.
    """
    if isinstance(value, str):
        if asked is None or (may_repeat and chats.is_dialogue(value)):
            turns = split_turns(value)
            return turns, fault(turns)
        return (*asked, Message("assistant", value.strip())), None
    turns = chats.read(value, where)
    if asked is None or turns[0].role != "assistant":
        return turns, fault(without_system(turns))
    turns = (*asked, *(dataclasses.replace(turn, text=turn.text.strip()) for turn in turns))
    return turns, OPEN if turns[-1].role != "assistant" else EMPTY if not turns[-1].text else None
