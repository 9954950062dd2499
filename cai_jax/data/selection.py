"""Which rows of a source are taken: those of a split, from an offset up to a limit, each id once.

A split is the name that rows carry in a field "split" (or that TFDS or the hub knows), parts of the first human turns, or both:
"train", "2-5/10", "train 2-5/10". Each first human turn falls by its words into one of n parts, here ten of which 2 to 5
are taken. It is the same part in every file, so "0-1/10" of the prompts and "2-9/10" of the comparisons have none in
common, whatever the files share, and adding rows to a file moves no other row.
"""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Callable, Iterable

from cai_jax.data.jsonl import field
from cai_jax.data.tables import NAMED
from cai_jax.errors import UserError, located

PARTS = re.compile(r"(?:(.*\S)\s+)?(\d+)(?:-(\d+))?/(\d+)")
LONG = "longer than max_characters"


def name_of(split: str | None) -> str | None:
    """The split's name without its parts: what a reader of named splits is asked for."""
    found = PARTS.fullmatch(split or "")
    return found[1] if found else split


def part_of(dialogue, count: int) -> int:
    """The part, 0 to count − 1, that the first human turn falls into. Case and spaces make no difference."""
    opening = next((message.text for message in dialogue if message.role == "human"), "")
    words = " ".join(opening.lower().split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") % count


def in_parts(split: str | None) -> Callable:
    """Whether an item's dialogue is in the parts that `split` names; always, where it names none. UserError for parts that
    are not there."""
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
    source: str,
    path: str,
    rows: Iterable[tuple[int, dict]],
    parse: Callable[[dict, int], object],
    what: str,
    *,
    split: str | None,
    offset: int,
    limit: int | None,
    max_characters: int | None = None,
) -> tuple[list, dict[str, int]]:
    """(items, dropped rows by reason) of `rows`, pairs of a line number and a row read from `path`.

    `parse(row, line)` gives an item with an `id`, or the reason (str) why the row is left out. `split` keeps the rows with
    that "split" field (of TFDS and the hub it is chosen in reading), and those of its parts. Items of more than
    `max_characters` are dropped. `offset` and `limit` count items; reading stops at the limit, and so does the count of dropped
    rows. Raises UserError for an id that comes twice, and where no item (`what` in the message, plural) of `source` is left.
    """
    name, wanted = name_of(split), in_parts(split)
    dropped: collections.Counter[str] = collections.Counter()
    kept: list = []
    ids: set[str] = set()
    for line, row in rows if limit != 0 else ():
        if name and not path.startswith(NAMED) and field(row, "split", str, path, line) != name:
            continue
        item = parse(row, line)
        if not isinstance(item, str) and not wanted(item):
            continue
        if (
            not isinstance(item, str)
            and max_characters is not None
            and characters(item) > max_characters
        ):
            item = LONG
        if isinstance(item, str):
            dropped[item] += 1
            continue
        if item.id in ids:
            raise UserError(
                f"{located(path, line, 'id')}: '{item.id}' was there before; ids must differ"
            )
        ids.add(item.id)
        if len(ids) > offset:
            kept.append(item)
        if limit is not None and len(kept) >= limit:
            break
    if not kept:
        why = (
            ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
            or "none dropped"
        )
        chosen = f" of split '{split}'" if split else ""
        raise UserError(
            f"{source}: 0 rows left: {len(ids)} {what}{chosen}, offset {offset}, limit {limit}, {why}"
        )
    return kept, dict(sorted(dropped.items()))
