"""The reward of reinforcement learning: a sum of weighted terms, composed in the config.

    config.graph.rl.rewards = {
        "pm": {"kind": "preference_model", "model": "@pm"},
        "length": {"kind": "length", "weight": -0.01},
    }

`rl.reward="@pm"` and "python:package.module.function" are short for a single term of weight 1;
"@feedback", a stage of kind feedback, for a term of kind "judge" that asks as that stage does
(`configuration.auto`). `rl.missing_eos_penalty` adds a term `missing_end` of that weight, negated,
whatever other terms there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cai_jax.rewards.functions import Answer, custom_reward, length, missing_end
from cai_jax.rewards.judge import Judge

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
    if fields["missing_eos_penalty"]:
        name = "missing_end"
        while name in terms:
            name += "_"
        terms[name] = {"kind": "missing_end", "weight": -fields["missing_eos_penalty"]}
    return terms


def models_of(fields: Mapping) -> list[str]:
    """The preference models of the terms, in their order; the value model starts from the first."""
    terms = terms_of(fields).values()
    return [term["model"] for term in terms if term["kind"] == "preference_model"]


def judges_of(fields: Mapping) -> list[str]:
    """The language models that judge answers themselves."""
    return [term["model"] for term in terms_of(fields).values() if term["kind"] == "judge"]


def check(fields: Mapping) -> None:
    """UserError where a Python function of a term cannot be imported."""
    for term in terms_of(fields).values():
        if term["kind"] == "python":
            custom_reward(term["function"])


class Reward:
    """The terms of an rl stage, ready to score.

    `preference_models` are those among them, loaded, one a term.
    """

    def __init__(self, fields: Mapping, models, asking=None):
        """`fields` are those of the stage; `models` loads models (`ModelLoader`); `asking` is the
        stage's context, which a judge asks by."""
        self._terms, self.preference_models = {}, []
        for name, term in terms_of(fields).items():
            if term["kind"] == "preference_model":
                model = models.load(term["model"], "reward")
                self.preference_models.append(model)
                score = _of_dialogues(models.scorer(model).score)
            elif term["kind"] == "python":
                score = _of_dialogues(custom_reward(term["function"]))
            elif term["kind"] == "judge":
                score = Judge(term, models, asking).score
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
