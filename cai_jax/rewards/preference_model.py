"""A preference model as a function: dialogues → scores."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from cai_jax.core import sharding
from cai_jax.models import heads
from cai_jax.models.config import ModelConfig
from cai_jax.structs import Dialogue, as_ended
from cai_jax.training import batching

# Enough rows to keep the device busy, few enough that a batch of long dialogues fits next to four
# models. The shape is the same however many rows there are, so that a score does not depend on what
# a restart left to do.
TOKENS_A_BATCH = {"cpu": 1024}
TOKENS_ON_ACCELERATORS = 8192
LENGTH_MULTIPLE = 32


def batch_size(length: int, mesh) -> int:
    """How many dialogues of `length` tokens are scored at a time: a power of two, as numbers of
    rollouts and samples are."""
    tokens = TOKENS_A_BATCH.get(mesh.devices.flat[0].platform, TOKENS_ON_ACCELERATORS)
    return batching.round_up(
        2 ** (max(1, tokens // length).bit_length() - 1), sharding.batch_ways(mesh)
    )


@functools.partial(jax.jit, static_argnames=("config",))
def scores(params, tokens_BxT, mask_BxT, config: ModelConfig):
    """Raw scores of dialogues.

    Args:
      params: {"decoder", "head"}.
      tokens_BxT, mask_BxT: dialogues, and which tokens are theirs.
      config: the decoder's.
    Returns:
      float32 [B].
    """
    # Without a backward pass a scan over the layers takes the same time, and a fifth of it to
    # compile, once a length.
    return heads.dialogue_scores(params, tokens_BxT, mask_BxT, config, scan=True)


class RewardModel:
    """`params` is {"decoder", "head"} on the mesh; `normalisation` (mean, std) of raw scores, None
    to leave them raw; `name` is for messages.

    Scores read the dialogue and its end token, at that token. An answer that was cut has
    none: with `reads_cut` its score is read at its last token, as in the training of that
    preference model; a model that was trained on ended answers only never learned to score there,
    and reads every answer as ended. They are float32 and do not depend on which other dialogues are
    scored in the same call beyond rounding.
    """

    def __init__(
        self,
        params,
        config: ModelConfig,
        format,
        mesh,
        normalisation: tuple[float, float] | None = None,
        name: str = "the preference model",
        reads_cut: bool = False,
    ):
        self._params, self._config, self._format, self._mesh = params, config, format, mesh
        self._mean, self._std = normalisation or (0.0, 1.0)
        self.name, self._reads_cut = name, reads_cut
        self.num_beyond = 0  # of the dialogues scored last: longer than the model's positions

    @property
    def scale(self) -> float:
        """What a difference of scores is multiplied by to be one of raw scores, which are
        logits."""
        return float(self._std)

    def score(self, dialogues: Sequence[Dialogue]) -> np.ndarray:
        """float32 [n], one score a dialogue (each ends in an answer)."""
        return collected(self.score_each(dialogues), len(dialogues))

    def score_each(self, dialogues: Sequence[Dialogue]) -> Iterator[tuple[int, float]]:
        """(index, score) of every dialogue as it is there: those of like lengths together."""
        sequences = [self.tokens(dialogue) for dialogue in dialogues]
        self.num_beyond = sum(len(tokens) > self._config.max_length for tokens in sequences)
        return self._each(sequences)

    def tokens(self, dialogue: Dialogue) -> tuple[int, ...]:
        """What is read of a dialogue that ends in an answer."""
        return self._format.score_input(dialogue if self._reads_cut else as_ended(dialogue))

    def score_tokens(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """The same as `score` for dialogues that are tokens already."""
        return collected(self._each(sequences), len(sequences))

    def batches(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[int]]]:
        """(padded length, indices) of sequences that are scored together."""
        by_length: dict[int, list[int]] = {}
        for index, tokens in enumerate(sequences):
            by_length.setdefault(batching.bucket(len(tokens), LENGTH_MULTIPLE), []).append(index)
        for length, indices in sorted(by_length.items()):
            size = batch_size(length, self._mesh)
            for start in range(0, len(indices), size):
                yield length, indices[start : start + size]

    def _each(self, sequences):
        for length, indices in self.batches(sequences):
            size = batch_size(length, self._mesh)
            arrays = batching.pad_tokens([sequences[i] for i in indices], size, length)
            tokens, mask = sharding.put_batch(arrays, self._mesh)
            with jax.set_mesh(self._mesh):
                raw = scores(self._params, tokens, mask, self._config)
            raw = sharding.fetch(raw)[: len(indices)]
            normalised = (raw - np.float32(self._mean)) / np.float32(self._std)
            yield from zip(indices, normalised.tolist(), strict=True)


def collected(scored: Iterable[tuple[int, float]], count: int) -> np.ndarray:
    """float32 [count] from (index, score) in any order."""
    result = np.zeros(count, np.float32)
    for index, score in scored:
        result[index] = score
    return result
