"""Selection: splits, offsets, limits and reasons, by hand."""

import dataclasses
import json

import pytest

from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.prompts import load_prompts
from cai_jax.data.selection import name_of, part_of, take
from cai_jax.data.sources import Source
from cai_jax.errors import UserError
from cai_jax.structs import Message


@dataclasses.dataclass
class Item:
    id: str


def rows(*names):
    """A row whose name begins with "x" is left out; a capital letter is of the split "a"."""
    return [
        (line, {"id": name, "split": "a" if name.isupper() else "b"})
        for line, name in enumerate(names, 1)
    ]


def parse(row, line):
    return "crossed out" if row["id"].lower().startswith("x") else Item(row["id"])


def chosen(names, **fields):
    items, dropped = take(
        Source("file", "f.jsonl"),
        rows(*names),
        parse,
        "items",
        **{"split": None, "offset": 0, "limit": None, **fields},
    )
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
    with pytest.raises(
        UserError,
        match="f.jsonl: 0 rows left: 1 items of split 'b', offset 1, limit None, none dropped",
    ):
        chosen("bA", split="b", offset=1)
    with pytest.raises(UserError, match="0 rows left"):
        chosen("A", limit=0)


def test_a_split_is_a_name_parts_or_both():
    assert [name_of(split) for split in (None, "train", "2-5/10", "train 2/10", "train[:5%]")] == [
        None,
        "train",
        None,
        "train",
        "train[:5%]",
    ]
    for split in ("5-2/10", "2-10/10", "10/10"):
        with pytest.raises(UserError, match="of 10 parts there are 0 to 9"):
            chosen("A", split=split)


def test_parts_cover_everything_once_and_are_the_same_in_every_file(tmp_path):
    """Prompts, and comparisons that go on for three turns after the same openings, in another order
    and other spelling."""
    openings = [f"How do I do thing {number}?" for number in range(200)]
    prompts, pairs = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in openings))
    turns = "\n\nHuman: {} \n\nAssistant: Hm.\n\nHuman: Well?\n\nAssistant: {}"
    pairs.write_text(
        "".join(
            json.dumps({key: turns.format(text.upper(), key) for key in ("chosen", "rejected")})
            + "\n"
            for text in reversed(openings)
        )
    )
    taken = []
    for split in ("0-1/10", "2-5/10", "6-9/10"):
        here = {prompt.dialogue[0].text for prompt in load_prompts(str(prompts), split=split)}
        there = {pair.dialogue[0].text for pair in load_comparisons(str(pairs), split=split)[0]}
        assert {text.lower() for text in here} == {text.lower() for text in there}
        taken.append(here)
    assert sum(map(len, taken)) == len(set.union(*taken)) == 200
    assert [0.1 < len(part) / 200 < 0.5 for part in taken] == [True] * 3
    # A human turn later on, or a system turn before it, is not the opening.
    alone = (Message("human", "Hi"),)
    assert part_of(
        (
            Message("system", "Be kind."),
            *alone,
            Message("assistant", "Yes?"),
            Message("human", "Go."),
        ),
        997,
    ) == part_of(alone, 997)


def test_long_items_are_counted_and_the_limit_is_of_those_that_are_left(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "dialogue": [{"role": "human", "text": "123"}],
                    "chosen": "1" * size,
                    "rejected": "2",
                    "id": str(size),
                }
            )
            + "\n"
            for size in (5, 8, 7, 6)
        )
    )
    found, dropped = load_comparisons(str(path), max_characters=10, limit=2)
    assert [item.id for item in found] == ["5", "7"] and dropped == {
        "longer than max_characters": 1
    }


def test_the_rows_of_a_small_file_that_are_all_in_other_parts_are_named(tmp_path):
    """The defect: "0 rows left … none dropped" of a file of two rows that chance had held out."""
    file = tmp_path / "two.jsonl"
    file.write_text(json.dumps({"prompt": "How are you?"}) + "\n")
    part = part_of(load_prompts(str(file))[0].dialogue, 10)
    other = (part + 1) % 10
    with pytest.raises(UserError, match=r"0 rows left: .*\(1 in the other parts: too few rows"):
        load_prompts(str(file), split=f"{other}/10")
