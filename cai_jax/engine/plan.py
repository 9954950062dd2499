"""Few shapes: how prompts are cut into pieces, how long the cache is, how many rows fit. Pure host
arithmetic.

Every choice here depends on the request and the options alone, never on what else is running: a row
computes the same numbers in any company and after a restart.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig

PIECES = (64, 128, 256, 512)  # prefill shapes, in tokens
CALL_TOKENS = (
    32  # what one more prefill call costs (reading all weights once), in tokens' worth of work
)
MIN_SHARED = 64  # shorter segments are joined to the next one
MAX_BATCH = {"cpu": 32, "gpu": 128, "tpu": 128}

Tokens = tuple[int, ...]


class Prompt(NamedTuple):
    """header: shared by many requests, kept once; segments: what follows, each prefilled on its
    own."""

    header: tuple[int, ...]  # not by its short name: pdoc cannot resolve that in a NamedTuple
    segments: tuple[tuple[int, ...], ...]

    @property
    def own_length(self) -> int:
        return sum(map(len, self.segments))


def split_prompt(segments: Sequence[Tokens]) -> Prompt:
    """The first of several segments is the header; short segments are joined to what follows them.

    Decoding feeds the last token of a prompt. So a later segment begins with the last token of the
    one before it: then a prompt that continues another one (a revision's its critique's) has the
    same pieces as that one.
    """
    segments = [tuple(segment) for segment in segments if segment]
    header: Tokens = ()
    if len(segments) > 1 and len(segments[0]) >= MIN_SHARED:
        header, segments = segments[0], segments[1:]
    joined, pending = [], ()
    for segment in segments[:-1]:
        pending += segment
        if len(pending) >= MIN_SHARED:
            joined.append(pending)
            pending = ()
    joined.append(pending + (segments[-1] if segments else ()))
    for i in range(len(joined) - 1):
        joined[i], joined[i + 1] = joined[i][:-1], joined[i][-1:] + joined[i + 1]
    return Prompt(header, tuple(joined))


@functools.lru_cache(maxsize=4096)
def cut(count: int) -> tuple[tuple[int, int], ...]:
    """`count` tokens as (real tokens, padded size) pieces of the sizes PIECES, the cheapest way."""
    if count == 0:
        return ()
    if count > PIECES[-1]:
        return ((PIECES[-1], PIECES[-1]), *cut(count - PIECES[-1]))
    whole = ((count, next(size for size in PIECES if size >= count)),)
    ways = [whole] + [((size, size), *cut(count - size)) for size in PIECES if size < count]
    return min(ways, key=lambda pieces: sum(size + CALL_TOKENS for _, size in pieces))


def round_size(count: int) -> int:
    """The smallest of 64, 128, 192, 256, 384, 512, 768, 1024, … that is ≥ count: cache sizes,
    scoring shapes."""
    size = 64
    while size < count:
        if 3 * size // 2 >= count and size >= 128:
            return 3 * size // 2
        size *= 2
    return size


def cache_size(own_lengths: Sequence[int], max_new_tokens: int) -> int:
    """A power of two of positions, at least 256, that holds every prompt with its padding, and its
    completion."""
    need = max(
        max(sum(size for _, size in cut(length)), length + max_new_tokens) for length in own_lengths
    )
    return 1 << max(need - 1, 255).bit_length()


def token_bytes(config: ModelConfig, dtype) -> int:
    """Bytes of keys and values of one token."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize


def plan_batch(
    config: ModelConfig, dtype, max_length: int, cache_bytes: int, platform: str, multiple: int = 1
) -> int:
    """How many rows of `max_length` tokens fit into `cache_bytes`: a power of two, times `multiple`
    (the ways in which the mesh splits the batch). UserError where not even that many fit."""
    row = token_bytes(config, dtype) * max_length
    batch = multiple
    if batch * row > cache_bytes:
        raise UserError(
            f"sampling: {batch} rows of {max_length} tokens need {batch * row / 2**20:.0f} MiB "
            "of keys and values, more "
            f"than sampling.cache_bytes ({cache_bytes / 2**20:.0f} MiB): raise it, or lower "
            "sampling.max_length"
        )
    while 2 * batch * row <= cache_bytes and 2 * batch <= max(
        MAX_BATCH.get(platform, 32), multiple
    ):
        batch *= 2
    return batch
