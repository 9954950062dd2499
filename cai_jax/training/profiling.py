"""Traces of chosen steps for TensorBoard's profiler (XProf): `--config.profile_steps=10-12`, or
`sl:10-12` of one stage."""

from __future__ import annotations

import re
from typing import NamedTuple

import jax

from cai_jax.configuration.stages import STAGES
from cai_jax.errors import UserError
from cai_jax.io import artefacts, progress

DIRECTORY = "profile"  # in the stage's own


class Window(NamedTuple):
    """Steps `first` to `last`, counted from 1, of the stage of that name, or of all that train
    (None)."""

    stage: str | None
    first: int
    last: int


def parse(text: str) -> Window | None:
    """None for "". UserError for anything but STEP, FIRST-LAST, or either behind STAGE: ."""
    if not text:
        return None
    match = re.fullmatch(r"(?:([\w.-]+):)?([0-9]{1,9})(?:-([0-9]{1,9}))?", str(text).strip())
    first, last = (int(match[2]), int(match[3] or match[2])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(
            "config.profile_steps: expected steps counted from 1, such as 10-12, 10 or "
            f"sl:10-12, not '{text}'"
        )
    return Window(match[1], first, last)


def check(config) -> None:
    """UserError where a run's `profile_steps` are no steps, or of a stage that it has not or that
    trains nothing."""
    window = parse(config.get("profile_steps", ""))
    trained = [name for name, stage in config.graph.items() if STAGES[stage.kind].makes]
    if window and window.stage not in (None, *trained):
        raise UserError(
            f"config.profile_steps: '{window.stage}' is no stage that trains; those are "
            f"{', '.join(trained) or 'none'}"
        )


class Trace:
    """The trace of one stage, if `text` asks for one: the first process's, from the first of those
    steps that it comes to."""

    def __init__(self, text: str, stage: str, path):
        window = parse(text)
        self._wanted = (
            window if window and window.stage in (None, stage) and artefacts.is_writer() else None
        )
        self._stage, self._path, self._running = stage, path / DIRECTORY, False
        self._step = None  # the annotation of the step that is being dispatched

    def begin(self, number: int) -> None:
        """Before step `number` (from 1) is dispatched: starts the trace with the first of its
        steps, and puts the number into a running trace."""
        if self._wanted is None:
            return
        if not self._running and self._wanted.first <= number <= self._wanted.last:
            self._path.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._path))
            self._running = True
        self._step = jax.profiler.StepTraceAnnotation(self._stage, step_num=number)
        self._step.__enter__()

    def end(self, number: int, state) -> None:
        """After step `number` was dispatched: ends the trace with the last of its steps, once that
        is computed."""
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
        if self._running and number >= self._wanted.last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        if self._running:
            self._running, self._wanted = False, None
            jax.profiler.stop_trace()
            progress.say(
                f"[{self._stage}] trace in {self._path}; look at it with: tensorboard --logdir "
                f"{self._path}"
            )
