"""Drawing tokens: distributions, thresholds, keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.engine import draw as draw_lib
from cai_jax.structs import Sampling

RNG = np.random.default_rng(0)
N = 4000


@functools.partial(jax.jit, static_argnames="sampling")
def draw(logits, key, index, sampling):
    return draw_lib.draw(logits, key, index, sampling)


def many(logits, sampling, rows=N):
    """Tokens and log-probabilities of `rows` rows with keys of their own and the same logits."""
    keys = jnp.asarray(RNG.integers(0, 2**32, (rows, 2), dtype=np.uint32))
    return draw(
        jnp.tile(jnp.asarray(logits, jnp.float32), (rows, 1)),
        keys,
        jnp.zeros(rows, jnp.int32),
        sampling,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_softmax(temperature):
    logits = RNG.normal(0, 2, 300)  # three blocks of the vocabulary, the last one not full
    tokens, logprobs = map(np.asarray, many(logits, Sampling(1, temperature), rows=20 * N))
    expected = jax.nn.softmax(jnp.asarray(logits / temperature))
    counts = np.bincount(tokens, minlength=300)
    assert len(counts) == 300
    common = np.asarray(expected) * 20 * N >= 10
    chi2 = np.sum((counts - 20 * N * expected)[common] ** 2 / (20 * N * expected)[common])
    assert chi2 < common.sum() + 5 * np.sqrt(2 * common.sum())
    np.testing.assert_allclose(logprobs, np.log(expected)[tokens], atol=2e-5)


def test_greedy_takes_the_best_with_its_logprob_at_temperature_1():
    logits = RNG.normal(size=300)
    tokens, logprobs = many(logits, Sampling(1, 0.0), rows=3)
    assert set(map(int, tokens)) == {int(np.argmax(logits))}
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(jnp.asarray(logits)).max(), rtol=1e-5)


def test_top_k_and_top_p_by_hand():
    logits = np.log([0.4, 0.3, 0.2, 0.06, 0.04])
    assert set(np.unique(many(logits, Sampling(1, top_k=2))[0])) == {0, 1}
    assert set(np.unique(many(logits, Sampling(1, top_p=0.69))[0])) == {0, 1}
    assert set(np.unique(many(logits, Sampling(1, top_p=0.75))[0])) == {0, 1, 2}
    tokens, logprobs = map(np.asarray, many(logits, Sampling(1, top_k=3, top_p=0.7)))
    assert set(np.unique(tokens)) == {0, 1}  # 0.4 + 0.3 of the 0.9 that top-k left is 0.78
    np.testing.assert_allclose(logprobs, logits[tokens], atol=1e-5)  # before top-k and top-p
    assert abs(np.mean(tokens == 0) - 4 / 7) < 0.04


def test_top_k_keeps_exactly_k_of_many():
    logits = RNG.normal(0, 3, 1000)
    mass = jnp.exp(jnp.asarray(logits - logits.max(), jnp.float32))[None]
    for k in (1, 7, 250):
        kept = np.flatnonzero(np.asarray(draw_lib._keep(mass, k, 1.0))[0])
        assert set(kept) == set(np.argsort(-logits)[:k])


def test_a_row_depends_on_its_key_and_index_only():
    logits = jnp.asarray(RNG.normal(size=(6, 300)), jnp.float32)
    keys = jnp.asarray(RNG.integers(0, 2**32, (6, 2), dtype=np.uint32))
    index = jnp.arange(6, dtype=jnp.int32)
    tokens, logprobs = draw(logits, keys, index, Sampling(1))
    order = np.array([3, 5, 0, 1, 4, 2])
    again = draw(logits[order], keys[order], index[order], Sampling(1))
    np.testing.assert_array_equal(tokens[order], again[0])
    np.testing.assert_array_equal(logprobs[order], again[1])
    same = jnp.tile(logits[:1], (6, 1))
    assert len(set(np.asarray(draw(same, jnp.tile(keys[:1], (6, 1)), index, Sampling(1))[0]))) > 1
