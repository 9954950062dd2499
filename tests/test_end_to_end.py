"""The tiny graph as a user runs it: whole, again, changed, and on eight devices. (tests/chaos kills
it.)"""

import json
import re
import shutil
import time

import pytest

from tests.chaos.harness import TEXT_STAGES, TRAINING_STAGES, records, run


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
        assert json.loads((workdir / stage / "model" / "role.json").read_text())["kind"] in (
            "policy",
            "reward",
        )
    manifest = json.loads((workdir / "sl" / "manifest.json").read_text())
    assert 0 < manifest["cpu_seconds"] and 0 < manifest["seconds"]
    assert (workdir / "evaluate" / "metrics.json").exists()
    page = (workdir / "report" / "report.html").read_text()
    assert "<script src" not in page and "http://" not in re.sub(
        r"http://www\.w3\.org\S*", "", page
    )
    assert "stage" in output and "rl" in output


def test_the_first_minibatch_of_ppo_is_on_policy(finished):
    lines = (finished[0] / "rl" / "metrics.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines[:2])
    assert first["first_ratio_error"] <= 1e-4
    assert abs(first["kl"]) <= 1e-5
    assert first["sampler_gap"] <= 1e-4
    # The reference stays where it was: after an update the policy is another model.
    assert second["max_token_kl"] > 1e-3 and second["kl_k3"] > 1e-5


def test_the_same_command_again_changes_nothing(finished):
    workdir, _ = finished

    def times():
        told = ("config.json", "status.json")  # what the run says of itself
        return {
            path: path.stat().st_mtime_ns
            for path in workdir.rglob("*")
            if path.is_file() and path.name not in told
        }

    before = times()
    start = time.monotonic()
    done = run(workdir)
    assert done.returncode == 0 and done.stdout.count("done before") == 11
    assert time.monotonic() - start < 30
    assert times() == before


def test_a_changed_field_stops_with_one_line(finished):
    done = run(finished[0], "--config.graph.rl.clip=0.3")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "rl.clip: 0.2 → 0.3" in done.stderr and "on_change=redo" in done.stderr


def test_eight_devices_give_what_one_gives(finished, tmp_path):
    """ARCHITECTURE's "equal" across meshes: sampled rows apart from near-ties, losses within
    1e-5."""
    flags = [
        "--config.mesh.data=2",
        "--config.mesh.fsdp=2",
        "--config.mesh.tensor=2",
        "--config.stages=respond,respond_helpful,revise,sl",
    ]
    done = run(tmp_path / "run", *flags, JAX_NUM_CPU_DEVICES="8")
    assert done.returncode == 0, done.stderr[-3000:]
    texts = []
    for stage in ("respond", "respond_helpful"):
        pairs = list(
            zip(records(finished[0], stage), records(tmp_path / "run", stage), strict=True)
        )
        texts += [one["response"] == eight["response"] for one, eight in pairs]
        for one, eight in pairs:
            if one["response"] == eight["response"]:
                assert one["logprob"] == pytest.approx(eight["logprob"], rel=1e-5)
    assert sum(texts) == len(texts), "no near-ties are expected among these few rows"
    rows = [
        [json.loads(line) for line in open(path / "sl" / "metrics.jsonl")]
        for path in (finished[0], tmp_path / "run")
    ]
    assert [row["loss"] for row in rows[0]] == pytest.approx(
        [row["loss"] for row in rows[1]], rel=1e-5
    )


def test_a_report_alone_is_done_before_and_written_again_when_a_stage_is_new(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    again = run(workdir, "--config.stages=report")
    assert again.returncode == 0 and "[report] done before" in again.stdout, again.stderr
    # Without the finished stage that the report read, it is another report.
    (workdir / "feedback_chain").rename(tmp_path / "feedback_chain")
    stages = "--config.stages=respond,respond_helpful,revise,report"
    other = run(workdir, stages)
    assert other.returncode == 0 and "[report] done before" not in other.stdout, other.stderr
