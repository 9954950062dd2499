"""Whatever happens to a run, the same command again ends with what an undisturbed run would have
left.

`make chaos` is the long version: 66 moments over two graphs.
"""

import random
import shutil
import time

import filelock
import pytest

from tests.chaos import harness

GRAPHS = {"tiny": harness.TINY, "microworld": harness.MICROWORLD}


def disturb(expected, workdir, hindrances, draw, graph=harness.TINY) -> list[str]:
    """Each hindrance once, then the command until it is done. A run that is done before is compared
    and begun anew: every hindrance meets one that has something to lose."""
    told = []
    for hindrance in hindrances:
        if harness.is_finished(workdir, graph):
            assert_equal(expected, workdir, told, graph)
            told.append("— done; from the beginning —")
            shutil.rmtree(workdir)
        began = time.monotonic()
        told.append(
            f"{hindrance.__name__}: {hindrance(workdir, draw, graph)} "
            f"({time.monotonic() - began:.0f} s)"
        )
    done = harness.run(workdir, graph=graph)
    assert done.returncode == 0, (told, done.stderr[-3000:])
    assert_equal(expected, workdir, told, graph)
    return told


def assert_equal(expected, workdir, told, graph=harness.TINY):
    want, found = harness.artefacts(expected, graph), harness.artefacts(workdir, graph)
    lost, twice = harness.differences(want, found), harness.doubled(workdir)
    print("\n".join(told))
    moments = sum(":" in line for line in told)
    print(
        f"{moments} moments; {len(want)} artefacts compared, {len(lost)} lost or different, "
        f"{len(twice)} doubled"
    )
    assert lost == [] and twice == [], told


def test_killed_stopped_and_filled(finished, tmp_path):
    """Four moments of one run."""
    hindrances = (harness.kill, harness.terminate, harness.truncate, harness.fill_the_disk)
    told = disturb(finished[0], tmp_path / "run", hindrances, random.Random(1))
    assert len(told) >= 4


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, worker_id, request):
    """Graph's name → directory of an undisturbed run."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def of(name):
        if name == "tiny":
            return request.getfixturevalue("finished")[0]
        workdir = base / f"undisturbed_{name}"
        with filelock.FileLock(f"{workdir}.lock"):
            if not workdir.exists():
                done = harness.run(workdir, graph=GRAPHS[name])
                assert done.returncode == 0, done.stderr[-3000:]
        return workdir

    return of


@pytest.mark.long
@pytest.mark.parametrize(
    "name,seed",
    [("tiny", 0), ("tiny", 1), ("tiny", 2), ("tiny", 3), ("microworld", 4), ("microworld", 5)],
)
def test_eleven_moments(undisturbed, tmp_path, name, seed):
    """Six runs, 66 moments."""
    draw = random.Random(100 + seed)
    hindrances = [
        *harness.HINDRANCES,
        *draw.choices(harness.HINDRANCES, weights=(3, 2, 1, 1, 2, 1), k=5),
    ]
    draw.shuffle(hindrances)
    disturb(undisturbed(name), tmp_path / "run", hindrances, draw, GRAPHS[name])
