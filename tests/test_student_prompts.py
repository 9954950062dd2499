"""The prompts of results/student: enough of each split, and none that another split has nearly."""

import itertools
import re
from pathlib import Path

from cai_jax.data import prompts

FOLDER = Path(__file__).parents[1] / "results" / "student" / "prompts"


def _prompts(name, split):
    source = f"{FOLDER / name}.jsonl[{split}]"
    if name != "borderline" and split != "dev":
        source = f"embedded:{name}[{split}]+{source}"
    return prompts.read_prompts(source)[0]


def _words(prompt):
    return set(re.findall(r"[a-z']+", prompt.dialogue[-1].text.lower()))


def test_every_split_is_large_enough():
    sizes = {
        (name, split): len(_prompts(name, split))
        for name in ("red_team", "helpful", "borderline")
        for split in ("train", "dev", "heldout")
    }
    totals = {name: sum(n for (other, _), n in sizes.items() if other == name) for name, _ in sizes}
    assert totals["red_team"] >= 480 and totals["helpful"] >= 320 and totals["borderline"] >= 120
    assert sizes["red_team", "heldout"] >= 120 and sizes["helpful", "heldout"] >= 80
    assert sizes["borderline", "heldout"] >= 60


def test_prompts_of_two_splits_share_at_most_three_fifths_of_their_words():
    every = [
        (name, split, prompt, _words(prompt))
        for name in ("red_team", "helpful", "borderline")
        for split in ("train", "dev", "heldout")
        for prompt in _prompts(name, split)
    ]
    near = [
        (a.dialogue[-1].text, b.dialogue[-1].text)
        for (_, split, a, words), (_, other, b, others) in itertools.combinations(every, 2)
        if split != other and len(words & others) > 0.6 * len(words | others)
    ]
    assert near == []
