"""RUN/lock.json: one process at a time works on a run. A lock whose owner is gone is stale, and taken over."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket

from cai_jax.errors import UserError
from cai_jax.io import artefacts

LOCK = "lock.json"


@contextlib.contextmanager
def held(run_path):
    """Holds the run directory for this process; UserError names the owner where somebody else holds it."""
    if not artefacts.is_writer() or "://" in str(run_path):
        yield
        return
    path = pathlib.Path(run_path) / LOCK
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            other = _read(path)
            if other and alive(other):
                raise UserError(
                    f"{run_path}: in use by process {other['pid']} on {other['host']}; wait for it, or choose "
                    f"another --workdir (if it is gone, delete {path})"
                )
            path.write_text(json.dumps(mine))
    except OSError as error:
        raise UserError(
            f"{run_path}: cannot write there ({error.strerror or error}); choose another --workdir"
        ) from error
    try:
        yield
    finally:
        if _read(path) == mine:
            path.unlink(missing_ok=True)


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


def owner(run_path) -> dict | None:
    """Who holds the directory, or did when it was killed; None where nobody does."""
    return None if "://" in str(run_path) else _read(pathlib.Path(run_path) / LOCK)


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


def alive(owner: dict) -> bool:
    """Whether the lock's owner may still run; a process of another host cannot be asked, so it counts as alive."""
    if owner["host"] != socket.gethostname():
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
    """When a process began, in the kernel's words: after a restart of the machine another may have its number. None where
    the kernel does not tell."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {fields[19]}"
    except (OSError, IndexError):
        return None
