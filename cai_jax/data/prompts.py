"""Prompts: dialogues that wait for an assistant's answer. Red-team and helpful ones come with the
project.

A row is `{"prompt": text or list of turns}` and may have "id", "kind" (what it is about) and
"split". A text that begins with "\\n\\nHuman:" is a dialogue in the paper's form; `chats.py` says
how turns may be written. Rows of chats, `{"messages"}`, give the dialogue up to the last human
turn, rows of hh-rlhf, `{"chosen", "rejected"}`, and red-team attempts, `{"transcript"}`, that
before the last answer. Other columns are named after the source: "FILE#prompt=question,kind=topic"
(`sources.py`). The embedded prompts were written by hand for this project: requests that a person
might type, without operational detail.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

from cai_jax.data import chats, records
from cai_jax.data.files import Row
from cai_jax.structs import Dialogue, Message, dialogue_to_json

SETS = ("red_team", "helpful")
BLANK = "blank prompt"
NO_HUMAN = "no human turn"
CHATS = ("messages", "conversations", "conversation")  # lists of turns, answers and all


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A dialogue that ends in a human turn. `id` is stable: the row's own, or a hash of the
    dialogue."""

    id: str
    dialogue: Dialogue
    kind: str | None = None


def stable_id(dialogue: Dialogue) -> str:
    """16 hexadecimal digits that depend on roles and texts alone."""
    text = json.dumps(dialogue_to_json(dialogue), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _prompt(row: Row, name: str) -> Prompt | str:
    dialogue = _dialogue(row)
    if isinstance(dialogue, str):
        return dialogue
    if not dialogue or not dialogue[-1].text.strip():
        return BLANK
    kind = row.label("kind")
    values = [row.values.get("label"), row.values.get("type")]
    if kind is None and all(isinstance(value, str) for value in values):
        kind = ":".join(values)  # of XSTest: "safe:homonyms"
    return Prompt(row.label("id") or stable_id(dialogue), dialogue, kind)


def _dialogue(row: Row) -> Dialogue | str:
    """What waits for an answer in a row, or why the row is dropped."""
    if key := row.first("prompt", "dialogue"):
        return chats.awaiting(row.values[key], row.at(key))
    if key := row.first(*CHATS):  # the last human turn is what is answered
        return chats.before_answer(chats.read(row.values[key], row.at(key))) or NO_HUMAN
    key = row.first("chosen", "transcript")
    if key is None:
        return row.require("prompt")
    value = row.values[key]
    is_text = isinstance(value, str)
    turns = chats.split_turns(value) if is_text else chats.read(value, row.at(key))
    if key == "transcript" and turns and turns[-1].role == "human":
        turns = (*turns, Message("assistant", "-"))  # some attempts end without an answer
    return chats.fault(turns if is_text else chats.without_system(turns)) or turns[:-1]


PROMPTS = records.Kind("prompts", _prompt, SETS, unique=lambda prompt: prompt.dialogue)


def read_prompts(source: str, **options) -> tuple[list[Prompt], dict[str, int]]:
    """(prompts, dropped rows by reason) of `source`, with the options of `records.load`. Dropped
    are also blank prompts, hh-rlhf rows of odd turns, and later copies of a dialogue."""
    return records.load(PROMPTS, source, **options)
