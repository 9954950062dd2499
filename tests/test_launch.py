"""Launch scripts: dry runs print every command, mistakes are one line, and two processes run for real."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


def bash(*arguments, **env):
    return subprocess.run(["bash", *map(str, arguments)], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHON": sys.executable} | env, cwd=ROOT)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script):
    assert os.access(script, os.X_OK)
    assert bash("-n", script).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("arguments,message", [
    (["launch/local.sh"], "nothing to run"), (["launch/local.sh", "-n", "x", "--", "a"], "whole numbers"),
    (["launch/local.sh", "--what"], "unknown option"), (["launch/tpu_vm.sh"], "--name is missing"),
    (["launch/tpu_vm.sh", "--name"], "needs a value"),
])
def test_mistakes_are_one_line(arguments, message):
    done = bash(*arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_tpu_dry_run_prints_every_command_and_quotes():
    done = bash("launch/tpu_vm.sh", "--name", "n", "--zone", "z", "--type", "v5litepod-16", "--spot", "--project", "p",
                "--dry-run", "--", "--config=configs/tiny.py", "--config.graph.respond.prompts.source=it's here.jsonl")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().split("\n")
    assert [next(word for word in ("create", "archive", "scp", "--command", "delete") if word in line) for line in lines] == \
        ["create", "archive", "scp", "--command", "--command", "delete"]
    assert "--spot" in lines[0] and "--project p" in lines[0] and "CAI_JAX_DISTRIBUTED=auto" in lines[4]
    # What reaches the worker's shell is one argument, quote and space included.
    def words(text):
        return subprocess.run(["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True).stdout

    remote = words(lines[4].split("--command ")[1])
    assert words(remote.split("cai_jax.main")[1].strip()).split("\n")[1] == "--config.graph.respond.prompts.source=it's here.jsonl"


def test_two_processes_write_what_one_writes(tmp_path):
    """The first two text stages and finetuning, in two processes of one device and in one process of two."""
    flags = ["--config=configs/tiny.py", "--config.stages=respond,respond_helpful,revise,sl"]
    done = bash("launch/local.sh", "-n", "2", "--", *flags, f"--workdir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr[-3000:]
    one = subprocess.run([sys.executable, "-m", "cai_jax.main", *flags, f"--workdir={tmp_path / 'one'}"], cwd=ROOT,
                         env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"}, capture_output=True, text=True, timeout=300)
    assert one.returncode == 0, one.stderr[-3000:]
    for stage in ("respond", "respond_helpful", "revise"):
        two_text, one_text = ((tmp_path / run / stage / "records.jsonl").read_text() for run in ("two", "one"))
        assert two_text == one_text
    losses = [[json.loads(line)["loss"] for line in open(tmp_path / run / "sl" / "metrics.jsonl")] for run in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bad_input_is_not_retried(tmp_path):
    done = bash("launch/local.sh", "-n", "2", "--", "--config=configs/tiny.py", "--config.stages=nothing", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "starting all again" not in done.stderr
