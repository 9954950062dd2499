"""RUN/status.json: where a run is, for those who look from outside. It is rewritten when a stage
begins and when the run ends."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from cai_jax.errors import UserError, Waiting
from cai_jax.io import artefacts, preemption

STATUS = "status.json"


@contextlib.contextmanager
def reported(run_path, stages: Sequence[str]) -> Iterator[Callable[[str], None]]:
    """Yields what is to be called with the name of a stage as it begins. Once the block is left,
    the file says "done", "stopped" or "failed", and why. A run that was killed is "running" there,
    and no process holds its lock."""
    path, at = epath.Path(run_path) / STATUS, {}

    def write(state: str, message: str = "") -> None:
        if artefacts.is_writer():
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            value = {"state": state, **at, "stages": list(stages), "time": now}
            value |= {"message": message, "host": socket.gethostname(), "pid": os.getpid()}
            with contextlib.suppress(UserError):  # a disk that is full: the run itself reports it
                artefacts.write_json(path, value)

    def begin(stage: str) -> None:
        at.update(stage=stage, number=list(stages).index(stage) + 1)
        write("running")

    try:
        yield begin
    except (preemption.Preempted, Waiting, KeyboardInterrupt) as error:
        write("stopped", str(error) or type(error).__name__)
        raise
    except Exception as error:
        write("failed", f"{type(error).__name__}: {error}".strip())
        raise
    write("done")


def read(run_path) -> dict | None:
    """What the file says; None where there is none, or it is damaged."""
    try:
        return artefacts.read_json(epath.Path(run_path) / STATUS)
    except UserError:
        return None
