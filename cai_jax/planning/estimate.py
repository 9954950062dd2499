"""Compiling a program for chips that are not there, and what follows from it: memory, counts, a
roofline."""

from __future__ import annotations

import dataclasses
import re
import time

import jax
import jax.numpy as jnp

from cai_jax.planning import arithmetic, chips, hlo
from cai_jax.planning.programs import Program, chip_bytes

USABLE = 0.96  # of a chip's memory: the runtime and fragmentation take the rest
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass
class Estimate:
    """Of one program on one chip; bytes, operations, seconds. `total` is the program's peak and
    what the stage keeps next to it.

    The roofline: `seconds` if arithmetic, memory and links overlap perfectly, `seconds_serial` if
    not at all. A real step is between or a little above.
    """

    stage: str
    program: str
    arguments: float
    temporaries: float
    peak: float
    resident: float
    total: float
    capacity: float
    fits: bool
    flops_model: float
    flops_counted: float | None
    collectives: dict[str, float]
    moved: float | None
    crossing: float
    seconds_compute: float
    seconds_memory: float
    seconds_links: float
    calls: float
    compile_seconds: float
    method: str
    problem: str = ""

    @property
    def seconds(self) -> float:
        return max(self.seconds_compute, self.seconds_memory, self.seconds_links)

    @property
    def seconds_serial(self) -> float:
        return self.seconds_compute + self.seconds_memory + self.seconds_links

    def to_json(self) -> dict:
        return {
            **dataclasses.asdict(self),
            "seconds": self.seconds,
            "seconds_serial": self.seconds_serial,
        }


def compile_program(
    program: Program, mesh, topology: chips.Topology, run_config, effort: float
) -> Estimate:
    """Lowers and compiles `program` for the topology's devices.

    Without the vendor's compiler the devices are virtual: the partitioned program is the same,
    so operations and traffic are counted from it, and memory is estimated by formula.

    Args:
        program: what is compiled.
        mesh: over the topology's devices.
        topology: chips and slices.
        run_config: of the run.
        effort: of the compiler, -1 to 1; 0 is its default.

    Returns:
        The estimate; of a program that does not fit, with the compiler's message as `problem`.

    Raises:
        jax.errors.JaxRuntimeError: the compiler fails for another reason than memory.
    """
    real = topology.chip.platform == "tpu"
    began = time.monotonic()
    options = {"exec_time_optimization_effort": effort} if effort and real else None
    try:
        compiled = program.lower(mesh).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        match = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)", str(error))
        peak = float(match[1]) * _UNITS[match[2]] if match else float("inf")
        problem = match[0] if match else " ".join(str(error).split())[:200]
        return _estimate(
            program, topology, 0.0, 0.0, peak, None, "compiled", time.monotonic() - began, problem
        )
    took = time.monotonic() - began
    slice_size = topology.num_chips // topology.num_slices
    counts = hlo.count(compiled.as_text(), slice_size if topology.num_slices > 1 else None)
    if not real:
        return by_formula(program, mesh, topology, run_config, counts, took)
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    return _estimate(
        program,
        topology,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        peak,
        counts,
        "compiled",
        took,
    )


def by_formula(
    program: Program, mesh, topology, run_config, counts=None, took: float = 0.0
) -> Estimate:
    """An estimate without compiling: arguments as they are sharded, temporaries by formula.

    Args:
        program: what is estimated.
        mesh: over the topology's devices.
        topology: chips and slices.
        run_config: of the run.
        counts: of the compiled program (`hlo.count`), where there is one.
        took: seconds of compiling.

    Returns:
        The estimate.
    """
    arguments = chip_bytes(
        [leaf for leaf in jax.tree.leaves(program.arguments) if hasattr(leaf, "sharding")]
    )
    temps = arithmetic.temporaries(
        program.work,
        mesh.shape,
        width=jnp.dtype(run_config.model.dtype).itemsize,
        remat=run_config.model.remat,
        chunk=run_config.model.logprob_chunk,
    )
    method = "formula" if counts is None else "memory by formula"
    return _estimate(program, topology, arguments, temps, arguments + temps, counts, method, took)


def _estimate(
    program, topology, arguments, temps, peak, counts, method, took, problem=""
) -> Estimate:
    chip, total = topology.chip, peak + program.resident
    ideal = program.work.flops / topology.num_chips
    links = (
        0.0
        if counts is None
        else (
            (counts.moved - counts.crossing) / chip.link_bandwidth
            + counts.crossing / chip.network_bandwidth
        )
    )
    return Estimate(
        program.stage,
        program.name,
        arguments,
        temps,
        peak,
        program.resident,
        total,
        chip.hbm,
        total <= chip.hbm * USABLE,
        ideal,
        counts and counts.flops,
        dict(counts.collectives) if counts else {},
        counts and counts.moved,
        counts.crossing if counts else 0.0,
        (counts.flops if counts else ideal) / chip.flops,
        program.work.passes * arguments / chip.memory_bandwidth,
        links,
        program.calls,
        took,
        method,
        problem,
    )
