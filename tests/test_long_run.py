"""A run that lasts: nothing grows, and nobody else gets into its directory."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cai_jax import status
from cai_jax.io import lock
from tests.chaos import harness

ROOT = pathlib.Path(__file__).resolve().parent.parent

WATCHED = """
import ctypes, gc, json, os, sys
from cai_jax import main
from cai_jax.training import rl_numbers


class Info(ctypes.Structure):  # glibc's struct mallinfo2
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        ).split()
    ]


mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", Info)
mallinfo2.restype = Info
rows, learned, held = [], rl_numbers.of_minibatches, None


def watch(history):
    global held
    if len(rows) % 25 == 0:
        gc.collect()
        info = mallinfo2()
        held = [info.uordblks + info.hblkhd, sys.getallocatedblocks()]
    pages = int(open("/proc/self/statm").read().split()[1])
    rows.append(
        [
            pages * os.sysconf("SC_PAGE_SIZE"),
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
            *held,
        ]
    )
    return learned(history)


rl_numbers.of_minibatches = watch
code = main.main(["x", *sys.argv[2:]])
json.dump(rows, open(sys.argv[1], "w"))
sys.exit(code)
"""


def watched(tmp_path, num_updates: int) -> np.ndarray:
    """[num_updates, 5] after each PPO update of the tiny model: resident bytes, open files,
    threads, and of every 25th what is in use: bytes of the C library's allocator (0 where it is not
    glibc's), blocks of Python's."""
    out = tmp_path / "watched.json"
    flags = [
        "--config=configs/tiny.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.stages=rl",
        "--config.graph.rl.policy=base",
        "--config.graph.rl.reward=python:tests.test_long_run.length",
        "--config.graph.rl.value_init=policy",
        f"--config.graph.rl.num_updates={num_updates}",
        "--config.graph.rl.save_every_updates=10",
        "--config.graph.rl.snapshot_every_updates=0",
        "--config.graph.rl.max_new_tokens=8",
        "--config.graph.rl.rollouts_per_update=4",
    ]
    # The allocator as it comes: its settings change what stays resident.
    environment = {
        name: value
        for name, value in harness.environment().items()
        if not name.startswith("MALLOC_")
    }
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(out), *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.array(json.loads(out.read_text()), float)


def length(dialogues):
    """A reward."""
    return [len(dialogue[-1].text) / 10 for dialogue in dialogues]


def slope(values: np.ndarray) -> float:
    """Robust growth an update: the median of the last quarter against that of the second, so that
    what is compiled and cached at the beginning does not count."""
    quarter = len(values) // 4
    return (np.median(values[-quarter:]) - np.median(values[quarter : 2 * quarter])) / (2 * quarter)


@pytest.mark.long
def test_files_and_threads_stay_bounded(tmp_path):
    rows = watched(tmp_path, 30)
    assert rows[-1, 1] <= rows[6, 1] + 2 and rows[:, 1].max() < 100
    assert (
        rows[-1, 2] <= rows[6, 2] + 16
    )  # pools of threads fill up by need; a leak of one an update would be 24


@pytest.mark.long
def test_memory_is_flat_over_500_updates(tmp_path):
    """What is in use hardly grows: ids of 4 rollouts an update, their row of metrics.jsonl, what
    TensorStore still keeps of a save. What is resident rises and falls by some MiB, with where the
    allocator finds room."""
    rows = watched(tmp_path, 500)
    growth, native, blocks = slope(rows[:, 0]), slope(rows[:, 3]), slope(rows[:, 4])
    print(
        f"resident {rows[50, 0] / 2**20:.0f} → {rows[-1, 0] / 2**20:.0f} MiB, "
        f"{growth / 1024:.1f} KiB an update; in use: "
        f"{native / 1024:.1f} KiB and {blocks:.0f} Python blocks an update; "
        f"files {rows[50, 1]:.0f} → {rows[-1, 1]:.0f}, threads {rows[50, 2]:.0f} → "
        f"{rows[-1, 2]:.0f}"
    )
    assert native < 4 * 1024 and blocks < 40
    assert growth < 16 * 1024  # 8 MiB in 500 updates
    assert rows[-1, 1] <= rows[50, 1] + 2 and rows[-1, 2] <= rows[50, 2] + 4


def test_a_second_run_on_a_workdir_is_refused_and_changes_nothing(tmp_path):
    """Real processes: the first goes on undisturbed, the second names it; after a kill -9 the lock
    is stale."""
    run = harness.Run(tmp_path / "run", "--config.stages=respond,revise")
    try:
        path = tmp_path / "run" / "lock.json"
        deadline = time.monotonic() + 300
        while (
            not (tmp_path / "run" / "respond" / "manifest.json").exists()
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        run.process.send_signal(signal.SIGSTOP)  # it must still be there when the second comes
        before = {
            path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
        }
        second = harness.run(tmp_path / "run", "--config.stages=respond", "--config.seed=5")
        assert second.returncode == 2 and harness.one_line(second.stderr)
        assert f"in use by process {run.process.pid}" in second.stderr
        assert {
            path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
        } == before
        assert json.loads(path.read_text())["pid"] == run.process.pid
        assert f"held by process {run.process.pid}" in status.describe(tmp_path / "run")[0]
    finally:
        run.stop(signal.SIGKILL)
    assert path.exists()
    assert "running at re" in status.describe(tmp_path / "run")[0]
    assert status.describe(tmp_path / "run")[0].endswith("is gone: the same command goes on")
    third = harness.run(tmp_path / "run", "--config.stages=respond")
    assert third.returncode == 0, third.stderr[-2000:]
    assert not path.exists()


def test_a_lock_whose_number_another_process_has_now_is_stale(tmp_path):
    mine = {"host": lock.socket.gethostname(), "pid": os.getppid(), "started": "an earlier boot 1"}
    (tmp_path / "lock.json").write_text(json.dumps(mine))
    with lock.held(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


TAKES = """
import json, os, pathlib, sys, time
from cai_jax.errors import UserError
from cai_jax.io import lock

run = pathlib.Path(sys.argv[1])
(run / f"ready{os.getpid()}").touch()
while not (run / "go").exists():
    pass
try:
    with lock.held(run):
        time.sleep(float(sys.argv[2]))
    print("held")
except UserError as error:
    print(error)
"""


def test_of_runs_that_start_at_once_one_takes_a_stale_lock(tmp_path):
    (tmp_path / "lock.json").write_text(
        json.dumps({"host": lock.socket.gethostname(), "pid": os.getppid(), "started": "before"})
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TAKES, str(tmp_path), "3"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("ready*"))) < len(runs) and time.monotonic() < deadline:
        time.sleep(0.02)
    (tmp_path / "go").touch()
    told = [run.communicate(timeout=120)[0].strip() for run in runs]
    assert told.count("held") == 1 and sum("in use by process" in line for line in told) == 3, told
