"""The input pipeline of training: Grain data sets (google-grain.readthedocs.io) over an order that
is a function of names.

What is read at a step depends on (seed, stage, step) only (`batching.Order`), so the step is the
pipeline's only state, and neither a restart nor the number of hosts can change it: every host makes
the same batch, of which `sharding.put_batch` takes the shards of its own devices. Grain tokenises
in threads and makes batches ahead of the device. Its own `shuffle` and `mix` are not used: they
know examples by their index, ours by their names, so that one example more or less in a source
changes no other draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cai_jax.data.dialogue import DialogueFormat, Encoded
from cai_jax.structs import Dialogue

CHUNK = 64  # dialogues that are tokenised together
AHEAD = 2  # batches that are ready before they are asked for


class Batches:
    """`batches[step]` is `make(step)`; for consecutive steps the next ones are made ahead, in a
    thread of its own."""

    def __init__(self, make: Callable, num_steps: int):
        import grain  # here, because most commands train nothing

        self._steps = grain.MapDataset.range(num_steps).map(make)
        self._options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
        self._next, self._iterator = None, None

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int):
        if step != self._next:
            self._iterator = iter(self._steps[step:].to_iter_dataset(self._options))
        self._next = step + 1
        return next(self._iterator)


def encode(format: DialogueFormat, dialogues: Sequence[Dialogue]) -> list[Encoded]:
    """`format.example` of every dialogue, tokenised in parallel."""
    if not dialogues:
        return []
    import grain

    chunks = [dialogues[start : start + CHUNK] for start in range(0, len(dialogues), CHUNK)]
    # While the tokenizer works on a chunk, on all cores, another thread writes the next one's text.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    source = grain.MapDataset.source(chunks).map(format.examples)
    return [item for chunk in source.to_iter_dataset(options) for item in chunk]
