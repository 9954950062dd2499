"""The constitution: principles and worked examples, from our JSON files or from the paper's
official ones.

Our schema is one JSON object (embedded: principles.json and examples.json together), meant to be
edited by hand. Each list has objects with the fields of a dataclass below:

    critique_principles    [{"id", "critique_request", "revision_request"}]
    comparison_principles  [{"id", "text"}]
    critique_examples      [{"id", "dialogue", "response", "critique_request", "critique",
                             "revision_request", "revision"}]
    comparison_examples    [{"id", "dialogue", "chosen", "rejected"}]
    chain_examples         [{"id", "dialogue", "options": [2 texts], "reasoning", "answer"}]

A dialogue is [{"role", "text"}, …] and ends in a human turn. Both lists of principles are required;
example lists that are left out are the embedded ones, `[]` means none. The official files are first
turned into the same objects (`official.py`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from cai_jax.constitution import official
from cai_jax.data import choices
from cai_jax.errors import UserError, located
from cai_jax.structs import Dialogue, Message, dialogue_from_json

EMBEDDED = Path(__file__).parent
DIALOGUE_ROLES = ("system", "human", "assistant")


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
class CritiqueExample:
    """A complete critique and revision of a response."""

    id: str
    dialogue: Dialogue
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str

    @property
    def messages(self) -> Dialogue:
        """The dialogue, then assistant, critique_request, critique, revision_request, revision."""
        roles = ("critique_request", "critique", "revision_request", "revision")
        turns = [Message(role, getattr(self, role)) for role in roles]
        return (*self.dialogue, Message("assistant", self.response), *turns)


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
    """A worked comparison with its reasons: `reasoning` is what follows "Let's think step by
    step:", `answer` is "A" or "B"."""

    id: str
    dialogue: Dialogue
    options: tuple[str, str]
    reasoning: str
    answer: str

    def question(self, principle: str) -> str:
        """The human turn with a principle, as the feedback stage asks before a chain."""
        return choices.question(self.dialogue, principle, self.options, options_heading=False)


@dataclasses.dataclass(frozen=True)
class Constitution:
    """All principles and worked examples, in the order of their files."""

    critique_principles: tuple[CritiquePrinciple, ...]
    comparison_principles: tuple[ComparisonPrinciple, ...]
    critique_examples: tuple[CritiqueExample, ...]
    comparison_examples: tuple[ComparisonExample, ...]
    chain_examples: tuple[ChainExample, ...]


ITEMS = {
    "critique_principles": CritiquePrinciple,
    "comparison_principles": ComparisonPrinciple,
    "critique_examples": CritiqueExample,
    "comparison_examples": ComparisonExample,
    "chain_examples": ChainExample,
}
KEYS = tuple(ITEMS)
PRINCIPLES, EXAMPLES = KEYS[:2], KEYS[2:]


def load_constitution(source: str = "embedded") -> Constitution:
    """Reads "embedded", a JSON file of our schema, or a directory: with the paper's official files,
    or with a principles.json and perhaps an examples.json of our schema.

    Raises UserError `file: field '…': …` for whatever is missing, misspelt, of another type, blank,
    or there twice.
    """
    lists = _lists(source)
    if missing := missing_examples(source):
        embedded = _lists("embedded")
        lists |= {key: embedded[key] for key in missing}
    return Constitution(**{key: _items(key, *lists[key]) for key in KEYS})


def missing_examples(source: str) -> list[str]:
    """The kinds of worked examples that `source` lacks, for which the embedded ones are taken:
    "critique_examples", …"""
    lists = _lists(source)
    return [key for key in EXAMPLES if key not in lists]


def read_json(path: Path):
    """The value of one JSON file. Raises UserError where it is missing, not UTF-8 or not JSON."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a constitution needs it")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        where = located(path, error.lineno)
        raise UserError(f"{where}: not valid JSON ({error.msg}, column {error.colno})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON in UTF-8 ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _lists(source: str) -> dict[str, tuple[Path, list]]:
    """Key → (file, objects) of everything that the source itself holds, unchecked but for the keys
    and both lists of principles."""
    path = EMBEDDED if source == "embedded" else Path(source)
    own = [path / "principles.json", path / "examples.json"] if path.is_dir() else [path]
    if not path.exists():
        raise UserError(
            f"{source}: no such constitution; expected 'embedded', a JSON file or a directory of "
            "them"
        )
    if not own[0].is_file():
        lists = {
            key: (path / name, objects)
            for key, (name, objects) in official.read(path, read_json).items()
        }
    else:
        lists = {}
        for file in filter(Path.is_file, own):
            value = read_json(file)
            if not isinstance(value, dict):
                raise UserError(f"{file}: expected a JSON object with {', '.join(KEYS)}")
            for key, objects in value.items():
                where = located(file, field=key)
                if key not in KEYS:
                    raise UserError(f"{where}: unknown; expected one of {', '.join(KEYS)}")
                if key in lists:
                    raise UserError(f"{where}: is in {lists[key][0]} as well; keep one of them")
                lists[key] = file, objects
    for key in PRINCIPLES:
        if key not in lists:
            raise UserError(f"{located(path, field=key)}: missing; expected a list of principles")
    return lists


def _items(key: str, path: Path, objects) -> tuple:
    """The checked objects of one list as their dataclass."""
    if not isinstance(objects, list) or (not objects and key in PRINCIPLES):
        raise UserError(f"{located(path, field=key)}: expected a non-empty list")
    names = [field.name for field in dataclasses.fields(ITEMS[key])]
    items: dict[str, object] = {}
    for number, values in enumerate(objects):
        where = f"{key}[{number}]"
        if not isinstance(values, dict):
            raise UserError(f"{located(path, field=where)}: expected an object")
        checked = {n: _value(values, n, located(path, field=f"{where}.{n}")) for n in names}
        if unknown := sorted(values.keys() - set(names)):
            here = located(path, field=f"{where}.{unknown[0]}")
            raise UserError(f"{here}: unknown; expected {', '.join(sorted(names))}")
        if checked["id"] in items:
            here = located(path, field=f"{where}.id")
            raise UserError(f"{here}: '{checked['id']}' was there before; ids must differ")
        items[checked["id"]] = ITEMS[key](**checked)
    return tuple(items.values())


def _value(values: dict, name: str, where: str):
    """The field `name` of an object, checked."""
    if name not in values:
        raise UserError(f"{where}: missing")
    value = values[name]
    if name == "dialogue":
        dialogue = dialogue_from_json(value, where)
        known = all(message.role in DIALOGUE_ROLES for message in dialogue)
        if not known or dialogue[-1].role != "human":
            roles = ", ".join(DIALOGUE_ROLES)
            raise UserError(f"{where}: expected turns among {roles}, ending in a human turn")
        return dialogue
    if name == "options":
        is_pair = isinstance(value, list) and len(value) == 2
        if not is_pair or not all(isinstance(text, str) and text.strip() for text in value):
            raise UserError(f"{where}: expected a list of two texts")
        return tuple(text.strip() for text in value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: expected text that is not blank")
    if name == "answer" and value.strip() not in ("A", "B"):
        raise UserError(f"{where}: expected 'A' or 'B'")
    return value.strip()
