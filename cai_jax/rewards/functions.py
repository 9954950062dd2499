"""Rewards that are functions of answers: your own in Python, the length, a missing end."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cai_jax.errors import UserError
from cai_jax.structs import Dialogue


class Answer(NamedTuple):
    """A dialogue that ends in the answer, how many tokens were sampled for it, whether it was cut
    at the limit of tokens, and its name among others."""

    dialogue: Dialogue
    num_tokens: int
    cut: bool
    id: str = ""


def length(answers: Sequence[Answer]) -> np.ndarray:
    """The number of sampled tokens, float32 [n]."""
    return np.array([answer.num_tokens for answer in answers], np.float32)


def missing_end(answers: Sequence[Answer]) -> np.ndarray:
    """1 where an answer was cut at the limit of tokens, else 0; float32 [n]."""
    return np.array([answer.cut for answer in answers], np.float32)


def custom_reward(reference: str) -> Callable[[Sequence[Dialogue]], np.ndarray]:
    """The function that "python:package.module.function" names: dialogues, each ending in the
    answer, → float32 scores.

    What it returns is checked: as many numbers as dialogues. The caller, who knows the names of the
    dialogues, checks that they are finite.

    Raises:
      UserError: there is no such function, or it fails or returns something else.
    """
    where = f"reward '{reference}'"
    module, _, name = reference.removeprefix("python:").rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing somebody else's module may raise anything
        raise UserError(
            f"{where}: {error}; expected python:package.module.function that can be imported here"
        ) from error

    def score(dialogues: Sequence[Dialogue]) -> np.ndarray:
        try:
            scores = np.asarray(list(function(dialogues)), np.float64)
        except UserError:
            raise
        except Exception as error:  # it is somebody else's code
            raise UserError(
                f"{where}: failed ({type(error).__name__}: {error}); expected a list of numbers "
                "back"
            ) from error
        if scores.shape != (len(dialogues),):
            raise UserError(
                f"{where}: expected {len(dialogues)} finite numbers, one a dialogue, not "
                f"{scores.shape}"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, which is refused
            return scores.astype(np.float32)

    return score
