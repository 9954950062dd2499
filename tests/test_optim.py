"""Schedules by hand, Adam against torch, and microbatches against the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cai_jax.core import losses, optim


def test_schedules_by_hand():
    constant = optim.learning_rate(1.0, warmup_steps=3)
    np.testing.assert_allclose([constant(i) for i in range(6)], [0.25, 0.5, 0.75, 1, 1, 1])
    linear = optim.learning_rate(1.0, schedule="linear", warmup_steps=1, num_steps=5)
    np.testing.assert_allclose(
        [linear(i) for i in range(6)], [0.5, 1, 0.75, 0.5, 0.25, 0], atol=1e-7
    )
    cosine = optim.learning_rate(2.0, schedule="cosine", num_steps=4)
    np.testing.assert_allclose([cosine(i) for i in (0, 2, 4)], [2, 1, 0], atol=1e-6)
    with pytest.raises(ValueError, match="constant, linear, cosine"):
        optim.learning_rate(1.0, schedule="cosin")


def test_adam_with_clipping_and_decay_matches_its_definition():
    """Kingma & Ba's algorithm 1 with decoupled decay, written out in float64."""
    rng = np.random.default_rng(0)
    start = {"w": rng.normal(size=(4, 3)), "attn_norm": rng.normal(size=(2, 3))}
    all_grads = [
        {name: scale * rng.normal(size=x.shape) for name, x in start.items()}
        for scale in (0.1, 3.0, 1.0)
    ]
    tx = optim.adam(0.01, max_grad_norm=1.0, weight_decay=0.1, b1=0.9, b2=0.99, eps=1e-5)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)
    state = tx.init(params)
    m, v = ({name: np.zeros_like(x) for name, x in start.items()} for _ in range(2))
    for step, grads in enumerate(all_grads, 1):
        params, state, norm = optim.apply_gradients(
            tx, jax.tree.map(np.float32, grads), state, params
        )
        true_norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        np.testing.assert_allclose(norm, true_norm, rtol=1e-5)
        for name, g in grads.items():
            g = g / max(true_norm, 1.0)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.99 * v[name] + 0.01 * g**2
            direction = m[name] / (1 - 0.9**step) / (np.sqrt(v[name] / (1 - 0.99**step)) + 1e-5)
            start[name] = start[name] - 0.01 * (
                direction + (0.1 * start[name] if name == "w" else 0.0)
            )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, start)


def loss(params, batch):
    logprobs = losses.token_logprobs(
        batch["hidden"] @ params["inner"], params["outer"], batch["tokens"], chunk=2
    )
    total, count = losses.response_loss(logprobs, batch["mask"])
    return total, (count, {"seen": count, "worst_error": jnp.max(-logprobs)})


def test_microbatches_equal_the_whole_batch():
    """Rows with very different token counts (one row has none): no row is over-weighted."""
    rng = np.random.default_rng(1)
    params = {"inner": rng.normal(size=(5, 6)), "outer": rng.normal(size=(9, 6))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    lengths = np.array([1, 7, 0, 3, 7, 2, 5, 1])
    batch = {
        "hidden": rng.normal(size=(8, 7, 5)).astype(np.float32),
        "tokens": rng.integers(0, 9, (8, 7)),
        "mask": np.arange(7) < lengths[:, None],
    }
    results = [
        jax.jit(optim.sum_gradients, static_argnums=(0, 3))(loss, params, batch, m)
        for m in (1, 2, 8)
    ]
    for total, grads, count, sums in results[1:]:
        np.testing.assert_allclose(total, results[0][0], rtol=1e-6)
        assert float(count) == lengths.sum() == float(sums["seen"])
        np.testing.assert_allclose(sums["worst_error"], results[0][3]["worst_error"], rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
            grads,
            results[0][1],
        )

    def filled(part):
        return jnp.any(part["mask"])

    spared = jax.jit(optim.sum_gradients, static_argnums=(0, 3, 4))(
        loss, params, batch, 8, filled
    )  # the row without a token
    jax.tree.map(np.testing.assert_array_equal, spared, results[2])
    # The mean of per-row means, the usual mistake, is another number.
    logprobs = losses.token_logprobs(
        batch["hidden"] @ params["inner"], params["outer"], batch["tokens"]
    )
    rows = [-np.mean(np.asarray(logprobs[i, :n])) for i, n in enumerate(lengths) if n]
    assert abs(np.mean(rows) - float(results[0][0])) > 1e-2


def test_the_work_of_empty_microbatches_is_spared():
    """What is not filled is not looked at: there the numbers are no numbers."""
    params = {"inner": jnp.ones((5, 6)), "outer": jnp.ones((9, 6))}
    mask = jnp.array([[True], [False], [True], [False]]).repeat(3, axis=1)
    batch = {
        "hidden": jnp.where(mask[..., None], 1.0, jnp.nan).repeat(5, axis=2),
        "tokens": jnp.zeros((4, 3), jnp.int32),
        "mask": mask,
    }
    for filled, finite in ((lambda part: jnp.any(part["mask"]), True), (None, False)):
        total, grads, count, _ = jax.jit(optim.sum_gradients, static_argnums=(0, 3, 4))(
            loss, params, batch, 2, filled
        )
        assert float(count) == 6 and bool(jnp.isfinite(optax.global_norm(grads))) == finite


def test_batch_must_divide():
    with pytest.raises(AssertionError):
        optim.split_microbatches({"x": jnp.zeros((6, 2))}, 4)


def test_empty_batch_moves_nothing():
    params = {"inner": jnp.ones((5, 6)), "outer": jnp.ones((9, 6))}
    batch = {
        "hidden": jnp.ones((2, 3, 5)),
        "tokens": jnp.zeros((2, 3), jnp.int32),
        "mask": jnp.zeros((2, 3), bool),
    }
    total, grads, count, _ = optim.sum_gradients(loss, params, batch, 2)
    assert float(total) == 0 and float(count) == 0 and float(optax.global_norm(grads)) == 0
