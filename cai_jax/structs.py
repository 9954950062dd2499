"""The records that flow between the parts: dialogues, sampling and scoring requests, and their
results.

Nothing here imports JAX; token ids are Python integers. Records on disk are JSON objects of the
same fields (see `cai_jax.io.artefacts`), so that any of them can be read with `jq`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cai_jax.errors import UserError

# Who speaks. The last four are turns of the critique-revision procedure (section 3.1 of the paper);
# the text format gives each its own heading and a chat template sees requests as user turns and the
# rest as assistant turns.
ROLES = (
    "system",
    "human",
    "assistant",
    "critique_request",
    "critique",
    "revision_request",
    "revision",
)
ANSWERING_ROLES = ("assistant", "critique", "revision")
# `Completion.stop` of a turn that ran into its limit of tokens: it was cut and did not end
LENGTH = "length"
# `Completion.stop` of a turn, and `Choice.how` of a question, without an answer: its prompt has no
# room in the model's context; a server refused it; a server's answers were none of the options; a
# server gave nothing that could be read, however often it was asked.
TOO_LONG, REFUSED, UNPARSABLE, FAILED = "too long", "refused", "unparsable", "failed"
WITHOUT_ANSWER = (TOO_LONG, REFUSED, UNPARSABLE, FAILED)


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn. `text` is data: it is never formatted, and special-token strings in it stay text.
    `cut`: the model was stopped at the limit of tokens, so no end token follows the text."""

    role: str
    text: str
    cut: bool = False


Dialogue = tuple[Message, ...]


def sampled_turn(text: str, stop: str | None, role: str = "assistant") -> Message:
    """The turn that a model sampled, from its text and its `stop` (None where that is not known: it
    counts as ended)."""
    return Message(role, text, stop == LENGTH)


def responses_of(comparison: Mapping) -> list[tuple[str, str | None]]:
    """(text, stop) of every response of a comparison record; people's have no stop and count as
    ended."""
    texts = comparison["responses"]
    return list(zip(texts, comparison.get("stops") or [None] * len(texts), strict=True))


def as_ended(dialogue: Dialogue) -> Dialogue:
    """The same dialogue, its last turn not marked as cut."""
    return (*dialogue[:-1], dataclasses.replace(dialogue[-1], cut=False))


def count_cut(stops: Sequence[str | None]) -> dict[str, int]:
    """{"cut", "of"}: how many of the sampled turns were cut at the limit of tokens."""
    return {"cut": sum(stop == LENGTH for stop in stops), "of": len(stops)}


def dialogue_to_json(dialogue: Sequence[Message]) -> list[dict]:
    """[{role, text}, …], with "cut": true in turns that were cut and in no other."""
    return [
        {"role": message.role, "text": message.text} | ({"cut": True} if message.cut else {})
        for message in dialogue
    ]


def dialogue_from_json(value, where: str = "dialogue") -> Dialogue:
    """Checks and converts `[{role, text}, …]`, as `dialogue_to_json` writes it. Raises UserError
    that begins with `where`."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: expected a non-empty list of {{role, text}} objects")
    messages = []
    for number, item in enumerate(value):
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("text"), str)
            or item.get("role") not in ROLES
        ):
            raise UserError(
                f"{where}[{number}]: expected {{role, text}} with a role among {', '.join(ROLES)}"
            )
        if not isinstance(item.get("cut", False), bool):
            raise UserError(f"{where}[{number}].cut: expected true or false")
        messages.append(Message(item["role"], item["text"], item.get("cut", False)))
    return tuple(messages)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw tokens. temperature 0 is greedy; top_k 0 and top_p 1 are off. Hashable, so static
    under jit."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_strings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """A prompt to continue. `segments` are concatenated; the leading ones may be shared by many
    requests (worked examples, common dialogues), and equal leading tuples are prefilled once.
    `key` is uint32 [2] from `seeds.row_key`. `max_new_tokens`, where given, is this request's own,
    lower limit."""

    id: str
    segments: tuple[tuple[int, ...], ...]
    key: np.ndarray
    max_new_tokens: int | None = None

    @property
    def num_tokens(self) -> int:
        return sum(len(segment) for segment in self.segments)


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was sampled. `tokens` are all sampled actions up to and including EOS or the token that
    completes a stop string; `text` is the answer with the stop removed. `logprobs` are those of the
    temperature-scaled distribution before top-k and top-p (at temperature 1 where sampling was
    greedy). `stop` is "eos", "length", the stop string, or one of WITHOUT_ANSWER where there is
    none. `reasoning_tokens` is how many of the tokens are thoughts before the answer, which `text`
    leaves out; `num_examples` how many worked examples were shown. A server gives no tokens, but
    `usage`, the numbers of tokens that it read and wrote, where it tells them."""

    id: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    stop: str
    reasoning_tokens: int = 0
    num_examples: int = 0
    usage: tuple[int, int] | None = None

    @property
    def answered(self) -> bool:
        return self.stop not in WITHOUT_ANSWER

    @property
    def num_tokens(self) -> int:
        return self.usage[1] if self.usage else len(self.tokens)

    @property
    def logprob(self) -> float | None:
        """Of all tokens together; None where they are not known."""
        return float(sum(self.logprobs)) if self.tokens else None


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """A prompt and the continuations to score after it."""

    id: str
    segments: tuple[tuple[int, ...], ...]
    options: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Score:
    """Per option, the log-probability of each of its tokens (temperature 1); the option's is their
    sum."""

    id: str
    token_logprobs: tuple[tuple[float, ...], ...]

    @property
    def logprobs(self) -> tuple[float, ...]:
        return tuple(float(np.sum(np.asarray(row, np.float64))) for row in self.token_logprobs)
