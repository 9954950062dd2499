"""Prefill of prompts: keys and values that stay on the device because later requests may begin with
the same tokens."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from cai_jax.engine import cached, packing, plan
from cai_jax.engine.runner import Runner


@dataclasses.dataclass(frozen=True)
class Chunk:
    """arrays: (keys, values), [1, K, size, Dh] per layer, of which `count` positions are real."""

    arrays: tuple
    count: int
    size: int


class Store:
    """Least recently used results on the device, up to a number of bytes (a single result may
    exceed it)."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes = max_bytes, 0
        self.items: collections.OrderedDict = collections.OrderedDict()

    def get(self, key, make: Callable):
        if key in self.items:
            self.items.move_to_end(key)
            return self.items[key][0]
        value = make()
        arrays = value.arrays if isinstance(value, Chunk) else value
        size = sum(array.nbytes for array in jax.tree.leaves(arrays))
        self.items[key] = (value, size)
        self.bytes += size
        while self.bytes > self.max_bytes and len(self.items) > 1:
            _, (_, dropped) = self.items.popitem(last=False)
            self.bytes -= dropped
        return value

    def clear(self) -> None:
        self.items.clear()
        self.bytes = 0


class Prompts:
    """Keys and values of prompts, prefilled at their first use. A prompt is a prefix, which many
    share, and chunks that follow it (see `plan.split_prompt`)."""

    def __init__(self, runner: Runner, store_bytes: int):
        self._runner, self.store = runner, Store(store_bytes)
        self.num_prefilled = 0  # tokens that were computed, not taken from the store

    def prefix(self, tokens: plan.Tokens) -> cached.KeyValues | None:
        """Of a shared prefix: [K, P, Dh]."""
        if not tokens:
            return None

        def make():
            past = self.past(self.chunks((), [tokens]))
            keys, values = (tuple(x[0] for x in arrays) for arrays in (past.keys, past.values))
            return cached.KeyValues(keys, values, np.int32(len(tokens)))

        return self.store.get(("prefix", tokens), make)

    def chunks(self, prefix: plan.Tokens, segments: Sequence[plan.Tokens]) -> list[Chunk]:
        """Segments that follow each other (and the prefix). What begins with the same chunks shares
        them: the samples of a prompt, and a critique's prompt with its revision's."""
        chunks: list[Chunk] = []
        tokens, cuts = (), ()
        for segment in segments:
            start = 0
            # A chunk is known by all that precedes it and by how that was cut: its bits depend
            # on both.
            for count, size in plan.cut(len(segment)):
                new = tuple(segment[start : start + count])
                start, tokens, cuts = start + count, tokens + new, (*cuts, (count, size))
                chunk = self.store.get(
                    (prefix, tokens, cuts),
                    lambda new=new, size=size: self._prefill(prefix, chunks, new, size),
                )
                chunks.append(chunk)
        return chunks

    def past(self, chunks: list[Chunk]) -> cached.KeyValues | None:
        """The chunks as the cache of one sequence, [1, K, S, Dh]."""
        if not chunks:
            return None
        # The padding of a chunk is overwritten by the next; that of the last one needs room.
        need = sum(chunk.count for chunk in chunks[:-1]) + chunks[-1].size
        cache = self._runner.empty_cache(1, plan.round_size(need))
        cache, length = self.insert(cache, chunks, 0)
        return cached.KeyValues(*cache, np.array([length], np.int32))

    def insert(self, cache, chunks: list[Chunk], slot: int, transposed: bool = False):
        """Writes chunks into a slot of a cache, one after the other.

        Args:
          cache: (keys, values), given away.
          chunks: of a prompt.
          slot: where.
          transposed: whether the cache's keys are.

        Returns:
          (the cache, how many positions the chunks take).
        """
        start = 0
        for chunk in chunks:
            cache = self._runner(cached.insert, cache, chunk.arrays, slot, start, transposed)
            start += chunk.count
        return cache, start

    def _prefill(
        self, prefix: plan.Tokens, past: list[Chunk], tokens: plan.Tokens, size: int
    ) -> Chunk:
        arrays = self._runner(
            cached.prefill,
            self._runner.weights,
            self.prefix(prefix),
            self.past(past),
            packing.padded(tokens, size),
            config=self._runner.config,
            kernel=self._runner.kernel,
        )
        self.num_prefilled += len(tokens)
        return Chunk(arrays, len(tokens), size)
