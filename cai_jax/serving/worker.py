"""The thread that owns a model: jobs come to it by a queue that has a bound, and what it computes
goes to the event loop that serves the clients.

    worker = Worker(engine, max_waiting=256)
    worker.start()
    worker.submit(jobs, inbox)             # Full where there is no room
    event = await inbox.get()              # of one of the jobs, as the engine computes it
    worker.cancel(jobs)

Sequences decode together and enter the batch as others end; texts that are only read, a few hundred
tokens at a time, come in between. What nobody waits for any more leaves the batch.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

from cai_jax.engine.decoding import Decoding, Running
from cai_jax.engine.engine import Engine
from cai_jax.engine.stops import Ending
from cai_jax.io import progress


class Full(Exception):
    """There is no room for more jobs at the moment."""


class Stopped(Exception):
    """The server ends, or the engine could not do a job."""


@dataclasses.dataclass
class Event:
    """What is new of job `index`: tokens with their log-probabilities and the likeliest ones next
    to them, the end, if it has come, and tokens of the prompt that were there already. `error`
    instead, if it failed."""

    index: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    tops: list[tuple] = dataclasses.field(default_factory=list)
    ending: Ending | None = None
    num_reused: int = 0
    last: bool = False
    error: Exception | None = None


@dataclasses.dataclass(eq=False)
class Job:
    """Of these one: `running`, a sequence to sample; `tokens`, a text to read, with the likeliest
    tokens at each of its tokens if `wants_top`; `call`, anything else that needs the model, for
    `num_texts` texts."""

    index: int
    running: Running | None = None
    tokens: tuple[int, ...] = ()
    wants_top: bool = False
    call: Callable[[], Sequence[float]] | None = None
    num_texts: int = 1
    # The worker's own
    inbox: asyncio.Queue | None = None
    loop: asyncio.AbstractEventLoop | None = None
    cancelled: bool = False
    num_sent: int = 0
    steps: Iterator | None = None


class Worker(threading.Thread):
    """engine: of a policy; None where all jobs are calls. max_waiting: texts that wait at most."""

    def __init__(self, engine: Engine | None, max_waiting: int):
        super().__init__(name="cai_jax engine", daemon=True)
        self.max_waiting = max_waiting
        self._engine, self._changed, self._stopped = engine, threading.Condition(), False
        self._new: list[Job] = []
        # Only the thread itself touches what follows.
        self._waiting: collections.deque[Running] = collections.deque()
        self._sampling: dict[Running, Job] = {}
        self._others: collections.deque[Job] = collections.deque()
        self._batch = engine and Decoding(engine, (), None)

    # --- For the event loop -----------------------------------------------------------------------

    def submit(self, jobs: Sequence[Job], inbox: asyncio.Queue) -> None:
        """The jobs' events come to `inbox`. Raises Full where there is no room for all of them."""
        with self._changed:
            if self._stopped:
                raise Stopped("the server ends")
            others = sum(job.num_texts for job in (*self._new, *self._others, *jobs))
            if len(self._waiting) + others > self.max_waiting:
                raise Full
            for job in jobs:
                job.inbox, job.loop = inbox, asyncio.get_running_loop()
            self._new += jobs
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.cancelled = True

    def stop(self) -> None:
        """Ends the thread after the device call that runs; every job gets an error."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    # --- The thread -------------------------------------------------------------------------------

    def run(self) -> None:
        while self._take():
            try:
                self._work()
            except Exception as error:  # of the device, out of memory: the server goes on
                progress.warn(f"the engine failed: {traceback.format_exc()}")
                self._fail(Stopped(f"the engine failed: {type(error).__name__}"))
                self._batch = self._engine and Decoding(self._engine, (), None)
        self._fail(Stopped("the server ends"))

    def _take(self) -> bool:
        """Waits until there is something to do, and takes what is new; whether to go on."""
        with self._changed:
            idle = not (self._sampling or self._others)
            self._changed.wait_for(lambda: self._stopped or self._new or not idle)
            new, self._new = self._new, []
            for job in new:
                if job.running:
                    self._sampling[job.running] = job
                    self._waiting.append(job.running)
                else:
                    self._others.append(job)
            return not self._stopped

    def _work(self) -> None:
        self._drop_cancelled()
        events = []
        if self._others:
            events += self._step(self._others[0])
        if self._sampling:
            before = [item for item in self._batch.running if item] + list(self._waiting)
            self._batch.collect(self._batch.start(self._waiting))
            events += [event for item in before if (event := self._progress(item))]
        elif self._batch:
            self._batch.release()
        self._send(events)

    def _drop_cancelled(self) -> None:
        for item in [item for item, job in self._sampling.items() if job.cancelled]:
            del self._sampling[item]
            if item in self._waiting:
                self._waiting.remove(item)
            else:
                self._batch.drop(item)
        for job in [job for job in self._others if job.cancelled]:
            self._others.remove(job)

    def _progress(self, item: Running) -> tuple[Job, Event] | None:
        """What is new of a sequence."""
        job = self._sampling[item]
        if len(item.tokens) == job.num_sent and not item.ending:
            return None
        if item.ending:
            del self._sampling[item]
        sent, job.num_sent = job.num_sent, len(item.tokens)
        return job, Event(
            job.index,
            item.tokens[sent:],
            item.logprobs[sent:],
            item.tops[sent:],
            item.ending,
            item.num_reused,
            bool(item.ending),
        )

    def _step(self, job: Job) -> list[tuple[Job, Event]]:
        """A span of a text that is read, or a call."""
        if job.call:
            self._others.popleft()
            try:
                return [(job, Event(job.index, logprobs=list(job.call()), last=True))]
            except Exception as error:
                return [(job, Event(job.index, error=error, last=True))]
        job.steps = job.steps or self._engine.prompt_logprobs(job.tokens, job.wants_top)
        logprobs, tops = next(job.steps)
        job.num_sent += len(logprobs)
        last = job.num_sent == len(job.tokens) - 1
        if last:
            self._others.popleft()
        return [(job, Event(job.index, logprobs=logprobs, tops=tops, last=last))]

    def _fail(self, error: Exception) -> None:
        with self._changed:
            jobs = [*self._new, *self._others, *self._sampling.values()]
            self._new = []
        for kept in (self._others, self._sampling, self._waiting):
            kept.clear()
        self._send([(job, Event(job.index, error=error, last=True)) for job in jobs])

    def _send(self, events: Sequence[tuple[Job, Event]]) -> None:
        """Puts events into their inboxes, on the event loop's thread."""

        def put() -> None:
            for job, event in events:
                job.inbox.put_nowait(event)

        if events:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                events[0][0].loop.call_soon_threadsafe(put)
