"""What does not fit: whole worked examples go first, the last ones before the others; then rows, by
reason."""

import pytest

from cai_jax.data import fitting


def build(count):
    """10 tokens, and 100 a worked example."""
    return ((0,) * (100 * count), (1,) * 10)


@pytest.mark.parametrize("room,count", [(1000, 5), (510, 5), (509, 4), (110, 1), (109, 0), (3, 0)])
def test_the_most_examples_that_fit(room, count):
    assert fitting.with_examples(build, 5, room) == (count, build(count))


def test_no_more_examples_are_asked_for_than_there_are():
    assert fitting.with_examples(build, 0, 1000) == (0, build(0))


def test_examples_left_out_are_counted_by_request():
    counts = fitting.examples_left_out([(5, 5), (3, 5), (0, 5)])
    assert counts == {"examples": 7, "requests": 2, "of": 3}
    assert "7, in 2 of 3" in fitting.describe_left_out(counts)
    assert fitting.describe_left_out(fitting.examples_left_out([(5, 5)])) == ""


def test_zero_and_none_are_no_limit():
    assert fitting.smallest(0, None, 512, 1024) == 512


def test_a_training_example_is_left_out_for_one_reason():
    kept, reasons = fitting.training_examples([100, 600, 512, 1100], 1024, 512)
    assert kept == [True, False, True, False]
    assert reasons == {fitting.MAX_LENGTH: 1, fitting.POSITIONS: 1}
    assert fitting.training_examples([1024, 1025], 1024, None)[0] == [True, False]
