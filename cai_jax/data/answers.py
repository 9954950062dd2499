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

from cai_jax import references
from cai_jax.data import records, sources
from cai_jax.data.files import Row
from cai_jax.data.prompts import Prompt
from cai_jax.errors import UserError

ENDED = "eos"
NULL = "null response"


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

    location: str
    by_prompt: Mapping[str, Sequence[Answer]]
    num_null: int = 0

    def to(self, prompt: Prompt) -> Sequence[Answer]:
        """Its samples for a prompt, none where it answers others."""
        last_turn = prompt.dialogue[-1].text.strip()
        return self.by_prompt.get(prompt.id) or self.by_prompt.get(last_turn) or ()

    @property
    def in_words(self) -> bool:
        return any(answer.in_words for group in self.by_prompt.values() for answer in group)


@dataclasses.dataclass(frozen=True)
class _Given:
    id: str
    prompt: str
    answer: Answer


def _given(row: Row, name: str) -> _Given | str:
    prompt = row.label("prompt_id") or row.text("prompt")
    if "response" in row.values and row.values["response"] is None:
        return NULL
    text = row.require("response", str)
    stop = row.text("stop") if row.has("stop") else ENDED
    count = row.values.get("num_tokens")
    if isinstance(count, float) and math.isnan(count):  # how tables of numbers write null
        count = None
    is_number = isinstance(count, int | float) and not isinstance(count, bool)
    if count is not None and not (is_number and count >= 0 and count == count // 1):
        reason = f"expected a number of tokens or null, got {count!r:.40}"
        raise row.error("num_tokens", reason)
    length = len(text.split()) if count is None else int(count)
    answer = Answer(text.strip(), stop, length, count is None)
    return _Given(f"{name}:{row.line}", prompt.strip(), answer)


ANSWERS = records.Kind("answers", _given, has_dialogue=False)


def from_file(reference: str) -> Answers:
    """The answers in "responses:FILE"; the file is any source of rows, columns may be named after
    it."""
    source = sources.single(references.parse(reference).name)
    items, dropped = records.load(ANSWERS, source)
    return _grouped(items, source.location, dropped.get(NULL, 0))


def read(rows: Iterable[tuple[int, dict]], location: str) -> Answers:
    """The answers of (line, row) pairs, such as a stage's records. Raises UserError
    `location:line: field …` for a malformed row, and where there is none."""
    items = [_given(Row(location, line, values), location) for line, values in rows]
    given = [item for item in items if item != NULL]
    if not given:
        raise UserError(f"{location}: no answers ({len(items)} rows with a null response)")
    return _grouped(given, location, len(items) - len(given))


def _grouped(items: Sequence[_Given], location: str, num_null: int) -> Answers:
    by_prompt = collections.defaultdict(list)
    for item in items:
        by_prompt[item.prompt].append(item.answer)
    return Answers(location, dict(by_prompt), num_null)


def require_common(
    written: Mapping[str, Answers], sets: Mapping[str, Sequence[Prompt]], where: str
) -> None:
    """Raises UserError where written answers cannot be compared: models are compared prompt by
    prompt.

    Args:
        written: model name → its answers, for the models whose answers exist already; the others
            answer every prompt.
        sets: name of a set of prompts → its prompts.
        where: the start of messages, such as config.graph.evaluate.
    """
    answered = {
        name: {on: {p.id for p in prompts if answers.to(p)} for on, prompts in sets.items()}
        for name, answers in written.items()
    }
    for index, (name, by_set) in enumerate(answered.items() if sets else ()):
        location = written[name].location
        if not any(by_set.values()):
            first = next(iter(written[name].by_prompt))
            example = next((prompts[0].id for prompts in sets.values() if prompts), "")
            raise UserError(
                f"{where}.models.{name}: {location}: none of its {len(written[name].by_prompt)} "
                f"prompts is in {', '.join(f'prompts_{on}' for on in sets)}: it answers "
                f"'{first[:60]}', asked are prompts such as '{example}'; give that id as "
                "'prompt_id', or the words of the last turn as 'prompt'"
            )
        for other in list(answered)[:index]:
            for on in sets:
                a, b = answered[other][on], by_set[on]
                if a and b and not a & b:
                    raise UserError(
                        f"{where}.models: '{other}' ({written[other].location}) and '{name}' "
                        f"({location}) answer no prompt of prompts_{on} in common ({len(a)} and "
                        f"{len(b)}); models are compared prompt by prompt: let both answer the "
                        "same ones, or evaluate them in stages of their own"
                    )
