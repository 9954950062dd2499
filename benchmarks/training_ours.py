"""Our sides of `benchmarks.training`: the stages' own step functions on work that is given as
tokens."""

from __future__ import annotations

import dataclasses
import time
import types

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import sides
from cai_jax.core import optim, sharding
from cai_jax.data.dialogue import load_format
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.io import memory
from cai_jax.models import heads, hf, lora
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.stages import sl
from cai_jax.structs import Message, Sampling
from cai_jax.training import batching, learner, rollouts
from cai_jax.training import state as state_lib


def _begin(work):
    """(config, params, mesh, what is known of compilations: a function)."""
    compilations = sides.compilations()
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    config, params = hf.load_hf(work["model"], dtype=jnp.float32, mesh=mesh)
    return config, params, mesh, compilations


def supervised(work):
    """One step on rows × length tokens, all of them learned."""
    config, params, mesh, compilations = _begin(work)
    rows = work["rows"]
    tx = optim.adam(1e-5, max_grad_norm=1.0, weight_decay=0.01)
    abstract = {"params": state_lib.abstract_params(config, "policy", mesh)}
    abstract["optimiser"] = state_lib.abstract_optimiser(tx, abstract["params"], mesh)
    loss = sl.make_loss(config, jnp.float32, chunk=work["chunk"], scan=True, remat="none")
    update = state_lib.make_update(loss, tx, abstract, mesh, 1)
    params = state_lib.copy(params)  # what was loaded goes before the optimiser's moments come
    state = state_lib.put_like(
        {"params": params, "optimiser": state_lib.init_optimiser(tx, params, mesh)}, abstract
    )
    del params
    memory.give_back()  # as training/train.py does
    examples = [
        sl.Example(str(n), np.array(row, np.int32), np.arange(len(row)) > 0)
        for n, row in enumerate(rows)
    ]
    order = batching.Order(len(rows), len(rows), 0, "sl")
    shape = batching.common_shape([len(row) for row in rows], order, 1, 1)
    state, scalars = update(state, sl.make_batch(examples, shape))
    yield compilations() | {"loss": float(scalars["loss"]), "shape": shape}
    while True:
        state, scalars = update(state, sl.make_batch(examples, shape))
        jax.block_until_ready(state)
        yield {"loss": float(scalars["loss"])}


def _ppo(work, rank: int, shared: bool):
    """A complete update as stages/rl.py makes it, its models already on the device: sample, score,
    freeze, learn."""
    # --- four roles on one model
    config, params, mesh, compilations = _begin(work)
    format, new = load_format(work["model"]), work["new_tokens"]
    adapters = lora.Adapters(rank, 16.0) if rank else None
    bases = adapters and learner.Bases(adapters, params, params)
    head = heads.init_head(config, jax.random.key(0))
    key = jax.random.key_data(jax.random.key(1))

    def start():
        return state_lib.start(config, params, mesh, key, adapters)

    settings = learner.Settings(
        num_epochs=work["epochs"],
        num_minibatches=work["minibatches"],
        shared=shared,
        logprob_chunk=work["chunk"],
    )
    learns = learner.Learner(config, config, settings, mesh, jnp.float32, bases=bases)
    judge = {"decoder": lora.attach(params, start(), adapters), "head": head}
    value = {name: jnp.array(leaf) for name, leaf in head.items()}
    state = learns.init(
        start(), value if shared else state_lib.with_head(start(), value, mesh), 0.001
    )
    memory.give_back()  # as training/train.py does
    score = RewardModel(judge, config, format, mesh).score_tokens

    # --- prompts
    dialogue = (Message("human", ""),)
    prompts = [
        rollouts.PromptTokens(str(n), dialogue, None, (tuple(row),))
        for n, row in enumerate(work["prompts"])
    ]
    length = rollouts.longest(prompts, new)

    # --- updates
    update, fields = (
        0,
        types.SimpleNamespace(
            rollouts_per_update=len(prompts), group_size=1, helpful_fraction=None
        ),
    )
    while True:
        learns.settings = dataclasses.replace(
            settings, num_epochs=settings.num_epochs if update else 1
        )
        began = time.perf_counter()
        drawn = rollouts.draw(prompts, update, fields, 0, "rl")
        engine = Engine(
            learns.policy(state),
            config,
            format,
            mesh,
            EngineOptions(batch_size=len(prompts), chunk_steps=16, max_length=1024),
        )
        engine.eos_ids = ()  # every row runs to its length, ours and theirs
        asked = rollouts.requests(drawn, update, 0, "rl")
        completions = {done.id: done for done in engine.generate(asked, Sampling(new))}
        del engine
        memory.give_back()
        batch = rollouts.assemble(drawn, completions, length)
        assert batch.actions.sum() == new * len(prompts)
        sampled = time.perf_counter()
        batch.scores = score([prompt.tokens + completions[name].tokens for name, prompt in drawn])
        frozen = learns.freeze(state, params, batch)
        scored = time.perf_counter()
        state, history = learns.learn(state, batch, frozen, update)
        jax.block_until_ready(state)
        numbers = {
            "rollout_seconds": sampled - began,
            "score_seconds": scored - sampled,
            "learn_seconds": time.perf_counter() - scored,
            "steps": len(history),
            "length": length,
            "sampler_gap": float(
                np.abs(np.where(batch.actions, batch.sampled - frozen["old"], 0)).max()
            ),
        }
        if update == 0:  # compiles, or reads what was compiled
            numbers |= compilations()
        yield numbers
        update += 1


def ppo(work):
    return _ppo(work, 0, False)


def ppo_shared(work):
    return _ppo(work, 0, True)


def ppo_adapters(work):
    return _ppo(work, 16, False)


def ppo_adapters_shared(work):
    return _ppo(work, 16, True)
