"""Random keys that depend only on names: (seed, stage, step, prompt id, sample), never on batch,
host or restart."""

import hashlib
import json

import numpy as np


def row_key(seed: int, *parts) -> np.ndarray:
    """Threefry key data, uint32 [2], for one row; `parts` are the strings and integers that name
    it."""
    name = json.dumps([int(seed), *parts], ensure_ascii=True).encode()
    return np.frombuffer(hashlib.blake2b(name, digest_size=8).digest(), dtype=np.uint32).copy()


def row_rng(seed: int, *parts) -> np.random.Generator:
    """A numpy generator for host-side draws (which principle, which few-shot order) under the same
    naming."""
    return np.random.default_rng(row_key(seed, *parts).tolist())
