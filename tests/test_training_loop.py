"""The loop: equal bits after a kill at any moment, nothing saved that is not finite, the state
handed over whole."""

import json
import math
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import sharding
from cai_jax.errors import UserError
from cai_jax.io import checkpoints as checkpoints_lib
from cai_jax.io import preemption
from cai_jax.io.metrics import MetricsWriter, read_rows
from cai_jax.io.progress import bar
from cai_jax.training import state as state_lib
from cai_jax.training import train

PLACE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


class Killed(BaseException):
    """Stands for kill -9: nothing between here and the test may catch it."""


def context(path):
    tokens = {}
    return types.SimpleNamespace(
        name="toy",
        directory=types.SimpleNamespace(path=path),
        tokens=tokens,
        run_config={},
        config={"init": "base"},
        metrics=lambda *resume: MetricsWriter(path, *resume),
        progress=lambda total, label, initial, unit: bar(total, label, initial, unit),
        count_tokens=lambda kind, count: tokens.update({kind: tokens.get(kind, 0) + count}),
    )


def init():
    return {
        "params": {"w": jax.device_put(jnp.arange(4.0), PLACE)},
        "optimiser": {"m": jax.device_put(jnp.zeros(4), PLACE)},
    }


def fit(ctx, num_steps, save_every, abstract, init, advance, names=lambda step: [], **fields):
    """A loop as the stages write it; the weights after it."""
    with train.Session(ctx, num_steps, save_every, abstract, **fields) as session:
        state = session.restore(init)
        for step in session.steps():
            state, scalars = advance(state, step)
            session.finish(step, state, scalars, names(step))
    return state


ABSTRACT = {name: state_lib.abstract_of(tree) for name, tree in init().items()}


@jax.jit
def update(state, data):
    m = 0.9 * state["optimiser"]["m"] + data
    w = state["params"]["w"] - 0.1 * m * jnp.sin(state["params"]["w"])
    return {"params": {"w": w}, "optimiser": {"m": m}}, {
        "loss": jnp.sum(w * w),
        "tokens": jnp.float32(3),
    }


def run(path, num_steps=7, kill_at=None, poison=None, **fields):
    def advance(state, step):
        if step == kill_at:
            raise Killed
        data = np.float32(np.nan if step == poison else math.sin(step))
        return update(state, data)

    ctx = context(path)
    save_every = fields.pop("save_every", 2)
    state = fit(
        ctx, num_steps, save_every, ABSTRACT, init, advance, lambda n: [f"example {n}"], **fields
    )
    return state["params"]["w"], (path / "metrics.jsonl").read_text(), ctx.tokens


@pytest.mark.parametrize("kill_at", [0, 1, 2, 3, 5, 6])
def test_killed_and_resumed_equals_undisturbed(tmp_path, kill_at):
    want = run(tmp_path / "a")
    with pytest.raises(Killed):
        run(tmp_path / "b", kill_at=kill_at)
    if kill_at >= 2:  # a step is saved at every second one
        assert (
            checkpoints_lib.Checkpoints(tmp_path / "b" / "checkpoints").latest() == kill_at // 2 * 2
        )
    got = run(tmp_path / "b")
    np.testing.assert_array_equal(got[0], want[0])
    assert got[1:] == want[1:] and want[2] == {"trained": 21}
    assert [json.loads(line)["step"] for line in want[1].splitlines()] == list(range(1, 8))
    assert run(tmp_path / "b")[1:] == want[1:]  # once more: nothing changes


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_a_save(tmp_path, monkeypatch, moment):
    """Killed while a checkpoint is written, and just after, before anything else happened."""
    want = run(tmp_path / "a")
    save = checkpoints_lib.Checkpoints.save

    def broken(self, step, trees, meta=None, *, keep=False):
        if step == 4 and moment == "before":
            (self.path / "00000004" / "params").mkdir(parents=True)
            raise Killed
        save(self, step, trees, meta, keep=keep)
        if step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_lib.Checkpoints, "save", broken)
        with pytest.raises(Killed):
            run(tmp_path / "b")
    got = run(tmp_path / "b")
    np.testing.assert_array_equal(got[0], want[0])
    assert got[1:] == want[1:]


@pytest.mark.parametrize("look_back", [True, False])
def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path, look_back):
    with pytest.raises(
        UserError,
        match=(
            r"loss is nan at step 4, in the batch of example 3; the last good checkpoint is "
            r"step 2"
        ),
    ):
        run(tmp_path, poison=3, look_back=look_back)
    store = checkpoints_lib.Checkpoints(tmp_path / "checkpoints")
    assert store.steps() == [2]
    assert np.isfinite(store.restore(2, ABSTRACT)[0]["params"]["w"]).all()


def test_a_first_loss_that_is_not_finite_blames_what_training_began_with(tmp_path):
    with pytest.raises(
        UserError, match=r"no update was made yet: check the weights of 'base'.*dtype"
    ) as e:
        run(tmp_path, poison=0)
    assert "learning_rate" not in str(e.value)
    with pytest.raises(UserError, match="try a smaller learning_rate"):
        run(tmp_path, poison=1)


def test_sigterm_saves_and_stops_and_the_next_run_goes_on(tmp_path, monkeypatch):
    want = run(tmp_path / "a", save_every=100)
    with monkeypatch.context() as patch:
        patch.setattr(preemption, "requested", lambda step=0: step == 2)
        with pytest.raises(preemption.Preempted, match="saved step 3"):
            run(tmp_path / "b", save_every=100)
    assert checkpoints_lib.Checkpoints(tmp_path / "b" / "checkpoints").latest() == 3
    got = run(tmp_path / "b", save_every=100)
    np.testing.assert_array_equal(got[0], want[0])
    assert got[1:] == want[1:]


def test_snapshots_stay_and_the_last_step_holds_weights_only(tmp_path):
    run(tmp_path, num_steps=9, save_every=100, snapshot_every=2)
    store = checkpoints_lib.Checkpoints(tmp_path / "checkpoints")
    assert store.steps() == [2, 4, 6, 8, 9]
    assert (
        not (store.path / "00000009" / "optimiser").exists()
        and not (store.path / "00000002" / "optimiser").exists()
    )


def test_a_damaged_last_checkpoint_is_trained_again(tmp_path, capsys):
    want = run(tmp_path)
    for path in (tmp_path / "checkpoints" / "00000007").rglob("*"):
        if path.is_file() and "/d/" in str(path):
            path.write_bytes(b"")
    got = run(tmp_path)
    np.testing.assert_array_equal(got[0], want[0])
    assert got[1] == want[1] and "going back to the step before" in capsys.readouterr().err


@pytest.fixture
def slow():
    """A step that takes the device some 20 ms."""

    @jax.jit
    def step(state, data):
        w = jax.lax.fori_loop(0, 40, lambda _, w: jnp.tanh(w @ w + data), state["params"]["w"])
        return {"params": {"w": w}}, {"loss": jnp.sum(w), "tokens": jnp.float32(3)}

    state = {"params": {"w": jax.device_put(jnp.eye(384), PLACE)}}
    jax.block_until_ready(step(state, np.float32(0)))
    return state, step


def test_the_next_step_is_dispatched_before_numbers_are_read_and_while_the_device_works(
    tmp_path, monkeypatch, slow
):
    start, step = slow
    events, before = [], []

    def advance(state, number):
        events.append(("dispatch", number))
        if before:  # the batch of this step would be made here
            events.append(("busy", number, not before[-1].is_ready()))
        state, scalars = step(state, np.float32(number))
        before.append(scalars["loss"])
        return state, scalars

    fetch = sharding.fetch
    monkeypatch.setattr(
        train.sharding, "fetch", lambda tree: events.append(("read",)) or fetch(tree)
    )
    abstract = {"params": state_lib.abstract_of(start["params"])}
    fit(context(tmp_path), 4, 100, abstract, lambda: start, advance)
    order = [event[0] if event[0] == "read" else event[1] for event in events if event[0] != "busy"]
    assert order[:6] == [0, 1, "read", 2, "read", 3]
    assert [event[2] for event in events if event[0] == "busy"] == [True] * 3


def test_seconds_of_steps_add_up_to_the_time_that_passed(tmp_path, slow):
    start, step = slow
    abstract = {"params": state_lib.abstract_of(start["params"])}

    def advance(state, number):
        state, scalars = step(state, np.float32(number))
        return state, {**scalars, "own_seconds": 0.25}

    def meter(values, seconds):
        return {"rate": values["tokens"] / seconds}

    began = time.monotonic()
    fit(context(tmp_path), 5, 100, abstract, lambda: start, advance, meter=meter)
    passed = time.monotonic() - began
    rows = read_rows(tmp_path / "timing.jsonl")
    assert 0.5 * passed < sum(row["seconds"] for row in rows) < passed
    assert all(
        row["rate"] == pytest.approx(3 / row["seconds"]) and row["own_seconds"] == 0.25
        for row in rows
    )
    assert "own_seconds" not in read_rows(tmp_path / "metrics.jsonl")[0]


def test_a_stop_while_a_step_samples_saves_what_was_learned_before_it(tmp_path):
    """rl samples for minutes before it learns: a SIGTERM there must not lose the updates since the
    last save."""
    want = run(tmp_path / "a", save_every=100)
    asked = []

    def advance(state, step):
        if step == 3 and not asked:
            asked.append(step)
            raise preemption.Preempted("stage 'toy': finished rows are saved")
        return update(state, np.float32(math.sin(step)))

    def again(path):
        return fit(context(path), 7, 100, ABSTRACT, init, advance)

    with pytest.raises(preemption.Preempted, match="saved step 3 and stopped"):
        again(tmp_path / "b")
    assert checkpoints_lib.Checkpoints(tmp_path / "b" / "checkpoints").steps() == [3]
    np.testing.assert_array_equal(again(tmp_path / "b")["params"]["w"], want[0])
    assert (tmp_path / "b" / "metrics.jsonl").read_text() == want[1]


def test_a_gradient_of_zero_and_a_slow_step_are_named_once(capsys):
    warn = train.Warnings("[sl]", "step")
    warn.check({"grad_norm": 0.1}, 200.0, 1)  # compiled
    assert capsys.readouterr().err == ""
    for step in (2, 3, 4):
        warn.check({"grad_norm": 0.0}, 200.0, step)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "[sl] grad_norm is 0 at step 2" in lines[0] and "200 s" in lines[1]


def test_a_dead_model_is_named_by_the_loop(tmp_path, capsys):
    def advance(state, step):
        state, scalars = update(state, np.float32(0))
        return state, scalars | {"grad_norm": jnp.float32(step == 0)}

    fit(context(tmp_path), 3, 100, ABSTRACT, init, advance)
    assert capsys.readouterr().err.count("grad_norm is 0 at step 2") == 1


@pytest.mark.parametrize("name", ["grad_norm", "value_loss", "value_grad_norm"])
def test_every_number_that_training_needs_is_finite(tmp_path, name):
    """Not the loss alone: a gradient may overflow where the loss does not."""

    def advance(state, step):
        return state, {"loss": 1.0, name: np.inf if step == 2 else 1.0}

    with pytest.raises(UserError, match=f"{name} is inf at step 3"):
        fit(context(tmp_path), 5, 2, ABSTRACT, init, advance)
