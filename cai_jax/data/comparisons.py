"""Human comparisons: pairs of answers to the same dialogue of which a person preferred one.

A row has "chosen" and "rejected", in one of these forms (`chats.py` says how turns may be written):

- complete dialogues, a text "\\n\\nHuman: …\\n\\nAssistant: …" as the published hh-rlhf files have
  it, or a list of turns, the first of which may be a system turn; the two differ in the last turn;
- answers alone, a text or a list of one assistant turn, to a "prompt" or "dialogue" of their own, a
  text or a list of turns. Next to complete dialogues a "prompt" only repeats them.

Our own rows are `{"id", "dialogue", "chosen", "rejected"}`. Pairs that carry no information or no
answer are dropped and counted by reason.
"""

from __future__ import annotations

import dataclasses

from cai_jax.data import chats, records
from cai_jax.data.files import Row
from cai_jax.structs import Dialogue, Message

EQUAL = "equal pair"
DIFFERENT = "different prompts"


@dataclasses.dataclass(frozen=True)
class HumanComparison:
    """`dialogue` ends in a human turn; `chosen` was preferred to `rejected`. `source` says where it
    is from."""

    id: str
    dialogue: Dialogue
    chosen: str
    rejected: str
    source: str


def _comparison(row: Row, name: str) -> HumanComparison | str:
    """One row as a comparison, or the reason why it is dropped."""
    answers = {side: row.require(side) for side in ("chosen", "rejected")}
    key = row.first("dialogue", "prompt")
    asked = chats.awaiting(row.values[key], row.at(key)) if key else None
    if any(isinstance(value, str) and not value.strip() for value in answers.values()):
        return chats.EMPTY
    if asked == ():
        return chats.EMPTY
    pair = []
    for side, value in answers.items():
        # A text next to a "prompt" may repeat it; one next to our "dialogue" never does.
        alone = asked is not None and not (key == "prompt" and chats.is_dialogue(value))
        turns, reason = _turns(value, asked if alone else None, row.at(side))
        if reason:
            return reason
        pair.append(turns)
    (*start, good), (*other, bad) = pair
    if start != other:
        return DIFFERENT
    if good == bad:
        return EQUAL
    item_id = row.label("id") or f"{name}:{row.line}"
    return HumanComparison(item_id, tuple(start), good.text, bad.text, name)


def _turns(value, asked: Dialogue | None, where: str) -> tuple[Dialogue, str | None]:
    """(the dialogue with one side's answer at its end, why it is dropped or None). `asked`: the
    dialogue before the answer, where `value` does not hold it."""
    if isinstance(value, str):
        if asked is not None:
            return (*asked, Message("assistant", value.strip())), None
        turns = chats.split_turns(value)
        return turns, chats.fault(turns)
    turns = chats.read(value, where)
    if asked is None or turns[0].role != "assistant":
        return turns, chats.fault(chats.without_system(turns))
    turns = (*asked, *(dataclasses.replace(turn, text=turn.text.strip()) for turn in turns))
    if turns[-1].role != "assistant":
        return turns, chats.OPEN
    return turns, None if turns[-1].text else chats.EMPTY


COMPARISONS = records.Kind("comparisons", _comparison, ("helpful_comparisons",), optional=True)


def load_comparisons(source: str, **options) -> tuple[list[HumanComparison], dict[str, int]]:
    """(comparisons, dropped rows by reason) of `source`, with the options of `records.load`; a
    limit of 0 asks for none."""
    return records.load(COMPARISONS, source, **options)
