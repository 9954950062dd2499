"""Selection: splits, offsets, limits and reasons, by hand."""

import dataclasses

import pytest

from cai_jax.data.selection import take
from cai_jax.errors import UserError


@dataclasses.dataclass
class Item:
    id: str


def rows(*names):
    """A row whose name begins with "x" is left out; a capital letter is of the split "a"."""
    return [(line, {"id": name, "split": "a" if name.isupper() else "b"}) for line, name in enumerate(names, 1)]


def parse(row, line):
    return "crossed out" if row["id"].lower().startswith("x") else Item(row["id"])


def chosen(names, **fields):
    items, dropped = take("s", "f.jsonl", rows(*names), parse, "items", **{"split": None, "offset": 0, "limit": None, **fields})
    return "".join(item.id for item in items), dropped


def test_split_offset_limit_and_reasons():
    assert chosen("AbxC") == ("AbC", {"crossed out": 1})
    assert chosen("AbXC", split="a") == ("AC", {"crossed out": 1})
    assert chosen("AbxC", offset=1) == ("bC", {"crossed out": 1})
    assert chosen("AbxC", limit=2) == ("Ab", {})  # reading stops at the limit
    assert chosen("AbxC", offset=1, limit=2) == ("bC", {"crossed out": 1})


def test_what_is_refused():
    with pytest.raises(UserError, match="f.jsonl:2.*'A' was there before"):
        chosen("AA")
    with pytest.raises(UserError, match="s: 0 rows left: 1 items of split 'b', offset 1, limit None, none dropped"):
        chosen("bA", split="b", offset=1)
    with pytest.raises(UserError, match="0 rows left"):
        chosen("A", limit=0)
