"""A mesh and microbatches that fit, by the formulas of `arithmetic`: to be compiled before
they are believed."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
from jax.sharding import AxisType, Mesh

from cai_jax.core.sharding import MESH_AXES
from cai_jax.planning import estimate, programs
from cai_jax.planning.chips import Topology

MARGIN = 0.85  # of what may be used: the formulas are right within some ten percent
MAX_PARTS = 256


@dataclasses.dataclass(frozen=True)
class Proposal:
    mesh: dict[str, int]
    microbatches: dict[str, int]  # of every training stage

    def flags(self) -> list[str]:
        """What to write on the command line."""
        return [f"--config.mesh.{axis}={size}" for axis, size in self.mesh.items()] + [
            f"--config.graph.{stage}.num_microbatches={count}"
            for stage, count in self.microbatches.items()
        ]


def candidates(num_chips: int, num_slices: int) -> list[dict[str, int]]:
    """Meshes with one copy of the parameters a slice, from no tensor parallelism up: what
    communicates least comes first."""
    inner = num_chips // num_slices
    return [
        {"data": num_slices, "fsdp": inner // tensor, "tensor": tensor}
        for tensor in (1, 2, 4, 8, 16)
        if inner % tensor == 0
    ]


def propose(run_config, topology: Topology, devices) -> Proposal | None:
    """The first mesh on which every program fits, with the fewest microbatches; None where there is
    none."""
    for sizes in candidates(topology.num_chips, topology.num_slices):
        config = copy.deepcopy(run_config)
        with config.unlocked():
            config.mesh = sizes
        shape = tuple(sizes.values())
        # Which chip is where does not matter for sizes.
        grid = np.array(devices[: math.prod(shape)]).reshape(shape)
        mesh = Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
        counts = _microbatches(config, topology, mesh)
        if counts is not None:
            return Proposal(sizes, counts)
    return None


def _microbatches(config, topology, mesh) -> dict[str, int] | None:
    counts: dict[str, int] = {}
    for program in programs.of_run(config, mesh):
        work, parts = program.work, 1
        while True:
            tried = dataclasses.replace(program, work=dataclasses.replace(work, parts=parts))
            if (
                estimate.by_formula(tried, mesh, topology, config).total
                <= topology.chip.hbm * estimate.USABLE * MARGIN
            ):
                break
            parts *= 2
            ways = mesh.shape["data"] * mesh.shape["fsdp"]
            if not program.microbatched or parts > min(MAX_PARTS, max(1, work.rows // ways)):
                return None
        if program.microbatched:
            counts[program.stage] = max(parts, counts.get(program.stage, 1))
    return counts
