"""Attention of prefill and scoring by kernels that never hold the scores in memory: splash
attention on TPUs, cuDNN's flash attention on NVIDIA GPUs (Dao et al. 2022). CPUs and decoding have
`attention.py`.

Prefix, own past and new tokens are laid end to end under one mask, so windows, padding and options
side by side need no kernel of their own, and nothing has to be merged (JAX rounds cuDNN's
log-sum-exps to the type of the values, too coarse for that).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig

LANES = 128  # splash attention takes queries and keys in multiples of it
LARGEST_BLOCK = 512  # queries, and keys, of which a TPU core holds the scores at one time
# "xla" is the call to cuDNN with XLA in cuDNN's place, "splash_interpreted" the TPU's kernel on any
# machine: for tests.
KERNELS = ("splash", "splash_interpreted", "cudnn", "xla")


def choose(platform: str, dtype, config: ModelConfig) -> str:
    """The kernel for a platform ("cpu", "gpu", "tpu"), or "" where XLA's own products serve: cuDNN
    takes 16 bits, heads of up to 128 channels in multiples of 8, and no soft cap. On a GPU a small
    call is made to see that cuDNN is there.

    Raises UserError where it is not.
    """
    if platform == "tpu":
        return "splash"
    small = jnp.dtype(dtype).itemsize == 2 and config.head_dim <= 128 and config.head_dim % 8 == 0
    if platform != "gpu" or not small or config.attention_softcap is not None:
        return ""
    q = jnp.zeros((1, config.num_kv_heads, 1, 64, config.head_dim), dtype)
    span = (q[:, :, 0], q[:, :, 0], jnp.ones((1, 64, 64), bool))
    try:
        jax.block_until_ready(jax.jit(lambda q, span: attend(q, [span], None, "cudnn"))(q, span))
    except (
        Exception
    ) as error:  # what is missing (cuDNN, a GPU new enough) comes as errors of many kinds
        raise UserError(
            "cuDNN's flash attention does not run on this GPU "
            f"({str(error).splitlines()[0][:120]}); "
            "set config.sampling.flash=False"
        ) from error
    return "cudnn"


def attend(q_BxKxGxTxDh, spans, cap: float | None, kernel: str):
    """Softmax attention over all spans.

    Args:
      q_BxKxGxTxDh: scaled queries.
      spans: (keys, values, allowed bool [B, T, S]) where keys and values are [B, K, S, Dh] or,
        shared by all sequences, [K, S, Dh].
      cap: scores are soft-capped by it.
      kernel: one of KERNELS.

    Returns:
      Context [B, K, G, T, Dh] in the values' dtype.
    """
    B, T = q_BxKxGxTxDh.shape[0], q_BxKxGxTxDh.shape[3]

    def joined(number):
        arrays = [span[number] for span in spans]
        return jnp.concatenate([jnp.broadcast_to(x, (B, *x.shape[-3:])) for x in arrays], axis=2)

    allowed_BxTxS = jnp.concatenate(
        [jnp.broadcast_to(span[2], (B, T, span[2].shape[-1])) for span in spans], axis=2
    )
    if kernel.startswith("splash"):
        run = functools.partial(_splash, cap=cap, interpret=kernel != "splash")
        return _over_heads(run, q_BxKxGxTxDh, joined(0), joined(1), allowed_BxTxS)
    return _cudnn(q_BxKxGxTxDh, joined(0), joined(1), allowed_BxTxS, kernel)


def _cudnn(q_BxKxGxTxDh, keys_BxKxSxDh, values_BxKxSxDh, allowed_BxTxS, kernel):
    B, K, G, T, Dh = q_BxKxGxTxDh.shape
    q_BxTxHxDh = (
        q_BxKxGxTxDh.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, Dh).astype(keys_BxKxSxDh.dtype)
    )
    context = jax.nn.dot_product_attention(
        q_BxTxHxDh,
        keys_BxKxSxDh.swapaxes(1, 2),
        values_BxKxSxDh.swapaxes(1, 2),
        mask=allowed_BxTxS[:, None],
        scale=1.0,
        implementation=kernel,
    )
    return context.reshape(B, T, K, G, Dh).transpose(0, 2, 3, 1, 4)


def _over_heads(run, q, keys, values, allowed):
    """Each device its own heads, where the mesh has an axis for them that divides them: XLA cannot
    split the kernel itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(q, keys, values, allowed)
    heads = PartitionSpec(None, "tensor" if keys.shape[1] % mesh.shape["tensor"] == 0 else None)
    everywhere = PartitionSpec()
    specs = {"in_specs": (heads, heads, heads, everywhere), "out_specs": heads}
    return jax.shard_map(run, **specs, check_vma=False)(q, keys, values, allowed)


def _splash(q_BxKxGxTxDh, keys_BxKxSxDh, values_BxKxSxDh, allowed_BxTxS, cap, interpret):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )  # half a second to import

    B, K, G, T, Dh = q_BxKxGxTxDh.shape
    M, S = G * T, keys_BxKxSxDh.shape[2]
    more_M, more_S = -M % LANES, -S % LANES
    block_q, block_kv = _block(M + more_M), _block(S + more_S)
    sizes = splash.BlockSizes(block_q=block_q, block_kv=block_kv, block_kv_compute=block_kv)
    contexts = []
    for b in range(B):  # a mask belongs to one sequence; prefill and scoring have one
        mask_MxS = jnp.pad(jnp.tile(allowed_BxTxS[b], (G, 1)), ((0, more_M), (0, more_S)))
        kernel = splash.make_splash_mqa_single_device(
            mask_MxS[None], block_sizes=sizes, attn_logits_soft_cap=cap, interpret=interpret
        )
        # JAX 0.10 makes an array of this flag, and cannot branch on it under jit.
        kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
        q_Kx1xMxDh = jnp.pad(
            q_BxKxGxTxDh[b].reshape(K, 1, M, Dh), ((0, 0), (0, 0), (0, more_M), (0, 0))
        )
        keys, values = (
            jnp.pad(x[b], ((0, 0), (0, more_S), (0, 0))) for x in (keys_BxKxSxDh, values_BxKxSxDh)
        )
        contexts.append(
            jax.vmap(kernel)(q_Kx1xMxDh.astype(keys.dtype), keys, values)[:, 0, :M].reshape(
                K, G, T, Dh
            )
        )
    return jnp.stack(contexts)


def _block(length: int) -> int:
    """The largest multiple of LANES, up to LARGEST_BLOCK, that divides `length`."""
    return max(size for size in range(LANES, LARGEST_BLOCK + 1, LANES) if length % size == 0)
