"""A text model whose answers come from elsewhere: requests are written and read by `chat`, answers
are kept in the stage's `AnswerFile`, and a carrier gets those that are missing."""

from __future__ import annotations

import collections
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from cai_jax.io.answers import AnswerFile
from cai_jax.structs import Completion, Sampling
from cai_jax.textmodels import chat
from cai_jax.textmodels.protocol import Choice, Question, Turn

Outcome = Mapping | str  # what `chat.read` keeps, or one of structs.WITHOUT_ANSWER
TEMPLATE_TOKENS = 64  # of a server's template around a message, for what it may cost at most


class Carrier(Protocol):
    """Brings requests to a server and its answers back.

    Attributes:
      name: the model's reference, for records.
      file: the stage's answers.
    """

    name: str
    file: AnswerFile

    def tier(self) -> str:
        """How questions are asked; may ask the server."""

    def answers(self, requests: Iterable[chat.Request]) -> Iterator[tuple[chat.Request, Outcome]]:
        """Every request with what came of it, in any order, as they come. Requests are taken from
        the iterable when they can be sent. Answers are in the answer file before they are
        yielded."""


class AnsweringModel:
    """A `TextModel` over a carrier, which gets the answers that its file lacks. wire: how requests
    are written; num_samples: of a question that is counted."""

    def __init__(self, carrier: Carrier, wire: chat.Wire, num_samples: int):
        self.name, self.wire, self._num_samples = carrier.name, wire, num_samples
        self._carrier, self._file = carrier, carrier.file

    def generate(
        self, turns: Sequence[Turn], sampling: Sampling, wanted: Container[str] | None = None
    ) -> Iterator[Completion]:
        """See `TextModel.generate`."""

        def requests(turn: Turn) -> list[chat.Request]:
            return [chat.sample(turn, sampling, self.wire)]

        for turn, (request,), (answer,) in self._answered(in_order(turns, wanted), requests):
            yield chat.completion(turn, request, answer)

    def choose(
        self,
        questions: Sequence[Question],
        wanted: Container[str] | None = None,
        together: bool = False,
    ) -> Iterator[Choice]:
        """See `TextModel.choose`."""
        ordered = in_order(questions, wanted)
        tier = self._carrier.tier() if ordered else ""

        def requests(question: Question) -> list[chat.Request]:
            return chat.ask(question, tier, self.wire, self._num_samples)

        for question, _, answers in self._answered(ordered, requests):
            yield chat.choice(question, tier, answers)

    def release(self) -> None:
        """See `TextModel.release`: nothing is on the device."""

    def progress(self) -> str:
        """Tokens and cost so far, for a progress bar."""
        return self._file.describe()

    def _answered(self, items: Sequence, build: Callable) -> Iterator[tuple]:
        """(item, its requests, what came of each) of every item, once all its requests have an
        outcome; those first for which the file has it all."""
        missing = []
        for item in items:
            requests = build(item)
            if all(request.key in self._file for request in requests):
                yield item, requests, [self._file.get(request.key) for request in requests]
            else:
                missing.append(item)
        # Requests are built again when it is their turn: memory does not hold all of them.
        waiting: dict[str, list] = {}  # key → the items that it is asked for, with their requests
        failed: dict[str, str] = {}  # what is in no file
        complete: collections.deque = collections.deque()

        def unsent() -> Iterator[chat.Request]:
            for item in missing:
                requests = build(item)
                new = {
                    request.key: request
                    for request in requests
                    if request.key not in self._file and request.key not in failed
                }
                if not new:
                    complete.append((item, requests))
                for key, request in new.items():
                    is_sent = key in waiting
                    waiting.setdefault(key, []).append((item, requests))
                    if not is_sent:
                        yield request

        def outcomes() -> Iterator[tuple]:
            while complete:
                item, requests = complete.popleft()
                keys = [request.key for request in requests]
                yield item, requests, [failed.get(key) or self._file.get(key) for key in keys]

        for request, outcome in self._carrier.answers(unsent()):
            if isinstance(outcome, str):
                failed[request.key] = outcome
            for item, requests in waiting.pop(request.key):
                if not any(other.key in waiting for other in requests):
                    complete.append((item, requests))
            yield from outcomes()
        yield from outcomes()


def cost(fields, usage: Sequence[int]) -> float:
    """Of tokens [read, written], by the prices of `configuration.endpoints`."""
    prices = fields.input_price, fields.output_price
    return sum(price * count / 1e6 for price, count in zip(prices, usage, strict=True))


def most(fields, request: chat.Request) -> float:
    """What a request costs at most: a token has at least a byte."""
    messages = len(request.body.get("messages", ())) + 1
    read = len(request.text.encode()) + TEMPLATE_TOKENS * messages
    return cost(fields, (read, request.limit * request.num_choices))


def in_order(items: Sequence, wanted: Container[str] | None) -> list:
    """The wanted turns or questions, those together that begin with the same worked examples, the
    longest ones first: a server that keeps prefixes computes each once."""
    groups: dict[tuple, list] = {}
    for item in items:
        if wanted is None or item.id in wanted:
            groups.setdefault(item.examples, []).append(item)

    def shared_characters(group: list) -> int:
        examples = group[0].examples if len(group) > 1 else ()
        return sum(len(message.text) for example in examples for message in example)

    groups_in_order = sorted(groups.values(), key=shared_characters, reverse=True)
    return [item for group in groups_in_order for item in group]
