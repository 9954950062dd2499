"""Backward passes that are written out (norm, gated MLP, attention) beside what JAX derives from
the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.models import blocks

RNG = np.random.default_rng(0)


def array(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def compare(ours, plain, *arguments):
    """Values and gradients of a weighted sum of both."""
    weights = array(*jax.eval_shape(plain, *arguments).shape)
    found, wanted = (
        jax.value_and_grad(
            lambda *args, f=f: jnp.sum(f(*args) * weights), tuple(range(len(arguments)))
        )(*arguments)
        for f in (ours, plain)
    )
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_norm():
    def plain(x, scale):
        return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-3) * scale

    compare(lambda x, scale: blocks.rms_norm(x, scale, 1e-3), plain, array(2, 5, 8), array(8))


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("low_rank", [False, True])
def test_gated_mlp(activation, low_rank):
    down = blocks.LowRank(array(12, 6), array(12, 2), array(2, 6)) if low_rank else array(12, 6)

    def plain(gate, up, down):
        whole = down.weight + down.a @ down.b if low_rank else down
        return (blocks.activate(gate, activation) * up) @ whole

    compare(
        lambda gate, up, down: blocks._gated_down(gate, up, down, activation, 6),
        plain,
        array(2, 5, 12),
        array(2, 5, 12),
        down,
    )


@pytest.mark.parametrize("window,cap", [(0, None), (3, None), (0, 1.5)])
def test_attention(window, cap):
    """Two segments, padding at the end, two queries a key head, three chunks."""
    segments = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 2, 2, 2, 2, 2]])
    seen, index = segments > 0, jnp.arange(8)
    ago = index[:, None] - index[None, :]
    allowed = (
        (ago >= 0)
        & ((ago < window) if window else True)
        & (segments[:, :, None] == segments[:, None, :])
        & seen[:, None, :]
    )
    real = seen[:, :, None, None]  # what stands at padding means nothing

    def plain(q, k, v):
        k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        scores = blocks.softcap(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2.0, cap)
        return (
            jnp.einsum(
                "bhqk,bkhd->bqhd",
                jax.nn.softmax(jnp.where(allowed[:, None], scores, -1e30), axis=-1),
                v,
            )
            * real
        )

    def ours(q, k, v):
        return (
            blocks.causal_attention(q, k, v, seen, segments, window, chunk=3, scale=0.5, cap=cap)
            * real
        )

    compare(ours, plain, array(2, 8, 4, 4), array(2, 8, 2, 4), array(2, 8, 2, 4))


def test_the_backward_pass_of_attention_keeps_no_weights():
    """What lies between the passes grows with the length, not with its square."""

    def kept(T):
        _, pullback = jax.vjp(
            lambda q: blocks.causal_attention(q, q, q, jnp.ones((1, T), bool)), array(1, T, 2, 4)
        )
        return max(leaf.size for leaf in jax.tree.leaves(pullback) if leaf.dtype == jnp.float32)

    assert kept(128) == 2 * kept(64)
