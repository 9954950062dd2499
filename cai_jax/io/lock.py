"""One process at a time works on a run.

On a host the operating system decides (`filelock`): what a killed process held is free. Another
host cannot see that (after a kill a cluster starts a run on another machine), so RUN/lock.json
names the owner, who touches it every BEAT seconds, and a lock that nobody has touched for SILENT
seconds is taken over. Both times are read off the file system's clock. On a file system without
flock lock.json decides alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

import filelock

from cai_jax.errors import UserError
from cai_jax.io import artefacts, progress

LOCK = "lock.json"
BEAT, SILENT = 30, 600
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def held(run_path) -> Iterator[None]:
    """Holds the run directory for this process; UserError names the owner where another process
    holds it. A directory that was not there before and is left empty is removed."""
    if not artefacts.is_writer() or "://" in str(run_path):
        yield
        return
    path = path_of(run_path)
    existed = path.parent.exists()
    pid = os.getpid()
    mine = {"host": socket.gethostname(), "pid": pid, "started": _started(pid), "beat": BEAT}
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            decided = _lock_on_this_host(path, stack)
            _require_silence(run_path, mine["host"], decided)
            path.write_text(json.dumps(mine))
            stack.callback(_leave, path, mine, existed)  # before the lock is released
        except filelock.Timeout:
            raise _in_use(run_path) from None
        except OSError as error:
            raise UserError(
                f"{run_path}: cannot write there ({error.strerror or error}); choose another "
                "--workdir"
            ) from error
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(path, mine, ended), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()


def _lock_on_this_host(path: pathlib.Path, stack: contextlib.ExitStack) -> bool:
    """Locks until the stack is left. False, with a warning, where the file system has no flock;
    filelock.Timeout where another process holds the lock."""
    # Not filelock's own substitute: a file that outlives a killed process of another host.
    flock = filelock.FileLock(path.with_suffix(".held"), timeout=0, fallback_to_soft=False)
    try:
        stack.enter_context(flock)
        return True
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_FLOCK:
            raise
        progress.warn(
            f"{path.parent}: this file system has no file locks; {path.name} alone keeps other "
            "processes away, so do not start two at the same moment"
        )
        return False


def _leave(path: pathlib.Path, mine: dict, existed: bool) -> None:
    """Removes our own files, and the directory if it is new and nothing else is in it."""
    if _read(path) == mine:
        path.unlink(missing_ok=True)
    on_this_host = path.with_suffix(".held")
    with contextlib.suppress(OSError):  # another process's file came in between: it stays
        if not existed and {file.name for file in path.parent.iterdir()} <= {on_this_host.name}:
            on_this_host.unlink(missing_ok=True)
            path.parent.rmdir()


def _require_silence(run_path, host: str, decided: bool) -> None:
    """Raises UserError where the owner gives signs of life; warns where one of another host has
    been silent for long. `decided`: flock has shown that none of this host holds the directory."""
    path, other = path_of(run_path), owner(run_path)
    if other is None or (decided and other["host"] == host):
        return
    if alive(other, path):
        raise _in_use(run_path)
    if other["host"] != host:
        progress.warn(
            f"{path}: process {other['pid']} on {other['host']} has given no sign of life for "
            f"{silence(path) / 60:.0f} minutes; its lock is taken over"
        )


def _in_use(run_path) -> UserError:
    path, other = path_of(run_path), owner(run_path)
    if other is None:  # it has just begun, or just ended
        return UserError(f"{run_path}: in use by another process; wait for it")
    since = ""
    if other["host"] != socket.gethostname() and "beat" in other:
        since = (
            f" (last sign of life {silence(path):.0f} s ago; after {SILENT} s without one the "
            "same command takes over)"
        )
    return UserError(
        f"{run_path}: in use by process {other['pid']} on {other['host']}{since}; wait for it, or "
        f"choose another --workdir (if it is gone, delete {path})"
    )


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


def path_of(run_path) -> pathlib.Path:
    return pathlib.Path(run_path) / LOCK


def owner(run_path) -> dict | None:
    """Who holds the directory, or did when it was killed; None where nobody does."""
    return None if "://" in str(run_path) else _read(path_of(run_path))


def _read(path: pathlib.Path) -> dict | None:
    try:
        value = json.loads(path.read_text())
        known = isinstance(value.get("pid"), int) and isinstance(value.get("host"), str)
        return value if known else None
    except (OSError, ValueError, AttributeError):
        return None


def alive(owner: dict, path) -> bool:
    """Whether the owner of the lock at `path` may still run.

    A process of another host counts as alive until it has been silent for long, and for ever if it
    gives no signs of life.
    """
    try:
        if owner["host"] != socket.gethostname():
            return "beat" not in owner or silence(path) < SILENT
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process, or a file that has just gone
        pass
    started = _started(owner["pid"])
    return started is None or owner.get("started") in (None, started)


def _started(pid: int) -> str | None:
    """The boot and the time at which a process of this host began: after a restart of the machine
    another one may have its number. None where the kernel does not report it."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {fields[19]}"
    except (OSError, IndexError):
        return None
