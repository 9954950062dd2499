"""The prompts of results/student: enough of each split, and none that another split has nearly."""

import itertools
import re

from cai_jax.data import prompts
from configs.results import student

SPLITS = ("train", "dev", "heldout")


def _prompts(name, split):
    return prompts.read_prompts(student.source(name, split))[0]


def _words(prompt):
    return set(re.findall(r"[a-z']+", prompt.dialogue[-1].text.lower()))


def test_every_split_is_large_enough():
    sizes = {(name, split): len(_prompts(name, split)) for name in student.SETS for split in SPLITS}
    totals = {name: sum(n for (other, _), n in sizes.items() if other == name) for name, _ in sizes}
    assert totals["red_team"] >= 480 and totals["helpful"] >= 320 and totals["borderline"] >= 120
    assert sizes["red_team", "heldout"] >= 120 and sizes["helpful", "heldout"] >= 80
    assert sizes["borderline", "heldout"] >= 60


def test_prompts_of_two_splits_share_at_most_three_fifths_of_their_words():
    every = [
        (name, split, prompt, _words(prompt))
        for name in student.SETS
        for split in SPLITS
        for prompt in _prompts(name, split)
    ]
    near = [
        (a.dialogue[-1].text, b.dialogue[-1].text)
        for (_, split, a, words), (_, other, b, others) in itertools.combinations(every, 2)
        if split != other and len(words & others) > 0.6 * len(words | others)
    ]
    assert near == []
