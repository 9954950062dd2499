"""A stop that was asked for stays asked for: by a signal in one process, by JAX's point of
agreement in several."""

import os
import signal

import jax
import pytest
from jax.experimental import multihost_utils

from cai_jax.io import preemption


@pytest.fixture
def fresh(monkeypatch):
    """The module as a new process has it; the handler is put back."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(preemption, "_asked", False)
    monkeypatch.setattr(preemption, "_calls", 0)
    yield preemption
    signal.signal(signal.SIGTERM, before)


def test_a_signal(fresh):
    fresh.install()
    assert not fresh.requested()
    os.kill(os.getpid(), signal.SIGTERM)
    assert fresh.requested() and fresh.requested()


def test_several_processes_agree_on_one_call_and_the_answer_stays(fresh, monkeypatch):
    """JAX says yes at one call only. Where that was the last step of a stage, which needs no
    stopping, the next stage must hear of it (found by a run in two processes that went on to its
    end)."""
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils,
        "reached_preemption_sync_point",
        lambda count: asked.append(count) or count == 3,
    )
    assert [fresh.requested() for _ in range(5)] == [False, False, True, True, True]
    assert asked == [1, 2, 3, 4, 5]  # asked every time: the processes' counts must agree
