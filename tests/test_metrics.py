"""Metrics files: one row a step, no doubles after a restart, rates kept apart."""

import json
import os
import struct
import sys

import pytest

from cai_jax.errors import UserError
from cai_jax.io import metrics
from cai_jax.io.metrics import MetricsWriter, read_rows


def test_rows_after_a_resumed_step_are_written_once(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(1, 6):
        writer.write(step, {"loss": 1 / step}, {"seconds": 0.5})
    writer.close()
    kept = "".join((tmp_path / "metrics.jsonl").read_text().splitlines(True)[:3])
    writer = MetricsWriter(tmp_path, resume_step=3, written=kept)
    for step in (4, 5):
        writer.write(step, {"loss": 1 / step}, {"seconds": 0.7})
    writer.close()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [
        (step, 1 / step) for step in range(1, 6)
    ]
    assert [row["seconds"] for row in read_rows(tmp_path / "timing.jsonl")] == [
        0.5,
        0.5,
        0.5,
        0.7,
        0.7,
    ]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_fresh_start_forgets_old_rows(tmp_path):
    for _ in range(2):
        writer = MetricsWriter(tmp_path)
        writer.write(1, {"loss": 2.0})
        writer.close()
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1


def test_not_finite_values_are_null_and_a_cut_line_is_left_out(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": float("nan"), "kl": 0.1})
    writer.text(1, "sample", "<script>\nx")
    writer.close()
    path = tmp_path / "metrics.jsonl"
    assert json.loads(path.read_text()) == {"step": 1, "loss": None, "kl": 0.1}
    path.write_text(path.read_text() + '{"step": 2, "lo')
    assert [row["step"] for row in read_rows(path)] == [1]


def test_no_file_is_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_histograms_and_the_run_are_shown_in_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path, about={"git_revision": "abc123"})
    writer.histogram(1, "rewards", [0.1, 0.2, float("nan")])
    writer.histogram(1, "nothing", [float("inf")])
    writer.close()
    (events,) = (tmp_path / "tensorboard").glob("events*")
    content = events.read_bytes()
    assert b"rewards" in content and b"abc123" in content and b"nothing" not in content
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_long_timing_file_is_rotated_and_the_metrics_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "TIMING_BYTES", 100)
    writer = MetricsWriter(tmp_path)
    for step in range(1, 11):
        writer.write(step, {"loss": 1.0}, {"seconds": 0.5})
    writer.close()
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 10
    steps = [
        row["step"]
        for name in ("timing.old", "timing")
        for row in read_rows(tmp_path / f"{name}.jsonl")
    ]
    assert (
        steps == list(range(steps[0], 11))
        and 0 < (tmp_path / "timing.old.jsonl").stat().st_size < 150
    )


def events(path):
    """The events of a TensorBoard file: records of a length, a checksum, the event, another
    checksum."""
    from tensorboardX.proto import event_pb2

    content, place = path.read_bytes(), 0
    while place < len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        yield event_pb2.Event.FromString(content[place + 12 : place + 12 + size])
        place += size + 16


def test_long_tensorboard_files_are_rotated(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "BOARD_BYTES", 2000)
    writer, board = MetricsWriter(tmp_path), tmp_path / "tensorboard"
    opened = len(os.listdir("/proc/self/fd"))
    for step in range(10, 2001, 10):
        writer.write(step, {"loss": 1.0})
        writer.text(step, "sample", "x" * 100)
    assert len(os.listdir("/proc/self/fd")) <= opened
    writer.close()
    files = sorted(board.glob("events.*"))
    assert len(files) == metrics.BOARD_FILES and max(path.stat().st_size for path in files) < 6000
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 200
    steps = [
        event.step
        for path in files
        for event in events(path)
        for value in event.summary.value
        if value.tag == "loss"
    ]
    assert steps == list(range(steps[0], 2001, 10)) and 10 < steps[0] < 1900


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    stage = tmp_path / "run" / "rl"
    writer = MetricsWriter(stage, wandb="cai", about={"git_revision": "abc123"})
    writer.write(1, {"reward_mean": 0.5, "bad": float("nan")}, {"seconds": 0.1})
    writer.text(1, "sample", "<b>text</b>")
    writer.histogram(1, "rewards", [0.1, 0.2])
    writer.close()
    # its service writes in a process of its own; at exit every process waits for it in this way
    wandb.teardown()
    (log,) = stage.glob("wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    assert b"reward_mean" in content and b"abc123" in content and b"run/rl" in content
    assert "&lt;b&gt;" in next(stage.rglob("*.html")).read_text()


def test_wandb_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        MetricsWriter(tmp_path, wandb="cai")
