"""Weights in 8 bits: what is rounded, and that the sampler computes with exactly those weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sampling_engine import CONFIG, Format, model, some_tokens

from cai_jax import seeds
from cai_jax.core import losses
from cai_jax.engine import weights
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.models import decoder
from cai_jax.structs import SampleRequest, Sampling, ScoreRequest

TOKENS = some_tokens(40)


def back(weight, axes_in):
    found = weights.rounded(weight, axes_in)
    return found.values * found.scale


def test_a_weight_is_at_most_half_a_step_away():
    weight = (
        jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 5)), jnp.float32)
        .at[:, 0, 0]
        .set(0.0)
    )
    for axes_in in (1, 2):
        found = weights.rounded(weight, axes_in)
        assert found.values.dtype == jnp.int8 and found.scale.shape == weight.shape[axes_in:]
        assert np.all(np.abs(back(weight, axes_in) - weight) <= found.scale / 2 + 1e-7)
        assert np.abs(found.values).max() == 127 and np.isfinite(found.scale).all()


@pytest.mark.parametrize("block", [256, 0])  # as on a CPU, as on an accelerator
def test_sampler_and_scorer_have_the_rounded_weights(block):
    engine = Engine(model(), CONFIG, Format, options=EngineOptions(batch_size=2, int8=True))
    engine.runner.block = block
    engine.update(model())
    (done,) = engine.generate([SampleRequest("a", (TOKENS,), seeds.row_key(0))], Sampling(8))
    (score,) = engine.score([ScoreRequest("a", (TOKENS,), (done.tokens,))])

    layers = {
        name: w
        if w.ndim == 2
        else jax.vmap(lambda w, name=name: back(w, 2 if name == "o" else 1))(w)
        for name, w in model()["layers"].items()
    }
    text = jnp.asarray([TOKENS + done.tokens])
    hidden = decoder.hidden_states(
        {**model(), "layers": layers}, text, jnp.ones(text.shape, bool), CONFIG
    )
    expected = losses.next_token_logprobs(hidden, back(model()["embed"].T, 1).T, text)[
        0, len(TOKENS) :
    ]
    np.testing.assert_allclose(done.logprobs, expected, atol=1e-4)
    np.testing.assert_allclose(score.token_logprobs[0], expected, atol=1e-4)
    exact = Engine(model(), CONFIG, Format, options=EngineOptions(batch_size=2))
    (other,) = exact.score([ScoreRequest("a", (TOKENS,), (done.tokens,))])
    assert np.abs(np.subtract(other.token_logprobs[0], expected)).max() > 1e-4  # rounding is felt
