"""Log-probabilities of given continuations: how requests are laid out in forward passes, and the
passes."""

from __future__ import annotations

import collections
from collections.abc import Container, Iterator, Sequence

import jax
import numpy as np

from cai_jax.core import sharding
from cai_jax.engine import cached, packed_reader, packing, plan
from cai_jax.engine.prompts import Prompts
from cai_jax.engine.runner import Runner
from cai_jax.structs import Score, ScoreRequest

Item = tuple[ScoreRequest, plan.Prompt]


class Scorer:
    """Scores with the weights of a runner behind the prompts that it has prefilled."""

    def __init__(self, runner: Runner, prompts: Prompts):
        self._runner, self._prompts = runner, prompts

    @property
    def _pack_size(self) -> int:
        """Tokens of a sequence that holds several questions."""
        return packing.BLOCKWISE if self._runner.kernel == "by_head" else packing.PACK

    def score(
        self, requests: Sequence[ScoreRequest], together: bool, wanted: Container[str] | None
    ) -> Iterator[Score]:
        """See `Engine.score`."""
        groups: dict[tuple, list[Item]] = {}
        for request in requests:
            prompt = plan.split_prompt(request.segments)
            groups.setdefault(prompt.prefix, []).append((request, prompt))
        batches = [batch for group in groups.values() for batch in self._batches(group, together)]
        asked = {request.id for request in requests if wanted is None or request.id in wanted}
        # Complete batches, wanted or not: the numbers do not depend on what a restart left to do.
        batches = [batch for batch in batches if any(request.id in asked for request, _ in batch)]
        started = ((batch, *self._start(batch, together)) for batch in batches)
        for batch, packed, logprobs in _ahead(started, max(2, packed_reader.AT_ONCE)):
            values = sharding.fetch(logprobs).reshape(-1).tolist()
            for (request, _), options in zip(batch, packed.scored, strict=True):
                if request.id in asked:
                    yield Score(request.id, tuple(tuple(values[i] for i in o) for o in options))

    def prompt_logprobs(self, tokens: plan.Tokens, top: int) -> Iterator[tuple[list, list]]:
        """See `Engine.prompt_logprobs`."""
        before: list[plan.Tokens] = []
        for segment in plan.reusable_segments(tokens[:-1]):
            start = sum(map(len, before)) + 1
            targets = tokens[start : start + len(segment)]
            # What precedes is prefilled as for sampling, and kept for it.
            past = self._prompts.past(self._prompts.chunks((), before))
            packed = packing.single(segment[:1], (targets,))
            size = plan.round_size(len(packed.tokens))
            (logprobs,), tops = sharding.fetch(self._forward((), past, packed, size, top))
            count, likeliest = len(segment), []
            if top:
                likeliest = list(zip(tops.ids[0, :count], tops.logprobs[0, :count], strict=True))
            yield logprobs[:count].tolist(), likeliest
            before.append(segment)

    def _batches(self, group: list[Item], together: bool) -> list[list[Item]]:
        """Requests with one prefix in batches: those that fit share a sequence, longer ones are
        alone."""
        shared = packing.together(map(_question, group), self._pack_size) if together else []
        packed = {index for batch in shared for index in batch}
        alone = [[item] for index, item in enumerate(group) if index not in packed]
        return [[group[index] for index in batch] for batch in shared] + alone

    def _start(self, batch: list[Item], together: bool) -> tuple[packing.Packed, jax.Array]:
        """(the batch as a sequence, log-probabilities of its targets, still being computed)."""
        prefix = batch[0][1].prefix
        packed = packing.several([_question(item) for item in batch]) if together else None
        # Several questions, or one that is short, in a sequence of a fixed size.
        if packed and len(packed.tokens) <= self._pack_size:
            if self._runner.kernel == "by_head":
                return packed, self._read(self._read_prefix(prefix), packed)[0]
            return packed, self._forward(prefix, None, packed, self._pack_size)[0]
        # A longer question alone: its prompt is prefilled in chunks, up to the last.
        ((request, prompt),) = batch
        *before, last = prompt.segments
        fed = packing.fed(request.options)
        cuts = list(plan.cut(len(last) + fed))
        # The last chunk holds all options and the token before them.
        while len(cuts) > 1 and cuts[-1][0] <= fed:
            count, _ = cuts.pop()
            cuts[-1] = (cuts[-1][0] + count, plan.round_size(cuts[-1][0] + count))
        count, size = cuts[-1]
        lead = len(last) - (count - fed)
        past = self._prompts.past(self._prompts.chunks(prefix, [*before, last[:lead]]))
        packed = packing.single(last[lead:], request.options)
        return packed, self._forward(prefix, past, packed, size)[0]

    def _forward(
        self,
        prefix: plan.Tokens,
        past: cached.KeyValues | None,
        packed: packing.Packed,
        size: int,
        top: int = 0,
    ):
        """(the targets' log-probabilities, the `top` most probable tokens there or None) in one
        pass over all tokens, padded to `size`."""
        return self._runner(
            cached.score,
            self._runner.weights,
            self._prompts.prefix(prefix),
            past,
            *packed.padded(size, plan.round_size(len(packed.targets))),
            config=self._runner.config,
            kernel=self._runner.kernel,
            top=top,
        )

    def _read(self, prefix: cached.KeyValues | None, packed: packing.Packed):
        """On a CPU: the targets' log-probabilities, and keys and values [K, T, Dh], by the program
        that reads blocks as far as they are filled."""
        size = self._pack_size
        arrays = (array[0] for array in packed.padded(size, size))
        counts = np.int32(len(packed.tokens)), np.int32(len(packed.targets))
        weights, config = self._runner.weights, self._runner.config
        return self._runner(packed_reader.read, weights, prefix, *arrays, *counts, config=config)

    def _read_prefix(self, tokens: plan.Tokens) -> cached.KeyValues | None:
        """Keys and values of a prefix by the same program, `_pack_size` tokens at a time."""

        def make():
            prefix = None
            for start in range(0, len(tokens), self._pack_size):
                chunk = tokens[start : start + self._pack_size]
                _, *new = self._read(prefix, packing.single(chunk))
                if prefix:
                    new = jax.tree.map(_joined, [prefix.keys, prefix.values], new)
                prefix = cached.KeyValues(*new, np.int32(start + len(chunk)))
            return prefix

        return self._prompts.store.get(("read", tokens), make) if tokens else None


def _question(item: Item) -> packing.Question:
    request, prompt = item
    return sum(prompt.segments, ()), request.options


def _joined(first: jax.Array, second: jax.Array) -> np.ndarray:
    return np.concatenate(sharding.fetch([first, second]), axis=1)


def _ahead(items: Iterator, count: int) -> Iterator:
    """The items, `count` of them prepared ahead: the host makes the next while the device works."""
    running: collections.deque = collections.deque()
    for item in items:
        running.append(item)
        if len(running) > count:
            yield running.popleft()
    yield from running
