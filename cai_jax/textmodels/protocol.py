"""What a stage sees of a model: turns are generated, options are chosen between. No tokens.

    for completion in model.generate([Turn("a", dialogue, key)], Sampling(max_new_tokens=64)): …
    for choice in model.choose([Question("b", dialogue, (" (A)", " (B)"))]): …

Every request that is wanted gets one result. What does not fit the model's context is never cut:
its result says so (`answered`, and `stop` or `how`), as it does where a server refuses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Sequence
from typing import Protocol

import numpy as np

from cai_jax.structs import WITHOUT_ANSWER, Completion, Dialogue, Sampling

__all__ = ["Choice", "Completion", "Dialogue", "Question", "Sampling", "TextModel", "Turn"]

# A turn that draws the conclusion from a chain of thought. Without a chat template it is a human
# turn, as in the paper; a chat template closes the assistant's turn, so there that turn goes on.
CONCLUSION = "conclusion"
# How a question and its worked examples are written where the model has no chat template: as turns,
# or as one running text (as for the paper's pretrained feedback model), in which every question
# precedes `lead`, or, verbatim, ends in it already. A chat template always gets turns.
TURNS, RUNNING, VERBATIM = "turns", "running", "verbatim"
# How the log-probabilities of options are obtained.
SCORED, TOP, COUNTED = "scored", "top", "counted"


@dataclasses.dataclass(frozen=True)
class Turn:
    """A request for one turn of a dialogue.

    Attributes:
      id: names the result.
      dialogue: what precedes the turn.
      key: uint32 [2] from `seeds.row_key`, which decides what is drawn.
      role: who speaks.
      examples: worked examples before the dialogue; the last ones are left out where the request
        does not fit with them.
      lead: what the turn begins with.
      max_new_tokens: a limit of its own, below that of the sampling.
      continues: an earlier request whose prompt this one goes on from.
      group: requests of one group have the same number of examples.
      room: tokens that examples must leave free, by default those that may be sampled.
      shared: whether other requests have the same examples.
    """

    id: str
    dialogue: Dialogue
    key: np.ndarray
    role: str = "assistant"
    examples: tuple[Dialogue, ...] = ()
    lead: str = ""
    max_new_tokens: int | None = None
    continues: Turn | None = None
    group: str = ""
    room: int | None = None
    shared: bool = True


@dataclasses.dataclass(frozen=True)
class Question:
    """Options between which a model chooses by how probable each one is after the dialogue and
    `lead`.

    form: TURNS, RUNNING or VERBATIM; in the last two the answers of `examples` follow `lead`, too.
    The other fields are as in `Turn`.
    """

    id: str
    dialogue: Dialogue
    options: tuple[str, ...]
    examples: tuple[Dialogue, ...] = ()
    lead: str = ""
    role: str = "assistant"
    form: str = TURNS
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Choice:
    """How probable each option is.

    Attributes:
      id: the question's.
      logprobs: of each option, in their order; () where there is no answer.
      how: the tier: "scored" (of the options' own tokens), "top" (read among the likeliest first
        tokens) or "counted" (among samples); or one of `structs.WITHOUT_ANSWER`.
      num_examples: worked examples before the question.
      num_tokens: of the prompt.
      outside: of "top", the mass of the tokens that are no option.
      counts: of "counted", how many samples chose each option; `num_samples` also counts those that
        could not be parsed.
      usage: as of a `Completion`.
    """

    id: str
    logprobs: tuple[float, ...]
    how: str = SCORED
    num_examples: int = 0
    num_tokens: int = 0
    outside: float | None = None
    counts: tuple[int, ...] = ()
    num_samples: int = 0
    usage: tuple[int, int] | None = None

    @property
    def answered(self) -> bool:
        return self.how not in WITHOUT_ANSWER

    def obtained(self) -> dict:
        """What a record holds about how the log-probabilities were obtained."""
        about = {"how": self.how}
        if self.how == TOP:
            about["outside"] = self.outside
        if self.how == COUNTED:
            about |= {"counts": list(self.counts), "samples": self.num_samples}
        return about


class TextModel(Protocol):
    """`wanted`: ids of the requests that are to be answered, None for all; the others only count
    where requests decide together, so that a restart asks for the same as the first run."""

    name: str

    def generate(
        self, turns: Sequence[Turn], sampling: Sampling, wanted: Container[str] | None = None
    ) -> Iterator[Completion]:
        """Turns as they are finished, in any order."""

    def choose(
        self,
        questions: Sequence[Question],
        wanted: Container[str] | None = None,
        together: bool = False,
    ) -> Iterator[Choice]:
        """Choices as they are made, in any order. together: short questions may share forward
        passes, which is faster and changes the last bits."""

    def release(self) -> None:
        """Frees what it holds on the device besides the weights, until the next request."""
