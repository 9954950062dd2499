"""From a source string to checked items: which rows are taken, each id once, the others counted by
reason.

A kind of record is a function from a `Row` to an item (a dataclass) or to the reason why the row is
left out; `load` does the rest for prompts, comparisons, ratings, choices and answers alike.

All rows of a file without a field "split" are of the split "train", and there is no other. Each
first human turn falls by its words into one of n parts; a split "2-5/10" takes those of the parts 2
to 5 of ten. It is the same part in every file, so "0-1/10" of the prompts and "2-9/10" of the
comparisons have none in common, whatever the files share, and adding rows to a file moves no other.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

from cai_jax.data import rows, sources
from cai_jax.data.files import Row
from cai_jax.data.sources import Source, Split
from cai_jax.errors import UserError

LONG = "longer than max_characters"
DUPLICATE = "duplicate"
TRAIN = "train"  # the split of a file whose rows name none
SHOWN = 20  # line numbers of bad rows in a message


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of record.

    name: of several, for messages. make: `make(row, name)` gives an item, with an id built from
    `name` where the row has none, or a reason to leave the row out. embedded: the sets that come
    with the project. unique: what of an item may come only once; later copies are counted.
    optional: a limit of 0 asks for none. has_dialogue: splits may name parts.
    """

    name: str
    make: Callable[[Row, str], object]
    embedded: tuple[str, ...] = ()
    unique: Callable[[object], object] | None = None
    optional: bool = False
    has_dialogue: bool = True


def load(
    kind: Kind,
    source: str | Source,
    *,
    split: str | None = None,
    offset: int = 0,
    limit: int | None = None,
    max_characters: int | None = None,
    max_bad_rows: int = 0,
) -> tuple[list, dict[str, int]]:
    """Reads, checks and selects the rows of `source`.

    Args:
        kind: what the rows become.
        source: any source string (`sources.py`): files, "embedded:NAME", "tfds:NAME",
            "hf:ORG/NAME", "a+b". Each of several sources has its own split and limit where it names
            them ("a[train:10]+b"), else those given here.
        split: keeps the rows with that "split" field or names the data set's, and may name parts of
            the first human turns.
        offset, limit: count items that were kept; reading stops at the limit, and so does the count
            of dropped rows.
        max_characters: longer items are dropped.
        max_bad_rows: so many rows of a source that cannot be read are left out, counted with their
            lines.

    Returns: (items, dropped rows by reason).
    Raises: UserError `file:line: field …` for a row that cannot be read, an id that comes twice, a
        split that the source does not have, and where no item is left.
    """
    parsed = (source,) if isinstance(source, Source) else sources.parse(source)
    if not parsed:
        raise UserError(
            f"{kind.name}: '{source}' names no source; expected a file or embedded:NAME"
        )
    seen: set = set()
    kept: dict[str, object] = {}
    dropped: collections.Counter[str] = collections.Counter()
    for each, name in zip(parsed, sources.distinct_names(parsed), strict=True):
        options = each.options(split, limit) | {"offset": offset, "max_characters": max_characters}
        if kind.optional and options["limit"] == 0:
            continue
        items, counts = _load(kind, each, name, _BadRows(max_bad_rows), **options)
        dropped.update(counts)
        for item in items:
            if kind.unique and kind.unique(item) in seen:
                dropped[DUPLICATE] += 1
            elif item.id in kept:
                raise UserError(
                    f"{source}: id '{item.id}' names different {kind.name} in two sources; ids "
                    "must differ"
                )
            else:
                kept[item.id] = item
        seen.update(map(kind.unique, items) if kind.unique else ())
    return list(kept.values()), dict(sorted(dropped.items()))


def part_of(dialogue, count: int) -> int:
    """The part, 0 to count − 1, that the first human turn falls into. Case and spaces make no
    difference."""
    opening = next((message.text for message in dialogue if message.role == "human"), "")
    words = " ".join(opening.lower().split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") % count


def characters(item) -> int:
    """Of a dialogue and, where there are some, the longer one of its answers."""
    answers = [len(getattr(item, name)) for name in ("chosen", "rejected") if hasattr(item, name)]
    return sum(len(message.text) for message in item.dialogue) + max(answers, default=0)


def _load(
    kind: Kind, source: Source, name: str, bad: _BadRows, split, offset, limit, max_characters
) -> tuple[list, dict[str, int]]:
    """`load` of one source, whose items get ids from `name`."""
    if source.kind == sources.EMBEDDED and source.name not in kind.embedded:
        known = " and ".join(f"embedded:{name}" for name in kind.embedded)
        raise UserError(f"{source.location}: no such embedded {kind.name}; there are {known}")
    wanted = Split.parse(split)
    if wanted.count and not kind.has_dialogue:
        raise UserError(f"{source.location}: split '{split}': {kind.name} have no parts")
    field = _SplitField(source, wanted.name)
    dropped: collections.Counter[str] = collections.Counter()
    kept, ids, seen, elsewhere = [], set(), set(), 0

    for row in rows.scan(source, split) if limit != 0 else ():
        # Rows of another split, and those that cannot be read.
        field.require(row)
        try:
            if row.problem:
                raise row.problem
            if not field.takes(row):
                continue
            item = kind.make(row, name)
            if kind.unique and not isinstance(item, str):
                copy, unique = item, kind.unique(item)
                item = DUPLICATE if unique in seen else copy
                seen.add(unique)
            if not isinstance(item, str) and item.id in ids:
                raise row.error("id", f"'{item.id}' was there before; ids must differ")
        except UserError as error:
            bad.add(row.line, error, bool(ids))
            continue

        # Rows that are left out: of other parts, or for a reason that is counted.
        if wanted.count and not isinstance(item, str):
            if not wanted.low <= part_of(item.dialogue, wanted.count) <= wanted.high:
                elsewhere += 1
                continue
        if max_characters is not None and not isinstance(item, str):
            item = LONG if characters(item) > max_characters else item
        if isinstance(item, str):
            dropped[item] += 1
            continue
        ids.add(item.id)
        if len(ids) > offset:
            kept.append(item)
        if limit is not None and len(kept) >= limit:
            break

    dropped.update(bad.counts(source.location))
    if not kept:
        of_split = f" of split '{split}'{field.others()}" if split else ""
        if elsewhere and not ids:
            of_split += f" ({elsewhere} in the other parts: too few rows to be divided)"
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        raise UserError(
            f"{source.location}: 0 rows left: {len(ids)} {kind.name}{of_split}, offset {offset}, "
            f"limit {limit}, {reasons or 'none dropped'}{'' if ids else field.columns}"
        )
    return kept, dict(dropped)


class _SplitField:
    """Whether rows of a file are of the split `name`, by their field "split"; the first row says
    whether the file has that field."""

    def __init__(self, source: Source, name: str):
        self.source, self.name = source, name
        self.asked = bool(name) and not source.names_splits
        self.has_field: bool | None = None
        self.names: dict[str, None] = {}  # some of the splits that rows name
        self.columns = ""  # of the first row, for a message

    def require(self, row: Row) -> None:
        """UserError where the first row has no such field, and another split than "train" is
        wanted."""
        if self.has_field is not None or row.problem:
            return
        self.has_field, where = "split" in row.values, self.source.location
        self.columns = f"; fields: {', '.join(row.values)}"
        if self.asked and not self.has_field and self.name != TRAIN:
            raise UserError(
                f"{where}: no split '{self.name}': its rows have no field 'split', so all of them "
                f"are of '{TRAIN}'. To keep prompts apart take parts of them, such as "
                f"{where}[9/10] here and {where}[0-8/10] for training; {where}[] takes all"
            )

    def takes(self, row: Row) -> bool:
        if not self.asked:
            return True
        if not self.has_field:
            if "split" in row.values:
                reason = "is there, but not in the first row; expected it in all rows or in none"
                raise row.error("split", reason)
            return True
        name = row.text("split")
        if len(self.names) < 8:
            self.names[name] = None
        return name == self.name

    def others(self) -> str:
        """The splits that rows name, for a message."""
        names = [name for name in self.names if name != self.name]
        return f" (there are {', '.join(names)})" if names and self.name not in self.names else ""


class _BadRows:
    """Rows of one source that cannot be read: as many as are allowed are counted, with their lines;
    the next one stops."""

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self.lines: list[int] = []
        self.first = ""

    def add(self, line: int, error: UserError, others: bool) -> None:
        """Counts a row, or raises `error`. `others`: whether rows before it were good, so that it
        may be left out."""
        self.lines.append(line)
        self.first = self.first or str(error)
        if len(self.lines) <= self.allowed:
            return
        if self.allowed:
            raise UserError(
                f"{error}; that is bad row {len(self.lines)}, max_bad_rows allows {self.allowed} "
                f"({self._lines()}); the first: {self.first}"
            ) from error
        advice = "; mend the row, or set max_bad_rows to leave such rows out, counted"
        raise UserError(f"{error}{advice if others else ''}") from error

    def counts(self, location: str) -> dict[str, int]:
        """{reason: count} for the manifest: file, lines, and what is wrong with the first."""
        if not self.lines:
            return {}
        why = self.first.removeprefix(f"{location}:{self.lines[0]}: ")[:160]
        reason = f"bad row in {Path(location).name} ({self._lines()}; the first: {why})"
        return {reason: len(self.lines)}

    def _lines(self) -> str:
        shown = ", ".join(map(str, self.lines[:SHOWN]))
        more = f" and {len(self.lines) - SHOWN} more" if len(self.lines) > SHOWN else ""
        return f"line{'s' * (len(self.lines) > 1)} {shown}{more}"
