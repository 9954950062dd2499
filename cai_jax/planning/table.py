"""A plan as a table and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cai_jax.planning.chips import GIB, Topology
from cai_jax.planning.estimate import Estimate

HEAD = (
    "stage",
    "program",
    "arguments",
    "temps",
    "peak",
    "resident",
    "of chip",
    "fits",
    "TFLOP",
    "counted",
    "moved GB",
    "call",
    "calls",
    "compiled in",
)
LEGEND = """
A chip each. GiB: the program's arguments, temporaries and peak, and what else the stage keeps next
to it. TFLOP: what the work is worth, and what the compiled program does. call: a roofline by
published numbers, with arithmetic, memory and links in perfect overlap; the second number of a
stage is without any. Real steps are slower than the first.
"""


def lines(
    rows: Sequence[Estimate], topology: Topology, mesh_shape: dict, title: str, proposal=None
) -> list[str]:
    """The table: a line a program, then a line a stage, then what the columns mean.

    Args:
        rows: the estimates.
        topology: chips and slices.
        mesh_shape: axis → size.
        title: what is planned.
        proposal: a mesh and microbatches that fit, or None.

    Returns:
        Lines of text.
    """
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh_shape.items())
    out = [
        (
            f"{title} on {topology.name} ({topology.num_chips} chips of "
            f"{topology.chip.hbm / GIB:.1f} GiB), mesh {sizes}"
        ),
        "",
    ]
    table = [HEAD] + [_cells(row) for row in rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    for row in table:
        padded = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        out.append("  ".join(padded).rstrip())
    out.append("")
    for name, part in stages(rows).items():
        low, high = (
            sum(row.calls * row.seconds for row in part),
            sum(row.calls * row.seconds_serial for row in part),
        )
        useful = sum(row.calls * row.flops_model for row in part)
        share = useful / topology.chip.flops / low if low else 0.0
        out.append(
            f"{name}: one step {_seconds(low)} to {_seconds(high)}; at best {share:.0%} of "
            "peak on useful arithmetic"
        )
    for row in rows:
        if not row.fits:
            out.append(
                f"does not fit: {row.stage}, {row.program}: "
                f"{row.problem or f'{row.total / GIB:.1f} GiB in all'}"
            )
    out.append(
        "proposed, by formula: "
        + (
            " ".join(proposal.flags())
            if proposal
            else "nothing that was tried fits: take more chips"
        )
    )
    out += LEGEND.rstrip().split("\n")
    return out


def stages(rows: Sequence[Estimate]) -> dict[str, list[Estimate]]:
    groups: dict[str, list[Estimate]] = {}
    for row in rows:
        groups.setdefault(row.stage, []).append(row)
    return groups


def _cells(row: Estimate) -> tuple[str, ...]:
    def gib(value):
        return f"{value / GIB:.2f}" if value < float("inf") else "?"

    counted = "–" if row.flops_counted is None else f"{row.flops_counted / 1e12:.3g}"
    moved = "–" if row.moved is None else f"{row.moved / 1e9:.3g}"
    return (
        row.stage,
        row.program,
        gib(row.arguments),
        gib(row.temporaries),
        gib(row.peak),
        gib(row.resident),
        f"{row.total / row.capacity:.0%}" if row.total < float("inf") else "?",
        "yes" if row.fits else "NO",
        f"{row.flops_model / 1e12:.3g}",
        counted,
        moved,
        _seconds(row.seconds),
        f"{row.calls:g}",
        f"{row.compile_seconds:.0f} s" if row.method == "compiled" else row.method,
    )


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def to_json(
    rows: Sequence[Estimate], topology: Topology, mesh_shape: dict, title: str, proposal=None
) -> dict:
    """The plan as JSON.

    Args:
        rows, topology, mesh_shape, title, proposal: as in `lines`.

    Returns:
        A dict of plain values.
    """
    chip = topology.chip
    return {
        "config": title,
        "topology": topology.name,
        "num_chips": topology.num_chips,
        "num_slices": topology.num_slices,
        "chip": {
            "name": chip.name,
            "hbm_bytes": chip.hbm,
            "bf16_flops": chip.flops,
            "memory_bandwidth": chip.memory_bandwidth,
            "link_bandwidth": chip.link_bandwidth,
            "network_bandwidth": chip.network_bandwidth,
            "source": chip.source,
        },
        "mesh": dict(mesh_shape),
        "fits": all(row.fits for row in rows),
        "programs": [row.to_json() for row in rows],
        "proposal": dataclasses.asdict(proposal) if proposal else None,
    }
