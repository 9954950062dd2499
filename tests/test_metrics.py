"""Metrics files: one row a step, no doubles after a restart, rates kept apart."""

import json

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
    assert [(row["step"], row["loss"]) for row in rows] == [(step, 1 / step) for step in range(1, 6)]
    assert [row["seconds"] for row in read_rows(tmp_path / "timing.jsonl")] == [0.5, 0.5, 0.5, 0.7, 0.7]
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
