"""Bits flip, files are cut, lost or half-written: all of it is seen when it is read, named, and
made again, or the command stops. Nothing wrong is ever read silently."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax import main
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.io.checkpoints import Checkpoints
from tests.chaos import harness

ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def corrupt(path, draw: random.Random) -> str:
    """Does one thing to a file, and says what."""
    data = bytearray(path.read_bytes())
    how = draw.choice(
        ["flip", "flip", "flip", "cut", "empty", "lose", "overwrite"] if data else ["lose"]
    )
    if how == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[draw.randrange(len(data)) :]
    elif how == "empty":
        data.clear()
    elif how == "overwrite":
        start = draw.randrange(len(data))
        data[start : start + 16] = draw.randbytes(len(data[start : start + 16]))
    if how == "lose":
        path.unlink()
    else:
        path.write_bytes(data)
    return f"{how} {path.name}"


def trees(seed: int) -> dict:
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "params": {"w": jax.random.normal(keys[0], (64, 48)), "b": jnp.arange(5.0) + seed},
        "optimiser": {
            "m": jax.random.normal(keys[1], (64, 48)),
            "count": jnp.array(seed, jnp.int32),
        },
    }


@pytest.mark.parametrize("seed", range(24))
def test_checkpoints(tmp_path, seed, capsys):
    """One file of the newest step is corrupted, whichever: the step is restored exactly, or the one
    before it is."""
    draw, store = random.Random(seed), Checkpoints(tmp_path / "c")
    for step in (1, 2):
        store.save(step, trees(step), {"tokens": step, "metrics": f"{step}\n"})
    files = sorted(path for path in (tmp_path / "c" / "00000002").rglob("*") if path.is_file())
    what = corrupt(draw.choice(files), draw)
    targets = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=ONE), trees(1)
    )
    step, got, meta = Checkpoints(tmp_path / "c").restore_latest(targets)
    jax.tree.map(np.testing.assert_array_equal, got, trees(step))
    assert meta == {"tokens": step, "metrics": f"{step}\n"}
    told = capsys.readouterr().err
    assert step == 2 or ("going back to the step before" in told and told.count("\n") == 1), what


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("finished_file", [False, True])
def test_journals(tmp_path, seed, finished_file, capsys):
    """Of a corrupted journal the intact parts are kept as they were; with the others computed again
    it is what it was."""
    draw, directory = random.Random(seed), artefacts.StageDirectory(tmp_path / "s")
    rows = [
        {"id": f"{number:02d}", "text": f"Text ü {number}\n", "number": number / 7}
        for number in range(20)
    ]
    journal = directory.journal()
    for number, row in enumerate(rows):
        journal.append(row)
        if number in (6, 13):
            journal.flush()
    journal.flush()
    if finished_file:
        journal.finish()
        path = tmp_path / "s" / "records.jsonl"
    else:
        path = draw.choice(sorted((tmp_path / "s" / "records.parts").glob("*.jsonl")))
    what = corrupt(path, draw)
    again = artefacts.StageDirectory(tmp_path / "s").journal()
    missing = [row for row in rows if row["id"] not in again.finished]
    assert all(again.finished[row["id"]] == row for row in rows if row not in missing)
    assert set(again.finished) <= {row["id"] for row in rows}
    told = capsys.readouterr().err
    if missing and path.exists():  # a lost file leaves no trace
        assert "damaged; its rows are computed again" in told and "records" in told, what
    for row in missing:
        again.append(row)
    again.finish()
    assert (tmp_path / "s" / "records.jsonl").read_text() == "".join(
        artefacts.dump(row) + "\n" for row in rows
    )


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def victims(run) -> list:
    """Every file of a run whose contents count, checkpoints apart."""
    found = []
    for stage in harness.STAGES:
        found += [
            run / stage / name
            for name in json.loads((run / stage / "manifest.json").read_text())["files"]
        ]
        found += [run / stage / "manifest.json"]
    return found


def test_files_of_finished_stages_are_seen(copy, capsys):
    """40 corruptions, one after the other."""
    draw, files = random.Random(7), victims(copy)
    for _ in range(40):
        path = draw.choice(files)
        before = path.read_bytes()
        what = corrupt(path, draw)
        stage = artefacts.StageDirectory(copy / path.relative_to(copy).parts[0])
        try:
            damage = stage.damage()
        except UserError as error:
            assert path.name == "manifest.json"
            damage = error
        name = "manifest" if path.name == "manifest.json" else str(path.relative_to(stage.path))
        same = path.exists() and path.read_bytes() == before.rstrip(b"\n")  # only its last line end
        assert same or (name in str(damage) and "\n" not in str(damage)), what
        path.write_bytes(before)
    damages = [artefacts.StageDirectory(copy / stage).damage() for stage in harness.STAGES]
    assert damages == [None] * len(harness.STAGES)


def mended(run, expected, capsys) -> str:
    """Runs the command in this process; the run is then as it was. Returns what it warned of."""
    code = main.main(["x", "--config=configs/tiny.py", f"--workdir={run}"])
    told = capsys.readouterr().err
    assert code == 0 and "warning: " in told, told
    assert (
        harness.differences(harness.artefacts(expected), harness.artefacts(run)) == []
        and harness.doubled(run) == []
    )
    return told


def test_damaged_records_are_made_again(finished, copy, capsys):
    path = copy / "respond" / "records.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1', 1))
    told = mended(copy, finished[0], capsys)
    assert "respond: not what the stage wrote: records.jsonl" in told
    assert "records.jsonl: damaged; its rows are computed again" in told


def test_a_damaged_manifest_stops_the_command(copy, capsys):
    path = copy / "revise" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"done": true', b'"done": null'))
    assert main.main(["x", "--config=configs/tiny.py", f"--workdir={copy}"]) == 2
    assert "manifest.json: damaged" in capsys.readouterr().err


def test_a_lost_checkpoint_is_trained_to_again(finished, copy, capsys):
    """The weights of a finished stage are damaged; a stage that reads them finds out, and they are
    made again."""
    steps = sorted((copy / "sl" / "checkpoints").glob("[0-9]*"))
    data = max(
        (path for path in steps[-1].rglob("*") if "/d/" in str(path)),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 16
    data.write_bytes(content)
    shutil.rmtree(copy / "compare")
    told = mended(copy, finished[0], capsys)
    assert "damaged" in told and "trains on to it again" in told


@pytest.mark.long
@pytest.mark.parametrize("seed", range(12))
def test_a_corrupted_run_is_made_good(finished, copy, capsys, seed):
    draw = random.Random(seed)
    path = draw.choice([path for path in victims(copy) if path.name != "manifest.json"])
    corrupt(path, draw)
    mended(copy, finished[0], capsys)
