"""Prompts: dialogues that wait for an assistant's answer. Red-team and helpful ones come with the
project.

A row is `{"prompt": text or list of turns}` and may have "id", "kind" (what it is about) and
"split". A text that begins with "\\n\\nHuman:" is a dialogue in the paper's form; `chats.py` says
how turns may be written. Rows of chats, `{"messages"}`, give the dialogue up to the last human
turn, rows of hh-rlhf, `{"chosen", "rejected"}`, and red-team attempts, `{"transcript"}`, that
before the last answer. Other columns are named after the source: "FILE#prompt=question,kind=topic"
(`columns.py`). The embedded prompts were written by hand for this project: requests that a person
might type, without operational detail.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json

from cai_jax.data import chats, sources
from cai_jax.data.chats import fault, split_turns, without_system
from cai_jax.data.columns import label, require
from cai_jax.data.jsonl import BadRows
from cai_jax.data.selection import name_of, take
from cai_jax.data.sources import Source
from cai_jax.data.tables import read_rows
from cai_jax.errors import UserError, located
from cai_jax.structs import Dialogue, Message, dialogue_to_json

SETS = ("red_team", "helpful")

DUPLICATE = "duplicate"
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


def load_prompts(source: str, **options) -> list[Prompt]:
    """The prompts of `source` in its order: `read_prompts` without the counts."""
    return read_prompts(source, **options)[0]


def read_prompts(
    source: str,
    *,
    split: str | None = None,
    offset: int = 0,
    limit: int | None = None,
    max_characters: int | None = None,
    max_bad_rows: int = 0,
) -> tuple[list[Prompt], dict[str, int]]:
    """(prompts, dropped rows by reason) of `source`.

    Args:
        source: any source string (`sources.py`): "embedded:red_team", files, "tfds:NAME",
            "hf:ORG/NAME", "a+b". Each of several sources has its own split and limit where it names
            them ("a[train:10]+b"), else those given here.
        split: keeps the rows with that "split" field or names the data set's split, and may name
            parts of the first human turns (`selection.py`).
        offset, limit: count prompts that were kept; reading stops at the limit, and so does the
        count of dropped rows. max_characters: longer prompts are dropped. max_bad_rows: so many
        rows of a source that cannot be read are counted with their lines and left out.

    Dropped are also blank prompts, hh-rlhf rows of odd turns, and later copies of a dialogue.

    Raises: UserError `file:line: field …` for a malformed row, and "0 rows left" where nothing is
    left.
    """
    kept: dict[Dialogue, Prompt] = {}
    ids: set[str] = set()
    dropped: collections.Counter[str] = collections.Counter()
    for each in sources.parse(source):
        fields = {"offset": offset, "max_characters": max_characters, **each.options(split, limit)}
        prompts, counts = _read(each, max_bad_rows, fields)
        dropped.update(counts)
        for prompt in prompts:
            if prompt.dialogue in kept:
                dropped[DUPLICATE] += 1
                continue
            if prompt.id in ids:
                raise UserError(
                    f"{source}: id '{prompt.id}' names different prompts in two sources; ids "
                    "must differ"
                )
            kept[prompt.dialogue] = prompt
            ids.add(prompt.id)
    if not kept and limit != 0:
        raise UserError(f"prompts: '{source}' names no source; expected a file or embedded:NAME")
    return list(kept.values()), dict(sorted(dropped.items()))


def _read(source: Source, max_bad_rows: int, fields: dict) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts of one source and its dropped rows."""
    if source.kind == sources.EMBEDDED and source.name not in SETS:
        raise UserError(
            f"{source.place}: no such embedded prompts; there are "
            f"embedded:{' and embedded:'.join(SETS)}"
        )
    seen: set[Dialogue] = set()

    def parse(row: dict, line: int) -> Prompt | str:
        prompt = _prompt(row, source.place, line)
        if isinstance(prompt, Prompt):
            if prompt.dialogue in seen:
                return DUPLICATE
            seen.add(prompt.dialogue)
        return prompt

    bad = BadRows(max_bad_rows)
    rows = read_rows(source, name_of(fields["split"]), bad)
    return take(source, rows, parse, "prompts", bad=bad, **fields)


def _prompt(row: dict, place: str, line: int) -> Prompt | str:
    """One row, checked, or the reason why it is dropped."""
    dialogue = _dialogue(row, place, line)
    if isinstance(dialogue, str):
        return dialogue
    if not dialogue or not dialogue[-1].text.strip():
        return BLANK
    kind = label(row, "kind", place, line)
    if (
        kind is None and isinstance(row.get("label"), str) and isinstance(row.get("type"), str)
    ):  # XSTest: "safe:homonyms"
        kind = f"{row['label']}:{row['type']}"
    return Prompt(label(row, "id", place, line) or stable_id(dialogue), dialogue, kind)


def _dialogue(row: dict, place: str, line: int) -> Dialogue | str:
    """What waits for an answer in a row, or why the row is dropped."""
    for key in ("prompt", "dialogue"):
        if row.get(key) is not None:
            return chats.awaiting(row[key], located(place, line, key))
    for key in CHATS:
        if row.get(key) is not None:  # the last human turn is what is answered
            turns = chats.before_answer(chats.read(row[key], located(place, line, key)))
            return turns or NO_HUMAN
    for key in ("chosen", "transcript"):
        value = row.get(key)
        if value is None:
            continue
        listed = not isinstance(value, str)
        turns = chats.read(value, located(place, line, key)) if listed else split_turns(value)
        if (
            key == "transcript" and turns and turns[-1].role == "human"
        ):  # some attempts end without an answer
            turns = (*turns, Message("assistant", "-"))
        if reason := fault(without_system(turns) if listed else turns):
            return reason
        return turns[:-1]
    require(row, "prompt", place, line)
    raise AssertionError("a prompt that is there was not read")


def stable_id(dialogue: Dialogue) -> str:
    """16 hexadecimal digits that depend on roles and texts alone."""
    text = json.dumps(dialogue_to_json(dialogue), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
