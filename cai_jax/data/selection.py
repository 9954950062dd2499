"""Which rows of a source are taken: those of a split, from an offset up to a limit, each id once.

A split is the name that rows carry in a field "split" (or that TFDS or the hub knows), parts of the
first human turns, or both: "train", "2-5/10", "train 2-5/10". All rows of a file without that field
are of the split "train", and there is no other. Each first human turn falls by its words into one
of n parts, here ten of which 2 to 5 are taken. It is the same part in every file, so "0-1/10" of
the prompts and "2-9/10" of the comparisons have none in common, whatever the files share, and
adding rows to a file moves no other row.
"""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cai_jax.data.jsonl import BadRows, field
from cai_jax.data.sources import Source
from cai_jax.errors import UserError, located

PARTS = re.compile(r"(?:(.*\S)\s+)?(\d+)(?:-(\d+))?/(\d+)")
LONG = "longer than max_characters"
TRAIN = "train"  # the split of a file whose rows name none


def name_of(split: str | None) -> str | None:
    """The split's name without its parts: what a reader of named splits is asked for."""
    found = PARTS.fullmatch(split or "")
    return found[1] if found else split


def part_of(dialogue, count: int) -> int:
    """The part, 0 to count − 1, that the first human turn falls into. Case and spaces make no
    difference."""
    opening = next((message.text for message in dialogue if message.role == "human"), "")
    words = " ".join(opening.lower().split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") % count


def in_parts(split: str | None) -> Callable:
    """Whether an item's dialogue is in the parts that `split` names; always, where it names none.
    UserError for parts that are not there."""
    found = PARTS.fullmatch(split or "")
    if not found:
        return lambda item: True
    low, high, count = int(found[2]), int(found[3] or found[2]), int(found[4])
    if not low <= high < count:
        raise UserError(
            f"split '{split}': of {count} parts there are 0 to {count - 1}; write them as 2-5/10"
        )
    return lambda item: low <= part_of(item.dialogue, count) <= high


def characters(item) -> int:
    """Of a dialogue and, where there are some, the longer one of its answers."""
    answers = [len(getattr(item, name)) for name in ("chosen", "rejected") if hasattr(item, name)]
    return sum(len(message.text) for message in item.dialogue) + max(answers, default=0)


def take(
    source: Source,
    rows: Iterable[tuple[int, dict]],
    parse: Callable[[dict, int], object],
    what: str,
    *,
    split: str | None,
    offset: int,
    limit: int | None,
    max_characters: int | None = None,
    bad: BadRows | None = None,
) -> tuple[list, dict[str, int]]:
    """(items, dropped rows by reason) of `rows`, pairs of a line number and a row read from
    `source`.

    Args:
        parse: `parse(row, line)` gives an item with an `id`, or the reason (str) why the row is
        left out. what: what items are called in messages, plural. split: keeps the rows with that
        "split" field (of TFDS and the hub it is chosen in reading), and those of its parts. offset,
        limit: count items; reading stops at the limit, and so does the count of dropped rows.
        max_characters: longer items are dropped. bad: where rows that `parse` refuses with a
        UserError are counted; without it the first stops.

    Raises: UserError for a refused row, an id that comes twice, a split that the source does not
        have, and where no item is left.
    """
    bad = BadRows() if bad is None else bad
    of_split, wanted = Split(source, name_of(split)), in_parts(split)
    dropped: collections.Counter[str] = collections.Counter()
    kept: list = []
    ids: set[str] = set()
    first: dict = {}
    elsewhere = 0
    for line, row in rows if limit != 0 else ():
        first = first or row
        try:
            if not of_split(row, line):
                continue
            item = parse(row, line)
            if not isinstance(item, str) and item.id in ids:
                raise UserError(
                    f"{located(source.place, line, 'id')}: '{item.id}' was there before; ids "
                    "must differ"
                )
        except UserError as error:
            if isinstance(error, NoSplit):
                raise
            bad.add(line, error, bool(ids))
            continue
        if not isinstance(item, str) and not wanted(item):
            elsewhere += 1
            continue
        too_long = not isinstance(item, str) and max_characters is not None
        if too_long and characters(item) > max_characters:
            item = LONG
        if isinstance(item, str):
            dropped[item] += 1
            continue
        ids.add(item.id)
        if len(ids) > offset:
            kept.append(item)
        if limit is not None and len(kept) >= limit:
            break
    dropped.update(bad.counts(source.place))
    if not kept:
        reasons = [f"{count} {reason}" for reason, count in sorted(dropped.items())]
        chosen = f" of split '{split}'{of_split.others()}" if split else ""
        if elsewhere and not ids:
            chosen += f" ({elsewhere} in the other parts: too few rows to be divided)"
        fields = f"; fields: {', '.join(first)}" if first and not ids else ""
        raise UserError(
            f"{source.place}: 0 rows left: {len(ids)} {what}{chosen}, offset {offset}, limit "
            f"{limit}, "
            f"{', '.join(reasons) or 'none dropped'}{fields}"
        )
    return kept, dict(sorted(dropped.items()))


class Split:
    """Whether a row is of the split `name`, by its field "split"; the first row says whether the
    file has that field."""

    def __init__(self, source: Source, name: str | None):
        self.source, self.name = source, name
        self.asked = bool(name) and not source.named_splits
        self.has_field: bool | None = None
        self.seen: dict[str, None] = {}

    def __call__(self, row: dict, line: int) -> bool:
        if not self.asked:
            return True
        place = self.source.place
        if self.has_field is None:
            self.has_field = "split" in row
            if not self.has_field and self.name != TRAIN:
                raise NoSplit(
                    f"{place}: no split '{self.name}': its rows have no field 'split', so all "
                    f"of them are of '{TRAIN}'. "
                    f"To keep prompts apart take parts of them, such as {place}[9/10] here and "
                    f"{place}[0-8/10] "
                    f"for training; {place}[] takes all"
                )
        if not self.has_field:
            if "split" in row:
                raise UserError(
                    f"{located(place, line, 'split')}: is there, but not in the first row; "
                    "expected it in all rows or in none"
                )
            return True
        value = field(row, "split", str, place, line)
        if len(self.seen) < 8:
            self.seen[value] = None
        return value == self.name

    def others(self) -> str:
        """The splits that were seen, for a message."""
        names = [name for name in self.seen if name != self.name]
        return f" (there are {', '.join(names)})" if names and self.name not in self.seen else ""


class NoSplit(UserError):
    """A split that a file lacks: no row of it is to blame."""


def name_twice(sources: Sequence[Source]) -> list[str]:
    """The short names of the sources of an `a+b`, by which ids are made: with the folder where two
    files have the same name, with a number where that is the same, too."""
    names = [source.stem for source in sources]
    same = {name for name, count in collections.Counter(names).items() if count > 1}
    for index, source in enumerate(sources):
        folder = Path(source.name).parent.name
        if names[index] in same and folder and not source.named_splits:
            names[index] = f"{folder}/{names[index]}"
    files: dict[str, list[Source]] = collections.defaultdict(list)
    for index, source in enumerate(sources):
        known = files[names[index]]
        if not any(other.place == source.place for other in known):
            known.append(source)
        number = next(i for i, other in enumerate(known) if other.place == source.place)
        names[index] += f"~{number + 1}" if number else ""
    return names
