"""The small model of the tests; `dataclasses.replace` where a test needs another value."""

from cai_jax.models.config import ModelConfig

SMALL = ModelConfig(
    family="llama",
    vocab_size=96,
    width=32,
    ffw=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=1e4,
    tied_embeddings=True,
)
