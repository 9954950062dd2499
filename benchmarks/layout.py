"""From the learner's layout to the sampler's: `python -m benchmarks.layout [--mesh
data,fsdp,tensor] [--model DIR] [--json FILE]`.

A round of rollouts begins with it: parameters split over fsdp are gathered, layers taken apart,
projections joined. Several devices on a CPU are virtual ones (`JAX_NUM_CPU_DEVICES=8`), linked by
the memory they share: bytes carry over, seconds do not.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys

import jax
import jax.numpy as jnp

from cai_jax.core import sharding
from cai_jax.data.dialogue import load_format
from cai_jax.engine.engine import Engine
from cai_jax.errors import command
from cai_jax.models import hf


def measure(directory: str, sizes: tuple[int, int, int], repeats: int) -> dict:
    """Median seconds of `Engine.update`, the first not counted (it compiles), and GiB before and
    after on all devices."""
    mesh = sharding.make_mesh(dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    config, params = hf.load_hf(directory, dtype=jnp.float32, mesh=mesh)
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(params["layers"])
        for shard in leaf.addressable_shards
    )
    engine, seconds = Engine(params, config, load_format(directory), mesh), []
    for _ in range(repeats):
        engine.update(params)
        seconds.append(engine.layout_seconds)
    return {
        "mesh": list(sizes),
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "learner_gib": held / 2**30,
        "sampler_gib": engine.runner.layout_bytes / 2**30,
    }


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mesh",
        nargs="+",
        default=["1,1,1"],
        help="data,fsdp,tensor; several are measured in turn",
    )
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args((sys.argv if argv is None else argv)[1:])
    measured = []
    for text in arguments.mesh:
        measured.append(
            measure(arguments.model, tuple(map(int, text.split(","))), arguments.repeats)
        )
        print(json.dumps(measured[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
