"""The console: bars with rate and time left on a terminal, nothing but whole lines elsewhere."""

import io
import sys

import jax
import pytest

from cai_jax.io import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drawn(monkeypatch, stream) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.bar(100, "rl: rollouts", initial=20) as bar:
        for _ in range(40):
            bar.update()
        bar.refresh()
        progress.warn("told once")
    return stream.getvalue()


def test_a_terminal_sees_place_rate_and_time_left(monkeypatch):
    text = drawn(monkeypatch, Terminal())
    assert "rl: rollouts" in text and "60/100" in text and "row/s" in text and "<" in text
    assert "warning: told once\n" in text


@pytest.mark.parametrize("process", [0, 1])
def test_elsewhere_and_in_other_processes_it_is_quiet(monkeypatch, process):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    stream = io.StringIO() if process == 0 else Terminal()
    assert drawn(monkeypatch, stream) == ("warning: told once\n" if process == 0 else "")
