"""Launch scripts: dry runs print every command, mistakes are one line, and two processes run for
real."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from tests.chaos import harness

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


def bash(*arguments, **env):
    return subprocess.run(
        ["bash", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHON": sys.executable} | env,
        cwd=ROOT,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script):
    assert os.access(script, os.X_OK)
    assert bash("-n", script).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["launch/local.sh"], "nothing to run"),
        (["launch/local.sh", "-n", "x", "--", "a"], "whole numbers"),
        (["launch/local.sh", "--what"], "unknown option"),
        (["launch/tpu_vm.sh"], "--name is missing"),
        (["launch/tpu_vm.sh", "--name"], "needs a value"),
        (["launch/multi_gpu.sh"], "nothing to run"),
        (["launch/multi_gpu.sh", "--gpus", "a", "--", "x"], "--gpus takes numbers"),
        (["launch/slurm.sh", "--nodes", "2"], "--name is missing"),
        (["launch/slurm.sh", "--name", "n", "--nodes", "two", "--", "x"], "whole numbers"),
        (
            ["launch/gke_jobset.sh", "--name", "n", "--image", "i", "--tpu", "t"],
            "--topology is missing",
        ),
        (
            [
                "launch/gke_jobset.sh",
                "--name",
                "n",
                "--image",
                "i",
                "--tpu",
                "t",
                "--topology",
                "8by8",
                "--",
                "x",
            ],
            "a shape such as",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = bash(*arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_tpu_dry_run_prints_every_command_and_quotes():
    done = bash(
        "launch/tpu_vm.sh",
        "--name",
        "n",
        "--zone",
        "z",
        "--type",
        "v5litepod-16",
        "--spot",
        "--project",
        "p",
        "--dry-run",
        "--",
        "--config=configs/tiny.py",
        "--config.graph.respond.prompts.source=it's here.jsonl",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().split("\n")
    assert [
        next(word for word in ("create", "archive", "scp", "--command", "delete") if word in line)
        for line in lines
    ] == ["create", "archive", "scp", "--command", "--command", "delete"]
    assert (
        "--spot" in lines[0]
        and "--project p" in lines[0]
        and "CAI_JAX_DISTRIBUTED=auto" in lines[4]
    )
    # What reaches the worker's shell is one argument, quote and space included.
    remote = words(lines[4].split("--command ")[1])[0]
    assert (
        words(remote.split("cai_jax.main")[1].strip())[1]
        == "--config.graph.respond.prompts.source=it's here.jsonl"
    )


AWKWARD = [
    "--config=configs/tiny.py",
    """--config.graph.respond.prompts.source=it's "here".jsonl""",
]


def words(text):
    """What a shell makes of a command line."""
    return subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True
    ).stdout.splitlines()


def test_multi_gpu_dry_run():
    done = bash("launch/multi_gpu.sh", "--gpus", "0,1", "--dry-run", "--", *AWKWARD)
    assert done.returncode == 0, done.stderr
    line = words(done.stdout.strip())
    assert "CUDA_VISIBLE_DEVICES=0,1" in line and line[-2:] == AWKWARD


def test_multi_gpu_starts_again_but_not_on_bad_input(tmp_path):
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\necho . >> {tmp_path}/runs\n[ $(wc -l < {tmp_path}/runs) -ge 3 ] || exit "
        f"${{CODE}}\n"
    )
    program.chmod(0o755)
    done = bash("launch/multi_gpu.sh", "--", "x", PYTHON=str(program), CODE="75")
    assert done.returncode == 0 and (tmp_path / "runs").read_text().count(".") == 3
    (tmp_path / "runs").unlink()
    done = bash("launch/multi_gpu.sh", "--", "x", PYTHON=str(program), CODE="2")
    assert done.returncode == 2 and (tmp_path / "runs").read_text().count(".") == 1


@pytest.mark.parametrize("script", ["local", "multi_gpu"])
def test_a_stopped_launcher_lets_the_run_save_and_does_not_start_it_again(tmp_path, script):
    program = tmp_path / "python"
    program.write_text(f"""#!/bin/bash
[ "$1" = -c ] && echo 1 && exit
trap 'sleep 0.3; echo saved >> {tmp_path}/told; exit 75' TERM
echo began >> {tmp_path}/told
while true; do sleep 0.05; done
""")
    program.chmod(0o755)
    process = subprocess.Popen(
        ["bash", f"launch/{script}.sh", "--", "x"],
        cwd=ROOT,
        env=os.environ | {"PYTHON": str(program)},
    )
    processes, told = (
        2 if script == "local" else 1,
        lambda: (tmp_path / "told").read_text() if (tmp_path / "told").exists() else "",
    )
    deadline = time.monotonic() + 60
    while told().count("began") < processes and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 75 and (told().count("began"), told().count("saved")) == (
        processes,
        processes,
    )


def test_slurm_dry_run_prints_the_submission_and_the_job():
    done = bash(
        "launch/slurm.sh",
        "--name",
        "n",
        "--nodes",
        "2",
        "--gpus",
        "4",
        "--partition",
        "p",
        "--dry-run",
        "--",
        *AWKWARD,
    )
    assert done.returncode == 0, done.stderr
    submission, *job = done.stdout.strip().splitlines()
    assert (
        "--nodes 2 --ntasks-per-node 4 --gpus-per-node 4" in submission
        and "--partition p" in submission
    )
    run = next(line for line in job if line.startswith("srun"))
    assert (
        words(run.split("cai_jax.main")[1].partition("||")[0]) == AWKWARD
        and "CAI_JAX_DISTRIBUTED=auto" in run
    )
    assert subprocess.run(["bash", "-n"], input="\n".join(job), text=True).returncode == 0


@pytest.mark.parametrize(
    "code,restarts,queued", [(0, 0, False), (2, 0, False), (75, 0, True), (75, 20, False)]
)
def test_slurm_job_queues_itself_again(tmp_path, code, restarts, queued):
    done = bash("launch/slurm.sh", "--name", "n", "--nodes", "1", "--dry-run", "--", "x")
    for name, text in (("srun", f"exit {code}"), ("scontrol", f"echo $* > {tmp_path}/queued")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    ran = subprocess.run(["bash"], input=done.stdout.partition("\n")[2], text=True, env=env)
    assert ran.returncode == code and (tmp_path / "queued").exists() == queued
    assert not queued or (tmp_path / "queued").read_text() == "requeue 7\n"


def test_jobset_dry_run_is_a_manifest_of_all_hosts():
    yaml = pytest.importorskip("yaml")
    done = bash(
        "launch/gke_jobset.sh",
        "--name",
        "n",
        "--image",
        "i:1",
        "--tpu",
        "tpu-v5p-slice",
        "--topology",
        "4x4x4",
        "--slices",
        "2",
        "--dry-run",
        "--",
        *AWKWARD,
    )
    assert done.returncode == 0, done.stderr
    commands, _, manifest = done.stdout.partition("apiVersion")
    assert [word for word in ("build", "push", "apply") if word in commands] == [
        "build",
        "push",
        "apply",
    ]
    spec = yaml.safe_load("apiVersion" + manifest)["spec"]
    job = spec["replicatedJobs"][0]
    assert (
        job["replicas"] == 2
        and job["template"]["spec"]["completions"] == 16
        and spec["failurePolicy"]["maxRestarts"] == 20
    )
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == AWKWARD
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == 4


@pytest.mark.long
def test_two_processes_write_what_one_writes(tmp_path):
    """The first text stages and finetuning, in two processes of one device and in one process of
    two (tests/test_processes.py does it at length)."""
    flags = [
        "--config=configs/tiny.py",
        "--config.stages=respond,respond_helpful,revise,sl",
        "--config.graph.revise.num_rounds=1",
    ]
    done = bash(
        "launch/local.sh",
        "-n",
        "2",
        "--",
        *flags,
        f"--workdir={tmp_path / 'two'}",
        **harness.environment(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = subprocess.run(
        [sys.executable, "-m", "cai_jax.main", *flags, f"--workdir={tmp_path / 'one'}"],
        cwd=ROOT,
        env=harness.environment(JAX_NUM_CPU_DEVICES="2"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert one.returncode == 0, one.stderr[-3000:]
    for stage in ("respond", "respond_helpful", "revise"):
        two_text, one_text = (
            (tmp_path / run / stage / "records.jsonl").read_text() for run in ("two", "one")
        )
        assert two_text == one_text
    losses = [
        [json.loads(line)["loss"] for line in open(tmp_path / run / "sl" / "metrics.jsonl")]
        for run in ("two", "one")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bad_input_is_not_retried(tmp_path):
    done = bash(
        "launch/local.sh",
        "-n",
        "2",
        "--",
        "--config=configs/tiny.py",
        "--config.stages=nothing",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 2 and "starting all again" not in done.stderr
