"""Few shapes: how prompts are cut into prefill chunks, how long the cache is, how many sequences
fit. Pure host arithmetic.

Every choice here depends on the request and the options alone, never on what else is running: a
sequence computes the same numbers in any company and after a restart.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig

CHUNKS = (64, 128, 256, 512)  # prefill shapes, in tokens
CALL_TOKENS = (
    32  # what one more prefill call costs (reading all weights once), in tokens' worth of work
)
MIN_SHARED = 64  # shorter segments are joined to the next one
MAX_BATCH = {"cpu": 32, "gpu": 128, "tpu": 128}

Tokens = tuple[int, ...]


class Prompt(NamedTuple):
    """prefix: shared by many requests, kept once; segments: what follows, each prefilled on its
    own."""

    prefix: tuple[int, ...]  # not by its short name: pdoc cannot resolve that in a NamedTuple
    segments: tuple[tuple[int, ...], ...]

    @property
    def own_length(self) -> int:
        return sum(map(len, self.segments))


def split_prompt(segments: Sequence[Tokens]) -> Prompt:
    """The first of several segments is the prefix; short segments are joined to what follows them.

    Decoding feeds the last token of a prompt. So a later segment begins with the last token of the
    one before it: then a prompt that continues another one (a revision's its critique's) has the
    same chunks as that one.
    """
    segments = [tuple(segment) for segment in segments if segment]
    prefix: Tokens = ()
    if len(segments) > 1 and len(segments[0]) >= MIN_SHARED:
        prefix, segments = segments[0], segments[1:]
    joined, pending = [], ()
    for segment in segments[:-1]:
        pending += segment
        if len(pending) >= MIN_SHARED:
            joined.append(pending)
            pending = ()
    joined.append(pending + (segments[-1] if segments else ()))
    for i in range(len(joined) - 1):
        joined[i], joined[i + 1] = joined[i][:-1], joined[i][-1:] + joined[i + 1]
    return Prompt(prefix, tuple(joined))


def reusable_prompt(tokens: Tokens) -> Prompt:
    """A prompt without a prefix, whose keys and values other prompts with the same beginning may
    reuse. The last token is fed by decoding."""
    *before, last = reusable_segments(tokens[:-1]) or [()]
    return Prompt((), (*before, last + tokens[-1:]))


def reusable_segments(tokens: Tokens) -> list[Tokens]:
    """The tokens cut where all texts are: after 128, 256, 512, and then every 512 tokens."""
    segments, start = [], 0
    while start < len(tokens):
        end = start + min(max(start, 128), 512)
        segments.append(tokens[start:end])
        start = end
    return segments


@functools.lru_cache(maxsize=4096)
def cut(count: int) -> tuple[tuple[int, int], ...]:
    """`count` tokens as (real tokens, padded size) chunks of the sizes CHUNKS, the cheapest way."""
    if count == 0:
        return ()
    if count > CHUNKS[-1]:
        return ((CHUNKS[-1], CHUNKS[-1]), *cut(count - CHUNKS[-1]))
    single = ((count, next(size for size in CHUNKS if size >= count)),)
    ways = [single] + [((size, size), *cut(count - size)) for size in CHUNKS if size < count]
    return min(ways, key=lambda chunks: sum(size + CALL_TOKENS for _, size in chunks))


def round_size(count: int) -> int:
    """The smallest of 64, 128, 192, 256, 384, 512, 768, 1024, … that is ≥ count: cache sizes,
    scoring shapes."""
    size = 64
    while size < count:
        if 3 * size // 2 >= count and size >= 128:
            return 3 * size // 2
        size *= 2
    return size


def block_size(count: int) -> int:
    """The smallest power of two that is ≥ count and ≥ 256: cache sizes where it is read in blocks.
    It has room for the padding of `cut(count)`."""
    return 1 << max(count - 1, 255).bit_length()


def token_bytes(config: ModelConfig, dtype) -> int:
    """Bytes of keys and values of one token."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize


def plan_batch(
    config: ModelConfig, dtype, max_length: int, cache_bytes: int, platform: str, multiple: int = 1
) -> int:
    """How many sequences decode together: a power of two, times `multiple`.

    Args:
      config: the model's.
      dtype: of keys and values.
      max_length: tokens of a sequence.
      cache_bytes: for the keys and values of all.
      platform: "cpu", "gpu" or "tpu".
      multiple: the ways in which the mesh splits the batch.

    Returns:
      The number of slots.

    Raises:
      UserError: not even `multiple` of them fit.
    """
    each = token_bytes(config, dtype) * max_length
    batch = multiple
    if batch * each > cache_bytes:
        raise UserError(
            f"sampling: {batch} sequences of {max_length} tokens need {batch * each / 2**20:.0f} "
            f"MiB of keys and values, more than {cache_bytes / 2**20:.0f} MiB: lower "
            "config.sampling.max_length, or set config.sampling.batch_size"
        )
    most = max(MAX_BATCH.get(platform, 32), multiple)
    while 2 * batch * each <= cache_bytes and 2 * batch <= most:
        batch *= 2
    return batch
