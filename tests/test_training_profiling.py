"""A trace of the steps that were asked for, and a plain word on steps that cannot be."""

import types

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from cai_jax import main
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.training import profiling


@pytest.mark.parametrize(
    "text,want",
    [
        ("", None),
        ("10-12", (None, 10, 12)),
        ("3", (None, 3, 3)),
        ("sl:2-2", ("sl", 2, 2)),
        ("my-pm.2:1-9", ("my-pm.2", 1, 9)),
    ],
)
def test_steps_as_they_may_be_written(text, want):
    assert profiling.parse(text) == want


@pytest.mark.parametrize(
    "text", ["0-3", "5-4", "1-", "-2", "a", "sl:", "sl:x", "1-2-3", "1,2", "٣"]
)
def test_steps_that_cannot_be(text):
    with pytest.raises(
        UserError, match="profile_steps: expected steps counted from 1, such as 10-12"
    ):
        profiling.parse(text)


def test_the_command_refuses_them_in_one_line(tmp_path, capsys):
    run = tmp_path / "run"
    for value, told in (
        ("12-10", "expected steps"),
        ("respond:1-2", "trains; those are pm, rl, sl"),
        ("x:1", "'x' is no stage"),
    ):
        code = main.main(
            [
                "cai_jax",
                "--config=configs/tiny.py",
                f"--workdir={run}",
                f"--config.profile_steps={value}",
            ]
        )
        errors = capsys.readouterr().err
        assert code == 2 and errors.count("\n") == 1 and told in errors, errors
    assert not run.exists()


def test_a_run_leaves_a_trace_of_these_steps(tmp_path, capsys):
    human_only = (
        "--config.graph.pm.inputs.comparisons=",
        "--config.graph.pm.inputs.labels=",
        "--config.graph.pm.human.limit=12",
        "--config.graph.pm.batch_size=2",
    )
    code = main.main(
        [
            "cai_jax",
            "--config=configs/tiny.py",
            f"--workdir={tmp_path}",
            "--config.stages=pm",
            *human_only,
            "--config.profile_steps=2-3",
        ]
    )
    assert code == 0
    traces = list(
        (tmp_path / "pm" / "profile").rglob("*.xplane.pb")
    )  # what TensorBoard's profiler reads
    assert len(traces) == 1 and traces[0].parts[-4:-2] == ("plugins", "profile")
    content = traces[0].read_bytes()
    assert b"step_num" in content and b"jit" in content
    assert "tensorboard --logdir" in capsys.readouterr().out
    assert not [name for name in artefacts.digests(tmp_path / "pm") if "profile" in name]


def test_only_the_steps_asked_for_and_only_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    trace = profiling.Trace("3-4", "sl", epath.Path(tmp_path))
    for number in range(1, 7):
        trace.begin(number)
        calls.append(number)
        trace.end(number, jnp.zeros(1))
    trace.close()
    assert calls == [1, 2, "start", 3, 4, "stop", 5, 6]
    calls.clear()
    other = profiling.Trace("pm:1-2", "sl", epath.Path(tmp_path))
    other.begin(1)
    other.end(1, types.SimpleNamespace())
    assert calls == []
    late = profiling.Trace("1-9", "sl", epath.Path(tmp_path))  # resumed at step 5, stopped at 6
    for number in (5, 6):
        late.begin(number)
        calls.append(number)
        late.end(number, jnp.zeros(1))
    late.close()
    assert calls == ["start", 5, 6, "stop"]
