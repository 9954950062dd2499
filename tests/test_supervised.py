"""What sl, pm and harm share: sums that the metrics show as means."""

import types

import jax.numpy as jnp
import numpy as np

from cai_jax.io.metrics import read_rows
from cai_jax.training import state as state_lib
from cai_jax.training import supervised
from configs import default
from tests.recording import stage
from tests.test_training_learner import CONFIG, MESH, PARAMS


def test_named_sums_are_divided_by_the_count(tmp_path, monkeypatch):
    fields = default.sl(**{"num_epochs": 2, "batch_size": 2, "log_every_steps": 1})
    ctx, _ = stage(tmp_path, "sl", fields)
    ctx.mesh = MESH
    model = types.SimpleNamespace(
        params=state_lib.copy(PARAMS), config=CONFIG, trained=None, adapters=None, name="base"
    )
    model.release = lambda: setattr(model, "params", None)
    steps = supervised.Steps.of(ctx, ["a", "b", "c"], [[4], [5], [6]])
    assert steps.num_steps == 4 and steps.mean_length == 5.0

    def loss(params, batch):
        total = jnp.sum(params["embed"] ** 2)
        return total, (jnp.float32(4), {"right": jnp.float32(3), "tokens": jnp.float32(5)})

    def batch(indices):
        return {"segments": np.ones((1, 4), np.int32)}

    params = supervised.fit(ctx, model, steps, batch, loss, means=("right",))
    rows = read_rows(ctx.directory.path / "metrics.jsonl")
    assert [row["right"] for row in rows] == [0.75] * 4 and rows[0]["tokens"] == 5.0
    assert rows[0]["loss"] > rows[-1]["loss"] and model.params is None
    assert float(jnp.sum(params["embed"] ** 2)) < float(jnp.sum(PARAMS["embed"] ** 2))
    assert ctx.tokens == {"trained": 20}
    summary = supervised.summary(ctx, 4, {"examples": 3})
    assert summary["steps"] == 4 and summary["examples"] == 3
    assert summary["headline"].endswith("in 4 steps")
