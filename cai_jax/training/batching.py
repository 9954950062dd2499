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
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = row_rng(self.seed, self.stage, "epoch", epoch).permutation(self.num_examples)
        return order[batch * self.batch_size : (batch + 1) * self.batch_size]


def round_up(count: int, multiple: int) -> int:
    """`count` rounded up to a multiple, as of (devices × microbatches)."""
    return -(-count // multiple) * multiple


def few(count: int) -> int:
    """`count` rounded up by at most a quarter, so that counts that differ little are one shape."""
    return round_up(count, max(1, 2 ** (count.bit_length() - 3)))


def eighths(count: int, length: int) -> int:
    """`count` ≤ `length` rounded up to an eighth of it: few shapes."""
    return -(-length * -(-count * 8 // length) // 8)


def pad_tokens(
    sequences: Sequence[Sequence[int]], count: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32, mask bool), both [count, length]: sequences on the left, zeros after.

    Sequences that only fill up the shape repeat the first one: attention without a single real
    token would be 0/0. The caller's own masks leave them out of every sum.
    """
    tokens, mask = np.zeros((count, length), np.int32), np.zeros((count, length), bool)
    for index in range(count):
        sequence = sequences[index if index < len(sequences) else 0]
        tokens[index, : len(sequence)], mask[index, : len(sequence)] = sequence, True
    return tokens, mask


# ---- Packing: several examples share a sequence, kept apart by segment numbers -------------------

MEAN_GROUPS = 3  # a sequence holds as many of average length, so that little of it stays empty
# tokens; a sequence is longer than that for its longest example only: attention costs its square
LONG = 512


class Shape(NamedTuple):
    """`count` sequences of `length` tokens; `slots` is how many groups of examples each may hold.

    Sequences are dealt out in turn to the microbatches (`optim.split_microbatches`), of which the
    first are filled first; `spare`: a batch may leave some empty.
    """

    count: int
    length: int
    slots: int = 1
    num_microbatches: int = 1
    spare: bool = False


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where N examples are: example n starts at starts[n] of sequence sequences[n], as the
    slots[n]-th group there."""

    lengths: np.ndarray
    sequences: np.ndarray
    starts: np.ndarray
    slots: np.ndarray
    shape: Shape

    def _spans(self):
        """(sequence, slice) of every example."""
        for sequence, start, length in zip(self.sequences, self.starts, self.lengths, strict=True):
            yield sequence, slice(start, start + length)

    def spread(self, values: Sequence[Sequence], dtype=np.int32) -> np.ndarray:
        """[count, length] from one value a token of each example (more than its length is not
        read); 0 elsewhere."""
        out = np.zeros(self.shape[:2], dtype)
        for value, length, span in zip(values, self.lengths, self._spans(), strict=True):
            out[span] = value[:length]
        return out

    def segments(self) -> np.ndarray:
        """int32 [count, length]: another number for each example, 0 where there is none."""
        numbers = enumerate(self.lengths, 1)
        return self.spread([np.full(length, number) for number, length in numbers])

    def collect(self, packed: np.ndarray, width: int) -> np.ndarray:
        """[N, width] from [count, length]: what `spread` put there, 0 after each example's end."""
        out = np.zeros((len(self.lengths), width), packed.dtype)
        for index, (length, span) in enumerate(zip(self.lengths, self._spans(), strict=True)):
            out[index, :length] = packed[span]
        return out

    def by_slot(self, values: Sequence, dtype) -> np.ndarray:
        """[count, slots] from one value a group (that of its first example, if given for each); 0
        where there is none."""
        out = np.zeros((self.shape.count, self.shape.slots), dtype)
        out[self.sequences, self.slots] = values
        return out

    def most(self, counts: Sequence[int]) -> int:
        """The most that a sequence has together, of one count an example."""
        return int(np.bincount(self.sequences, weights=counts).max())


def sequence_length(lengths: Sequence[int]) -> int:
    """How long sequences should be for groups of examples of these lengths."""
    wanted = min(MEAN_GROUPS * float(np.mean(lengths)), LONG)
    return bucket(int(max(max(lengths), np.ceil(wanted))))


def pack(
    lengths: Sequence[int], shape: Shape | None = None, *, group: int = 1, length: int = 0
) -> Packing:
    """Puts examples into sequences: longest first, each where it leaves least room. A function of
    its arguments only.

    Args:
      lengths: tokens of each example.
      shape: of the result; None: as many sequences as it takes.
      group: so many consecutive examples stay together in a sequence.
      length: of a sequence where no shape is given; 0: `sequence_length`.
    Returns:
      Where each example is.
    Raises:
      ValueError: the shape is too small.
    """
    lengths = np.asarray(lengths, np.int64)
    sizes = lengths.reshape(-1, group).sum(axis=1)
    length = shape.length if shape else length or sequence_length(sizes)
    if sizes.max(initial=0) > length:
        raise ValueError(f"a sequence of {length} tokens cannot hold {sizes.max()}")
    room: list[tuple[int, int]] = []  # (tokens left, sequence), ascending
    chosen, starts, slots = (np.zeros(len(sizes), np.int64) for _ in range(3))
    filled: list[int] = []  # groups in each sequence
    for index in np.argsort(-sizes, kind="stable"):
        best = bisect.bisect_left(room, (int(sizes[index]), -1))
        left, sequence = room.pop(best) if best < len(room) else (length, len(filled))
        if sequence == len(filled):
            filled.append(0)
        chosen[index], starts[index] = sequence, length - left
        slots[index] = filled[sequence]
        filled[sequence] += 1
        if shape is None or filled[sequence] < shape.slots:
            bisect.insort(room, (left - int(sizes[index]), sequence))
    shape = shape or Shape(max(len(filled), 1), length, max(filled, default=1))
    if len(filled) > shape.count:
        raise ValueError(f"{len(filled)} sequences do not fit {shape}")
    each = shape.count // shape.num_microbatches
    chosen = chosen % each * shape.num_microbatches + chosen // each
    within = lengths.reshape(-1, group).cumsum(axis=1) - lengths.reshape(-1, group)
    starts = (starts[:, None] + within).reshape(-1)
    return Packing(lengths, np.repeat(chosen, group), starts, np.repeat(slots, group), shape)


def common_shape(
    lengths: np.ndarray, order: Order, num_steps: int, ways: int, num_microbatches: int = 1
) -> Shape:
    """A shape that holds the batch of every step, so that a step is compiled once.

    Args:
      lengths: tokens, [examples] or [examples, examples a group].
      order: which examples a step takes.
      num_steps: of all epochs.
      ways: devices that split a microbatch.
      num_microbatches: of a step.
    Returns:
      The shape with the fewest tokens to compute.
    """
    sizes = np.asarray(lengths, np.int64).reshape(len(lengths), -1).sum(axis=1)

    def shape(length):
        steps = [pack(sizes[order.indices(step)], length=length).shape for step in range(num_steps)]
        count = round_up(max(step.count for step in steps), ways * num_microbatches)
        # What is computed: empty microbatches are not.
        used = [round_up(step.count, count // num_microbatches) for step in steps]
        slots = max(step.slots for step in steps)
        return (
            sum(used) * length,
            length,
            Shape(count, length, slots, num_microbatches, min(used) < count),
        )

    # Long sequences hold more of each other's rest, but microbatches are not split.
    longest = sequence_length(sizes)
    tried = {bucket(length) for length in range(int(sizes.max()), longest + 1, MULTIPLE)}
    return min(map(shape, sorted(tried | {longest})))[-1]


def positions(wanted: np.ndarray, count: int = 0) -> np.ndarray:
    """int32 [R, N]: where each sequence of `wanted` [R, T] is True, then zeros. N is `count`, or as
    few as hold them (0). Raises ValueError where `count` is too small."""
    most = int(wanted.sum(axis=1).max(initial=0))
    if count and most > count:
        raise ValueError(f"{most} positions in a sequence do not fit {count}")
    order = np.argsort(~wanted, axis=1, kind="stable")[:, : count or max(most, 1)]
    return np.where(np.take_along_axis(wanted, order, axis=1), order, 0).astype(np.int32)
