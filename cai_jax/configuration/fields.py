"""What a config field is: default, type, range and comment, declared once in a table.

A table is a dict from names to fields. `stages.py` has a table for every kind of stage, `run.py`
the table of the run itself; both are data. This module makes fields from a table (`build`), walks
over a config by its table (`walk`) and refuses what a table does not take (`check`).

    "clip": positive(0.2, "of the ratio of probabilities"),
    "prompts": {"source": text("topic:prompts", "…"), "limit": count(None, "empty: all", low=0)},
    "models": Named({}, model("", "what answers")),              # names are the user's own
    "rewards": Named({}, {"length": {"weight": number(…)}, …}),  # each has a `kind`

A room's tables are checked, built and documented like all others once `stages.py` or `run.py`
refers to them.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from cai_jax import references
from cai_jax.errors import UserError, in_field, require_utf8

# Ranges: what a field takes --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high` (None: no bound); an end that is open is not in it."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def accepts(self, value) -> bool:
        if not math.isfinite(value):
            return False
        above = self.low is None or value > self.low or value == self.low and not self.open_low
        below = self.high is None or value < self.high or value == self.high and not self.open_high
        return above and below

    def __str__(self) -> str:
        least = f"more than {self.low}" if self.open_low else f"of at least {self.low}"
        most = f"less than {self.high}" if self.open_high else f"at most {self.high}"
        bounds = [least] * (self.low is not None) + [most] * (self.high is not None)
        if len(bounds) == 2 and not self.open_low and not self.open_high:
            return f"from {self.low} to {self.high}"
        return " and ".join(bounds) or "that is finite"


@dataclasses.dataclass(frozen=True)
class Choice:
    """Some words; `refused` says why others, which one might expect, are not among them."""

    words: tuple[str, ...]
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def accepts(self, value) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return f"one of {', '.join(word or repr(word) for word in self.words)}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Whatever `test` takes, in the words of `expected`."""

    test: Callable[[Any], bool]
    expected: str

    def accepts(self, value) -> bool:
        return self.test(value)

    def __str__(self) -> str:
        return self.expected


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text; it may name files, data sets or whatever else is identified by its contents."""

    def accepts(self, value) -> bool:
        return True

    def __str__(self) -> str:
        return "a text"


@dataclasses.dataclass(frozen=True)
class Word(Text):
    """Any text that names nothing outside the config, even where a file has that name."""


@dataclasses.dataclass(frozen=True)
class Variable(Word):
    """The name of an environment variable. What is none may be a key, and is not repeated."""

    def accepts(self, value) -> bool:
        return not value or is_variable(value)

    def __str__(self) -> str:
        return "the name of an environment variable, in capitals (the key itself goes into it)"


def is_variable(text: str) -> bool:
    """Whether an environment variable may have that name."""
    return re.fullmatch("[A-Z_][A-Z0-9_]*", text) is not None


@dataclasses.dataclass(frozen=True)
class Function(Text):
    """A function of dialogues, by python:module.function; its source is its identity."""

    def accepts(self, value) -> bool:
        return not value or references.parse(value).kind == references.PYTHON

    def __str__(self) -> str:
        return "python:module.function"


@dataclasses.dataclass(frozen=True)
class RowSource(Text):
    """A source of rows (`data/sources.py`), in a group with split, offset and limit.

    Attributes:
      of: what its rows are: prompts, comparisons or ratings.
      required: whether the stage has nothing to do without a row.
    """

    of: str = "prompts"
    required: bool = False


@dataclasses.dataclass(frozen=True)
class Constitution(Text):
    """A constitution, as `constitution.loader` reads it."""


@dataclasses.dataclass(frozen=True)
class Model(Text):
    """A reference to a model.

    Attributes:
      needs: "policy", "reward", "harm" or, where any will do, "any"; or a function of the stage's
        fields that gives one of them.
      answers: whether answers that exist may stand in for the model.
      python: whether a function may, python:module.function.
    """

    needs: str | Callable[[Any], str] = "policy"
    answers: bool = False
    python: bool = False

    def needed(self, fields) -> str:
        """What a stage with these fields needs: policy, reward, harm or any."""
        return self.needs(fields) if callable(self.needs) else self.needs


@dataclasses.dataclass(frozen=True)
class Records(Text):
    """The name of a stage that writes records `of` this kind; `empty`: or none."""

    of: str = ""
    empty: bool = False


# Fields and groups of them ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the config; a field whose default is None may be empty.

    Attributes:
      default: its value where nothing is given.
      type: int, float, bool, str or tuple.
      range: what it takes of that type; None: all of it.
      comment: what it is, in a line.
    """

    default: Any
    type: type
    range: Any
    comment: str

    @property
    def expected(self) -> str:
        """What the field takes, in words."""
        if self.range is not None and not isinstance(self.range, Range):
            return str(self.range)
        nouns = {int: "an integer", float: "a number", bool: "True or False", tuple: "a list"}
        bounds = "" if self.range is None else f" {self.range}"
        return nouns.get(self.type, "a text") + bounds

    def value(self, given):
        """`given` as ConfigDict wants it: a field keeps its type while it is empty."""
        if isinstance(given, config_dict.FieldReference):
            given = given.get()
        if self.default is not None:
            return given
        held = config_dict.placeholder(self.type)
        if given is not None:
            held.set(given)
        return held

    def check(self, where: str, value) -> None:
        """Raises UserError where the field does not take `value`; `where` is its name."""
        if isinstance(value, str):
            require_utf8(value, where)
        if value is None and self.default is None:
            return
        if not self._is_typed(value) or self.range is not None and not self.range.accepts(value):
            refused = getattr(self.range, "refused", {})
            why = f"; {refused[value]}" if isinstance(value, str) and value in refused else ""
            shown = "" if isinstance(self.range, Variable) else f", not {value!r}"
            raise UserError(f"{where}: expected {self.expected}{shown}{why}")
        if isinstance(self.range, Model):  # a URL may hold a password, and config.json has all
            target = references.parse(value)
            if target.kind == references.OPENAI:
                with in_field(where):
                    target.server()

    def _is_typed(self, value) -> bool:
        if self.type in (int, float):
            wanted = int if self.type is int else (int, float)
            return isinstance(value, wanted) and not isinstance(value, bool)
        return isinstance(value, (tuple, list, str) if self.type is tuple else self.type)


# Short forms of the fields that tables have most


def count(default: int | None, comment: str, low: int = 1) -> Field:
    """An integer of at least `low`."""
    return Field(default, int, Range(low), comment)


def number(default: float | None, comment: str, low=0, high=None, **ends) -> Field:
    """A number from `low` to `high`; `ends`: open_low, open_high."""
    return Field(default, float, Range(low, high, **ends), comment)


def positive(default: float | None, comment: str) -> Field:
    """A number of more than 0."""
    return number(default, comment, open_low=True)


def share(default: float | None, comment: str, **ends) -> Field:
    """A number from 0 to 1."""
    return number(default, comment, 0, 1, **ends)


def flag(default: bool, comment: str) -> Field:
    """True or False."""
    return Field(default, bool, None, comment)


def choice(default: str, words: tuple[str, ...], comment: str, **refused: str) -> Field:
    """One of some words; `refused`: why other words are not among them."""
    return Field(default, str, Choice(words, refused), comment)


def text(default: str, comment: str) -> Field:
    """A text that may name files or data sets (see `Text`)."""
    return Field(default, str, Text(), comment)


def word(default: str, comment: str) -> Field:
    """A text that names nothing outside the config."""
    return Field(default, str, Word(), comment)


def model(default: str, comment: str, needs: Any = "policy", **also: bool) -> Field:
    """A reference to a model that is a `needs`; `also`: answers, python (see `Model`)."""
    return Field(default, str, Model(needs=needs, **also), comment)


def records(default: str, of: str, comment: str, empty: bool = False) -> Field:
    """The name of a stage that writes records `of` that kind."""
    return Field(default, str, Records(of=of, empty=empty), comment)


@dataclasses.dataclass(frozen=True)
class Named:
    """A group whose names are the user's own.

    `of`: the field that each of them is, or a table for every `kind` that they may have. `default`:
    what is there where nothing is given.
    """

    default: Mapping
    of: Field | Mapping[str, Any]
    comment: str = ""

    def table(self, values: Mapping, where: str) -> Table:
        """The table of these names; UserError for one that could be no name."""
        for name in values:
            require_name(name, where)
        if isinstance(self.of, Field):
            return dict.fromkeys(values, self.of)
        return {
            name: kind_table(self.of, value, f"{where}.{name}") for name, value in values.items()
        }


Table = Mapping[str, "Field | Named | Table"]


KIND = word("", "which table the fields of a group have")


def nearest(name: str, names: Iterable[str]) -> str:
    """ "did you mean 'x'?" where a known name is close, else the list of known names."""
    names = list(names)
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(names))}"


def require_name(name: str, where: str) -> None:
    """Raises UserError for a name of the user's own that could not name a file, or a field on the
    command line."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name):
        raise UserError(f"{where}: {name!r} cannot be a name; use letters, digits, '_' and '-'")


def entry(table: Table, name: str) -> Field | Named | Table | None:
    """What a table says of a name; "prompts_*" is for every name that begins so."""
    if name in table:
        return table[name]
    stems = [key for key in table if key.endswith("*") and str(name).startswith(key[:-1])]
    return table[stems[0]] if stems else None


def declared(table: Table, name: str, where: str) -> Field | Named | Table:
    """`entry`; raises UserError for a name that the table does not have, or that is none."""
    item = entry(table, name)
    if item is None:
        raise UserError(f"{where}: no field '{name}'; {nearest(name, table)}")
    if name not in table:  # of prompts_* and the like
        require_name(name, where)
    return item


def kind_table(kinds: Mapping[str, Any], values: Mapping, where: str) -> Table:
    """The table of fields that say their `kind`; UserError for a kind that is none."""
    if not isinstance(values, (ml_collections.ConfigDict, Mapping)):
        raise UserError(f"{where}: expected a group of fields with a kind, not {values!r}")
    kind = values.get("kind", "")
    if kind not in kinds:
        raise UserError(f"{where}.kind: no kind '{kind}'; {nearest(kind, kinds)}")
    return {"kind": KIND, **table_of(kinds[kind])}


def table_of(kind) -> Table:
    """The table of a kind: itself, or the `table` of what declares more than its fields."""
    return kind if isinstance(kind, Mapping) else kind.table


def with_defaults(table: Table, **defaults) -> dict:
    """A copy of a table in which some fields have other defaults."""
    changed = {
        name: dataclasses.replace(table[name], default=value) for name, value in defaults.items()
    }
    return {**table, **changed}


# Making fields ---------------------------------------------------------------------------------


def build(table: Table, given: Mapping | None = None, where: str = "") -> dict:
    """Every field of a table: those of `given`, the others at their defaults.

    Args:
      table: what there is.
      given: names and values; of a group some of its fields are enough.
      where: the name of the group, for messages.
    Raises:
      UserError: a name is not in the table.
    """
    given, made = dict(given or {}), {}
    names = [name for name in table if not name.endswith("*")]
    for name in dict.fromkeys([*names, *given]):
        item, path = declared(table, name, where or "fields"), f"{where}.{name}".lstrip(".")
        if isinstance(item, Field):
            made[name] = item.value(given.get(name, item.default))
        elif isinstance(item, Named):
            values = given.get(name, item.default)
            made[name] = build(item.table(values, path), values, path)
        else:
            made[name] = build(item, given.get(name), path)
    return made


def build_kind(kinds: Mapping[str, Table], given: Mapping, where: str) -> dict:
    """`given` with the fields that its `kind` has besides; UserError for a kind that is none."""
    return build(kind_table(kinds, given, where), given, where)


# Reading configs by their tables ---------------------------------------------------------------


class Setting(NamedTuple):
    """A field as a config sets it: its name, declaration and value, and the group that it is in."""

    where: str
    field: Field
    value: Any
    group: Mapping


def walk(table: Table, values: Mapping, where: str) -> Iterator[Setting]:
    """Every field of `values`, groups within groups included.

    Raises:
      UserError: a name that the table does not have or that is none, or no group where it has one.
    """
    for name, value in values.items():
        item, path = declared(table, name, where), f"{where}.{name}"
        if isinstance(item, Field):
            yield Setting(path, item, value, values)
        elif not isinstance(value, (ml_collections.ConfigDict, Mapping)):
            raise UserError(f"{path}: expected a group of fields, not {value!r}")
        else:
            own = item.table(value, path) if isinstance(item, Named) else item
            yield from walk(own, value, path)


def walk_kind(kinds: Mapping[str, Any], values: Mapping, where: str) -> Iterator[Setting]:
    """`walk` over fields whose table is that of their `kind`."""
    yield from walk(kind_table(kinds, values, where), values, where)


def check(table: Table, values: Mapping, where: str) -> None:
    """Raises UserError for the first field of `values` that its table does not take."""
    for setting in walk(table, values, where):
        setting.field.check(setting.where, setting.value)
