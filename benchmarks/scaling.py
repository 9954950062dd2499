"""Weak scaling of a training step, from its compiled program: `python -m benchmarks.scaling --json
out.json`.

From 8 to 256 chips with as many tokens a chip: does each still multiply as much, how many bytes
does it send, and what part of the sending could hide behind its arithmetic (roofline by published
numbers)? Nothing is run: the supervised step of Llama-3.1-8B is partitioned for virtual devices and
its program is counted (`cai_jax.planning.hlo`). With `--compiler v5p` it is compiled for real TPU
topologies instead, which takes libtpu (see docs/scaling.md).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time

CHIPS = (8, 16, 32, 64, 128, 256)
LAYOUTS = {
    "fsdp": (1, 1),
    "fsdp, tensor 4": (1, 4),
    "data, fsdp 8": (8, 1),
}  # (chips that share one copy; 1: all, tensor)
TOPOLOGIES = {
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
}  # of v5p
LENGTH = 1024
JUDGED = ("v5e", "v5p")  # chips whose published numbers say what can be hidden


def mesh_sizes(num_chips: int, layout: str) -> dict[str, int]:
    copies, tensor = LAYOUTS[layout]
    data = num_chips // copies if copies > 1 else 1
    return {"data": data, "fsdp": num_chips // data // tensor, "tensor": tensor}


def begin(compiler: str) -> None:
    """Before JAX is imported: nothing is run, so virtual devices and little effort of the compiler
    will do."""
    from cai_jax.planning import chips

    if compiler:
        chips.work_offline(chips.parse_topology(f"{compiler}:2x2x2"))
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = (
            f"--xla_force_host_platform_device_count={max(CHIPS)} "
            "--xla_backend_optimization_level=0"
        )


def measure(num_chips: int, layout: str, rows: int, compiler: str) -> dict:
    """Compiles the supervised step and counts the program of one chip.

    Args:
        num_chips: of the mesh.
        layout: a name in `LAYOUTS`.
        rows: sequences a chip.
        compiler: a chip's name for the TPU compiler; empty: virtual CPU devices.

    Returns:
        Operations, bytes sent, and seconds by published numbers.
    """
    import jax

    from cai_jax.core import sharding
    from cai_jax.planning import chips, hlo, programs
    from configs import default

    devices = jax.devices()[:num_chips]
    if compiler:
        devices = chips.devices(chips.parse_topology(f"{compiler}:{TOPOLOGIES[num_chips]}"))
    mesh = sharding.make_mesh(mesh_sizes(num_chips, layout), devices)
    config = default.base_config()
    config.models.base = "meta-llama/Llama-3.1-8B"
    config.model.update({"dtype": "bfloat16", "scan_layers": True, "remat": "full"})
    config.graph = {
        "sl": default.sl(**default.optimisation(1e-5, rows * num_chips) | {"max_length": LENGTH})
    }
    program = programs.of_sl(config, "sl", mesh)[0]
    began = time.monotonic()
    effort = (
        {"exec_time_optimization_effort": -1.0} if compiler else None
    )  # of scheduling; products and collectives stay
    compiled = program.lower(mesh).compile(compiler_options=effort)
    counts = hlo.count(compiled.as_text())
    result = {
        "chips": num_chips,
        "layout": layout,
        "mesh": dict(mesh.shape),
        "flops": counts.flops,
        "flops_model": program.work.flops / num_chips,
        "collectives": dict(counts.collectives),
        "moved": counts.moved,
        "unknown_loops": counts.unknown_loops,
        "compile_seconds": time.monotonic() - began,
        "hidden": {},
    }
    for chip in (chips.CHIPS[name] for name in JUDGED):
        sending, computing = counts.moved / chip.link_bandwidth, counts.flops / chip.flops
        result["hidden"][chip.name] = {
            "compute_seconds": computing,
            "link_seconds": sending,
            "share": min(1.0, computing / sending),
        }
    return result


def spread(rows: list[dict]) -> dict[str, float]:
    """Layout → by how much a chip's operations differ between the smallest and the largest number
    of chips."""
    result = {}
    for layout in {row["layout"]: None for row in rows}:
        flops = [row["flops"] for row in rows if row["layout"] == layout]
        result[layout] = max(flops) / min(flops) - 1
    return result


def line(row: dict) -> str:
    parts = ", ".join(
        f"{kind} {bytes / 1e9:.2f}" for kind, bytes in sorted(row["collectives"].items())
    )
    hidden = ", ".join(f"{name} {entry['share']:.0%}" for name, entry in row["hidden"].items())
    return (
        f"{row['layout']:16} {row['chips']:4} chips  {row['flops'] / 1e12:8.2f} TFLOP  "
        f"{row['moved'] / 1e9:7.2f} GB sent "
        f"({parts})  can hide: {hidden}  compiled in {row['compile_seconds']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="+", type=int, default=list(CHIPS), choices=CHIPS)
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--rows", type=int, default=4, help=f"of {LENGTH} tokens a chip")
    parser.add_argument(
        "--compiler",
        default="",
        choices=("", "v5p"),
        help="compile for these chips; default: virtual devices",
    )
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    begin(args.compiler)
    rows = []
    for layout in args.layouts:
        for number in args.chips:
            rows.append(measure(number, layout, args.rows, args.compiler))
            print(line(rows[-1]), flush=True)
            if args.json:
                result = {
                    "model": "meta-llama/Llama-3.1-8B",
                    "tokens_a_chip": args.rows * LENGTH,
                    "spread": spread(rows),
                    "compiler": args.compiler or "CPU, virtual devices",
                    "rows": rows,
                }
                pathlib.Path(args.json).write_text(
                    json.dumps(result, indent=1) + "\n", encoding="utf-8"
                )
    for layout, difference in spread(rows).items():
        print(f"{layout}: a chip's operations differ by {difference:.2%}")


if __name__ == "__main__":
    main()
