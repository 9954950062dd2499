"""The constitution: principles and worked examples, from our JSON files or from the paper's
official ones.

Our schema is one JSON object (embedded: principles.json and examples.json together), meant to be
edited by hand:

    critique_principles    [{"id", "critique_request", "revision_request"}]
    comparison_principles  [{"id", "text"}]
    critique_examples      [{"id", "dialogue", "response", "critique_request", "critique", "revision_request",
                             "revision"}]
    comparison_examples    [{"id", "dialogue", "chosen", "rejected"}]
    chain_examples         [{"id", "dialogue", "options": [2 texts], "reasoning", "answer": "A" or "B"}]

A dialogue is [{"role", "text"}, …] and ends in a human turn. Both lists of principles are required;
example lists that are left out are the embedded ones, `[]` means none. The official files are first
turned into the same rows (`official.py`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from cai_jax.constitution import official
from cai_jax.errors import UserError, located
from cai_jax.structs import Dialogue, Message, dialogue_from_json

EMBEDDED = Path(__file__).parent
SLOT = "{}"
DIALOGUE_ROLES = ("system", "human", "assistant")
KEYS = (
    "critique_principles",
    "comparison_principles",
    "critique_examples",
    "comparison_examples",
    "chain_examples",
)


@dataclasses.dataclass(frozen=True)
class CritiquePrinciple:
    """What to criticise a response for, and how to ask for its revision."""

    id: str
    critique_request: str
    revision_request: str


@dataclasses.dataclass(frozen=True)
class ComparisonPrinciple:
    """What to choose between two responses by; no leading newline, no trailing "Options:"."""

    id: str
    text: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A whole critique and revision: human (and assistant) turns, then assistant, critique_request,
    critique, revision_request, revision."""

    id: str
    messages: Dialogue


@dataclasses.dataclass(frozen=True)
class ComparisonExample:
    """A dialogue ending in a human turn, a better and a worse response. Whoever uses it draws their
    order."""

    id: str
    dialogue: Dialogue
    chosen: str
    rejected: str


@dataclasses.dataclass(frozen=True)
class ChainExample:
    """A worked comparison with its reasons. `prompt` is the human turn with a slot for a principle;
    `reasoning` is what follows "Let's think step by step:", stripped; `answer` is "A" or "B"."""

    id: str
    prompt: str
    reasoning: str
    answer: str

    def question(self, principle: str) -> str:
        """The human turn with the principle, on its own line, in the first slot. Texts hold braces:
        no format()."""
        before, _, after = self.prompt.partition(SLOT)
        return f"{before}\n{principle}{after}"


@dataclasses.dataclass(frozen=True)
class Constitution:
    """All principles and worked examples, in the order of their files."""

    critique_principles: tuple[CritiquePrinciple, ...]
    comparison_principles: tuple[ComparisonPrinciple, ...]
    critique_examples: tuple[Example, ...]
    comparison_examples: tuple[ComparisonExample, ...]
    chain_examples: tuple[ChainExample, ...]


def load_constitution(source: str = "embedded") -> Constitution:
    """Reads "embedded", a JSON file of our schema, or a directory: with the paper's official files,
    or with a principles.json and perhaps an examples.json of our schema.

    Raises UserError `file: field '…': …` for whatever is missing, misspelt, of another type, blank,
    or there twice.
    """
    tables = _tables(source)
    if missing := [key for key in KEYS[2:] if key not in tables]:
        embedded = _merged([(EMBEDDED / "examples.json", read_json(EMBEDDED / "examples.json"))])
        tables |= {key: embedded[key] for key in missing}
    return Constitution(**{key: _rows(key, *tables[key]) for key in KEYS})


def missing_examples(source: str) -> list[str]:
    """The kinds of worked examples that `source` lacks, for which the embedded ones are taken:
    "critique_examples", …"""
    tables = _tables(source)
    return [key for key in KEYS[2:] if key not in tables]


def _tables(source: str) -> dict:
    """Key → (file, rows) of everything that the source itself holds, unchecked but for the lists of
    principles."""
    path = EMBEDDED if source == "embedded" else Path(source)
    if path.is_dir():
        if (path / "principles.json").is_file():
            files = [
                file
                for file in (path / "principles.json", path / "examples.json")
                if file.is_file()
            ]
            tables = _merged([(file, read_json(file)) for file in files])
        else:
            tables = {
                key: (path / name, rows)
                for key, (name, rows) in official.read_tables(path, read_json).items()
            }
    elif path.is_file():
        tables = _merged([(path, read_json(path))])
    else:
        raise UserError(
            f"{source}: no such constitution; expected 'embedded', a JSON file or a directory "
            "of them"
        )
    for key in KEYS[:2]:
        if key not in tables:
            raise UserError(f"{located(path, field=key)}: missing; expected a list of principles")
    return tables


def read_json(path: Path):
    """The value of one JSON file. Raises UserError where it is missing, not UTF-8 or not JSON."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a constitution needs it")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{located(path, error.lineno)}: not valid JSON ({error.msg}, column {error.colno})"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON in UTF-8 ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _merged(files: list[tuple[Path, object]]) -> dict:
    """Key → (file, rows) over several files of our schema."""
    tables = {}
    for path, value in files:
        if not isinstance(value, dict):
            raise UserError(f"{path}: expected a JSON object with {', '.join(KEYS)}")
        for key, rows in value.items():
            if key not in KEYS:
                raise UserError(
                    f"{located(path, field=key)}: unknown; expected one of {', '.join(KEYS)}"
                )
            if key in tables:
                raise UserError(
                    f"{located(path, field=key)}: is in {tables[key][0]} as well; keep one of them"
                )
            tables[key] = path, rows
    return tables


def _rows(key: str, path: Path, rows) -> tuple:
    """The checked rows of one list as their dataclass."""
    if not isinstance(rows, list) or (not rows and key.endswith("principles")):
        raise UserError(f"{located(path, field=key)}: expected a non-empty list")
    make = {
        "critique_principles": _critique_principle,
        "comparison_principles": _comparison_principle,
        "critique_examples": _critique_example,
        "comparison_examples": _comparison_example,
        "chain_examples": _chain_example,
    }[key]
    result, ids = [], set()
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{located(path, field=f'{key}[{number}]')}: expected an object")
        read = _Reader(path, f"{key}[{number}]", row)
        item = make(read)
        read.done()
        if item.id in ids:
            raise read.error("id", f"'{item.id}' was there before; ids must differ")
        ids.add(item.id)
        result.append(item)
    return tuple(result)


class _Reader:
    """The fields of one row, each checked as it is read; a field that nothing read is a misspelt
    one."""

    def __init__(self, path: Path, name: str, row: dict):
        self.path, self.name, self.row, self.read = path, name, row, set()

    def error(self, name: str, message: str) -> UserError:
        return UserError(f"{located(self.path, field=f'{self.name}.{name}')}: {message}")

    def value(self, name: str):
        self.read.add(name)
        if name not in self.row:
            raise self.error(name, "missing")
        return self.row[name]

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, "expected text that is not blank")
        return value.strip()

    def dialogue(self) -> Dialogue:
        where = located(self.path, field=f"{self.name}.dialogue")
        dialogue = dialogue_from_json(self.value("dialogue"), where)
        if dialogue[-1].role != "human" or any(
            message.role not in DIALOGUE_ROLES for message in dialogue
        ):
            raise UserError(
                f"{where}: expected turns among {', '.join(DIALOGUE_ROLES)}, ending in a human turn"
            )
        return dialogue

    def done(self):
        if unknown := sorted(self.row.keys() - self.read):
            raise self.error(unknown[0], f"unknown; expected {', '.join(sorted(self.read))}")


def _critique_principle(read: _Reader) -> CritiquePrinciple:
    return CritiquePrinciple(
        read.text("id"), read.text("critique_request"), read.text("revision_request")
    )


def _comparison_principle(read: _Reader) -> ComparisonPrinciple:
    return ComparisonPrinciple(read.text("id"), read.text("text"))


def _critique_example(read: _Reader) -> Example:
    turns = tuple(
        Message("assistant" if name == "response" else name, read.text(name))
        for name in ("response", "critique_request", "critique", "revision_request", "revision")
    )
    return Example(read.text("id"), read.dialogue() + turns)


def _comparison_example(read: _Reader) -> ComparisonExample:
    return ComparisonExample(
        read.text("id"), read.dialogue(), read.text("chosen"), read.text("rejected")
    )


def _chain_example(read: _Reader) -> ChainExample:
    prompt = _chain_prompt(read)
    answer = read.text("answer")
    if answer not in ("A", "B"):
        raise read.error("answer", "expected 'A' or 'B'")
    return ChainExample(read.text("id"), prompt, read.text("reasoning"), answer)


def _chain_prompt(read: _Reader) -> str:
    """A row of ours as the question that the feedback stage asks before a chain
    (`cai_jax.data.choices.question`)."""
    dialogue, options = read.dialogue(), read.value("options")
    texts = (
        [text for text in options if isinstance(text, str) and text.strip()]
        if isinstance(options, list)
        else []
    )
    if len(texts) != 2 or len(options) != 2:
        raise read.error("options", "expected a list of two texts")
    said = "\n\n".join(f"{message.role.capitalize()}: {message.text}" for message in dialogue)
    if SLOT in said:
        raise read.error(
            "dialogue",
            f"contains '{SLOT}', which is where the principle goes; write it another way",
        )
    shown = "\n".join(
        f"({letter}) {text.strip()}" for letter, text in zip("AB", texts, strict=True)
    )
    return (
        "Consider the following conversation between a human and an "
        f"assistant:\n{said}{SLOT}\n{shown}"
    )
