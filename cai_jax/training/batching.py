"""From token lists to arrays of few shapes, in an order that depends on names and a counter only.

The batch of a step is a pure function of (seed, stage, step): nothing about the order is state, so
a run that resumes at a step sees what the undisturbed run would have seen.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cai_jax.seeds import row_rng

MULTIPLE = 64


def bucket(length: int, multiple: int = MULTIPLE) -> int:
    """The smallest of multiple × (1, 2, 3, 4, 6, 8, 12, 16, 24, …) that holds `length`: few shapes,
    little padding."""
    size, step = multiple, 0
    while size < length:
        step += 1
        size = multiple * (2 ** ((step + 1) // 2) if step % 2 else 3 * 2 ** (step // 2 - 1))
    return size


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples a step trains on: every epoch a new permutation drawn from (seed, stage,
    epoch), cut in batches. The last batch of an epoch may be short."""

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
    """[num_rows, length]: rows on the left, zeros after; rows beyond the given ones are all
    zero."""
    out = np.zeros((num_rows, length), dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def pad_tokens(
    rows: Sequence[Sequence[int]], num_rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32, mask bool), both [num_rows, length]; the mask is True on the tokens given.

    Rows that only fill up the shape repeat the first one: attention without a single real token
    would be 0/0. The caller's own masks leave them out of every sum.
    """
    filled = [*rows, *[rows[0]] * (num_rows - len(rows))]
    return pad(filled, num_rows, length), pad(
        [[True] * len(row) for row in filled], num_rows, length, bool
    )


# ---- Packing: several sequences share a row, kept apart by segment numbers -----------------------

MEAN_GROUPS = 3  # a row holds as many of average length, so that little of it stays empty
# tokens; a row is made longer than that for its longest sequence only: attention costs its square
LONG_ROW = 512


class Shape(NamedTuple):
    """rows of `length` tokens; `slots` is how many groups of sequences a row may hold. Rows are
    dealt out in turn to `parts` microbatches (`optim.split_microbatches`), of which the first are
    filled first; `spare`: a batch may leave some empty."""

    rows: int
    length: int
    slots: int = 1
    parts: int = 1
    spare: bool = False


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where N sequences stand: sequence n at starts[n] of rows[n], as the slots[n]-th group
    there."""

    lengths: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    slots: np.ndarray
    shape: Shape

    def spread(self, values: Sequence[Sequence], dtype=np.int32) -> np.ndarray:
        """[rows, length] from one value a token of each sequence (more than its length is not
        read); 0 elsewhere."""
        out = np.zeros(self.shape[:2], dtype)
        for value, row, start, length in zip(
            values, self.rows, self.starts, self.lengths, strict=True
        ):
            out[row, start : start + length] = value[:length]
        return out

    def segments(self) -> np.ndarray:
        """int32 [rows, length]: another number for each sequence, 0 where there is none."""
        return self.spread(
            [np.full(length, index + 1) for index, length in enumerate(self.lengths)]
        )

    def collect(self, packed: np.ndarray, width: int) -> np.ndarray:
        """[N, width] from [rows, length]: what `spread` put there, 0 after each sequence's end."""
        out = np.zeros((len(self.lengths), width), packed.dtype)
        for index, (row, start, length) in enumerate(
            zip(self.rows, self.starts, self.lengths, strict=True)
        ):
            out[index, :length] = packed[row, start : start + length]
        return out

    def by_slot(self, values: Sequence, dtype) -> np.ndarray:
        """[rows, slots] from one value a group (that of its first sequence, if given for each); 0
        where there is none."""
        out = np.zeros((self.shape.rows, self.shape.slots), dtype)
        out[self.rows, self.slots] = values
        return out


def row_length(lengths: Sequence[int]) -> int:
    """How long rows should be for groups of sequences of these lengths."""
    wanted = min(MEAN_GROUPS * float(np.mean(lengths)), LONG_ROW)
    return bucket(int(max(max(lengths), np.ceil(wanted))))


def pack(
    lengths: Sequence[int], shape: Shape | None = None, *, group: int = 1, length: int = 0
) -> Packing:
    """Puts sequences into rows: longest first, each where it leaves least room. A function of its
    arguments only.

    `group` sequences that follow each other stay together in one row. Without a shape, as many rows
    as it takes, of `length` tokens (0: `row_length`). Raises ValueError where the shape is too
    small.
    """
    lengths = np.asarray(lengths, np.int64)
    sizes = lengths.reshape(-1, group).sum(axis=1)
    length = shape.length if shape else length or row_length(sizes)
    if sizes.max(initial=0) > length:
        raise ValueError(f"a row of {length} tokens cannot hold {sizes.max()}")
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    rows, starts, slots = (
        np.zeros(len(sizes), np.int64),
        np.zeros(len(sizes), np.int64),
        np.zeros(len(sizes), np.int64),
    )
    filled: list[int] = []  # groups in each row
    for index in np.argsort(-sizes, kind="stable"):
        place = bisect.bisect_left(room, (int(sizes[index]), -1))
        left, row = room.pop(place) if place < len(room) else (length, len(filled))
        if row == len(filled):
            filled.append(0)
        rows[index], starts[index], slots[index] = row, length - left, filled[row]
        filled[row] += 1
        if shape is None or filled[row] < shape.slots:
            bisect.insort(room, (left - int(sizes[index]), row))
    shape = shape or Shape(max(len(filled), 1), length, max(filled, default=1))
    if len(filled) > shape.rows:
        raise ValueError(f"{len(filled)} rows do not fit {shape}")
    each = shape.rows // shape.parts
    rows = rows % each * shape.parts + rows // each
    within = lengths.reshape(-1, group).cumsum(axis=1) - lengths.reshape(-1, group)
    return Packing(
        lengths,
        np.repeat(rows, group),
        (starts[:, None] + within).reshape(-1),
        np.repeat(slots, group),
        shape,
    )


def common_shape(
    lengths: Sequence[int], order: Order, num_steps: int, ways: int, parts: int = 1, group: int = 1
) -> Shape:
    """A shape that holds the batch of every step, so that a step is compiled once, in `parts`
    microbatches that divide into `ways`. `lengths`: those of all sequences, `group` of them an
    example."""
    sizes = np.asarray(lengths, np.int64).reshape(-1, group).sum(axis=1)

    def shape(length):
        found = [pack(sizes[order.indices(step)], length=length).shape for step in range(num_steps)]
        rows = num_rows(max(one.rows for one in found), ways * parts)
        used = [
            num_rows(one.rows, rows // parts) for one in found
        ]  # what is computed: empty microbatches are not
        return (
            sum(used) * length,
            length,
            Shape(rows, length, max(one.slots for one in found), parts, min(used) < rows),
        )

    # The least to multiply: long rows hold more of each other's rest, but microbatches are whole.
    tried = {
        bucket(length) for length in range(int(sizes.max()), row_length(sizes) + 1, MULTIPLE)
    } | {row_length(sizes)}
    return min(map(shape, sorted(tried)))[-1]


def positions(wanted: np.ndarray, count: int = 0) -> np.ndarray:
    """int32 [R, N]: where each row of `wanted` [R, T] is True, then zeros. N is `count`, or as few
    as hold them (0). Raises ValueError where `count` is too small."""
    most = int(wanted.sum(axis=1).max(initial=0))
    if count and most > count:
        raise ValueError(f"{most} positions in a row do not fit {count}")
    order = np.argsort(~wanted, axis=1, kind="stable")[:, : count or max(most, 1)]
    return np.where(np.take_along_axis(wanted, order, axis=1), order, 0).astype(np.int32)


def most_in_a_row(packing: Packing, counts: Sequence[int]) -> int:
    """The most that a row has together, of one count a sequence."""
    return int(np.bincount(packing.rows, weights=counts).max())


def eighths(count: int, length: int) -> int:
    """`count` ≤ `length` rounded up to an eighth of it: few shapes."""
    return -(-length * -(-count * 8 // length) // 8)


def few(count: int) -> int:
    """`count` rounded up by at most a quarter, so that counts that differ little are one shape."""
    step = max(1, 2 ** (count.bit_length() - 3))
    return -(-count // step) * step
