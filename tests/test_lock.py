"""The lock of a run that another host holds, or held until it was killed."""

import json
import os
import time

import pytest

from cai_jax.errors import UserError
from cai_jax.io import lock


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
