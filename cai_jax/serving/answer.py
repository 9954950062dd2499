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
from cai_jax.serving.fields import ApiError
from cai_jax.serving.requests import CompletionRequest, Prompt, Reader
from cai_jax.serving.responses import Responses, Span
from cai_jax.serving.texts import Growing, Offsets, Texts
from cai_jax.serving.worker import Event, Full, Job, Stopped, Worker
from cai_jax.structs import LENGTH, SampleRequest


def require_room(worker: Worker, count: int) -> None:
    """ApiError where so many texts never have room in the queue."""
    if count > worker.max_waiting:
        raise ApiError(
            f"{count} texts are more than this server queues ({worker.max_waiting}); ask for fewer "
            "at a time"
        )


def submit(worker: Worker, jobs: Sequence[Job], inbox: asyncio.Queue[Event]) -> None:
    """Hands jobs to the worker; ApiError where it does not take them."""
    require_room(worker, sum(job.num_texts for job in jobs))
    try:
        worker.submit(jobs, inbox)
    except Full:
        raise ApiError("the queue is full; try again", status=429, code="queue_full") from None
    except Stopped as error:
        raise ApiError(str(error), status=503, code="stopping") from None


async def receive(inbox: asyncio.Queue[Event]) -> Event:
    """The next event; ApiError in place of an error."""
    event = await inbox.get()
    if isinstance(event.error, UserError):
        raise ApiError(str(event.error))
    if event.error:
        raise ApiError(str(event.error), status=503, code="engine_failed")
    return event


class Answer:
    """One request's jobs, and what their events become."""

    def __init__(self, request: CompletionRequest, reader: Reader, texts: Texts, worker: Worker):
        self._request, self._texts, self._worker = request, texts, worker
        # A choice of no tokens has no job but takes its share of the answer.
        require_room(worker, len(request.prompts) * request.num_choices)
        self._strips = request.chat and reader.format.kind == "text"
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._responses = Responses(request, reader.name, texts)
        # A prompt that is scored has its index counted from the end: negative, unlike a choice's.
        self._prompt_jobs = [
            Job(
                index - len(request.prompts), tokens=prompt.tokens, wants_top=request.prompt_top > 0
            )
            for index, prompt in enumerate(request.prompts)
            if request.prompt_top is not None and len(prompt.tokens) > 1
        ]
        self._sample_jobs = [
            Job(number * request.num_choices + sample, self._running(prompt, sample))
            for number, prompt in enumerate(request.prompts)
            for sample in range(request.num_choices)
            if request.sampling.max_new_tokens
        ]
        self._num_sampled = 0
        self._num_reused: dict[int, int] = {}  # of each prompt
        self._ahead: collections.deque[Event] = collections.deque()
        self.begun = False

    def _running(self, prompt: Prompt, sample: int) -> Running:
        key = seeds.row_key(self._request.seed, "served", sample)
        request = SampleRequest("", (prompt.tokens,), key)
        wants_top = bool(self._request.logprobs)
        cut = plan.reusable_prompt(prompt.tokens)
        return Running(request, cut, self._request.sampling, wants_top)

    def submit(self) -> None:
        """Hands the jobs to the worker."""
        submit(self._worker, self._prompt_jobs + self._sample_jobs, self._inbox)

    def cancel(self) -> None:
        self._worker.cancel(self._prompt_jobs + self._sample_jobs)

    async def begin(self) -> None:
        """Waits until the prompts are scored and the first token is there."""
        prompts = self._responses.add_prompts()
        left = len(self._prompt_jobs)
        while left:
            event = await receive(self._inbox)
            # Sampling goes on meanwhile.
            if event.index >= 0:
                self._ahead.append(event)
                continue
            prompts[event.index].logprobs += event.logprobs
            prompts[event.index].tops += event.tops
            left -= event.last
        if self._sample_jobs and not self._ahead:
            self._ahead.append(await receive(self._inbox))
        self.begun = True

    async def _events(self) -> AsyncIterator[Event]:
        """Events of the choices, up to the last."""
        if not self._sample_jobs:
            count = len(self._request.prompts) * self._request.num_choices
            for index in range(count):
                yield Event(index, ending=Ending(0, "", LENGTH), last=True)
        left = len(self._sample_jobs)
        while left:
            event = self._ahead.popleft() if self._ahead else await receive(self._inbox)
            left -= event.last
            self._num_sampled += len(event.tokens)
            self._num_reused.setdefault(event.index // self._request.num_choices, event.num_reused)
            yield event

    def _usage(self) -> dict:
        return self._responses.usage(self._num_sampled, sum(self._num_reused.values()))

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
            span.text = span.ending.text.strip() if self._strips else span.ending.text
            span.offsets = self._offsets(self._responses.echoed(index)).add(span.tokens)
            choices.append(self._responses.choice(index, span))
        return self._responses.complete(choices, self._usage())

    async def chunks(self) -> AsyncIterator[dict]:
        """The answer as it grows."""
        growing: dict[int, tuple[Growing, Offsets]] = {}
        stops = self._request.sampling.stop_strings
        async for event in self._events():
            first = event.index not in growing
            echoed = self._responses.echoed(event.index) if first else None
            if first:
                grows = Growing(self._texts, stops, self._strips)
                growing[event.index] = grows, self._offsets(echoed)
            if echoed:
                yield self._responses.chunk(event.index, echoed, first=True)
            text, offsets = growing[event.index]
            span = Span(
                text.add(event.tokens, event.ending.text if event.ending else None),
                event.tokens,
                event.logprobs,
                event.tops,
                offsets.add(event.tokens),
                event.ending,
            )
            yield self._responses.chunk(event.index, span, first=first and not echoed)
        if self._request.usage:
            yield self._responses.usage_chunk(self._usage())

    def _offsets(self, echoed: Span | None) -> Offsets:
        """Of a choice's tokens, behind the prompt where that comes before them."""
        return Offsets(self._texts, len(echoed.text) if echoed else 0)
