"""RUN/lock.json: one process at a time works on a run. A lock whose owner is gone is stale, and
taken over.

A process of this host can be asked whether it is there. One of another host cannot (after a kill a
cluster starts a run on another machine, or in a container of another name), so the owner touches
the lock every BEAT seconds, and a lock that nobody has touched for SILENT seconds is stale. Both
times are read off the file system's clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import tempfile
import threading
import time

from cai_jax.errors import UserError
from cai_jax.io import artefacts, progress

LOCK = "lock.json"
BEAT, SILENT = 30, 600


@contextlib.contextmanager
def held(run_path):
    """Holds the run directory for this process; UserError names the owner where somebody else holds
    it."""
    if not artefacts.is_writer() or "://" in str(run_path):
        yield
        return
    path = path_of(run_path)
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "beat": BEAT,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            other = _read(path)
            if other and alive(other, path):
                raise UserError(
                    f"{run_path}: in use by process {other['pid']} on "
                    f"{other['host']}{_since(other, path)}; wait for it, or "
                    f"choose another --workdir (if it is gone, delete {path})"
                )
            if other and other["host"] != mine["host"]:
                progress.warn(
                    f"{path}: process {other['pid']} on {other['host']} has given no sign of "
                    "life for "
                    f"{silence(path) / 60:.0f} minutes; its lock is taken over"
                )
            path.write_text(json.dumps(mine))
    except OSError as error:
        raise UserError(
            f"{run_path}: cannot write there ({error.strerror or error}); choose another --workdir"
        ) from error
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, mine, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def _beat(path: pathlib.Path, mine: dict, ended: threading.Event) -> None:
    """Touches the lock until the run ends."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):  # a file system that is away for a while
            if _read(path) == mine:
                os.utime(path)


def silence(path) -> float:
    """Seconds since a lock was touched, by the clock of the file system that it is on."""
    try:
        with tempfile.NamedTemporaryFile(dir=pathlib.Path(path).parent, prefix=".now") as probe:
            now = os.fstat(probe.fileno()).st_mtime
    except OSError:  # read-only for us
        now = time.time()
    return now - os.stat(path).st_mtime


def _since(other: dict, path: pathlib.Path) -> str:
    """For the owner's sign of life, where it gives any and its host is another."""
    if other["host"] == socket.gethostname() or "beat" not in other:
        return ""
    return (
        f" (last sign of life {silence(path):.0f} s ago; after {SILENT} s without one the "
        "same command takes over)"
    )


@contextlib.contextmanager
def _alone(folder: pathlib.Path):
    """Of processes that come at once, one after the other looks and takes the lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def path_of(run_path) -> pathlib.Path:
    return pathlib.Path(run_path) / LOCK


def owner(run_path) -> dict | None:
    """Who holds the directory, or did when it was killed; None where nobody does."""
    return None if "://" in str(run_path) else _read(path_of(run_path))


def _read(path: pathlib.Path) -> dict | None:
    try:
        value = json.loads(path.read_text())
        return (
            value
            if isinstance(value.get("pid"), int) and isinstance(value.get("host"), str)
            else None
        )
    except (OSError, ValueError, AttributeError):
        return None


def alive(owner: dict, path) -> bool:
    """Whether the owner of the lock at `path` may still run.

    A process of another host counts as alive until it has been silent for long, and for ever if it
    gives no signs of life.
    """
    if owner["host"] != socket.gethostname():
        try:
            return "beat" not in owner or silence(path) < SILENT
        except OSError:
            return True
    if owner["pid"] == os.getpid():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return owner.get("started") in (None, _started(owner["pid"]))


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's words: after a restart of the machine another may have
    its number. None where the kernel does not tell."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {fields[19]}"
    except (OSError, IndexError):
        return None
