"""The engine on eight virtual devices against one: sampled rows and scores behind a header, split
(2, 2, 2)."""

import json
import os
import subprocess
import sys

MESH = """
import dataclasses, json
import jax, numpy as np
from cai_jax import seeds
from cai_jax.core import sharding
from cai_jax.models import heads, params as P
from tests.small_config import SMALL
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.structs import SampleRequest, Sampling, ScoreRequest

config = dataclasses.replace(SMALL, num_layers=1, max_length=128)
host = jax.tree.map(np.asarray, P.init_params(config, jax.random.key(0)))
host["embed"] = host["embed"] * 10  # so that the distributions are not flat
rng = np.random.default_rng(0)
header = tuple(map(int, rng.integers(8, 96, 70)))
prompts = [(header, tuple(map(int, rng.integers(8, 96, rng.integers(3, 12))))) for _ in range(12)]


class Format:
    eos_ids, decode = (7,), staticmethod(lambda tokens: "")


def run(sizes, devices):
    mesh = sharding.make_mesh(sizes, devices)
    shapes, axes = heads.abstract_model(config, "policy")
    params = sharding.put(host, sharding.tree_shardings(axes, shapes, mesh))
    engine = Engine(params, config, Format, mesh, EngineOptions(batch_size=8, chunk_steps=4))
    asked = [
        SampleRequest(str(n), prompt, seeds.row_key(0, "t", n)) for n, prompt in enumerate(prompts)
    ]
    done = {item.id: item for item in engine.generate(asked, Sampling(max_new_tokens=12))}
    options = ((9, 10), (11,))
    scores = [
        score.logprobs
        for score in engine.score(
            [ScoreRequest(str(n), p, options) for n, p in enumerate(prompts[:4])]
        )
    ]
    return done, scores, engine


one, scores, _ = run({}, jax.devices()[:1])
many, others, engine = run({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices())
engine.runner.kernel = "splash_interpreted"  # the TPU's, each device with its own heads
engine.prompts.store.clear()
flash = [
    score.logprobs
    for score in engine.score(
        [ScoreRequest(str(n), p, ((9, 10), (11,))) for n, p in enumerate(prompts[:4])]
    )
]
print(
    json.dumps(
        {
            "flash": float(np.abs(np.subtract(scores, flash)).max()),
            "devices": len(engine.runner.weights["layers"][0]["gate"].sharding.device_set),
            "split": engine.runner.weights["layers"][0]["gate"].addressable_shards[0].data.shape,
            "rows": sum(one[name].tokens != many[name].tokens for name in one),
            "lengths": sorted({len(x.tokens) for x in one.values()}),
            "logprobs": max(
                float(np.abs(np.subtract(one[n].logprobs, many[n].logprobs)).max())
                for n in one
                if one[n].tokens == many[n].tokens
            ),
            "scores": float(np.abs(np.subtract(scores, others)).max()),
        }
    )
)
"""


def test_eight_devices_sample_and_score_as_one():
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles faster
    done = subprocess.run(
        [sys.executable, "-c", MESH], capture_output=True, text=True, env=env, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8 and found["split"] == [
        32,
        32,
    ]  # the MLP is split in two by tensor, whole along fsdp
    assert found["rows"] == 0 and len(found["lengths"]) > 1, (
        found
    )  # some rows ended early, others took their slots
    assert found["logprobs"] <= 1e-5 and found["scores"] <= 1e-5, found
    assert 0 < found["flash"] <= 1e-5, found
