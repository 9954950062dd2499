"""Keys and values that stay on the device because later requests may begin with the same tokens."""

from __future__ import annotations

import collections
import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Piece:
    """arrays: (keys, values), [1, K, size, Dh] per layer, of which `count` positions are real."""

    arrays: tuple
    count: int
    size: int


class Store:
    """Least recently used results on the device, up to a number of bytes (one result may exceed
    it)."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes = max_bytes, 0
        self.items: collections.OrderedDict = collections.OrderedDict()

    def get(self, key, make):
        if key in self.items:
            self.items.move_to_end(key)
            return self.items[key][0]
        value = make()
        size = num_bytes(value)
        self.items[key] = (value, size)
        self.bytes += size
        while self.bytes > self.max_bytes and len(self.items) > 1:
            _, (_, dropped) = self.items.popitem(last=False)
            self.bytes -= dropped
        return value

    def clear(self) -> None:
        self.items.clear()
        self.bytes = 0


def num_bytes(value) -> int:
    return sum(
        x.nbytes for x in jax.tree.leaves(value.arrays if isinstance(value, Piece) else value)
    )
