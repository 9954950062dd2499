"""The decoder: causality, padding, packing, windows, scan and remat, positions. Parity tests
compare it with others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.models import blocks, decoder
from cai_jax.models import params as params_lib
from cai_jax.models.config import RopeScaling
from tests.small_config import SMALL

CONFIG = dataclasses.replace(SMALL, vocab_size=64, width=24, ffw=40, head_dim=6)
PARAMS = params_lib.init_params(CONFIG, jax.random.key(1))
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 64, (3, 14))
ALL = np.ones((3, 14), bool)


HIDDEN = jax.jit(decoder.hidden_states, static_argnames=("config", "scan", "remat"))


def run(tokens, mask, config=CONFIG, params=PARAMS, **options):
    return np.asarray(HIDDEN(params, jnp.asarray(tokens), jnp.asarray(mask), config, **options))


def naive_attention(q, k, v, allowed):
    """One query, one head at a time, in float64."""
    B, T, H, Dh = q.shape
    out = np.zeros((B, T, H, Dh))
    for b, t, h in np.ndindex(B, T, H):
        keys = [s for s in range(T) if allowed[b, t, s]]
        if keys:
            kv = h // (H // k.shape[2])
            scores = np.array([q[b, t, h] @ k[b, s, kv] for s in keys], np.float64) / np.sqrt(Dh)
            weights = np.exp(scores - scores.max())
            out[b, t, h] = (weights / weights.sum()) @ np.stack([v[b, s, kv] for s in keys])
    return out


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("chunk", [4, 64])
def test_attention_against_a_loop(window, chunk):
    B, T, H, K, Dh = 2, 10, 4, 2, 6
    q, k, v = (RNG.normal(size=(B, T, n, Dh)).astype(np.float32) for n in (H, K, K))
    mask = RNG.random((B, T)) < 0.8
    segments = np.repeat([[0, 0, 0, 1, 1, 1, 1, 1, 2, 2]], B, axis=0)
    t, s = np.indices((T, T))
    allowed = (s <= t) & (mask[:, None, :]) & (segments[:, :, None] == segments[:, None, :])
    if window:
        allowed &= t - s < window
    attention = jax.jit(blocks.causal_attention, static_argnames=("window", "chunk"))
    out = attention(*map(jnp.asarray, (q, k, v, mask, segments)), window=window, chunk=chunk)
    seen = allowed.any(-1)
    np.testing.assert_allclose(
        np.asarray(out)[seen], naive_attention(q, k, v, allowed)[seen], rtol=2e-5, atol=2e-6
    )
    assert np.isfinite(np.asarray(out)).all()


def test_the_future_does_not_matter():
    changed = TOKENS.copy()
    changed[:, 9:] = (changed[:, 9:] + 1) % 64
    np.testing.assert_array_equal(run(TOKENS, ALL)[:, :9], run(changed, ALL)[:, :9])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_matter(side):
    pad = ((0, 0), (5, 0) if side == "left" else (0, 5))
    tokens, mask = np.pad(TOKENS, pad, constant_values=7), np.pad(ALL, pad)
    np.testing.assert_allclose(run(tokens, mask)[mask], run(TOKENS, ALL)[ALL], rtol=1e-4, atol=1e-5)


def test_packed_sequences_do_not_see_each_other():
    tokens = np.concatenate([TOKENS[0, :6], TOKENS[1, :8]])[None]
    segments = np.array([[0] * 6 + [1] * 8])
    packed = run(tokens, np.ones_like(tokens, bool), segments_BxT=jnp.asarray(segments))
    np.testing.assert_allclose(
        packed[0, :6], run(TOKENS[:1, :6], ALL[:1, :6])[0], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        packed[0, 6:], run(TOKENS[1:2, :8], ALL[1:2, :8])[0], rtol=1e-4, atol=1e-5
    )


def test_positions_count_real_tokens_of_the_segment():
    mask = jnp.asarray([[False, True, True, False, True, True]])
    segments = jnp.asarray([[0, 0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(decoder.default_positions(mask), [[0, 0, 1, 1, 2, 3]])
    np.testing.assert_array_equal(decoder.default_positions(mask, segments)[mask], [0, 1, 0, 1])


def test_scan_and_remat_compute_the_same():
    config = dataclasses.replace(CONFIG, num_layers=4, windows=(3, 0, 3, 0))
    params = params_lib.init_params(config, jax.random.key(1))

    def loss(params, **options):
        hidden = decoder.hidden_states(
            params, jnp.asarray(TOKENS), jnp.asarray(ALL), config, **options
        )
        return jnp.mean(jnp.sin(hidden))

    value, grad = jax.jit(jax.value_and_grad(loss))(params)
    other_value, other = jax.jit(jax.value_and_grad(lambda p: loss(p, scan=True, remat="dots")))(
        params
    )
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), other, grad)


def test_backward_pass_keeps_little():
    """Neither the weights once more nor what is normed: an unrolled program keeps both."""
    config = dataclasses.replace(CONFIG, num_layers=4, width=128, ffw=512, head_dim=32)
    tokens, params = jnp.zeros((2, 64), jnp.int32), params_lib.abstract_params(config)

    def temporaries(scan):
        def loss(params):
            return jnp.sum(
                decoder.hidden_states(params, tokens, tokens == 0, config, scan=scan) ** 2
            )

        options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        return (
            jax.jit(jax.grad(loss), compiler_options=options)
            .lower(params)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    assert temporaries(True) < 1.6 * sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert temporaries(True) < 0.75 * temporaries(False)


def test_windows_limit_what_is_seen():
    short = dataclasses.replace(CONFIG, windows=(3, 3))
    changed = TOKENS.copy()
    changed[:, 0] = (changed[:, 0] + 1) % 64
    a, b = run(TOKENS, ALL, short), run(changed, ALL, short)
    assert np.array_equal(a[:, 5:], b[:, 5:]) and not np.array_equal(
        a[:, 4], b[:, 4]
    )  # 2 layers × 2 tokens back


def test_every_switch_has_its_parameters():
    config = dataclasses.replace(
        CONFIG,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        qk_norm="head",
        tied_embeddings=False,
        rope_scaling=RopeScaling("llama3", 8.0, original_max_length=16),
    )
    params = jax.tree.map(np.asarray, params_lib.init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda x: x + RNG.normal(0, 0.1, x.shape).astype(np.float32), params)
    assert decoder.unembedding(params, config) is params["unembed"]
    grad = jax.jit(
        jax.grad(lambda p: jnp.sum(HIDDEN(p, jnp.asarray(TOKENS), jnp.asarray(ALL), config) ** 3))
    )
    used = {name: float(jnp.abs(g).max()) for name, g in grad(params)["layers"].items()}
    assert set(used) == set(params["layers"]) and all(value > 1e-6 for value in used.values()), used


def test_linen_initialises_what_the_table_says():
    module = decoder.Decoder(CONFIG)
    made = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(TOKENS), jnp.asarray(ALL))[
        "params"
    ]
    assert jax.tree.map(lambda x: x.shape, made) == jax.tree.map(
        lambda x: x.shape, params_lib.abstract_params(CONFIG)
    )
