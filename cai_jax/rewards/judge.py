"""The judge itself as a reward: how probably it prefers an answer to the others to the same prompt.

The questions are those of AI feedback (section 4.1), asked in both orders by a principle drawn for
every pair; no preference model is trained in between.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cai_jax.constitution.loader import load_constitution
from cai_jax.core import labels
from cai_jax.data import choices
from cai_jax.io import progress
from cai_jax.rewards.functions import Answer
from cai_jax.seeds import row_rng
from cai_jax.textmodels import questions

ORDERS = ("ab", "ba")


def pairs(answers: Sequence[Answer], against: str) -> list[tuple[int, int]]:
    """Indices of the answers that are compared: to one prompt all with all ("round_robin"), or each
    with the first."""
    groups: dict = {}
    for index, answer in enumerate(answers):
        groups.setdefault(answer.dialogue[:-1], []).append(index)
    return [
        (first, second)
        for group in groups.values()
        for first, second in itertools.combinations(group, 2)
        if against == "round_robin" or first == group[0]
    ]


def mean_wins(count: int, wins: Iterable[tuple[tuple[int, int], float]]) -> np.ndarray:
    """The mean win probability of each of `count` answers, float32; ½ for one without a pair.

    `wins`: ((first, second), probability that the first is better).
    """
    of: list[list[float]] = [[] for _ in range(count)]
    for (first, second), probability in wins:
        of[first].append(probability)
        of[second].append(1.0 - probability)
    return np.array([sum(each) / len(each) if each else 0.5 for each in of], np.float32)


class Judge:
    """A term of kind "judge". `asking` is the stage that asks (`textmodels.asking.Asking` with a
    seed), `models` its loader."""

    def __init__(self, term: Mapping, models, asking):
        self._term, self._asking = term, asking
        self._model = models.text_model(term["model"], term["format"])
        self._constitution = load_constitution(term["constitution"])
        # Without a fixed number of draws every pair has its own, which is asked for once.
        draw = self._draw_examples
        self._examples = functools.cache(draw) if term["num_headers"] else draw

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """float32 [n], in [0, 1]; a pair that does not fit the judge's context is a draw."""
        compared = pairs(answers, self._term["pairs"])
        asked = [question for pair in compared for question in self._questions(answers, pair)]
        probabilities = collections.defaultdict(list)
        for choice in self._asking.choose(self._model, asked, f"{self._asking.name}: judge"):
            name, _, order = choice.id.rpartition("#")
            a, b = choice.logprobs
            probability = labels.probability_first({"order": order, "a": a, "b": b})
            probabilities[name].append(probability)
        self._model.release()  # memory of the device that the learner needs
        names = [_name(answers, pair) for pair in compared]
        if unfit := sum(name not in probabilities for name in names):
            where = f"[{self._asking.name}] {unfit} of {len(names)} pairs"
            progress.warn(f"{where} do not fit the context of '{self._model.name}': draws")
        means = [np.mean(probabilities.get(name, 0.5)) for name in names]
        return mean_wins(len(answers), zip(compared, means, strict=True))

    def _questions(self, answers: Sequence[Answer], pair: tuple[int, int]):
        seed, stage, name = self._asking.seed, self._asking.name, _name(answers, pair)
        rng = row_rng(seed, stage, "principle", name)
        principles = self._constitution.comparison_principles
        principle = principles[int(rng.integers(len(principles)))]
        number = self._term["num_headers"]
        examples = self._examples(int(rng.integers(number)) if number else name)
        texts = [answers[index].dialogue[-1].text for index in pair]
        prompt = answers[pair[0]].dialogue[:-1]
        for order in ORDERS:
            shown = texts if order == "ab" else texts[::-1]
            text = choices.question(prompt, principle.text, shown)
            yield questions.choice(f"{name}#{order}", text, examples=examples, group=name)

    def _draw_examples(self, draw: int | str):
        how = "multiple_choice", self._term["num_few_shot"], self._asking.seed
        name = self._asking.name, "header", draw
        _, examples = questions.draw_examples(self._constitution, *how, *name)
        return examples


def _name(answers: Sequence[Answer], pair: tuple[int, int]) -> str:
    return " ≻ ".join(answers[index].id for index in pair)
