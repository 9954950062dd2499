"""The input pipeline of training: Grain data sets (google-grain.readthedocs.io) over an order that
is a function of names.

What is read at a step depends on (seed, stage, step) only (`batching.Order`), so the step is the
pipeline's whole state, and neither a restart nor the number of hosts can change it: every host asks
for the same batch of token numbers, of which `sharding.put_batch` hands it the rows of its own
devices. Grain tokenises in threads and makes batches ahead of the device. Its own `shuffle` and
`mix` are not used: they know examples by their place, ours by their names, so that a row more or
less in one source moves no draw in another.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from cai_jax.data.dialogue import DialogueFormat, Encoded
from cai_jax.io import artefacts, progress
from cai_jax.seeds import row_rng
from cai_jax.structs import Dialogue, dialogue_to_json

TOKENS = "tokens.npz"
CHUNK = 64  # dialogues that are tokenised together
AHEAD = 2  # batches that are ready before they are asked for


class Batches:
    """`batches[step]` is `make(step)`; whoever asks for step after step finds the next ones made,
    by a thread of its own."""

    def __init__(self, make: Callable[[int], dict], num_steps: int):
        import grain  # here, because most commands train nothing

        self._steps = grain.MapDataset.range(num_steps).map(make)
        self._options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
        self._next, self._iterator = None, None

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int) -> dict:
        if step != self._next:
            self._iterator = iter(self._steps[step:].to_iter_dataset(self._options))
        self._next = step + 1
        return next(self._iterator)


def mix(first: Sequence, second: Sequence, fraction: float | None, seed: int, stage: str) -> list:
    """Both together, without as many items of the side that there is too much of that `first` has
    `fraction` of them. Which ones stay is drawn by their `id`; None, or an empty side, leaves out
    none."""
    if fraction is None or not first or not second:
        return [*first, *second]
    share = fraction / (1 - fraction) if fraction < 1 else float("inf")
    keep_first = (
        len(first) if share == float("inf") else min(len(first), round(len(second) * share))
    )
    keep_second = min(len(second), round(len(first) / share)) if share else len(second)

    def keep(side, number):
        return sorted(side, key=lambda item: row_rng(seed, stage, "mix", item.id).random())[:number]

    return keep(first, keep_first) + keep(second, keep_second)


def encode(format: DialogueFormat, dialogues: Sequence[Dialogue], cache=None) -> list[Encoded]:
    """`format.example` of every dialogue, tokenised in parallel. `cache`: a path where the tokens
    are kept for a restart.

    What is read from there is what would be made: it is named by the tokenizer, the format and all
    texts, and has checksums; a damaged file is told of and made again.
    """
    path = cache and epath.Path(cache)
    name = _name(format, dialogues)
    found = _read(path, name) if path and path.exists() else None
    if found is None:
        found = _encode(format, dialogues)
        if path and artefacts.is_writer():
            _write(path, name, found)
    return found


def _encode(format: DialogueFormat, dialogues: Sequence[Dialogue]) -> list[Encoded]:
    if not dialogues:
        return []
    import grain

    chunks = [dialogues[start : start + CHUNK] for start in range(0, len(dialogues), CHUNK)]
    # While the tokenizer works on one chunk, on all cores, another thread writes the next one's
    # texts.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return [
        item
        for chunk in grain.MapDataset.source(chunks).map(format.examples).to_iter_dataset(options)
        for item in chunk
    ]


def _name(format: DialogueFormat, dialogues: Sequence[Dialogue]) -> str:
    digest = hashlib.blake2b(format.identity().encode(), digest_size=16)
    for dialogue in dialogues:
        digest.update(artefacts.dump(dialogue_to_json(dialogue)).encode("utf-8", "surrogatepass"))
        digest.update(b"\n")
    return digest.hexdigest()


def _read(path: epath.Path, name: str) -> list[Encoded] | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            if str(arrays["name"]) != name:
                return None
            ends = np.cumsum(arrays["lengths"])
            columns = [arrays[key] for key in ("tokens", "roles", "target")]
        if not all(len(column) == ends[-1] for column in columns):
            raise ValueError("arrays of different lengths")
    # the members have checksums; what a broken one makes numpy raise is all the same here
    except Exception as error:
        progress.warn(f"{path}: damaged ({type(error).__name__}); the texts are tokenised again")
        return None
    return [
        Encoded(*parts)
        for parts in zip(*(np.split(column, ends[:-1]) for column in columns), strict=True)
    ]


def _write(path: epath.Path, name: str, found: list[Encoded]) -> None:
    if not found:
        return
    columns = {
        key: np.concatenate([getattr(item, field) for item in found])
        for key, field in (("tokens", "tokens"), ("roles", "roles"), ("target", "target_mask"))
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        name=np.array(name),
        lengths=np.array([len(item.tokens) for item in found], np.int64),
        **columns,
    )
    artefacts.write_bytes(path, buffer.getvalue())
