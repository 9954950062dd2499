"""Chips by their published numbers, and topologies by name: "v5e:8x8", "v5p:4x4x4" (two slices:
slices=2), "h100:8"."""

from __future__ import annotations

import dataclasses
import math
import os
import re

from cai_jax.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """hbm: bytes that programs may use; flops: dense bfloat16 a second; bandwidths in bytes a
    second and chip: memory, links to other chips (one direction, all links together), network
    between slices or machines (one direction)."""

    name: str
    platform: str
    hbm: float
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    source: str


_TPU = "cloud.google.com/tpu/docs/"
_NVIDIA = "nvidia.com/en-us/data-center/"
# Published capacities; the vendors give the links' bandwidth in both directions together: half of
# it is listed. TPU network: the pod's published data center bandwidth by chip; GPU network: one
# 400 Gb/s (A100: 200 Gb/s) adapter a GPU.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 32 * GIB, 275e12, 1228e9, 300e9, 3.1e9, _TPU + "v4"),
        Chip("v5e", "tpu", 16 * GIB, 197e12, 819e9, 200e9, 3.1e9, _TPU + "v5e"),
        Chip("v5p", "tpu", 95 * GIB, 459e12, 2765e9, 600e9, 6.25e9, _TPU + "v5p"),
        Chip("v6e", "tpu", 32 * GIB, 918e12, 1640e9, 400e9, 12.5e9, _TPU + "v6e"),
        Chip("a100", "gpu", 80e9, 312e12, 2039e9, 300e9, 25e9, _NVIDIA + "a100"),
        Chip("h100", "gpu", 80e9, 989e12, 3350e9, 450e9, 50e9, _NVIDIA + "h100"),
        Chip("h200", "gpu", 141e9, 989e12, 4800e9, 450e9, 50e9, _NVIDIA + "h200"),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """`num_slices` slices of `shape` chips each. A GPU shape is (GPUs,) of one machine or
    (machines, GPUs of each)."""

    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def num_chips(self) -> int:
        return math.prod(self.shape) * self.num_slices

    @property
    def name(self) -> str:
        text = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return text if self.num_slices == 1 else f"{self.num_slices} × {text}"


def parse_topology(text: str, num_slices: int = 1) -> Topology:
    """UserError for what is not CHIP:NxN[xN], naming the chips that are known."""
    match = re.fullmatch(r"([a-z]+\d+[a-z]*):(\d+(?:x\d+){0,2})", text.strip().lower())
    if not match or match[1] not in CHIPS:
        raise UserError(
            f"--topology '{text}': expected CHIP:SHAPE such as v5e:8x8, v5p:4x4x4 or h100:8; "
            f"chips: {', '.join(CHIPS)}"
        )
    if num_slices < 1:
        raise UserError(f"--slices {num_slices}: expected at least 1")
    chip, shape = CHIPS[match[1]], tuple(int(size) for size in match[2].split("x"))
    dimensions = {"v4": (3,), "v5e": (2,), "v5p": (3,), "v6e": (2,)}.get(chip.name, (1, 2))
    if len(shape) not in dimensions or 0 in shape:
        example = f"{chip.name}:{ {(2,): '8x8', (3,): '4x4x4'}.get(dimensions, '8') }".replace(
            " ", ""
        )
        raise UserError(f"--topology '{text}': {chip.name} comes in shapes such as {example}")
    if chip.platform == "gpu" and num_slices > 1:
        raise UserError(f"--slices is for TPU slices; write {chip.name}:MACHINESxGPUS")
    return Topology(chip, shape, num_slices)


def of_kind(device_kind: str) -> Chip | None:
    """The chip that a device of this `device_kind` is ("TPU v5 lite", "NVIDIA H100 80GB HBM3", …);
    None for others."""
    words = device_kind.lower().split()
    if "tpu" in words:
        name = words[-1] if words[-1] != "lite" else words[-2] + "e"
        return CHIPS.get({"v5": "v5p"}.get(name, name))
    return next(
        (CHIPS[name] for name in ("a100", "h100", "h200") if any(name in word for word in words)),
        None,
    )


# libtpu asks the cloud who it is unless it is given; these values are for compiling without chips
# only.
OFFLINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}


def work_offline(topology: Topology) -> None:
    """Before JAX is imported: this process touches no accelerator, it only compiles for some."""
    os.environ.update(OFFLINE)
    if topology.chip.platform == "gpu":
        os.environ["JAX_NUM_CPU_DEVICES"] = str(topology.num_chips)
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
        )  # never run


def devices(topology: Topology) -> list:
    """Devices that can be compiled for and not be run on: for GPUs, virtual ones in their number.
    UserError where the compiler is not installed."""
    import jax
    from jax.experimental import topologies

    if topology.chip.platform == "gpu":
        return jax.devices("cpu")

    options = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    if topology.num_slices > 1:
        options["num_slices"] = topology.num_slices
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # the compiler takes a host to have four
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    try:
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
        )
    except Exception as error:  # the plugin raises whatever the C++ side says
        if "libtpu" in str(error) or "TPU support" in str(error) or isinstance(error, ImportError):
            raise UserError(
                "planning for TPUs needs their compiler: pip install 'cai_jax[plan]' (libtpu, "
                "210 MB)"
            ) from error
        raise UserError(f"--topology {name}: {' '.join(str(error).split())[:200]}") from error


def compiler_requirement() -> str:
    """The libtpu that belongs to the installed JAX, as pip takes it."""
    import importlib.metadata

    return next(
        text.partition(";")[0].strip()
        for text in importlib.metadata.requires("jax")
        if text.startswith("libtpu")
    )


if __name__ == "__main__":
    print(compiler_requirement())
