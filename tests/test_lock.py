"""The lock of a run that another host holds, or held until it was killed."""

import json
import os
import pathlib
import time

import filelock
import pytest

from cai_jax import main
from cai_jax.errors import UserError
from cai_jax.io import lock
from cai_jax.pipeline import graph as pipeline


@pytest.fixture
def theirs(tmp_path):
    """Writes the lock of a process of another host, touched so many seconds ago."""

    def write(silent: float, **fields):
        path = tmp_path / lock.LOCK
        path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": None, **fields}))
        now = time.time()
        os.utime(path, (now - silent, now - silent))
        return path

    return write


def test_another_hosts_lock_is_kept_while_it_gives_signs_of_life(tmp_path, theirs):
    path = theirs(40, beat=30)
    before = path.read_text()
    says = (
        r"in use by process 7 on elsewhere \(last sign of life 4\d s ago; after 600 s .* takes over"
    )
    with pytest.raises(UserError, match=says), lock.held(tmp_path):
        pass
    assert path.read_text() == before
    assert {p.name for p in tmp_path.iterdir()} <= {lock.LOCK, "lock.held"}


def test_another_hosts_lock_is_taken_over_once_it_is_silent(tmp_path, theirs, capsys):
    path = theirs(lock.SILENT + 60, beat=30)
    assert not lock.alive(lock.owner(tmp_path), path)
    with lock.held(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert (
        "process 7 on elsewhere has given no sign of life for 11 minutes" in capsys.readouterr().err
    )
    assert not path.exists()


def test_a_lock_without_signs_of_life_is_never_taken_over(tmp_path, theirs):
    theirs(10**6)
    with (
        pytest.raises(UserError, match=r"process 7 on elsewhere; wait for it.*delete"),
        lock.held(tmp_path),
    ):
        pass


def test_the_owner_touches_its_lock_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    path = tmp_path / lock.LOCK
    with lock.held(tmp_path):
        for own in (True, False):
            if not own:  # somebody took it over
                path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
            os.utime(path, (0, 0))
            deadline = time.monotonic() + 10
            while own and path.stat().st_mtime == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0 if own else 0.1)
            assert (path.stat().st_mtime > 0) == own
    assert path.exists() and lock.owner(tmp_path)["pid"] == 7


@pytest.mark.parametrize(
    "error", [OSError(code, os.strerror(code)) for code in lock.NO_FLOCK] + [NotImplementedError()]
)
def test_without_flock_the_lock_file_decides(tmp_path, monkeypatch, capsys, error):
    def flock(*_):
        raise error

    monkeypatch.setattr("fcntl.flock", flock)
    with lock.held(tmp_path / "run"):
        assert capsys.readouterr().err.count("no file locks") == 1
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            with lock.held(tmp_path / "run"):
                pass
        assert lock.owner(tmp_path / "run")["pid"] == os.getpid()
    assert not (tmp_path / "run").exists()


def test_after_a_restart_a_process_with_the_owners_number_is_not_the_owner(tmp_path):
    path = tmp_path / lock.LOCK
    with lock.held(tmp_path):
        mine = json.loads(path.read_text())
        assert lock.alive(mine, path)
    assert not lock.alive(mine | {"started": f"earlier-boot {mine['started'].split()[1]}"}, path)
    assert lock.alive(mine | {"started": None}, path)  # of a kernel that does not report it


def test_of_two_first_starts_the_refused_process_removes_nothing(tmp_path, monkeypatch):
    """The second comes after the first one's flock and before its lock.json; no directory was there
    when it looked."""
    config, _ = main.parse(["cai_jax", "--config=configs/tiny.py"])
    run_path, exists = tmp_path / "run", pathlib.Path.exists
    run_path.mkdir()
    monkeypatch.setattr(pathlib.Path, "exists", lambda path, **_: path != run_path and exists(path))
    with filelock.FileLock(run_path / "lock.held"):
        with pytest.raises(UserError, match="in use by another process"):
            pipeline.run(config, str(run_path))
        assert [path.name for path in run_path.iterdir()] == ["lock.held"]
