"""Answers that exist already: rows of {"prompt_id" or "prompt", "response"} in a file, or the
records of a stage.

The n-th row of a prompt is its n-th sample. "num_tokens" and "stop" may be missing or null: lengths
are then in words, and the answer counts as ended. An empty response is an answer; a null one is
none and is counted.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from cai_jax.data import sources
from cai_jax.data.columns import label, require
from cai_jax.data.jsonl import field
from cai_jax.data.prompts import Prompt
from cai_jax.data.tables import read_rows
from cai_jax.errors import UserError, located

PREFIX = "responses:"
ENDED = "eos"


@dataclasses.dataclass(frozen=True)
class Answer:
    """`num_tokens` is a count of words where `in_words`."""

    text: str
    stop: str
    num_tokens: int
    in_words: bool


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers of one model. `by_prompt` has them by prompt id or by the text of the prompt's
    last turn."""

    place: str
    by_prompt: Mapping[str, Sequence[Answer]]
    num_null: int = 0

    def to(self, prompt: Prompt) -> Sequence[Answer]:
        """Its samples for a prompt, none where the prompt is not there."""
        return self.by_prompt.get(prompt.id) or self.by_prompt.get(_last_turn(prompt)) or ()

    @property
    def in_words(self) -> bool:
        return any(answer.in_words for group in self.by_prompt.values() for answer in group)


def from_file(reference: str) -> Answers:
    """The answers in "responses:FILE"; the file is any source of rows, columns may be named behind
    it."""
    source = sources.single(reference)
    return read(read_rows(source, source.split), source.place)


def read(rows: Iterable[tuple[int, dict]], place: str) -> Answers:
    """The answers of (line, row) pairs. Raises UserError `place:line: field …` for a malformed row,
    and where there is none."""
    found: dict[str, list[Answer]] = collections.defaultdict(list)
    num_null = 0
    for line, row in rows:
        named = label(row, "prompt_id", place, line)
        key = named or field(row, "prompt", str, place, line)
        if "response" in row and row["response"] is None:
            num_null += 1
            continue
        text = require(row, "response", place, line)
        if not isinstance(text, str):
            where = located(place, line, "response")
            raise UserError(f"{where}: expected text, found {type(text).__name__}")
        stop = row.get("stop")
        stop = ENDED if stop is None else field(row, "stop", str, place, line)
        count = _count(row.get("num_tokens"), located(place, line, "num_tokens"))
        words = len(text.split())
        found[key.strip()].append(
            Answer(text.strip(), stop, words if count is None else count, count is None)
        )
    if not found:
        raise UserError(f"{place}: no answers ({num_null} rows with a null response)")
    return Answers(place, dict(found), num_null)


def _count(value, where: str) -> int | None:
    """A number of tokens; None where there is none, which tables of numbers write as null or
    NaN."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return None
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not whole or value < 0:
        raise UserError(f"{where}: expected a whole number of tokens or null, found {value!r:.40}")
    return int(value)


def _last_turn(prompt: Prompt) -> str:
    return prompt.dialogue[-1].text.strip()


def require_common(
    written: Mapping[str, Answers], sets: Mapping[str, Sequence[Prompt]], where: str
) -> None:
    """Raises UserError where written answers cannot be compared: models are compared prompt by
    prompt.

    Args:
        written: model name → its answers, for the models whose answers exist already; the others
        answer every prompt. sets: name of a set of prompts → its prompts. where: the head of
        messages, such as config.graph.evaluate.
    """
    if not sets:
        return
    answered = {
        name: {on: {p.id for p in prompts if answers.to(p)} for on, prompts in sets.items()}
        for name, answers in written.items()
    }
    for name, by_set in answered.items():
        if not any(by_set.values()):
            first, *_ = written[name].by_prompt
            example = next((prompts[0].id for prompts in sets.values() if prompts), "")
            raise UserError(
                f"{where}.models.{name}: {written[name].place}: none of its "
                f"{len(written[name].by_prompt)} prompts is in "
                f"{', '.join(f'prompts_{on}' for on in sets)}: it answers '{first[:60]}', "
                "asked are prompts such as "
                f"'{example}'; give that id as 'prompt_id', or the words of the last turn as "
                "'prompt'"
            )
    names = list(answered)
    for index, name in enumerate(names):
        for other in names[:index]:
            for on in sets:
                a, b = answered[other][on], answered[name][on]
                if a and b and not a & b:
                    raise UserError(
                        f"{where}.models: '{other}' ({written[other].place}) and '{name}' "
                        f"({written[name].place}) answer "
                        f"no prompt of prompts_{on} in common ({len(a)} and {len(b)}); models "
                        "are compared prompt by prompt: "
                        "let both answer the same ones, or evaluate them in stages of their own"
                    )
