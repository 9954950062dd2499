"""A training step takes nothing from the host but its batch, which is put on the device by name,
and gives nothing back."""

import dataclasses
import types

import jax
import pytest
from etils import epath
from ml_collections import ConfigDict

from cai_jax.core import sharding
from cai_jax.io import artefacts
from cai_jax.io.metrics import read_rows
from cai_jax.stages import pm, sl
from cai_jax.stages.context import StageContext
from cai_jax.training import state as state_lib
from configs import default
from tests import test_training_learner as learning

REVISIONS = [
    {
        "id": f"p{i}",
        "dialogue": [{"role": "human", "text": f"question {i}?"}],
        "initial": "bad",
        "rounds": [{"revision": f"revision {i}"}],
    }
    for i in range(6)
]
SHORT = default.optimisation(1e-3, 2) | {
    "max_length": 256,
    "log_every_steps": 1,
    "warmup_steps": 2,
    "schedule": "cosine",
}


@pytest.fixture
def guarded(monkeypatch):
    """Every step of a training stage may only move what it moves explicitly. The list of the steps
    that were taken."""
    make, steps = state_lib.make_update, []

    def make_guarded(*given):
        update = make(*given)

        def step(state, batch):
            with jax.transfer_guard("disallow"):
                steps.append(len(steps))
                return update(state, batch)

        return step

    monkeypatch.setattr(state_lib, "make_update", make_guarded)
    return steps


def context(kind, path, tiny_model, inputs=None, **fields):
    run_config = default.base_config()
    run_config.models.base = f"random:{tiny_model}"
    path, mesh = epath.Path(path), sharding.make_mesh({"data": 1}, jax.devices()[:1])
    return StageContext(
        kind,
        ConfigDict(getattr(default, kind)(**SHORT, **fields)),
        run_config,
        path,
        artefacts.StageDirectory(path / kind),
        inputs or {},
        mesh,
    )


def test_supervised(guarded, tmp_path, tiny_model):
    given = {"revisions": types.SimpleNamespace(records=lambda: REVISIONS)}
    ctx = context("sl", tmp_path, tiny_model, given)
    sl.run(ctx)
    assert guarded == [0, 1, 2]
    rates = read_rows(tmp_path / "sl" / "timing.jsonl")
    assert len(rates) == 3
    for row in rates:
        assert row["flops_per_second"] > row["tokens_per_second"] > 0 and row["seconds"] > 0
        assert row["peak_memory_bytes"] >= row["memory_bytes"] > 2**20
        assert "mfu" not in row  # nobody publishes what a CPU can do


def test_preference_model(guarded, tmp_path, tiny_model):
    ctx = context("pm", tmp_path, tiny_model)
    ctx.config.human.update({"source": "embedded:helpful_comparisons", "limit": 6})
    pm.run(ctx)
    assert (
        len(guarded) >= 2 and "flops_per_second" in read_rows(tmp_path / "pm" / "timing.jsonl")[0]
    )


@pytest.mark.parametrize("shared", [False, True])
def test_minibatches_of_ppo(shared):
    learner = learning.lib.Learner(
        learning.CONFIG,
        learning.CONFIG,
        dataclasses.replace(learning.SETTINGS, shared=shared),
        learning.MESH,
    )
    state, batch = learning.start(learner), learning.rollouts()
    frozen = learner.freeze(state, learning.PARAMS, batch)
    with jax.transfer_guard("disallow"):
        learner.learn(state, batch, frozen, 0)
