"""What a run would need on chips that are not there:

    python -m cai_jax.plan --config=configs/pods/llama3_8b_v5e_8x8.py [--topology v5e:8x8] [--slices
    2] [--json out.json]

Every jitted program of the run is compiled ahead of time for the topology; nothing runs and no
weights are read.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys

from cai_jax.configuration import files as config_files
from cai_jax.errors import Parser, UserError, command

USAGE = (
    "python -m cai_jax.plan --config=configs/NAME.py [--topology=v5e:8x8] [--slices=N] "
    "[--json=FILE] [--effort=-1] [--quick] [--only=REGEX] [--config.FIELD=VALUE …]"
)


def read_options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(this command's own options, what is left for the config)."""
    parser = Parser(prog="cai_jax.plan", usage=USAGE, description=__doc__, allow_abbrev=False)
    parser.add_argument("--topology", default="", help="chips, such as v5e:8x8 or h100:8")
    parser.add_argument("--slices", type=int, default=1, help="of a TPU topology")
    parser.add_argument("--json", default="", help="a file for the numbers")
    parser.add_argument(
        "--effort", type=float, default=-1, help="-1: quick to compile, overstated; 0: as a run"
    )
    parser.add_argument(  # "--quick yes" is an older spelling
        "--quick", nargs="?", const="yes", default="no", choices=("yes", "no"), help="by formula"
    )
    parser.add_argument("--only", default="", help="programs whose 'stage name' matches")
    return parser.parse_known_args(argv[1:])


def run(argv: list[str]) -> int:
    """0 where everything fits, 1 where something does not."""
    from cai_jax.planning import chips

    options, left = read_options(argv)
    topology = chips.parse_topology(options.topology or _preset(left), options.slices)
    chips.work_offline(topology)  # before JAX is imported below
    from cai_jax.configuration.command_line import parse
    from cai_jax.core import sharding
    from cai_jax.pipeline import graph as pipeline
    from cai_jax.planning import estimate, programs, propose, table

    config = pipeline.resolve(parse([argv[0], *left])[0])

    def write(result: dict) -> None:  # after every program: compiling a large run takes a while
        if options.json:
            pathlib.Path(options.json).write_text(
                json.dumps(result, indent=1) + "\n", encoding="utf-8"
            )

    title = " ".join(argument.removeprefix("--config=") for argument in left)
    devices = chips.devices(topology)
    mesh = sharding.make_mesh(config.mesh, devices)
    rows = []
    for program in programs.of_run(config, mesh):
        if not re.search(options.only, f"{program.stage} {program.name}"):
            continue
        print(f"{program.stage}: {program.name} …", file=sys.stderr, flush=True)
        rows.append(
            estimate.by_formula(program, mesh, topology, config)
            if options.quick == "yes"
            else estimate.compile_program(program, mesh, topology, config, options.effort)
        )
        write(table.to_json(rows, topology, mesh.shape, title))
    if not rows:
        raise UserError(f"--only '{options.only}': no program of this run has such a name")
    proposal = propose.propose(config, topology, devices)
    print("\n".join(table.lines(rows, topology, mesh.shape, title, proposal)))
    write(table.to_json(rows, topology, mesh.shape, title, proposal))
    return 0 if all(row.fits for row in rows) else 1


def _preset(arguments: list[str]) -> str:
    """The topology that a config of configs/pods names: a line TOPOLOGY = "…", which is read
    without running the file."""
    file = next(
        (
            argument.partition("=")[2]
            for argument in arguments
            if argument.lstrip("-").startswith("config=")
        ),
        "",
    )
    path = config_files.locate(file.partition(":")[0]) if file else None
    line = path and re.search(
        r'^TOPOLOGY = "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE
    )
    if not line:
        raise UserError(
            "--topology is missing, and the config has no line TOPOLOGY; give the chips, such as "
            f"--topology=v5e:8x8 or --topology=h100:8; usage: {USAGE}"
        )
    return line[1]


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 all fits, 1 something does not, 2 bad input (one line on standard error)."""
    return run(sys.argv if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
