"""Batches: an order that depends on names only, few shapes, and padding that means nothing."""

import collections

import numpy as np

from cai_jax.training import batching


def test_buckets_are_few_and_tight():
    assert [batching.bucket(n) for n in (1, 64, 65, 129, 193, 257, 400, 520, 1030)] == [
        64, 64, 128, 192, 256, 384, 512, 768, 1536]
    sizes = {batching.bucket(n) for n in range(1, 2049)}
    assert len(sizes) == 10 and all(batching.bucket(n) >= n for n in range(1, 2049))


def test_every_epoch_sees_every_example_once_in_a_new_order():
    order = batching.Order(10, 4, 0, "sl")
    epochs = [np.concatenate([order.indices(3 * epoch + step) for step in range(3)]) for epoch in range(3)]
    assert order.steps_per_epoch == 3 and all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_named_and_not_state():
    """Asked for backwards, from the middle, or twice: a restart sees what the first run saw."""
    order = batching.Order(10, 4, 7, "sl")
    forward = [list(order.indices(step)) for step in range(12)]
    assert [list(batching.Order(10, 4, 7, "sl").indices(step)) for step in reversed(range(12))] == forward[::-1]
    assert forward != [list(batching.Order(10, 4, 8, "sl").indices(step)) for step in range(12)]
    assert forward != [list(batching.Order(10, 4, 7, "pm").indices(step)) for step in range(12)]


def test_rows_divide_and_padding_is_masked():
    assert [batching.num_rows(n, 8) for n in (1, 8, 9)] == [8, 8, 16]
    tokens, mask = batching.pad_tokens([[5, 6, 7], [0]], 4, 6)
    np.testing.assert_array_equal(tokens, [[5, 6, 7, 0, 0, 0], [0] * 6, [5, 6, 7, 0, 0, 0], [5, 6, 7, 0, 0, 0]])
    # Token 0 is a token where it was given: the mask comes from lengths, never from ids.
    np.testing.assert_array_equal(mask.sum(1), [3, 1, 3, 3])
    assert mask.any(axis=1).all()


def test_epochs_are_balanced_over_many_steps():
    order = batching.Order(7, 3, 1, "x")
    counts = collections.Counter(int(i) for step in range(3 * 20) for i in order.indices(step))
    assert set(counts.values()) == {20}
