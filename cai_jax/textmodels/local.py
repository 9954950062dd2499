"""A language model on this mesh as a text model: dialogues become tokens, the engine decodes and
scores them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Container, Iterator, Sequence

from cai_jax.data import fitting
from cai_jax.data.dialogue import DialogueFormat, cut_after
from cai_jax.io import memory
from cai_jax.structs import (
    TOO_LONG,
    Completion,
    SampleRequest,
    Sampling,
    ScoreRequest,
)
from cai_jax.textmodels import wording
from cai_jax.textmodels.protocol import SCORED, Choice, Question, Turn

Segments = tuple[tuple[int, ...], ...]


class LocalTextModel:
    """`make_engine()` gives the model's `Engine`; it is called at the first request. `max_length`:
    tokens of a prompt and what follows it."""

    def __init__(
        self, name: str, format: DialogueFormat, max_length: int, make_engine: Callable[[], object]
    ):
        self.name, self.format, self.max_length = name, format, max_length
        self._make_engine = make_engine

    @functools.cached_property
    def _engine(self):
        return self._make_engine()

    def release(self) -> None:
        """See `TextModel.release`: the engine has a copy of the layers and keeps prompts."""
        vars(self).pop("_engine", None)
        memory.give_back()

    # Requests -------------------------------------------------------------------------------------

    def generate(
        self, turns: Sequence[Turn], sampling: Sampling, wanted: Container[str] | None = None
    ) -> Iterator[Completion]:
        """See `TextModel.generate`."""

        def limit(turn: Turn) -> int:
            return min(turn.max_new_tokens or sampling.max_new_tokens, sampling.max_new_tokens)

        def length(turn: Turn, segments: Segments) -> int:
            return fitting.num_tokens(segments) + (turn.room or limit(turn))

        counts, by_role = {}, {}
        for turn, count, segments in self._with_examples(turns, wanted, self.prompt, length):
            if not 0 < fitting.num_tokens(segments) <= self.max_length - limit(turn):
                yield Completion(turn.id, (), (), "", TOO_LONG)
                continue
            if not turn.shared:
                segments = (sum(segments, ()),)
            if turn.continues:
                segments = cut_after(segments, self.prompt(turn.continues, count))
            counts[turn.id] = count
            request = SampleRequest(turn.id, segments, turn.key, turn.max_new_tokens)
            by_role.setdefault(turn.role, []).append(request)
        # Where a turn ends depends on who speaks.
        for role, requests in by_role.items():
            how = dataclasses.replace(sampling, stop_strings=self.format.stop_strings(role))
            for done in self._engine.generate(requests, how):
                # The space after a heading and line ends before a stop belong to the format, which
                # writes them again.
                text = done.text.strip()
                yield dataclasses.replace(done, text=text, num_examples=counts[done.id])

    def choose(
        self,
        questions: Sequence[Question],
        wanted: Container[str] | None = None,
        together: bool = False,
    ) -> Iterator[Choice]:
        """See `TextModel.choose`."""

        def length(_, tokens: tuple[Segments, Segments]) -> int:
            segments, options = tokens
            return fitting.num_tokens(segments) + max(map(len, options))

        # Which questions share a forward pass depends on all of them, wanted or not.
        asked = None if together else wanted
        about, requests = {}, []
        for question, count, tokens in self._with_examples(questions, asked, self.question, length):
            segments, _ = tokens
            if fitting.num_tokens(segments) and length(question, tokens) <= self.max_length:
                about[question.id] = count, fitting.num_tokens(segments)
                requests.append(ScoreRequest(question.id, *tokens))
            elif wanted is None or question.id in wanted:
                yield Choice(question.id, (), TOO_LONG)
        if not any(wanted is None or request.id in wanted for request in requests):
            return
        for score in self._engine.score(requests, together=together, wanted=wanted):
            count, num_tokens = about[score.id]
            yield Choice(score.id, score.logprobs, SCORED, count, num_tokens)

    def _with_examples(self, requests: Sequence, wanted, build: Callable, length: Callable):
        """(request, number of worked examples, tokens) of every wanted request: as many examples as
        fit, the same number in a group.

        Args:
          requests: turns, or questions.
          wanted: ids, or None for all.
          build: the tokens of a request with its first n examples.
          length: how many tokens a request and what follows it need, from those tokens.
        """
        groups: dict[str, list] = {}
        for request in requests:
            groups.setdefault(request.group or request.id, []).append(request)
        for group in groups.values():
            asked = [request for request in group if wanted is None or request.id in wanted]
            most, built = min(len(request.examples) for request in group), {}
            # The fewest examples that any of the group has room for; the search goes on from there.
            for request in group if asked else ():
                for count in range(most, -1, -1):
                    built[request.id] = count, build(request, count)
                    most = count
                    if length(request, built[request.id][1]) <= self.max_length:
                        break
            for request in asked:
                count, tokens = built[request.id]
                yield request, most, tokens if count == most else build(request, most)

    # Tokens ---------------------------------------------------------------------------------------

    def prompt(self, turn: Turn, count: int) -> Segments:
        """Segments of the prompt with the first `count` worked examples."""
        return self._turns(turn, count, ())[0]

    def question(self, question: Question, count: int) -> tuple[Segments, Segments]:
        """Segments of the prompt, and the tokens that each option has after it."""
        if wording.is_running(question, self.format.kind):
            text, examples = wording.running(question, count)
            return self.format.running_text(text, question.options, examples)
        return self._turns(question, count, question.options)

    def _turns(self, request: Turn | Question, count: int, options: Sequence[str]):
        asked = wording.turns(request, count, self.format.kind)
        return self.format.question(asked.messages, options, asked.role, asked.lead, asked.shared)
