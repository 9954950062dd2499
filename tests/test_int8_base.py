"""Adapters on a base in 8 bits: it is computed with as it is, gradients reach adapters alone, and
what it costs is bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_lora import filled
from test_training_learner import CONFIG, MESH, PARAMS, SETTINGS, rollouts

from cai_jax.core import losses, optim, sharding
from cai_jax.errors import UserError
from cai_jax.models import heads, hf, lora, rounding
from cai_jax.models.config import ModelConfig
from cai_jax.models.decoder import hidden_states
from cai_jax.models.params import abstract_params, param_axes
from cai_jax.training import learner as learner_lib
from cai_jax.training import state as state_lib

ADAPTERS = lora.Adapters(rank=3, alpha=6.0, base_dtype="int8")
ROUNDED = rounding.round_layers(PARAMS)
RESTORED = lora.merge(ROUNDED)


def test_matrices_are_rounded_and_nothing_else():
    assert (
        ROUNDED["embed"] is PARAMS["embed"]
        and ROUNDED["layers"]["attn_norm"] is PARAMS["layers"]["attn_norm"]
    )
    for name in rounding.MATRICES:
        found, weight = ROUNDED["layers"][name], PARAMS["layers"][name]
        assert found.values.dtype == jnp.int8 and found.values.shape == weight.shape
        step = (
            np.abs(weight).max(axis=tuple(range(1, 1 + rounding.MATRICES[name])), keepdims=True)
            / 127
        )
        assert np.all(np.abs(RESTORED["layers"][name] - weight) <= step / 2 + 1e-7)
    whole, small = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree["layers"])) for tree in (PARAMS, ROUNDED)
    )
    assert small < 0.35 * whole


def test_planned_as_it_is():
    """Shapes and places of what is rounded, without arrays; a scale lies as its channels do."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    shapes = abstract_params(CONFIG)
    planned = rounding.rounded_shapes(
        state_lib.with_shardings(shapes, sharding.tree_shardings(param_axes(CONFIG), shapes, mesh))
    )
    found = rounding.round_layers(
        sharding.put(PARAMS, sharding.tree_shardings(param_axes(CONFIG), shapes, mesh))
    )
    jax.tree.map(
        lambda a, b: (
            (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
            or pytest.fail(f"{a} {b}")
        ),
        planned,
        state_lib.abstract_of(found),
    )
    assert (
        planned["layers"]["q"].scale.sharding.spec[1:2]
        == planned["layers"]["q"].values.sharding.spec[2:3]
    )


def test_a_directory_comes_in_rounded(tmp_path):
    hf.save_hf(tmp_path, CONFIG, PARAMS)
    _, found = hf.load_hf(tmp_path, mesh=MESH, int8=True)
    jax.tree.map(np.testing.assert_array_equal, found, ROUNDED)


@pytest.mark.parametrize("scan", [True, pytest.param(False, marks=pytest.mark.long)])
def test_gradients_are_those_of_the_restored_base(scan):
    tokens, mask = jnp.arange(10).reshape(2, 5), jnp.ones((2, 5), bool)
    trained, direction = (
        filled(CONFIG, ADAPTERS),
        jax.random.normal(jax.random.key(2), (2, 5, CONFIG.width)),
    )

    @jax.jit
    def loss_and_grad(trained, base):
        def loss(trained):
            return jnp.sum(
                hidden_states(lora.attach(base, trained, ADAPTERS), tokens, mask, CONFIG, scan=scan)
                * direction
            )

        return jax.value_and_grad(loss)(trained)

    (loss, grads), (want, want_grads) = (
        loss_and_grad(trained, ROUNDED),
        loss_and_grad(trained, RESTORED),
    )
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * float(np.abs(b).max())),
        grads,
        want_grads,
    )
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


@pytest.mark.long
def test_ppo_on_it():
    """Reference, policy and value model have the same 8-bit arrays; the first ratio is 1; the base
    stays; merged is unmerged."""
    learner = learner_lib.Learner(
        CONFIG, CONFIG, SETTINGS, MESH, bases=learner_lib.Bases(ADAPTERS, ROUNDED, ROUNDED)
    )
    new = [
        state_lib.start(CONFIG, ROUNDED, MESH, np.array([0, seed], np.uint32), ADAPTERS)
        for seed in (1, 2)
    ]
    state = learner.init(
        new[0], {"decoder": new[1], "head": heads.init_head(CONFIG, jax.random.key(1))}, 0.1
    )
    batch, before = rollouts(), jax.tree.map(np.asarray, ROUNDED)
    frozen = learner.freeze(state, ROUNDED, batch)
    np.testing.assert_allclose(frozen["old"], frozen["ref"], atol=1e-6)
    state, history = learner.learn(state, batch, frozen, 0)
    assert history[0]["ratio_error"] < 1e-4 < history[-1]["ratio_error"]
    assert all(
        jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(state["params"])
    )
    jax.tree.map(np.testing.assert_array_equal, ROUNDED, before)
    policy = learner.policy(state)
    assert policy["layers"]["q"].weight.values is ROUNDED["layers"]["q"].values
    merged, _ = learner.policy_logprobs(lora.merge(policy), batch)
    again = learner.freeze(state, ROUNDED, batch)
    np.testing.assert_allclose(np.where(batch.actions, merged, 0), again["old"], atol=1e-5)


def test_twenty_steps_cost_little():
    """Supervised steps from the same start on the base and on the rounded one: the loss stays
    within a percent."""
    tx = optim.adam(3e-2)
    tokens = np.random.default_rng(0).integers(0, 11, (4, 12)).astype(np.int32)
    batch = {
        "tokens": tokens,
        "mask": np.ones_like(tokens, bool),
        "target": np.broadcast_to(np.arange(12) >= 4, tokens.shape),
    }

    def loss(params, batch):
        logprobs = heads.dialogue_logprobs(params, batch["tokens"], batch["mask"], CONFIG, chunk=0)
        total, count = losses.response_loss(logprobs, batch["target"])
        return total, (count, {})

    found = {}
    for name, base, adapters in (
        ("whole", PARAMS, lora.Adapters(3, 6.0)),
        ("int8", ROUNDED, ADAPTERS),
    ):
        params = state_lib.abstract_params(CONFIG, "policy", MESH, adapters=adapters)
        abstract = {"params": params, "optimiser": state_lib.abstract_optimiser(tx, params, MESH)}
        update = state_lib.make_update(loss, tx, abstract, MESH, 1, adapters, base)
        trained = state_lib.start(CONFIG, base, MESH, np.array([0, 1], np.uint32), adapters)
        state, found[name] = (
            {"params": trained, "optimiser": state_lib.init_optimiser(tx, trained, MESH)},
            [],
        )
        for _ in range(20):
            state, scalars = update(state, batch)
            found[name].append(float(scalars["loss"]))
    print({name: (values[0], values[-1]) for name, values in found.items()})
    assert found["whole"][-1] < found["whole"][0] - 0.1
    np.testing.assert_allclose(found["int8"], found["whole"], rtol=0.01)


def test_backward_does_not_keep_a_second_base():
    """What a step needs beside its arguments is far less than the matrices in float32: those in 8
    bits are not restored all at once, and the scan keeps no copy of those that are whole."""
    config = ModelConfig(
        family="llama",
        vocab_size=11,
        width=256,
        ffw=512,
        num_layers=8,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        max_length=64,
        norm_eps=1e-5,
        rope_theta=10000.0,
        tied_embeddings=True,
    )
    tokens, mask = jnp.ones((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    whole = state_lib.abstract_params(config, "policy", MESH)

    def loss(trained, base):
        return jnp.sum(
            hidden_states(lora.attach(base, trained, ADAPTERS), tokens, mask, config, scan=True)
        )

    trained, step = lora.abstract(config, ADAPTERS), jax.jit(jax.grad(loss))
    temps = [
        step.lower(trained, base).compile().memory_analysis().temp_size_in_bytes
        for base in (rounding.rounded_shapes(whole), whole)
    ]
    matrices = sum(4 * leaf.size for leaf in jax.tree.leaves(whole["layers"]) if leaf.ndim > 2)
    print([f"{size / matrices:.2f} of the matrices" for size in temps])
    assert max(temps) < 0.25 * matrices


def test_fields():
    read = lora.Adapters.from_fields
    fields = {"rank": 2, "alpha": 4.0, "targets": ("q",)}
    assert read(fields | {"base_dtype": "int8"}, "x").int8 and not read(fields, "x").int8
    assert read(read(fields | {"base_dtype": "int8"}, "x").to_json(), "x") == lora.Adapters(
        2, 4.0, ("q",), "int8"
    )
    assert read(fields, "x").to_json() == {"rank": 2, "alpha": 4.0, "targets": ["q"]}
    for wrong, says in (
        ({"base_dtype": "int4"}, "x.base_dtype: expected int8"),
        ({"base_dtype": "int8", "rank": 0}, "a rank"),
    ):
        with pytest.raises(UserError, match=says):
            read(fields | wrong, "x")
