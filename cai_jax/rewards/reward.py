"""The reward of reinforcement learning: a sum of weighted terms, composed in the config.

    config.graph.rl.rewards = {
        "pm": {"kind": "preference_model", "model": "@pm"},
        "length": {"kind": "length", "weight": -0.01},
    }

`rl.reward="@pm"` and "python:package.module.function" are short for a single term of weight 1;
`rl.missing_eos_penalty` is short for a term `missing_end` of that weight, negated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cai_jax.rewards.functions import Answer, custom_reward, length, missing_end

PYTHON = "python:"
FUNCTIONS = {"length": length, "missing_end": missing_end}  # kinds without fields of their own


class Scores(NamedTuple):
    """float32 [n]: `total` is what is learned from; `reward` the same without terms `missing_end`;
    `terms` the weighted terms by name."""

    total: np.ndarray
    reward: np.ndarray
    terms: dict[str, np.ndarray]


def terms_of(fields: Mapping) -> dict[str, dict]:
    """name → {kind, weight, …} of every term that the fields of an rl stage ask for."""
    terms = {name: dict(term) for name, term in (fields.get("rewards") or {}).items()}
    if not terms:
        terms["reward"] = {"kind": "preference_model", "model": fields["reward"]}
        if fields["reward"].startswith(PYTHON):
            terms["reward"] = {"kind": "python", "function": fields["reward"]}
    if fields["missing_eos_penalty"] and "missing_end" not in terms:
        terms["missing_end"] = {"kind": "missing_end", "weight": -fields["missing_eos_penalty"]}
    return terms


def model_of(fields: Mapping) -> str | None:
    """The preference model of the first term that has one; None where no term has."""
    terms = terms_of(fields).values()
    return next((term["model"] for term in terms if term["kind"] == "preference_model"), None)


def check(fields: Mapping) -> None:
    """UserError where a Python function of a term cannot be imported."""
    for term in terms_of(fields).values():
        if term["kind"] == "python":
            custom_reward(term["function"])


class Reward:
    """The terms of an rl stage, ready to score.

    `judge` is the loaded model of the first preference model among them, None without one: the
    value model starts there.
    """

    def __init__(self, fields: Mapping, models):
        """`fields` are those of the stage; `models` loads preference models (`ModelLoader`)."""
        self._terms, self.judge = {}, None
        for name, term in terms_of(fields).items():
            if term["kind"] == "preference_model":
                model = models.load(term["model"], "reward")
                self.judge = self.judge or model
                score = _of_dialogues(models.scorer(model).score)
            elif term["kind"] == "python":
                score = _of_dialogues(custom_reward(term["function"]))
            else:
                score = FUNCTIONS[term["kind"]]
            self._terms[name] = term["kind"], np.float32(term.get("weight", 1.0)), score

    def score(self, answers: Sequence[Answer]) -> Scores:
        """The terms of every answer and their sums."""
        terms = {name: weight * score(answers) for name, (_, weight, score) in self._terms.items()}
        ends = [name for name, (kind, *_) in self._terms.items() if kind == "missing_end"]
        zeros = np.zeros(len(answers), np.float32)
        reward = sum((value for name, value in terms.items() if name not in ends), zeros)
        return Scores(sum((terms[name] for name in ends), reward), reward, terms)


def _of_dialogues(score):
    return lambda answers: score([answer.dialogue for answer in answers])
