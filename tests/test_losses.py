"""Losses against numpy and hand-worked numbers, over masks, chunks, temperatures and soft caps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import losses
from cai_jax.training import batching


def arrays(seed, B=3, T=11, D=8, V=17, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(B, T, D)).astype(dtype),
        rng.normal(size=(V, D)).astype(dtype),
        rng.integers(0, V, size=(B, T)).astype(np.int32),
    )


def reference(hidden, unembed, targets, temperature=1.0, softcap=None):
    logits = hidden.astype(np.float64) @ unembed.astype(np.float64).T
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    logits = logits / temperature
    shifted = logits - logits.max(-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logp, targets[..., None], -1)[..., 0]
    return chosen, -(np.exp(logp) * logp).sum(-1)


@pytest.mark.parametrize("chunk", [0, 1, 4, 11, 64])
@pytest.mark.parametrize("temperature,softcap", [(1.0, None), (0.7, None), (1.3, 2.0)])
def test_token_logprobs_and_entropy_match_numpy(chunk, temperature, softcap):
    hidden, unembed, targets = arrays(0)
    got, entropy = losses.token_logprobs(
        hidden,
        unembed,
        targets,
        temperature=temperature,
        softcap=softcap,
        chunk=chunk,
        entropy=True,
    )
    want, want_entropy = reference(hidden, unembed, targets, temperature, softcap)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy, want_entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [0, 4])
def test_gradients_by_the_chain_rule(chunk):
    """∂ log p(y) / ∂ logits = onehot(y) − p, through the temperature and the soft cap, written out
    in numpy."""
    hidden, unembed, targets = arrays(1)
    weights = np.random.default_rng(2).normal(size=targets.shape).astype(np.float32)

    def loss(h, w):
        return jnp.sum(
            weights
            * losses.token_logprobs(h, w, targets, temperature=0.8, softcap=3.0, chunk=chunk)
        )

    got = jax.grad(loss, argnums=(0, 1))(hidden, unembed)
    capped = np.tanh(hidden.astype(np.float64) @ unembed.T / 3.0)
    exp = np.exp(3.0 * capped / 0.8)
    slope = np.eye(unembed.shape[0])[targets] - exp / exp.sum(-1, keepdims=True)
    slope = weights[..., None] * slope / 0.8 * (1 - capped**2)
    np.testing.assert_allclose(got[0], slope @ unembed, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        got[1], np.einsum("btv,btd->vd", slope, hidden), rtol=1e-4, atol=1e-4
    )


def test_full_logits_never_exist():
    """No array of the compiled forward or backward pass is as large as [B, T, V]."""
    hidden, unembed, targets = arrays(3, B=2, T=64, D=8, V=1000)
    grad = jax.grad(
        lambda h, w: jnp.sum(losses.token_logprobs(h, w, targets, chunk=8)), argnums=(0, 1)
    )
    memory = jax.jit(grad).lower(hidden, unembed).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * 64 * 1000 * 4


def test_gradient_of_the_unembedding_is_there_once():
    """Beside what comes out, the backward pass holds less than another one of its size."""
    hidden, unembed, targets = arrays(3, B=1, T=64, D=64, V=8192)
    grad = jax.grad(
        lambda h, w: jnp.sum(losses.token_logprobs(h, w, targets, chunk=16)), argnums=(0, 1)
    )
    memory = jax.jit(grad).lower(hidden, unembed).compile().memory_analysis()
    assert memory.temp_size_in_bytes < unembed.nbytes


@pytest.mark.parametrize("V", [17, 64])
def test_blocks_of_the_vocabulary_give_the_gradient_of_chunks(V, monkeypatch):
    """On one device the backward pass goes over the vocabulary, on several over positions; also
    where blocks leave a rest."""
    hidden, unembed, targets = arrays(6, V=V)

    def grads():
        def loss(h, w):
            logprobs, entropy = losses.token_logprobs(
                h, w, targets, temperature=0.8, softcap=3.0, chunk=4, entropy=True
            )
            return jnp.sum(jnp.exp(logprobs) + 0.1 * entropy)

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden, unembed)

    monkeypatch.setattr(losses, "VOCABULARY_BLOCK", 8)
    blocks = grads()
    monkeypatch.setattr(losses.sharding, "single_device", lambda: False)
    for got, want in zip(blocks, grads(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_log_sum_exp_is_float32_for_bf16_weights():
    hidden, unembed, targets = arrays(4)
    hidden, unembed = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(unembed, jnp.bfloat16)
    got = losses.token_logprobs(hidden, unembed, targets, chunk=4)
    want, _ = reference(np.asarray(hidden, np.float64), np.asarray(unembed, np.float64), targets)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_next_token_alignment():
    hidden, unembed, tokens = arrays(5)
    got, entropy = losses.next_token_logprobs(hidden, unembed, tokens, chunk=4, entropy=True)
    want, want_entropy = reference(hidden[:, :-1], unembed, tokens[:, 1:])
    assert np.all(got[:, 0] == 0) and np.all(entropy[:, 0] == 0)
    np.testing.assert_allclose(got[:, 1:], want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy[:, 1:], want_entropy, rtol=1e-5, atol=1e-5)


def test_log_probabilities_at_places():
    """What is wanted is what it is among all others, gradients too; what is not wanted is 0."""
    hidden, unembed, tokens = arrays(6)
    wanted = np.random.default_rng(0).random(tokens.shape) < 0.4
    wanted[:, 0], wanted[0] = False, False
    places = batching.positions(wanted, tokens.shape[1])

    def total(hidden, unembed, places):
        found, entropy = losses.next_token_logprobs(
            hidden, unembed, tokens, places, chunk=2, entropy=True
        )
        return jnp.sum(jnp.where(wanted, jnp.sin(found), 0.0)), (found, entropy)

    (_, want), want_grads = jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, unembed, None)
    (_, got), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, unembed, places)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, np.where(wanted, b, 0), rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grads, want_grads
    )


def test_response_loss_by_hand_and_nan_under_the_mask():
    logprobs = jnp.array([[-1.0, -2.0, jnp.nan], [-4.0, -8.0, -16.0]])
    mask = jnp.array([[True, True, False], [False, True, False]])
    total, count = losses.response_loss(logprobs, mask)
    assert (float(total), float(count)) == (11.0, 3.0)
    # The gradient of what is masked is exactly zero, also where its value is not finite.
    grad = jax.grad(lambda x: losses.response_loss(x, mask)[0])(logprobs)
    np.testing.assert_array_equal(grad, -np.asarray(mask, np.float32))


def test_preference_loss_by_hand():
    """Δ = log 3: σ(Δ) = 3/4. p = 1 → log 4/3; p = 0 → log 4; p = 3/4 → the entropy of (3/4, 1/4),
    its minimum."""
    a, b = jnp.full(4, np.log(3.0)), jnp.zeros(4)
    p = jnp.array([1.0, 0.0, 0.75, 0.5])
    for row, want in enumerate(
        [np.log(4 / 3), np.log(4.0), 0.75 * np.log(4 / 3) + 0.25 * np.log(4.0)]
    ):
        total, count = losses.preference_loss(a, b, p, jnp.arange(4) == row)
        np.testing.assert_allclose(total, want, rtol=1e-6)
        assert float(count) == 1.0


def test_preference_loss_matches_its_formula_and_its_optimum_is_logit_p():
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2, 50)).astype(np.float32) * 4
    p = rng.random(50).astype(np.float32)
    total, _ = losses.preference_loss(a, b, p, jnp.ones(50, bool))
    delta = (a - b).astype(np.float64)
    want = np.sum(p * np.log1p(np.exp(-delta)) + (1 - p) * np.log1p(np.exp(delta)))
    np.testing.assert_allclose(total, want, rtol=1e-5)
    logit = np.log(p / (1 - p))
    grad = jax.grad(lambda d: losses.preference_loss(d, jnp.zeros(50), p, jnp.ones(50, bool))[0])(
        logit
    )
    np.testing.assert_allclose(grad, 0.0, atol=1e-6)


def test_integer_scores_are_refused():
    with pytest.raises(AssertionError):
        losses.preference_loss(
            jnp.array([1, 2]), jnp.array([0, 0]), jnp.array([1.0, 1.0]), jnp.ones(2, bool)
        )
