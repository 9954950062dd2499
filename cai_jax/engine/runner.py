"""A model's weights on the mesh, laid out for decoding, and how its programs are called."""

from __future__ import annotations

import time

import jax
import numpy as np
from jax.sharding import Mesh

from cai_jax.core import sharding
from cai_jax.engine import cached, flash, weights
from cai_jax.models.config import ModelConfig

BLOCK = 256  # positions of the cache read at a time, on CPU


class Runner:
    """block: positions of the cache that decoding reads at a time, 0 for all; kernel: of prefill
    and scoring, see `cached.prefill`.

    After `update` `layout_seconds` says how long it took to lay the parameters out, `layout_bytes`
    how much the layers take on this process's devices.
    """

    def __init__(self, params: dict, config: ModelConfig, mesh: Mesh, int8: bool, use_flash: bool):
        self.config, self.mesh, self._int8 = config, mesh, int8
        self.dtype = params["embed"].dtype
        platform = mesh.devices.flat[0].platform
        # Reading in blocks costs a loop in each layer: cheap on a CPU, a round trip to the host on
        # a GPU.
        self.block = BLOCK if platform == "cpu" else 0
        if platform == "cpu":
            self.kernel = "by_head" if mesh.size == 1 else ""
        else:
            self.kernel = flash.choose(platform, self.dtype, config) if use_flash else ""
        self.update(params)

    def update(self, params: dict) -> None:
        """New parameters of the same shapes."""
        began = time.monotonic()
        with jax.set_mesh(self.mesh):
            out_major = self.block > 0 and self.mesh.size == 1
            fuse = weights.fuses(self.mesh)
            self.weights = weights.prepare(params, self.config, fuse, out_major, self._int8)
            if self.mesh.shape["fsdp"] * self.mesh.shape["tensor"] > 1:
                self.weights["layers"] = [
                    jax.device_put(layer, weights.layer_shardings(layer, self.config, self.mesh))
                    for layer in self.weights["layers"]
                ]
        jax.block_until_ready(self.weights)
        self.layout_seconds = time.monotonic() - began
        copies = (leaf.addressable_shards for leaf in jax.tree.leaves(self.weights["layers"]))
        self.layout_bytes = sum(shard.data.nbytes for shards in copies for shard in shards)

    def __call__(self, program, *args, **static):
        """What a compiled program returns on the mesh."""
        with jax.set_mesh(self.mesh):
            return program(*args, **static)

    def empty_cache(self, batch: int, size: int, transposed: bool = False):
        return self(cached.empty_cache, self.config, batch, size, self.dtype, transposed)

    def put(self, arrays):
        """The host's arrays of a batch, copied for a program that runs while the host changes
        them."""
        copies = jax.tree.map(np.copy, arrays)
        return copies if self.mesh.size == 1 else sharding.put_batch(copies, self.mesh)
