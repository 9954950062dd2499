"""One request for completions: its jobs, and what their events become."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Sequence

from cai_jax import seeds
from cai_jax.engine import plan
from cai_jax.engine.decoding import Running
from cai_jax.engine.stops import Ending
from cai_jax.errors import UserError
from cai_jax.serving import responses
from cai_jax.serving.fields import BadRequest
from cai_jax.serving.requests import Asked, Reader
from cai_jax.serving.responses import Responses, Span
from cai_jax.serving.texts import Growing, Offsets, Texts
from cai_jax.serving.worker import Event, Full, Job, Stopped, Worker
from cai_jax.structs import LENGTH, SampleRequest


def require_room(worker: Worker, count: int) -> None:
    """BadRequest where so many texts never have room in the queue."""
    if count > worker.max_waiting:
        raise BadRequest(
            f"{count} texts are more than this server queues ({worker.max_waiting}); ask for fewer "
            "at a time"
        )


def submit(worker: Worker, jobs: Sequence[Job], inbox: asyncio.Queue[Event]) -> None:
    """Hands jobs to the worker; BadRequest where it does not take them."""
    require_room(worker, sum(job.num_texts for job in jobs))
    try:
        worker.submit(jobs, inbox)
    except Full:
        raise BadRequest("the queue is full; try again", status=429, code="queue_full") from None
    except Stopped as error:
        raise BadRequest(str(error), status=503, code="stopping") from None


async def receive(inbox: asyncio.Queue[Event]) -> Event:
    """The next event; BadRequest in place of an error."""
    event = await inbox.get()
    if isinstance(event.error, UserError):
        raise BadRequest(str(event.error))
    if event.error:
        raise BadRequest(str(event.error), status=503, code="engine_failed")
    return event


class Answer:
    """One request's jobs, and what their events become."""

    def __init__(self, asked: Asked, reader: Reader, texts: Texts, worker: Worker):
        self._asked, self._texts, self._worker = asked, texts, worker
        # A choice of no tokens has no job but takes its share of the answer.
        require_room(worker, len(asked.prompts) * asked.num_choices)
        self._strips = asked.chat and reader.format.kind == "text"
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._responses = Responses(asked, reader.name, texts)
        # Texts that are read come first: their jobs have negative numbers.
        self._reads = [
            Job(index - len(asked.prompts), tokens=prompt.tokens, wants_top=asked.reading > 0)
            for index, prompt in enumerate(asked.prompts)
            if asked.reading is not None and len(prompt.tokens) > 1
        ]
        self._samples = [
            Job(number * asked.num_choices + sample, self._running(prompt, sample))
            for number, prompt in enumerate(asked.prompts)
            for sample in range(asked.num_choices)
            if asked.sampling.max_new_tokens
        ]
        self._readings: list[Span] = []
        self._num_sampled = self._num_reused = 0
        self._ahead: collections.deque[Event] = collections.deque()
        self.begun = False

    def _running(self, prompt, sample: int) -> Running:
        key = seeds.row_key(self._asked.seed, "served", sample)
        request = SampleRequest("", (prompt.tokens,), key)
        wants_top = bool(self._asked.logprobs)
        cut = plan.reusable_prompt(prompt.tokens)
        return Running(request, cut, self._asked.sampling, wants_top)

    def submit(self) -> None:
        """Hands the jobs to the worker."""
        submit(self._worker, self._reads + self._samples, self._inbox)

    def cancel(self) -> None:
        self._worker.cancel(self._reads + self._samples)

    async def begin(self) -> None:
        """Waits until the prompts are read and the first token is there."""
        count = len(self._asked.prompts)
        read: list[Event] = [Event(index - count) for index in range(count)]
        left = len(self._reads)
        while left:
            event = await self._receive()
            # Sampling goes on next to the reading.
            if event.index >= 0:
                self._ahead.append(event)
                continue
            into = read[event.index + count]
            into.logprobs += event.logprobs
            into.tops += event.tops
            left -= event.last
        if self._asked.echo or self._reads:
            self._readings = [
                responses.read_prompt(prompt, self._texts, event.logprobs, event.tops)
                for prompt, event in zip(self._asked.prompts, read, strict=True)
            ]
        if self._samples and not self._ahead:
            self._ahead.append(await self._receive())
        self.begun = True

    async def _receive(self) -> Event:
        return await receive(self._inbox)

    async def _events(self) -> AsyncIterator[Event]:
        """Events of the choices, up to the last."""
        if not self._samples:
            count = len(self._asked.prompts) * self._asked.num_choices
            for index in range(count):
                yield Event(index, ending=Ending(0, "", LENGTH), last=True)
        left = len(self._samples)
        reused: dict[int, int] = {}
        while left:
            event = self._ahead.popleft() if self._ahead else await self._receive()
            left -= event.last
            self._num_sampled += len(event.tokens)
            number = event.index // self._asked.num_choices
            reused.setdefault(number, event.num_reused)
            self._num_reused = sum(reused.values())
            yield event

    def _usage(self) -> dict:
        return responses.usage(self._asked, self._num_sampled, self._num_reused)

    def _echoed(self, index: int) -> Span | None:
        return self._readings[index // self._asked.num_choices] if self._asked.echo else None

    async def complete(self) -> dict:
        """The complete answer."""
        spans: dict[int, Span] = {}
        async for event in self._events():
            span = spans.setdefault(event.index, Span())
            span.tokens += event.tokens
            span.logprobs += event.logprobs
            span.tops += event.tops
            span.ending = event.ending
        choices = []
        for index, span in sorted(spans.items()):
            echoed = self._echoed(index)
            span.text = span.ending.text.strip() if self._strips else span.ending.text
            span.offsets = Offsets(self._texts, len(echoed.text) if echoed else 0).add(span.tokens)
            choices.append(self._responses.choice(index, span, echoed, self._readings))
        return self._responses.complete(choices, self._usage(), self._readings)

    async def chunks(self) -> AsyncIterator[dict]:
        """The answer as it grows."""
        growing: dict[int, tuple[Growing, Offsets]] = {}
        stops = self._asked.sampling.stop_strings
        async for event in self._events():
            first = event.index not in growing
            echoed = self._echoed(event.index) if first else None
            if first:
                start = len(echoed.text) if echoed else 0
                grows = Growing(self._texts, stops, self._strips)
                growing[event.index] = grows, Offsets(self._texts, start)
            if echoed:
                yield self._responses.chunk(event.index, echoed, True, self._readings)
            text, offsets = growing[event.index]
            span = Span(
                text.add(event.tokens, event.ending.text if event.ending else None),
                event.tokens,
                event.logprobs,
                event.tops,
                offsets.add(event.tokens),
                event.ending,
            )
            yield self._responses.chunk(event.index, span, first and not echoed, self._readings)
        if self._asked.usage:
            yield self._responses.usage_chunk(self._usage())
