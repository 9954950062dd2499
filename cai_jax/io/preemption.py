"""SIGTERM means: save what there is and go. Loops ask `requested(step)` between steps and then
raise Preempted."""

from __future__ import annotations

import signal

import jax

_asked = False
_calls = 0


class Preempted(Exception):
    """The run was asked to stop and has saved its state; `main` exits with code 75 and the launcher
    starts it again."""


def install() -> None:
    """Listens for SIGTERM. With several processes JAX's own runtime listens, so that all of them
    stop at the same step."""
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, _note)


def _note(signum, frame) -> None:
    global _asked
    _asked = True


def requested(step: int | None = None) -> bool:
    """Whether to save and stop now. Every process asks at the same points of the run, so their
    counts of calls agree. JAX says yes at a single one of them, which may be the last step of a
    stage: asked again, the answer stays yes."""
    global _asked, _calls
    _calls += 1
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        _asked = multihost_utils.reached_preemption_sync_point(_calls) or _asked
    return _asked
