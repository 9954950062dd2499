"""Batches: an order that depends on names only, few shapes, and padding that means nothing."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from cai_jax.training import batching


def test_buckets_are_few_and_tight():
    assert [batching.bucket(n) for n in (1, 64, 65, 129, 193, 257, 400, 520, 1030)] == [
        64,
        64,
        128,
        192,
        256,
        384,
        512,
        768,
        1536,
    ]
    sizes = {batching.bucket(n) for n in range(1, 2049)}
    assert len(sizes) == 10 and all(batching.bucket(n) >= n for n in range(1, 2049))


def test_every_epoch_sees_every_example_once_in_a_new_order():
    order = batching.Order(10, 4, 0, "sl")
    epochs = [
        np.concatenate([order.indices(3 * epoch + step) for step in range(3)]) for epoch in range(3)
    ]
    assert order.steps_per_epoch == 3 and all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_named_and_not_state():
    """Asked for backwards, from the middle, or twice: a restart sees what the first run saw."""
    order = batching.Order(10, 4, 7, "sl")
    forward = [list(order.indices(step)) for step in range(12)]
    assert [
        list(batching.Order(10, 4, 7, "sl").indices(step)) for step in reversed(range(12))
    ] == forward[::-1]
    assert forward != [list(batching.Order(10, 4, 8, "sl").indices(step)) for step in range(12)]
    assert forward != [list(batching.Order(10, 4, 7, "pm").indices(step)) for step in range(12)]


def test_rows_divide_and_padding_is_masked():
    assert [batching.round_up(n, 8) for n in (1, 8, 9)] == [8, 8, 16]
    tokens, mask = batching.pad_tokens([[5, 6, 7], [0]], 4, 6)
    np.testing.assert_array_equal(
        tokens, [[5, 6, 7, 0, 0, 0], [0] * 6, [5, 6, 7, 0, 0, 0], [5, 6, 7, 0, 0, 0]]
    )
    # Token 0 is a token where it was given: the mask comes from lengths, never from ids.
    np.testing.assert_array_equal(mask.sum(1), [3, 1, 3, 3])
    assert mask.any(axis=1).all()


def test_epochs_are_balanced_over_many_steps():
    order = batching.Order(7, 3, 1, "x")
    counts = collections.Counter(int(i) for step in range(3 * 20) for i in order.indices(step))
    assert set(counts.values()) == {20}


@hypothesis.given(
    st.lists(st.integers(1, 40), min_size=2, max_size=40), st.integers(1, 2), st.integers(1, 4)
)
def test_packed_sequences_overlap_nowhere_and_come_back(lengths, group, parts):
    lengths = lengths[: len(lengths) // group * group]
    shape = batching.pack(lengths, group=group).shape
    packing = batching.pack(
        lengths,
        shape._replace(count=batching.round_up(shape.count, 2 * parts), num_microbatches=parts),
        group=group,
    )
    values = [np.arange(n) + 1000 * index + 1 for index, n in enumerate(lengths)]
    packed, segments = packing.spread(values), packing.segments()
    assert packed.shape == segments.shape == packing.shape[:2]
    assert np.count_nonzero(packed) == sum(lengths) and np.array_equal(packed > 0, segments > 0)
    back = packing.collect(packed, max(lengths))
    for index, (row, value) in enumerate(zip(back, values, strict=True)):
        np.testing.assert_array_equal(row, np.pad(value, (0, max(lengths) - len(value))))
        assert set(segments[(packed > 0) & (packed // 1000 == index)]) == {index + 1}
    # What belongs together stands together, in places of its own.
    places = packing.sequences[::group], packing.slots[::group]
    assert (
        len(set(zip(*places, strict=True))) == len(lengths) // group
        and packing.slots.max() < packing.shape.slots
    )
    for index in range(0, len(lengths), group):
        assert len(set(packing.sequences[index : index + group])) == 1
        np.testing.assert_array_equal(
            np.diff(packing.starts[index : index + group]), lengths[index : index + group - 1]
        )
    # A microbatch has every `parts`-th row; those that hold something come first.
    used = [segments[part::parts].any() for part in range(parts)]
    assert used == sorted(used, reverse=True) and sum(used) == -(
        -shape.count // (packing.shape.count // parts)
    )


def test_packing_by_hand():
    packing = batching.pack([3, 6, 4, 2], length=8)
    np.testing.assert_array_equal(packing.sequences, [1, 0, 1, 0])  # 6+2 and 4+3
    np.testing.assert_array_equal(packing.starts, [4, 0, 0, 6])
    np.testing.assert_array_equal(packing.by_slot([1, 2, 3, 4], np.int32), [[2, 4], [3, 1]])
    with pytest.raises(ValueError, match="a sequence of 8 tokens cannot hold 9"):
        batching.pack([9], length=8)
    with pytest.raises(ValueError, match="do not fit"):
        batching.pack([8, 8], batching.Shape(1, 8))


def test_one_shape_holds_every_step():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 100)
    order = batching.Order(100, 16, 0, "sl")
    shape = batching.common_shape(lengths, order, 21, ways=2)
    assert not shape.spare  # a step has one microbatch, and it is never empty
    packed = [batching.pack(lengths[order.indices(step)], shape) for step in range(21)]
    assert {item.shape for item in packed} == {shape} and shape.count % 2 == 0
    assert shape.count * shape.length <= 0.8 * 16 * 64  # one example a row: 16 rows of 64
    assert [batching.few(n) for n in (1, 5, 7, 9, 23, 100)] == [1, 5, 7, 10, 24, 112]


def test_rows_are_as_long_as_leaves_least_to_multiply():
    order = batching.Order(64, 64, 0, "sl")
    assert batching.common_shape(np.full(64, 100), order, 1, ways=1) == batching.Shape(64, 128, 1)
    assert batching.common_shape(np.full(64, 70), order, 1, ways=1) == batching.Shape(22, 256, 3)
    # Rows come in multiples of 64 here: packed, most devices would go without.
    assert batching.common_shape(np.full(64, 70), order, 1, ways=64) == batching.Shape(64, 128, 1)
    # Eight sequences in four parts: five rows of 256 would be eight.
    eight = batching.Order(8, 8, 0, "sl")
    assert (
        batching.common_shape(
            np.array([250, 100, 90, 150, 140, 120, 130, 110]), eight, 1, ways=4
        ).count
        == 4
    )


def test_microbatches_that_a_step_may_leave_empty():
    """Sixteen examples a step, two a row: eight rows in microbatches of two. The last step of an
    epoch has four examples."""
    order = batching.Order(20, 16, 0, "pm")
    shape = batching.common_shape(np.full(20, 70), order, 2, 1, num_microbatches=4)
    assert shape == batching.Shape(8, 192, 2, num_microbatches=4, spare=True)
    packing = batching.pack(np.full(4, 70), shape)
    assert sorted(packing.sequences) == [0, 0, 4, 4]  # of microbatch 0, which has rows 0 and 4
    assert not batching.common_shape(
        np.full(16, 128), batching.Order(16, 16, 0, "pm"), 2, 1, num_microbatches=4
    ).spare


def test_places_by_hand():
    wanted = np.array(
        [[False, True, False, True], [False, False, False, False], [False, False, True, False]]
    )
    np.testing.assert_array_equal(batching.positions(wanted), [[1, 3], [0, 0], [2, 0]])
    np.testing.assert_array_equal(batching.positions(wanted, 3), [[1, 3, 0], [0, 0, 0], [2, 0, 0]])
    with pytest.raises(ValueError, match="2 positions in a sequence do not fit 1"):
        batching.positions(wanted, 1)
    packing = batching.pack([3, 6, 4, 2], length=8)  # in rows 1, 0, 1, 0
    assert packing.most([1, 2, 4, 1]) == 5
    assert [batching.eighths(count, 160) for count in (1, 20, 21, 96, 160)] == [
        20,
        20,
        40,
        100,
        160,
    ]
    assert all(
        count <= batching.eighths(count, length) <= length
        for length in range(1, 40)
        for count in range(length + 1)
    )
