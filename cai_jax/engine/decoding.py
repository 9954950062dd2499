"""Sequences that decode together: they enter a batch as others leave it, several tokens per device
call.

    batch = Decoding(engine, prefix, sampling)
    while waiting or batch.busy:
        sampled = batch.start(waiting)     # the device computes
        ended = batch.collect(sampled)

A sequence's tokens depend on its request, how it is sampled and the engine's options only.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from cai_jax.core import sharding
from cai_jax.engine import cached, plan
from cai_jax.engine.draw import Draws
from cai_jax.engine.prompts import Chunk
from cai_jax.engine.stops import Ending, find_ending
from cai_jax.structs import SampleRequest, Sampling

TOP = 20  # most probable tokens that a sequence may ask for at each of its own


@dataclasses.dataclass(eq=False)
class Running:
    """A request that waits or decodes, and what was sampled so far. wants_top: whether `tops`, the
    (ids, log-probabilities) of the TOP most probable tokens at each, are wanted. num_reused: tokens
    of the prompt whose keys and values were there."""

    request: SampleRequest
    prompt: plan.Prompt
    sampling: Sampling
    wants_top: bool = False
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    tops: list[tuple] = dataclasses.field(default_factory=list)
    ending: Ending | None = None
    num_reused: int = 0

    @property
    def limit(self) -> int:
        """Tokens that may be sampled."""
        most = self.sampling.max_new_tokens
        return min(self.request.max_new_tokens or most, most)


class Decoding:
    """A batch of sequences behind one prefix.

    engine: an `Engine`. sampling: how all of them are drawn, None where each one draws as its own
    `Running.sampling` says. size: positions of the cache to begin with.
    """

    def __init__(self, engine, prefix: plan.Tokens, sampling: Sampling | None, size: int = 0):
        self._engine, self._runner, self._prompts = engine, engine.runner, engine.prompts
        self._prefix, self._steps = prefix, engine.options.chunk_steps
        # Limits and stop strings are the host's: without them one program serves all.
        self._sampling = sampling and dataclasses.replace(
            sampling, max_new_tokens=0, stop_strings=()
        )
        batch = engine.batch_size
        self.running: list[Running | None] = [None] * batch
        self._slots = cached.Slots(
            *(np.zeros(batch, np.int32) for _ in range(4)), np.zeros((batch, 2), np.uint32)
        )
        self._draws = Draws(
            np.zeros(batch, np.float32), np.zeros(batch, np.int32), np.ones(batch, np.float32)
        )
        self._cache, self._size = None, size

    @property
    def busy(self) -> bool:
        return any(self.running)

    def start(self, waiting: collections.deque[Running]):
        """Gives idle slots to those who wait, and starts a device call; `collect` takes what is
        returned."""
        runner, block = self._runner, self._runner.block
        entering = self._enter(waiting)
        # Sizes grow in few steps: every size is a program of its own.
        wanted = self._cache_size(entering)
        if self._cache is None:
            self._size = max(wanted, self._size)
            self._cache = runner.empty_cache(len(self.running), self._size, block > 0)
        elif wanted > self._size or (2 * wanted < self._size and not block):
            self._size = wanted
            self._cache = runner(cached.resize, self._cache, wanted, block > 0)
        for slot, chunks in entering:
            self._cache, _ = self._prompts.insert(self._cache, chunks, slot, transposed=block > 0)
        wants_top = any(item and item.wants_top for item in self.running)
        self._cache, *sampled = runner(
            cached.decode,
            runner.weights,
            self._prompts.prefix(self._prefix),
            self._cache,
            runner.put(self._slots),
            None if self._sampling else runner.put(self._draws),
            config=runner.config,
            sampling=self._sampling,
            steps=self._steps,
            eos_ids=self._engine.eos_ids,
            block=block,
            top=self._engine.num_top if wants_top else 0,
        )
        return sampled

    def collect(self, sampled) -> list[Running]:
        """Adds the tokens of a device call to their sequences; frees the slots of what ended and
        returns it."""
        tokens, logprobs, count, tops = sharding.fetch(sampled)
        ended, slots = [], self._slots
        for slot, item in enumerate(self.running):
            if item is None:
                continue
            checked, new = len(item.tokens), int(count[slot])
            item.tokens += map(int, tokens[:new, slot])
            item.logprobs += map(float, logprobs[:new, slot])
            if item.wants_top:
                item.tops += zip(tops.ids[:new, slot], tops.logprobs[:new, slot], strict=True)
            item.ending = find_ending(
                item.tokens,
                checked,
                item.limit,
                self._engine.eos_ids,
                item.sampling.stop_strings,
                self._engine.decode_text,
            )
            # What goes on is known to the host as the device has it.
            if item.ending is None:
                slots.length[slot] += new
                slots.index[slot] += new
                slots.left[slot] -= new
                slots.token[slot] = item.tokens[-1]
                continue
            # A stop string may end before the last tokens that were sampled.
            for values in (item.tokens, item.logprobs, item.tops):
                del values[item.ending.count :]
            ended.append(item)
            self._leave(slot)
        return ended

    def drop(self, item: Running) -> None:
        """Ends a sequence that nobody waits for any more."""
        self._leave(self.running.index(item))

    def release(self) -> None:
        """Frees the cache, while nothing runs."""
        self._cache, self._size = None, 0

    def _leave(self, slot: int) -> None:
        """An idle slot has no tokens left, and draws nothing."""
        self.running[slot] = None
        for field in (*self._slots, self._draws.temperature, self._draws.top_k):
            field[slot] = 0
        self._draws.top_p[slot] = 1

    def _enter(self, waiting: collections.deque[Running]) -> list[tuple[int, list[Chunk]]]:
        """Gives idle slots to waiting requests: (slot, prefilled chunks) of each."""
        entering, slots = [], self._slots
        for slot, occupant in enumerate(self.running):
            if occupant is None and waiting:
                item = waiting.popleft()
                *before, tail = item.prompt.segments
                # Decoding feeds the last token.
                prefilled = self._prompts.num_prefilled
                chunks = self._prompts.chunks(self._prefix, [*before, tail[:-1]])
                length = item.prompt.own_length - 1
                item.num_reused = length - (self._prompts.num_prefilled - prefilled)
                entering.append((slot, chunks))
                self.running[slot] = item
                slots.length[slot], slots.token[slot] = length, tail[-1]
                slots.index[slot], slots.left[slot] = 0, item.limit
                slots.key[slot] = np.asarray(item.request.key, np.uint32)
                how = item.sampling
                for field, value in zip(
                    self._draws, (how.temperature, how.top_k, how.top_p), strict=True
                ):
                    field[slot] = value
        return entering

    def _cache_size(self, entering: list[tuple[int, list[Chunk]]]) -> int:
        """Room for every sequence's next device call, and for the padding of chunks that enter."""
        length, left = self._slots.length, self._slots.left
        steps = np.minimum(left, self._steps) if self._runner.block else self._steps
        need = int(np.max(np.where(left > 0, length + steps, self._steps)))
        for _, chunks in entering:
            if chunks:
                need = max(need, sum(chunk.count for chunk in chunks[:-1]) + chunks[-1].size)
        return plan.block_size(need) if self._runner.block else plan.round_size(need)
