"""Prompts: dialogues that wait for an assistant's answer. Red-team and helpful ones come with the project.

A row is `{"prompt": text or [{role, text}, …]}` and may have "id", "kind" (what it is about) and "split". A text
that begins with "\\n\\nHuman:" is a dialogue in the paper's form. Rows of hh-rlhf, `{"chosen", "rejected"}`, give
the dialogue before the answer, and so do red-team attempts, `{"transcript"}`. Other columns are named after the source:
"FILE#prompt=question,kind=topic" (`columns.py`). The embedded prompts were written by hand for this project: requests that a person
might type, without operational detail.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from pathlib import Path

from cai_jax.data.columns import chat_turns
from cai_jax.data.comparisons import fault, split_turns
from cai_jax.data.jsonl import field
from cai_jax.data.selection import name_of, take
from cai_jax.data.tables import read_rows
from cai_jax.errors import UserError, located
from cai_jax.structs import Dialogue, Message, dialogue_from_json, dialogue_to_json

EMBEDDED = Path(__file__).parent / "embedded"
SETS = ("red_team", "helpful")

DUPLICATE = "duplicate"
BLANK = "blank prompt"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A dialogue that ends in a human turn. `id` is stable: the row's own, or a hash of the dialogue."""

    id: str
    dialogue: Dialogue
    kind: str | None = None


def load_prompts(
    source: str, *, split: str | None = None, offset: int = 0, limit: int | None = None
) -> list[Prompt]:
    """The prompts of `source` in its order: `read_prompts` without the counts."""
    return read_prompts(source, split=split, offset=offset, limit=limit)[0]


def read_prompts(
    source: str,
    *,
    split: str | None = None,
    offset: int = 0,
    limit: int | None = None,
    max_characters: int | None = None,
) -> tuple[list[Prompt], dict[str, int]]:
    """(prompts, dropped rows by reason) of `source`.

    `source`: "embedded:red_team" or "embedded:helpful"; a .jsonl, .jsonl.gz or .parquet file; "tfds:NAME"; "hf:ORG/NAME"; any
    of the last four with "#field=column,…" behind it. `split`
    keeps the rows with that "split" field or names the data set's split, and may name parts of the first human turns
    (`selection.py`). Dropped are blank prompts, hh-rlhf rows of odd turns, later copies of a dialogue, and prompts of more
    than `max_characters`. `offset` and `limit` count prompts that were kept; reading stops at the
    limit, and so does the count of dropped rows. "a+b" reads several sources, each with this split, offset and limit.

    Raises UserError `file:line: field …` for a malformed row, and "0 rows left" where nothing is left.
    """
    if "+" in source and not Path(source).exists():
        options = {
            "split": split,
            "offset": offset,
            "limit": limit,
            "max_characters": max_characters,
        }
        return _joined(
            source, [read_prompts(part.strip(), **options) for part in source.split("+")]
        )
    path = _resolve(source)
    seen: set[Dialogue] = set()

    def parse(row: dict, line: int) -> Prompt | str:
        prompt = _prompt(row, path, line)
        if isinstance(prompt, Prompt):
            if prompt.dialogue in seen:
                return DUPLICATE
            seen.add(prompt.dialogue)
        return prompt

    return take(
        source,
        path,
        read_rows(path, name_of(split)),
        parse,
        "prompts",
        split=split,
        offset=offset,
        limit=limit,
        max_characters=max_characters,
    )


def _joined(
    source: str, parts: list[tuple[list[Prompt], dict[str, int]]]
) -> tuple[list[Prompt], dict[str, int]]:
    """Prompts one source after the other; a dialogue that an earlier source had counts as a duplicate."""
    kept: dict[Dialogue, Prompt] = {}
    ids: set[str] = set()
    dropped: collections.Counter[str] = collections.Counter()
    for prompts, counts in parts:
        dropped.update(counts)
        for prompt in prompts:
            if prompt.dialogue in kept:
                dropped[DUPLICATE] += 1
                continue
            if prompt.id in ids:
                raise UserError(
                    f"{source}: id '{prompt.id}' names different prompts in two sources; ids must differ"
                )
            kept[prompt.dialogue] = prompt
            ids.add(prompt.id)
    return list(kept.values()), dict(sorted(dropped.items()))


def _resolve(source: str) -> str:
    if not source.startswith("embedded:"):
        return source
    name = source.removeprefix("embedded:")
    if name not in SETS:
        raise UserError(
            f"{source}: no such embedded prompts; there are embedded:{' and embedded:'.join(SETS)}"
        )
    return str(EMBEDDED / f"{name}.jsonl")


def _prompt(row: dict, path: str, line: int) -> Prompt | str:
    """One row, checked, or the reason why it is dropped."""
    value = chat_turns(row.get("prompt"))
    whole = next(
        (row[key] for key in ("chosen", "transcript") if isinstance(row.get(key), str)), None
    )
    if value is None and whole is not None:
        turns = split_turns(whole)
        if (
            "transcript" in row and turns and turns[-1].role == "human"
        ):  # some attempts end without an answer
            turns = (*turns, Message("assistant", "-"))
        if reason := fault(turns):
            return reason
        dialogue = turns[:-1]
    elif isinstance(value, list):
        dialogue = dialogue_from_json(value, located(path, line, "prompt"))
    elif isinstance(value, str) and value.startswith("\n\nHuman:"):
        dialogue = split_turns(value)
        if dialogue[-1] == Message(
            "assistant", ""
        ):  # an open heading at the end says whose turn it is
            dialogue = dialogue[:-1]
    elif isinstance(value, str) and not value.strip():
        return BLANK
    else:
        dialogue = (Message("human", field(row, "prompt", str, path, line).strip()),)
    if dialogue[-1].role != "human":
        where = located(path, line, "prompt")
        raise UserError(
            f"{where}: ends in '{dialogue[-1].role}'; expected a human turn last, which awaits an answer"
        )
    if not dialogue[-1].text.strip():
        return BLANK
    name = field(row, "id", str, path, line) if row.get("id") is not None else stable_id(dialogue)
    kind = field(row, "kind", str, path, line) if row.get("kind") is not None else None
    if (
        kind is None and isinstance(row.get("label"), str) and isinstance(row.get("type"), str)
    ):  # XSTest: "safe:homonyms"
        kind = f"{row['label']}:{row['type']}"
    return Prompt(name, dialogue, kind)


def stable_id(dialogue: Dialogue) -> str:
    """16 hexadecimal digits that depend on roles and texts alone."""
    text = json.dumps(dialogue_to_json(dialogue), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
