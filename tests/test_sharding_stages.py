"""Five mesh shapes of eight virtual devices against one device: sampled rows, log-probabilities,
PPO steps, PM scores."""

import json
import os
import subprocess
import sys

import pytest

MESHES = """
import dataclasses, json
import jax, numpy as np
from cai_jax import seeds
from cai_jax.core import sharding
from cai_jax.models import heads, params as P
from tests.small_config import SMALL
from cai_jax.rewards import preference_model as rewards
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.structs import SampleRequest, Sampling
from cai_jax.training import learner as L

config = dataclasses.replace(SMALL, max_length=128)
host = jax.tree.map(np.asarray, P.init_params(config, jax.random.key(0)))
host["embed"] = host["embed"] * 10  # so that the distributions are not flat
head = jax.tree.map(np.asarray, heads.init_head(config, jax.random.key(1)))
rng = np.random.default_rng(0)
prompts = [tuple(map(int, rng.integers(8, 96, rng.integers(3, 12)))) for _ in range(12)]


class Format:
    eos_ids, decode = (7,), staticmethod(lambda tokens: "")


def place(tree, kind, mesh):
    shapes, axes = heads.abstract_model(config, kind)
    return sharding.put(tree, sharding.tree_shardings(axes, shapes, mesh))


def rollouts(done):
    rows = [prompt + done[str(n)].tokens for n, prompt in enumerate(prompts)]
    tokens, mask, actions = (np.zeros((12, 24), kind) for kind in (np.int32, bool, bool))
    for n, row in enumerate(rows):
        tokens[n, : len(row)], mask[n, : len(row)], actions[n, len(prompts[n]) : len(row)] = (
            row,
            True,
            True,
        )
    return L.Rollouts(
        [str(n) for n in range(12)],
        tokens,
        mask,
        actions,
        np.zeros((12, 24), np.float32),
        np.linspace(-1, 1, 12, dtype=np.float32),
    )


def run(sizes, devices, given=None):
    mesh = sharding.make_mesh(sizes, devices)
    engine = Engine(
        place(host, "policy", mesh),
        config,
        Format,
        mesh,
        EngineOptions(batch_size=8, chunk_steps=4),
    )
    asked = [
        SampleRequest(str(n), (prompt,), seeds.row_key(0, "t", n))
        for n, prompt in enumerate(prompts)
    ]
    done = {item.id: item for item in engine.generate(asked, Sampling(max_new_tokens=12))}
    batch = given or rollouts(done)
    learner = L.Learner(
        config, config, L.Settings(num_minibatches=2, num_microbatches=2, learning_rate=1e-2), mesh
    )
    state = learner.init(
        place(host, "policy", mesh), place({"decoder": host, "head": head}, "reward", mesh), 0.1
    )
    frozen = learner.freeze(state, place(host, "policy", mesh), batch)
    judge = rewards.RewardModel(
        place({"decoder": host, "head": head}, "reward", mesh), config, None, mesh
    )
    scores = judge.score_tokens(prompts)
    state, history = learner.learn(state, batch, frozen, 0)
    # The ratio of probabilities is about 1, and what it is off by is a rounding error: that is
    # compared with 1.
    ratios = [[1 + row.pop("ratio_error"), 1 + row.pop("old_kl")] for row in history]
    numbers = {
        "frozen": frozen,
        "scores": scores,
        "learned": history,
        "ratios": ratios,
        "policy": sharding.fetch(state["params"]),
        "value": sharding.fetch(state["value"]),
    }
    return done, batch, numbers


def error(a, b, least=1e-3):
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), least))


def unit(a, b):  # PPO's loss is a small difference of advantages that are of unit size
    return error(a, b, 1.0)


done, batch, numbers = run({}, jax.devices()[:1])
result = {}
for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2)):
    other, _, again = run(dict(zip(sharding.MESH_AXES, sizes)), jax.devices(), batch)
    names = {
        name: max(
            jax.tree.leaves(
                jax.tree.map(unit if name == "learned" else error, again[name], numbers[name])
            )
        )
        for name in numbers
    }
    names["rows"] = sum(other[name].tokens != done[name].tokens for name in done)
    result[str(sizes)] = names
print(json.dumps(result))
"""


@pytest.mark.long
def test_five_meshes_sample_score_and_learn_as_one_device():
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles faster
    done = subprocess.run(
        [sys.executable, "-c", MESHES], capture_output=True, text=True, env=env, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for mesh, found in json.loads(done.stdout.splitlines()[-1]).items():
        print(mesh, {name: f"{value:.1e}" for name, value in found.items()})
        assert found.pop("rows") == 0, (mesh, "sampled rows differ")
        # Adam divides by the root of the second moment: a gradient that is nearly 0 moves its
        # parameter by a rounding error.
        limits = {"policy": 1e-3, "value": 1e-3}
        assert all(value <= limits.get(name, 1e-5) for name, value in found.items()), (mesh, found)
