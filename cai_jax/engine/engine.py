"""The sampling engine: requests in, completions out as they finish; scores of given continuations.

Sequences decode in the slots of a batch, several tokens per device call; one that ends gives its
slot to the next request. The first of a request's segments is a prefix that is prefilled and kept
once; requests with equal segments share their prefill. A sequence's tokens depend on its request,
the sampling parameters and the engine's options only.

    engine = Engine(params, config, format, mesh)
    for completion in engine.generate(requests, Sampling(max_new_tokens=64)):
        …
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Container, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from cai_jax.core import sharding
from cai_jax.data import fitting
from cai_jax.engine import cached, plan
from cai_jax.engine.prompts import Chunk, Prompts
from cai_jax.engine.runner import Runner
from cai_jax.engine.scoring import Scorer
from cai_jax.engine.stops import find_ending
from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig
from cai_jax.structs import Completion, SampleRequest, Sampling, Score, ScoreRequest


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """batch_size: sequences that decode together, 0 = as many as fit into cache_bytes; chunk_steps:
    tokens per device call; max_length: longest prompt + completion in tokens, 0 = the model's;
    cache_bytes: for the sequences' keys and values; store_bytes: for the keys and values of
    prefixes and prompts that later requests may share; int8: weights rounded to 8 bits, one scale
    an output channel (benchmarks/README.md has what that costs); flash: TPUs and GPUs prefill and
    score by the kernels of `flash.py`."""

    batch_size: int = 0
    chunk_steps: int = 8
    max_length: int = 0
    cache_bytes: int = 4 * 2**30
    store_bytes: int = 2**30
    int8: bool = False
    flash: bool = True


@dataclasses.dataclass
class _Running:
    """A request that decodes, and what was sampled so far."""

    request: SampleRequest
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)


class Engine:
    """Samples from and scores with a model. `format` is a DialogueFormat or a Tokenizer:
    `eos_ids`, `decode`."""

    def __init__(
        self,
        params: dict,
        config: ModelConfig,
        format,
        mesh: Mesh | None = None,
        options: EngineOptions | None = None,
    ):
        self.config, self.options = config, options or EngineOptions()
        mesh = mesh or sharding.make_mesh({"data": 1}, jax.local_devices()[:1])
        self.eos_ids, self._decode_text = tuple(format.eos_ids), format.decode
        self._reasoning_tokens = getattr(format, "reasoning_tokens", lambda tokens: 0)
        self.max_length = fitting.smallest(self.options.max_length, config.max_length)
        ways = sharding.batch_ways(mesh)
        self.batch_size = -(-self.options.batch_size // ways) * ways or plan.plan_batch(
            config,
            params["embed"].dtype,
            self.max_length,
            self.options.cache_bytes,
            mesh.devices.flat[0].platform,
            ways,
        )
        self.runner = Runner(params, config, mesh, self.options.int8, self.options.flash)
        self.prompts = Prompts(self.runner, self.options.store_bytes)
        self._scorer = Scorer(self.runner, self.prompts)

    def update(self, params: dict) -> None:
        """New parameters of the same shapes; what was prefilled with the old ones is forgotten."""
        self.prompts.store.clear()
        self.runner.update(params)

    @property
    def layout_seconds(self) -> float:
        """How long it took to lay the parameters out for decoding."""
        return self.runner.layout_seconds

    def fits(self, request: SampleRequest | ScoreRequest, new_tokens: int = 0) -> bool:
        """Whether the request's prompt is not empty and has room for `new_tokens` (or its options)
        after it."""
        length = sum(map(len, request.segments))
        options = getattr(request, "options", ())
        return length > 0 and length + max([new_tokens, *map(len, options)]) <= self.max_length

    def score(
        self,
        requests: Sequence[ScoreRequest],
        together: bool = False,
        wanted: Container[str] | None = None,
    ) -> Iterator[Score]:
        """Log-probabilities of every option's tokens after its prompt; all options of a request in
        one forward pass. Requests with the same prefix follow each other.

        Args:
          requests: prompts and options.
          together: short ones share forward passes, in groups that depend on all of `requests`, and
            in them what they begin with.
          wanted: ids of those whose scores are asked for, None for all; what is left of a list gets
            the same numbers as in the complete list where the complete list is given with it.
        Raises:
          UserError: a request does not fit; ask `fits` first.
        """
        for request in requests:
            self._require_fit(request, 0)
        yield from self._scorer.score(requests, together, wanted)

    def generate(
        self, requests: Sequence[SampleRequest], sampling: Sampling
    ) -> Iterator[Completion]:
        """Completions in the order in which they finish.

        Raises:
          UserError: a request does not fit; ask `fits` first.
        """
        if sampling.max_new_tokens < 1:
            raise UserError(
                f"sampling: max_new_tokens must be at least 1, not {sampling.max_new_tokens}"
            )
        groups: dict[tuple, list] = {}
        for request in requests:
            self._require_fit(request, _limit(request, sampling))
            prompt = plan.split_prompt(request.segments)
            groups.setdefault(prompt.prefix, []).append((request, prompt))
        for prefix, group in groups.items():
            for ended in self._decode(prefix, group, sampling):
                yield from ended

    def _decode(self, prefix, group, sampling: Sampling) -> Iterator[list[Completion]]:
        """Decodes the requests of one prefix; yields what ended while the next device call runs."""
        run, block = self.runner, self.runner.block
        waiting = collections.deque(group)
        running: list[_Running | None] = [None] * self.batch_size
        slots = _idle_slots(self.batch_size)
        cache, size, ended = None, 0, []
        # What is not reached is not read in blocks, so one size, and one program, for the group.
        if block:
            lengths = [prompt.own_length for _, prompt in group]
            size = plan.cache_size(lengths, sampling.max_new_tokens)
            cache = run.empty_cache(self.batch_size, size, transposed=True)
        while waiting or any(running):
            entering = self._enter(waiting, running, slots, prefix, sampling)
            # Sizes grow in few steps: every size is a program of its own.
            wanted = self._cache_size(slots, entering)
            if cache is None:
                size, cache = wanted, run.empty_cache(self.batch_size, wanted)
            elif wanted > size or (2 * wanted < size and not block):
                size, cache = wanted, run(cached.resize, cache, wanted)
            for slot, chunks in entering:
                cache, _ = self.prompts.insert(cache, chunks, slot, transposed=block > 0)
            cache, *sampled = run(
                cached.decode,
                run.weights,
                self.prompts.prefix(prefix),
                cache,
                run.put(slots),
                config=self.config,
                # Limits and stop strings are the host's: without them one program serves all.
                sampling=dataclasses.replace(sampling, max_new_tokens=0, stop_strings=()),
                steps=self.options.chunk_steps,
                eos_ids=self.eos_ids,
                block=block,
            )
            yield ended  # the consumer writes records while the device decodes
            ended = self._collect(running, slots, *sharding.fetch(sampled), sampling)
        yield ended

    def _enter(
        self, waiting: collections.deque, running: list, slots: cached.Slots, prefix, sampling
    ) -> list[tuple[int, list[Chunk]]]:
        """Gives idle slots to waiting requests: (slot, prefilled chunks) of each."""
        entering = []
        for slot, occupant in enumerate(running):
            if occupant is None and waiting:
                request, prompt = waiting.popleft()
                *before, tail = prompt.segments
                # Decoding feeds the last token.
                entering.append((slot, self.prompts.chunks(prefix, [*before, tail[:-1]])))
                running[slot] = _Running(request, _limit(request, sampling))
                slots.length[slot], slots.token[slot] = prompt.own_length - 1, tail[-1]
                slots.index[slot], slots.left[slot] = 0, running[slot].limit
                slots.key[slot] = np.asarray(request.key, np.uint32)
        return entering

    def _collect(
        self, running: list, slots: cached.Slots, tokens, logprobs, count, sampling: Sampling
    ) -> list[Completion]:
        """Adds the tokens of a device call; frees the slots of what ended and returns it."""
        ended = []
        for slot, item in enumerate(running):
            if item is None:
                continue
            checked, new = len(item.tokens), int(count[slot])
            item.tokens += map(int, tokens[:new, slot])
            item.logprobs += map(float, logprobs[:new, slot])
            ending = find_ending(
                item.tokens,
                checked,
                item.limit,
                self.eos_ids,
                sampling.stop_strings,
                self._decode_text,
            )
            # What goes on is known to the host as the device has it.
            if ending is None:
                slots.length[slot] += new
                slots.index[slot] += new
                slots.left[slot] -= new
                slots.token[slot] = item.tokens[-1]
                continue
            # A stop string may end before the last tokens that were sampled.
            kept = tuple(item.tokens[: ending.count])
            ended.append(
                Completion(
                    item.request.id,
                    kept,
                    tuple(item.logprobs[: ending.count]),
                    ending.text,
                    ending.stop,
                    self._reasoning_tokens(kept),
                )
            )
            # An idle slot has no tokens left.
            running[slot] = None
            for field in slots:
                field[slot] = 0
        return ended

    def _cache_size(self, slots: cached.Slots, entering: list[tuple[int, list[Chunk]]]) -> int:
        """Room for every sequence's next device call, and for the padding of chunks that enter."""
        need = int(np.max(np.where(slots.left > 0, slots.length, 0))) + self.options.chunk_steps
        for _, chunks in entering:
            if chunks:
                need = max(need, sum(chunk.count for chunk in chunks[:-1]) + chunks[-1].size)
        return plan.round_size(need)

    def _require_fit(self, request: SampleRequest | ScoreRequest, new_tokens: int) -> None:
        if not self.fits(request, new_tokens):
            length = sum(map(len, request.segments))
            raise UserError(
                f"sampling: request {request.id}: a prompt of {length} tokens and its "
                f"continuation do not fit into {self.max_length} tokens"
            )


def _limit(request: SampleRequest, sampling: Sampling) -> int:
    return min(request.max_new_tokens or sampling.max_new_tokens, sampling.max_new_tokens)


def _idle_slots(batch: int) -> cached.Slots:
    fields = (np.zeros(batch, np.int32) for _ in range(4))
    return cached.Slots(*fields, np.zeros((batch, 2), np.uint32))
