"""The parameter table and what is read from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.core.sharding import RULES
from cai_jax.models import params as params_lib
from cai_jax.models.config import ModelConfig

CONFIG = ModelConfig(
    family="llama",
    vocab_size=50,
    width=64,
    ffw=96,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=1e4,
)


def test_shapes_axes_and_count():
    table = params_lib.param_table(CONFIG)
    assert table["layers", "q"].shape == (3, 64, 4, 16) and table["layers", "down"].shape == (
        3,
        96,
        64,
    )
    assert all(len(p.shape) == len(p.axes) and set(p.axes) <= set(RULES) for p in table.values())
    layer = 2 * 64 + 64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 96
    assert params_lib.num_params(CONFIG) == 2 * 50 * 64 + 64 + 3 * layer
    tied = dataclasses.replace(CONFIG, tied_embeddings=True)
    assert params_lib.num_params(tied) == params_lib.num_params(CONFIG) - 50 * 64


def test_initial_values():
    params = params_lib.init_params(CONFIG, jax.random.key(0))
    abstract = params_lib.abstract_params(CONFIG)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract
    )
    np.testing.assert_array_equal(params["layers"]["attn_norm"], 1.0)
    assert abs(float(jnp.std(params["layers"]["gate"])) * 8 - 1) < 0.02  # 1/√64
    assert abs(float(jnp.std(params["layers"]["down"])) * np.sqrt(96 * 6) - 1) < 0.02
    again = params_lib.init_params(dataclasses.replace(CONFIG, qkv_bias=True), jax.random.key(0))
    np.testing.assert_array_equal(
        params["layers"]["q"], again["layers"]["q"]
    )  # a switch does not change the others
    assert not np.array_equal(
        params["layers"]["q"], params_lib.init_params(CONFIG, jax.random.key(1))["layers"]["q"]
    )
