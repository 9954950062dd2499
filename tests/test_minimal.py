"""The method in one file runs from end to end on the tiny model."""

import math
import pathlib
import subprocess
import sys

from tests.chaos import harness

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_minimal_is_short_and_runs(tmp_path):
    assert (ROOT / "examples" / "minimal.py").read_text().count("\n") <= 300
    done = subprocess.run(
        [sys.executable, "-m", "examples.minimal", f"--workdir={tmp_path}", "--updates=1"],
        cwd=ROOT,
        env=harness.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    update, *policies = done.stdout.splitlines()
    assert update.startswith("update 1: reward") and math.isfinite(float(update.split()[-2]))
    assert [line.split()[0] for line in policies] == ["helpful", "@sl", "@rl"]
    for stage in ("sl", "pm", "rl"):
        assert (tmp_path / stage / "model" / "role.json").exists()
