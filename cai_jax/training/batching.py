"""From token lists to arrays of few shapes, in an order that depends on names and a counter only.

The batch of a step is a pure function of (seed, stage, step): nothing about the order is state, so a run that resumes
at a step sees what the undisturbed run would have seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax.seeds import row_rng

MULTIPLE = 64


def bucket(length: int, multiple: int = MULTIPLE) -> int:
    """The smallest of multiple × (1, 2, 3, 4, 6, 8, 12, 16, 24, …) that holds `length`: few shapes, little padding."""
    size, step = multiple, 0
    while size < length:
        step += 1
        size = multiple * (2 ** ((step + 1) // 2) if step % 2 else 3 * 2 ** (step // 2 - 1))
    return size


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples a step trains on: every epoch a new permutation drawn from (seed, stage, epoch), cut in batches.
    The last batch of an epoch may be short."""

    num_examples: int
    batch_size: int
    seed: int
    stage: str

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def indices(self, step: int) -> np.ndarray:
        """Indices of the examples of step 0, 1, …; at most `batch_size` of them."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = row_rng(self.seed, self.stage, "epoch", epoch).permutation(self.num_examples)
        return order[place * self.batch_size : (place + 1) * self.batch_size]


def num_rows(batch_size: int, ways: int) -> int:
    """`batch_size` rounded up so that it divides into `ways` (devices × microbatches)."""
    return -(-batch_size // ways) * ways


def pad(rows: Sequence[Sequence], num_rows: int, length: int, dtype=np.int32) -> np.ndarray:
    """[num_rows, length]: rows on the left, zeros after; rows beyond the given ones are all zero."""
    out = np.zeros((num_rows, length), dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def pad_tokens(rows: Sequence[Sequence[int]], num_rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32, mask bool), both [num_rows, length]; the mask is True on the tokens given.

    Rows that only fill up the shape repeat the first one: attention without a single real token would be 0/0. The
    caller's own masks leave them out of every sum.
    """
    filled = [*rows, *[rows[0]] * (num_rows - len(rows))]
    return pad(filled, num_rows, length), pad([[True] * len(row) for row in filled], num_rows, length, bool)
