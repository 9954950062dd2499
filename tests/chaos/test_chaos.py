"""Whatever happens to a run, the same command again ends with what an undisturbed run would have left."""

import random

import pytest

from tests.chaos import harness


def disturb(workdir, hindrances, draw) -> list[str]:
    """Each hindrance once, then the command until it is done."""
    told = [hindrance(workdir, draw) for hindrance in hindrances]
    done = harness.run(workdir)
    assert done.returncode == 0, (told, done.stderr[-3000:])
    return told


def assert_equal(expected, workdir, told):
    assert harness.differences(harness.artefacts(expected), harness.artefacts(workdir)) == [], told
    assert harness.doubled(workdir) == [], told


def test_killed_stopped_and_filled(finished, tmp_path):
    """Four moments of one run."""
    hindrances = (harness.kill, harness.terminate, harness.truncate, harness.fill_the_disk)
    told = disturb(tmp_path / "run", hindrances, random.Random(1))
    assert_equal(finished[0], tmp_path / "run", told)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_eleven_moments(finished, tmp_path, seed):
    """Six runs, 66 moments."""
    draw = random.Random(100 + seed)
    hindrances = [*harness.HINDRANCES, *draw.choices(harness.HINDRANCES, weights=(3, 2, 1, 1, 2, 1), k=5)]
    draw.shuffle(hindrances)
    told = disturb(tmp_path / "run", hindrances, draw)
    print("\n".join(told))
    assert_equal(finished[0], tmp_path / "run", told)
