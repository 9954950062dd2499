"""Selection: splits, offsets, limits and reasons, by hand."""

import dataclasses
import json

import pytest

from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.prompts import read_prompts
from cai_jax.data.records import Kind, load, part_of
from cai_jax.errors import UserError
from cai_jax.structs import Message


@dataclasses.dataclass
class Item:
    id: str


def make(row, name):
    return "crossed out" if row.values["id"].lower().startswith("x") else Item(row.values["id"])


def chosen(tmp_path, names, **options):
    """A row whose name begins with "x" is left out; a capital letter is of the split "a"."""
    path = tmp_path / "f.jsonl"
    rows = [{"id": name, "split": "a" if name.isupper() else "b"} for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items, dropped = load(Kind("items", make, has_dialogue=False), str(path), **options)
    return "".join(item.id for item in items), dropped


def test_split_offset_limit_and_reasons(tmp_path):
    assert chosen(tmp_path, "AbxC") == ("AbC", {"crossed out": 1})
    assert chosen(tmp_path, "AbXC", split="a") == ("AC", {"crossed out": 1})
    assert chosen(tmp_path, "AbxC", offset=1) == ("bC", {"crossed out": 1})
    assert chosen(tmp_path, "AbxC", limit=2) == ("Ab", {})  # reading stops at the limit
    assert chosen(tmp_path, "AbxC", offset=1, limit=2) == ("bC", {"crossed out": 1})


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="f.jsonl:2.*'A' was there before"):
        chosen(tmp_path, "AA")
    with pytest.raises(
        UserError,
        match="f.jsonl: 0 rows left: 1 items of split 'b', offset 1, limit None, none dropped",
    ):
        chosen(tmp_path, "bA", split="b", offset=1)
    with pytest.raises(UserError, match="0 rows left"):
        chosen(tmp_path, "A", limit=0)
    with pytest.raises(UserError, match="'0-1/2': items have no parts"):
        chosen(tmp_path, "A", split="0-1/2")


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
        here = {prompt.dialogue[0].text for prompt in read_prompts(str(prompts), split=split)[0]}
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
    part = part_of(read_prompts(str(file))[0][0].dialogue, 10)
    other = (part + 1) % 10
    with pytest.raises(UserError, match=r"0 rows left: .*\(1 in the other parts: too few rows"):
        read_prompts(str(file), split=f"{other}/10")[0]
