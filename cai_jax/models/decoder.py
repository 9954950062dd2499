"""The decoder over full sequences: what training and one-off scoring run. Sampling has its own
cached step.

hidden = hidden_states(params, tokens_BxT, mask_BxT, config) logprobs =
losses.next_token_logprobs(hidden, unembedding(params, config), tokens_BxT,
softcap=config.final_softcap)
"""

from __future__ import annotations

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from cai_jax.core.sharding import constrain
from cai_jax.models import blocks
from cai_jax.models.config import ModelConfig
from cai_jax.models.params import initial_value, param_table

# What the backward pass keeps of a layer ("none": everything but attention weights; "full": its
# input only).
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class _Layers(nn.Module):
    """The stacked parameters of all layers, as a dict."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> dict:
        return {
            path[1]: _declare(self, path, p)
            for path, p in param_table(self.config).items()
            if len(path) == 2
        }


def _declare(module: nn.Module, path, spec):
    # Given a weight with adapters, Linen compares the shape of its first array, the weight itself.
    return module.param(path[-1], lambda key: initial_value(path, spec, key, jnp.float32))


class Decoder(nn.Module):
    """Tokens → hidden states after the final norm. A pure function:
    `Decoder(config).apply({"params": p}, …)`.

    scan: `lax.scan` over the layers, else unrolled: a larger program, which takes some ten times as
    long to compile, and more memory for the backward pass. remat: a key of REMAT.
    """

    config: ModelConfig
    scan: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, tokens_BxT, mask_BxT, positions_BxT=None, segments_BxT=None):
        config = self.config
        params = {
            path[0]: _declare(self, path, p)
            for path, p in param_table(config).items()
            if len(path) == 1
        }
        layers = _Layers(config, name="layers")()
        chex.assert_rank([tokens_BxT, mask_BxT], 2)
        chex.assert_type([tokens_BxT, mask_BxT], [int, bool])
        if positions_BxT is None:
            positions_BxT = default_positions(mask_BxT, segments_BxT)
        tables = blocks.rope_tables(positions_BxT, config)
        # The width is gathered before the look-up: its mesh axis is one that the batch takes
        # afterwards.
        table_VxD = constrain(params["embed"], ("vocab", None))
        x_BxTxD = constrain(blocks.embed(table_VxD, tokens_BxT, config), ("batch", "length", None))

        seen = mask_BxT, segments_BxT, tables
        # A scan's body is one program: layers of different kinds are scanned as repetitions of
        # their period.
        kinds = config.layer_kinds
        period = _period(kinds) if self.scan else config.num_layers

        steps = [_Step(config, kind, self.remat) for kind in kinds[:period]]

        def layer(x_BxTxD, weights):
            return steps[0](x_BxTxD, weights, seen), None

        def block(x_BxTxD, stacked):
            for step, weights in zip(steps, unstack(stacked, period), strict=True):
                x_BxTxD = step(x_BxTxD, weights, seen)
            return x_BxTxD, None

        if self.scan and period == 1:
            # Weights that the body gets and uses as they are need no copy for the backward pass;
            # reshaped ones would.
            x_BxTxD, _ = jax.lax.scan(layer, x_BxTxD, layers)
        elif self.scan:
            folded = jax.tree.map(lambda w: w.reshape(-1, period, *w.shape[1:]), layers)
            x_BxTxD, _ = jax.lax.scan(block, x_BxTxD, folded)
        else:
            x_BxTxD, _ = block(x_BxTxD, layers)
        return blocks.norm(x_BxTxD, params, "final_norm", config)


@dataclasses.dataclass(frozen=True)
class _Step:
    """One layer: (x [B, T, D], its weights, (mask, segments, tables of positions)) → x."""

    config: ModelConfig
    kind: tuple[int, str]
    remat: str

    def __call__(self, x_BxTxD, weights: dict, seen: tuple):
        run = (
            self._run
            if self.remat == "none"
            else jax.checkpoint(self._run, policy=REMAT[self.remat])
        )
        return run(x_BxTxD, weights, seen)

    def _run(self, x_BxTxD, weights, seen):
        (window, rope), (mask_BxT, segments_BxT, tables) = self.kind, seen
        scale, cap = blocks.query_scale(self.config), self.config.attention_softcap
        attend = functools.partial(
            blocks.causal_attention,
            mask_BxT=mask_BxT,
            segments_BxT=segments_BxT,
            window=window,
            scale=scale,
            cap=cap,
        )
        x_BxTxD = blocks.layer(x_BxTxD, weights, self.config, tables[rope], attend)
        return constrain(x_BxTxD, ("batch", "length", None))


def _period(kinds: tuple) -> int:
    """The length of the shortest pattern that `kinds` repeats."""
    count = len(kinds)
    return next(
        p for p in range(1, count + 1) if count % p == 0 and kinds == kinds[:p] * (count // p)
    )


def unstack(stacked: dict, count: int) -> list[dict]:
    """{name: [L, …]} → L dicts of one layer's weights. A split, because its gradient is one
    concatenation, where the gradient of L slices would be L additions of full stacks. A weight may
    be several arrays (`blocks.LowRank`)."""
    slices = {
        name: [jax.lax.split(w, [1] * count, axis=0) for w in jax.tree.leaves(weight)]
        for name, weight in stacked.items()
    }
    return [
        {
            name: jax.tree.unflatten(
                jax.tree.structure(weight), [parts[i][0] for parts in slices[name]]
            )
            for name, weight in stacked.items()
        }
        for i in range(count)
    ]


def default_positions(mask_BxT, segments_BxT=None):
    """int32 [B, T]: how many real tokens of the same segment stand before each one, whichever side
    the padding is."""
    count = jnp.cumsum(mask_BxT, axis=1, dtype=jnp.int32) - 1
    if segments_BxT is not None:
        before = jnp.pad(segments_BxT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        start = jnp.where(mask_BxT & (segments_BxT != before), count, 0)
        count = count - jax.lax.cummax(start, axis=1)
    return jnp.maximum(count, 0)


def hidden_states(
    params: dict,
    tokens_BxT: jax.Array,
    mask_BxT: jax.Array,
    config: ModelConfig,
    *,
    positions_BxT=None,
    segments_BxT=None,
    scan: bool = False,
    remat: str = "none",
) -> jax.Array:
    """Hidden states after the final norm.

    Args:
      params: the tree of `params.param_table`.
      tokens_BxT: int.
      mask_BxT: bool, True on real tokens. Padding may be on either side, or between: it is never
        attended to, and the outputs at its positions mean nothing.
      config: of the model.
      positions_BxT: by default the count of real tokens before.
      segments_BxT: int, keeps packed sequences apart, each a contiguous run of equal numbers ≥ 0.
      scan, remat: see `Decoder`.
    Returns:
      [B, T, D] in the dtype of the parameters.
    """
    module = Decoder(config, scan=scan, remat=remat)
    return module.apply({"params": params}, tokens_BxT, mask_BxT, positions_BxT, segments_BxT)


def unembedding(params: dict, config: ModelConfig) -> jax.Array:
    """[V, D]: logits are hidden · unembeddingᵀ, soft-capped where the config has a
    `final_softcap`."""
    return params["embed"] if config.tied_embeddings else params["unembed"]
