"""What is read off the decoder: log-probabilities of a dialogue's tokens, and scalars through a
head.

Heads: the preference model's score of a dialogue, the value model's values of its tokens.

A model with a head is {"decoder": the decoder's tree, "head": {"weight": [D], "bias": []}}. The
head is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cai_jax.core import losses
from cai_jax.models.config import ModelConfig
from cai_jax.models.decoder import hidden_states, unembedding
from cai_jax.models.params import abstract_params, param_axes


def abstract_model(config: ModelConfig, kind: str = "policy", dtype=jnp.float32):
    """(tree of ShapeDtypeStructs, tree of logical axes) of a "policy" (the decoder) or a "reward"
    (with a head)."""
    shapes, axes = abstract_params(config, dtype), param_axes(config)
    if kind == "policy":
        return shapes, axes
    head = {
        "weight": jax.ShapeDtypeStruct((config.width,), jnp.float32),
        "bias": jax.ShapeDtypeStruct((), jnp.float32),
    }
    return {"decoder": shapes, "head": head}, {
        "decoder": axes,
        "head": {"weight": ("embed",), "bias": ()},
    }


def init_head(config: ModelConfig, key: jax.Array) -> dict:
    """Weights from N(0, 1/(D + 1)), so that scores start with about unit size (1909.08593); bias
    0."""
    weight = jax.random.normal(key, (config.width,), jnp.float32) * (config.width + 1) ** -0.5
    return {"weight": weight, "bias": jnp.zeros((), jnp.float32)}


def zero_head(config: ModelConfig) -> dict:
    return {"weight": jnp.zeros((config.width,), jnp.float32), "bias": jnp.zeros((), jnp.float32)}


def normalised_head(head: dict, normalisation: tuple[float, float] | None) -> dict:
    """The head whose scores are (score − mean) / std."""
    if normalisation is None:
        return head
    mean, std = normalisation
    return {"weight": head["weight"] / std, "bias": (head["bias"] - mean) / std}


def read_head(head: dict, hidden) -> jax.Array:
    """[…, D] → float32 […]."""
    return jnp.einsum("...d,d->...", hidden.astype(jnp.float32), head["weight"]) + head["bias"]


def dialogue_scores(
    params: dict, tokens_BxT, mask_BxT, config: ModelConfig, **options
) -> jax.Array:
    """Scores of dialogues.

    Args:
      params: {"decoder", "head"}.
      tokens_BxT, mask_BxT: each score is read at the last real token, wherever the padding is.
      config: of the decoder.
      **options: of `hidden_states` (scan, remat).
    Returns:
      float32 [B].
    """
    hidden_BxTxD = hidden_states(params["decoder"], tokens_BxT, mask_BxT, config, **options)
    place = jnp.arange(mask_BxT.shape[1])
    last_B = jnp.max(jnp.where(mask_BxT, place, 0), axis=1)
    hidden_BxD = jnp.take_along_axis(hidden_BxTxD, last_B[:, None, None], axis=1)[:, 0]
    return read_head(params["head"], hidden_BxD)


def packed_scores(
    params: dict, tokens_BxT, segments_BxT, ends_BxN, config: ModelConfig, **options
) -> jax.Array:
    """Scores of packed dialogues.

    Args:
      params: {"decoder", "head"}.
      tokens_BxT: int.
      segments_BxT: dialogues are numbered from 1; 0 where there is no token.
      ends_BxN: the positions of their last tokens, where the scores are read.
      config: of the decoder.
      **options: of `hidden_states` (scan, remat).
    Returns:
      float32 [B, N].
    """
    hidden_BxTxD = hidden_states(
        params["decoder"],
        tokens_BxT,
        segments_BxT > 0,
        config,
        segments_BxT=segments_BxT,
        **options,
    )
    return read_head(params["head"], jnp.take_along_axis(hidden_BxTxD, ends_BxN[..., None], axis=1))


def dialogue_logprobs(
    params: dict,
    tokens_BxT,
    mask_BxT,
    config: ModelConfig,
    *,
    temperature=1.0,
    chunk: int = 128,
    entropy: bool = False,
    places=None,
    **options,
):
    """log P(token t | tokens before) at t under a decoder, see `losses.next_token_logprobs`.

    Args:
      params: of the decoder.
      tokens_BxT, mask_BxT, config, **options: of `hidden_states`.
      temperature, chunk: of `losses.next_token_logprobs`.
      entropy: whether entropies are returned as well.
      places: positions to read; None: all.
    Returns:
      float32 [B, T], or (that, entropies).
    """
    hidden_BxTxD = hidden_states(params, tokens_BxT, mask_BxT, config, **options)
    return losses.next_token_logprobs(
        hidden_BxTxD,
        unembedding(params, config),
        tokens_BxT,
        places,
        temperature=temperature,
        softcap=config.final_softcap,
        chunk=chunk,
        entropy=entropy,
    )


def token_values(head: dict, hidden_BxTxD) -> jax.Array:
    """Value of the state in which token t is chosen, float32 [B, T]: read at the token before it; 0
    at position 0."""
    return jnp.pad(read_head(head, hidden_BxTxD[:, :-1]), ((0, 0), (1, 0)))
