"""Adapters: nothing changes at the start, merged is unmerged, and what is trained on a base leaves
it alone."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import cases
from test_training_learner import CONFIG, MESH, PARAMS, SETTINGS, rollouts

from cai_jax.core import optim, sharding
from cai_jax.engine import weights
from cai_jax.errors import UserError
from cai_jax.models import heads, lora, rounding
from cai_jax.models.config import ModelConfig
from cai_jax.models.decoder import hidden_states
from cai_jax.models.params import init_params, param_table
from cai_jax.stages import sl
from cai_jax.training import batching
from cai_jax.training import learner as learner_lib
from cai_jax.training import state as state_lib

ADAPTERS = lora.Adapters(rank=3, alpha=6.0)


def filled(config, adapters, seed=0):
    """Adapters of which B is not 0."""
    shapes = lora.abstract(config, adapters)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.1, jnp.float32), shapes
    )


run = jax.jit(hidden_states, static_argnums=3, static_argnames=("scan", "remat"))


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        pytest.param("gemma3", marks=pytest.mark.long),
        pytest.param("gpt_neox", marks=pytest.mark.long),
    ],
)
def test_new_adapters_change_no_bit_and_merged_is_unmerged(name):
    config = ModelConfig.from_hf(cases.CASES[name])
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    tokens, mask = cases.batch(left=False)
    for scan in (False, True) if name == "llama" else (True,):
        plain = run(params, tokens, mask, config, scan=scan)
        new = lora.attach(params, lora.init(config, ADAPTERS, jax.random.key(1)), ADAPTERS)
        np.testing.assert_array_equal(run(new, tokens, mask, config, scan=scan), plain)
        attached = lora.attach(params, filled(config, ADAPTERS), ADAPTERS)
        unmerged, merged = (
            run(tree, tokens, mask, config, scan=scan) for tree in (attached, lora.merge(attached))
        )
        assert np.abs(unmerged - plain).max() > 1e-2
        np.testing.assert_allclose(
            unmerged[mask], merged[mask], atol=1e-5 * float(np.abs(merged).max())
        )


@pytest.mark.parametrize("form", [{}, {"fuse": True, "out_major": True}, {"int8": True}])
def test_the_sampler_adds_up_what_merge_adds_up(form):
    for base in (PARAMS, rounding.round_layers(PARAMS)):
        attached = lora.attach(base, filled(CONFIG, ADAPTERS), ADAPTERS)
        ours, merged = (
            weights.prepare(params, CONFIG, **form) for params in (attached, lora.merge(attached))
        )
        assert jax.tree.structure(ours) == jax.tree.structure(merged)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1 if a.dtype == jnp.int8 else 1e-6),
            ours,
            merged,
        )


def test_a_matrix_by_hand():
    """W + alpha / rank · A·B, written with loops over heads."""
    attached = lora.attach(PARAMS, filled(CONFIG, ADAPTERS), ADAPTERS)
    merged, trained = lora.merge(attached), filled(CONFIG, ADAPTERS)["layers"]
    a, b = np.asarray(trained["q"]["a"]), np.asarray(trained["q"]["b"])
    for head in range(CONFIG.num_heads):
        want = np.asarray(PARAMS["layers"]["q"])[0, :, head] + 2.0 * a[0] @ b[0, :, head]
        np.testing.assert_allclose(merged["layers"]["q"][0, :, head], want, atol=1e-6)
    a, b = np.asarray(trained["o"]["a"]), np.asarray(trained["o"]["b"])
    want = np.asarray(PARAMS["layers"]["o"])[0, 1] + 2.0 * a[0, 1] @ b[0]
    np.testing.assert_allclose(merged["layers"]["o"][0, 1], want, atol=1e-6)
    assert (
        merged["embed"] is PARAMS["embed"]
        and lora.base_of(attached)["layers"]["q"] is PARAMS["layers"]["q"]
    )


@pytest.mark.parametrize("name", cases.CASES)
def test_adapters_lie_as_their_matrices(name):
    config = ModelConfig.from_hf(cases.CASES[name])
    mesh = types.SimpleNamespace(shape={"data": 1, "fsdp": 2, "tensor": 2})
    for path, spec in lora.table(config, ADAPTERS).items():
        matrix, stop = param_table(config)[path[:2]], 1 + lora.MATRICES[path[1]]
        whole = sharding.spec(matrix.axes, matrix.shape, mesh)
        found = sharding.spec(spec.axes, spec.shape, mesh)
        assert found == (
            jax.sharding.PartitionSpec(*whole[:stop], None)
            if path[2] == "a"
            else jax.sharding.PartitionSpec(whole[0], None, *whole[stop:])
        )


def test_fields():
    read = lora.Adapters.from_fields
    assert read(None, "x") is read({"rank": 0, "alpha": 1.0, "targets": ("all",)}, "x") is None
    assert read({"rank": 2, "alpha": 4, "targets": ("v,q",)}, "x") == lora.Adapters(
        2, 4.0, ("v", "q")
    )
    assert lora.Adapters(2, 4.0, ("v", "q")).names(CONFIG) == ("q", "v")
    wrong = [
        ({"targets": ("q", "mlp")}, "q, k, v, o, gate, up, down, not 'mlp'"),
        ({"targets": ()}, "x.targets"),
    ]
    for fields, says in wrong:
        with pytest.raises(UserError, match=says) as caught:
            read({"rank": 2, "alpha": 4, "targets": ("q",), **fields}, "x")
        assert "\n" not in str(caught.value)
    with pytest.raises(
        UserError, match="gpt_neox has no matrix 'gate'; it has q, k, v, o, up, down"
    ):
        lora.Adapters(2, 4.0, ("gate",)).names(ModelConfig.from_hf(cases.CASES["gpt_neox"]))


def start(learner, shared=False):
    def new(seed):
        return state_lib.start(CONFIG, PARAMS, MESH, np.array([0, seed], np.uint32), ADAPTERS)

    head = heads.init_head(CONFIG, jax.random.key(1))
    return learner.init(new(1), head if shared else {"decoder": new(2), "head": head}, 0.1)


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.long)])
def test_ppo_over_one_base(shared):
    """State and gradients have adapters and head only; reference, policy and value model use the
    very same arrays."""
    settings = dataclasses.replace(SETTINGS, shared=shared, value_coefficient=1.0)
    learner = learner_lib.Learner(
        CONFIG, CONFIG, settings, MESH, bases=learner_lib.Bases(ADAPTERS, PARAMS, PARAMS)
    )
    batch, state = rollouts(), start(learner, shared)
    before = jax.tree.map(np.asarray, PARAMS)
    frozen = learner.freeze(state, PARAMS, batch)
    np.testing.assert_allclose(frozen["old"], frozen["ref"], atol=1e-6)
    policy = learner.policy(state)
    assert all(
        lora.base_of(policy)["layers"][name] is leaf for name, leaf in PARAMS["layers"].items()
    )
    state, history = learner.learn(state, batch, frozen, 0)
    assert history[0]["ratio_error"] < 1e-4 < history[-1]["ratio_error"]
    size = sum(leaf.size for leaf in jax.tree.leaves(lora.abstract(CONFIG, ADAPTERS)))
    for name, copies in (
        ("params", 1),
        ("optimiser", 2),
        *[("value", 1), ("value_optimiser", 2)] * (not shared),
    ):
        assert (
            sum(leaf.size for leaf in jax.tree.leaves(state[name]) if leaf.ndim > 1)
            == copies * size
        )  # the head is 1-D
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(state["params"]))  # every B has moved
    again = learner.freeze(state, PARAMS, batch)
    assert np.abs(again["old"] - again["ref"]).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, PARAMS, before)
    merged, _ = learner.policy_logprobs(lora.merge(learner.policy(state)), batch)
    np.testing.assert_allclose(np.where(batch.actions, merged, 0), again["old"], atol=1e-5)


def test_supervised_step_trains_adapters_only():
    tx = optim.adam(3e-2)
    params = state_lib.abstract_params(CONFIG, "policy", MESH, adapters=ADAPTERS)
    abstract = {"params": params, "optimiser": state_lib.abstract_optimiser(tx, params, MESH)}
    update = state_lib.make_update(
        sl.make_loss(CONFIG, jnp.float32, chunk=0), tx, abstract, MESH, 1, ADAPTERS, PARAMS
    )
    trained = state_lib.start(CONFIG, PARAMS, MESH, np.array([0, 1], np.uint32), ADAPTERS)
    state = {"params": trained, "optimiser": state_lib.init_optimiser(tx, trained, MESH)}
    rng = np.random.default_rng(0)
    batch = sl.make_batch(
        [sl.Example("x", rng.integers(0, 11, 9).astype(np.int32), np.arange(9) >= 4)],
        batching.Shape(1, 16),
    )
    losses = []
    for _ in range(8):
        state, scalars = update(state, batch)
        losses.append(float(scalars["loss"]))
    assert losses[-1] < losses[0] - 0.1
    assert jax.tree.structure(state["params"]) == jax.tree.structure(params)
