"""Random keys depend on names alone."""

import numpy as np

from cai_jax import seeds


def test_keys_are_fixed_for_ever():
    # Written down once: a change here changes every run that was ever published.
    assert seeds.row_key(0, "respond", 0, "red_team-001", 0).tolist() == [935943432, 1069069604]


def test_every_part_of_the_name_counts():
    names = [
        (0, "respond", 0, "a", 0),
        (1, "respond", 0, "a", 0),
        (0, "compare", 0, "a", 0),
        (0, "respond", 1, "a", 0),
        (0, "respond", 0, "b", 0),
        (0, "respond", 0, "a", 1),
        (0, "respond", 0, "a\x00", 0),
    ]
    assert len({tuple(seeds.row_key(*name)) for name in names}) == len(names)


def test_host_draws_repeat():
    assert np.array_equal(
        seeds.row_rng(3, "x").integers(100, size=8), seeds.row_rng(3, "x").integers(100, size=8)
    )
