"""The tiny graph as a user runs it: whole, again, killed and resumed, and on eight devices."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT_STAGES = ("respond", "respond_helpful", "revise", "compare", "feedback", "feedback_chain")
TRAINING_STAGES = ("sl", "pm", "rl")


def command(workdir, *flags):
    return [sys.executable, "-m", "cai_jax.main", "--config=configs/tiny.py", f"--workdir={workdir}", *flags]


def run(workdir, *flags, **env):
    return subprocess.run(command(workdir, *flags), cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=400)


def records(workdir, stage):
    return [json.loads(line) for line in (workdir / stage / "records.jsonl").read_text().splitlines()]


def artefacts(workdir):
    """Everything that two equal runs have equal: records, metrics, and the weights' digests."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if path.name in ("records.jsonl", "metrics.jsonl", "role.json") or (path.suffix == ".npz"):
            found[name] = path.read_bytes() if path.suffix != ".npz" else npz(path)
    return found


def npz(path):
    with np.load(path) as arrays:
        return {key: arrays[key].tobytes() for key in arrays}


def weights(workdir, stage):
    """The digests that the last checkpoint keeps of its own leaves."""
    from cai_jax.io.checkpoints import Checkpoints

    checkpoints = Checkpoints(workdir / stage / "checkpoints")
    return checkpoints.latest(), checkpoints.digests(checkpoints.latest())


def test_every_stage_leaves_its_records(finished):
    workdir, output = finished
    for stage in TEXT_STAGES:
        rows = records(workdir, stage)
        ids = [row["id"] for row in rows]
        assert rows and ids == sorted(set(ids))
        assert {"id", "prompt_id", "model", "seed"} <= set(rows[0])
    revision = records(workdir, "revise")[0]
    assert len(revision["rounds"]) == 2 and revision["rounds"][0]["principle_id"]
    assert {entry["order"] for entry in records(workdir, "feedback")[0]["logprobs"]} == {"ab", "ba"}
    assert records(workdir, "feedback_chain")[0]["chains"][0]["text"] is not None
    for stage in TRAINING_STAGES:
        assert (workdir / stage / "metrics.jsonl").read_text()
        assert json.loads((workdir / stage / "model" / "role.json").read_text())["kind"] in ("policy", "reward")
    assert (workdir / "evaluate" / "metrics.json").exists()
    page = (workdir / "report" / "report.html").read_text()
    assert "<script src" not in page and "http://" not in re.sub(r"http://www\.w3\.org\S*", "", page)
    assert "stage" in output and "rl" in output


def test_the_first_minibatch_of_ppo_is_on_policy(finished):
    first = json.loads((finished[0] / "rl" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["first_ratio_error"] <= 1e-4
    assert abs(first["kl"]) <= 1e-5
    assert first["sampler_gap"] <= 1e-4


def test_the_same_command_again_changes_nothing(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != "config.json"}
    start = time.monotonic()
    done = run(workdir)
    assert done.returncode == 0 and done.stdout.count("done before") == 11
    assert time.monotonic() - start < 30
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != "config.json"} == before


def test_a_changed_field_stops_with_one_line(finished):
    done = run(finished[0], "--config.graph.rl.clip=0.3")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "rl.clip: 0.2 → 0.3" in done.stderr and "on_change=redo" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_any_moment_the_same_command_gives_the_same_artefacts(finished, tmp_path, how):
    """Kills at drawn moments until a run gets through; whatever was on disk then is used."""
    workdir, draw = tmp_path / "run", random.Random(how.value)
    for attempt in range(6):
        process = subprocess.Popen(command(workdir), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        stage = draw.choice(TEXT_STAGES + TRAINING_STAGES)
        deadline = time.monotonic() + 120
        # Somewhere inside a drawn stage that is not done yet.
        while process.poll() is None and time.monotonic() < deadline:
            if (workdir / stage / "manifest.json").exists():
                time.sleep(draw.uniform(0, 1.5))
                break
            time.sleep(0.02)
        process.send_signal(how)
        _, errors = process.communicate(timeout=200)
        if process.returncode == 0:
            break
        assert process.returncode == (-9 if how == signal.SIGKILL else 75), errors[-2000:]
        if attempt == 2:
            break
    done = run(workdir)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = artefacts(finished[0]), artefacts(workdir)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    for stage in TRAINING_STAGES:
        assert weights(workdir, stage) == weights(finished[0], stage)


def test_eight_devices_give_what_one_gives(finished, tmp_path):
    """ARCHITECTURE's "equal" across meshes: sampled rows apart from near-ties, losses within 1e-5."""
    flags = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2",
             "--config.stages=respond,respond_helpful,revise,sl"]
    done = run(tmp_path / "run", *flags, JAX_NUM_CPU_DEVICES="8")
    assert done.returncode == 0, done.stderr[-3000:]
    texts = []
    for stage in ("respond", "respond_helpful"):
        pairs = list(zip(records(finished[0], stage), records(tmp_path / "run", stage), strict=True))
        texts += [one["response"] == eight["response"] for one, eight in pairs]
        for one, eight in pairs:
            if one["response"] == eight["response"]:
                assert one["logprob"] == pytest.approx(eight["logprob"], rel=1e-5)
    assert sum(texts) == len(texts), "no near-ties are expected among these few rows"
    rows = [[json.loads(line) for line in open(path / "sl" / "metrics.jsonl")] for path in (finished[0], tmp_path / "run")]
    assert [row["loss"] for row in rows[0]] == pytest.approx([row["loss"] for row in rows[1]], rel=1e-5)
