"""Several processes, for real: 2 × 4 devices, 1 × 8 and 1 × 1 leave the same; a killed or stopped
run goes on, also with another number of processes, and ends with what an undisturbed one leaves."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.chaos import harness

pytestmark = pytest.mark.long
ROOT = harness.ROOT
TEXT = ("respond", "respond_helpful", "revise", "compare", "feedback")
TRAINED = ("sl", "pm", "rl")
ORDER = ("respond", "respond_helpful", "revise", "sl", "compare", "feedback", "pm", "rl")
FLAGS = [
    "--config=configs/tiny.py",
    f"--config.stages={','.join(ORDER)}",
    "--config.graph.revise.num_rounds=1",
    "--config.graph.rl.num_updates=2",
]
MESHES = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2)}
UNCOMPARED = ("timing.jsonl", "manifest.json", "config.json")


def flags(workdir, devices: int) -> list[str]:
    mesh = [
        f"--config.mesh.{axis}={size}"
        for axis, size in zip(("data", "fsdp", "tensor"), MESHES[devices], strict=True)
    ]
    return [*FLAGS, *mesh, f"--workdir={workdir}"]


def one(workdir, devices: int) -> pathlib.Path:
    """The run by one process."""
    command = [sys.executable, "-m", "cai_jax.main", *flags(workdir, devices)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=harness.environment(JAX_NUM_CPU_DEVICES=str(devices)),
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


def launched(workdir, devices: int, each: int, restarts: int = 0) -> subprocess.Popen:
    """The run by processes of `each` devices, behind the launcher."""
    options = ["-n", str(devices // each), "-d", str(each), "-r", str(restarts)]
    command = ["bash", "launch/local.sh", *options, "--", *flags(workdir, devices)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=harness.environment(PYTHON=sys.executable),
    )


def two(workdir, *extra: str) -> list[subprocess.Popen]:
    """Two processes of two devices without a launcher that would end one with the other; what they
    say is in errors0 and errors1 beside the run. `extra`: flags of the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "cai_jax.main", *flags(workdir, 4)]
    return [
        subprocess.Popen(
            [*command, *(extra if index else ())],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=open(workdir.parent / f"errors{index}", "w"),
            env=harness.environment(
                CAI_JAX_COORDINATOR=coordinator,
                CAI_JAX_NUM_PROCESSES="2",
                CAI_JAX_PROCESS_ID=str(index),
                JAX_NUM_CPU_DEVICES="2",
            ),
        )
        for index in range(2)
    ]


def ended(process, timeout=1800) -> str:
    """Standard error of a process that ended."""
    try:
        return process.communicate(timeout=timeout)[1] or ""
    finally:
        process.kill()


def wait_for(path: pathlib.Path, process, lines: int = 1) -> None:
    """Until a stage has written so many lines of metrics."""
    deadline = time.monotonic() + 1800
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= lines:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come; exit code {process.poll()}")


def rows(run, stage, name="records"):
    return [json.loads(line) for line in (run / stage / f"{name}.jsonl").read_text().splitlines()]


def assert_alike(a, b, where=""):
    """Texts and whole numbers equal, other numbers within rounding."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_alike(a[key], b[key], f"{where} {key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for n, pair in enumerate(zip(a, b, strict=True)):
            assert_alike(*pair, f"{where} {n}")
    elif isinstance(a, float) or isinstance(b, float):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5), where
    else:
        assert a == b, where


def assert_equal(run, other):
    """Every record once and alike; the losses of SL and of the preference model within 1e-5; the
    same files."""
    assert harness.doubled(run) == [] and harness.doubled(other) == []
    for stage in TEXT:
        assert_alike(rows(run, stage), rows(other, stage), stage)
    for stage, names in (
        ("sl", ("loss", "grad_norm")),
        ("pm", ("loss",)),
        ("rl", ("reward", "kl", "value_loss")),
    ):
        found, want = rows(run, stage, "metrics"), rows(other, stage, "metrics")
        assert [row["step"] for row in found] == [row["step"] for row in want]
        for name in names:
            got, expected = ([row[name] for row in part] for part in (found, want))
            # rl comes last: its models were trained on other meshes, and its rewards are
            # differences.
            np.testing.assert_allclose(
                got,
                expected,
                rtol=1e-5,
                atol=1e-5 if stage == "rl" else 1e-6,
                err_msg=f"{stage} {name}",
            )
    assert_alike(rows(run, "rl"), rows(other, "rl"), "rl")
    for stage in ORDER:
        names = [
            sorted(
                str(path.relative_to(part))
                for path in (part / stage).rglob("*")
                if path.is_file()
                and not {"checkpoints", "tensorboard"} & set(path.parts)
                and path.name not in UNCOMPARED
            )
            for part in (run, other)
        ]
        assert names[0] == names[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return one(tmp_path_factory.mktemp("processes") / "one", 1)


def test_one_process_of_eight_devices(undisturbed, tmp_path):
    assert_equal(one(tmp_path / "eight", 8), undisturbed)


def test_two_processes_of_four_devices(undisturbed, tmp_path):
    run = launched(tmp_path / "two", 8, 4)
    errors = ended(run)
    assert run.returncode == 0, errors[-3000:]
    assert_equal(tmp_path / "two", undisturbed)


def test_stopped_in_two_processes_and_finished_by_one(undisturbed, tmp_path):
    run = launched(tmp_path / "run", 4, 2, restarts=3)
    wait_for(tmp_path / "run" / "sl" / "metrics.jsonl", run)
    run.send_signal(signal.SIGTERM)
    errors = ended(run)
    assert run.returncode == 75 and errors.count("stopped: ") == 2 and "Traceback" not in errors, (
        errors[-3000:]
    )
    assert not (tmp_path / "run" / "rl" / "metrics.jsonl").exists()
    assert_equal(one(tmp_path / "run", 1), undisturbed)


def test_a_killed_process_and_the_launcher(undisturbed, tmp_path):
    run = launched(tmp_path / "run", 4, 2, restarts=1)
    wait_for(tmp_path / "run" / "sl" / "metrics.jsonl", run)
    os.kill(children(run.pid)[1], signal.SIGKILL)
    errors = ended(run)
    assert run.returncode == 0 and errors.count("starting all again") == 1, errors[-3000:]
    assert_equal(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("dies", [0, 1])
def test_when_a_process_is_killed_the_other_ends_within_a_minute(tmp_path, dies):
    processes = two(tmp_path / "run")
    try:
        wait_for(tmp_path / "run" / "sl" / "metrics.jsonl", processes[0])
        processes[dies].kill()
        began = time.monotonic()
        code = processes[1 - dies].wait(120)
        print(
            f"process {dies} was killed; the other ended with {code} after "
            f"{time.monotonic() - began:.1f} s"
        )
        assert code != 0 and time.monotonic() - began < 60
    finally:
        for process in processes:
            process.kill()


def children(pid: int) -> list[int]:
    return sorted(map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_process_that_fails_alone_does_not_leave_the_others_waiting(tmp_path):
    """A file that only one machine lacks: one line there, and the others end within a minute (five
    by JAX's default)."""
    start = time.monotonic()
    both = two(tmp_path / "run", f"--config.graph.respond.prompts.source={tmp_path}/missing.jsonl")
    try:
        codes = [process.wait(240) for process in both]
    finally:
        for process in both:
            process.kill()
    said = (tmp_path / "errors1").read_text()
    assert codes[0] and codes[1] == 2, (codes, said[-3000:])
    assert said.count("\n") == 1 and "missing.jsonl" in said, said[-3000:]
    assert (
        time.monotonic() - start < 150
    )  # with the start, the compilation and what a busy machine adds
