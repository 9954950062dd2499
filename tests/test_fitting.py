"""What does not fit a context is counted by reason."""

from cai_jax.data import fitting


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
