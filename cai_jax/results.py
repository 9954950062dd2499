"""Published results of a run.

    python -m cai_jax.results RUN [RUN …] --out DIR [--critiques 60] [--of revise] [--no-prompts]

Writes under DIR: metrics.json (every number with its interval, curves, cost, versions), tables.md,
figures/*.png, transcripts.md (drawn by rule), critiques_to_read.md with critiques_to_read.csv, and
reference/, a run directory without weights and texts that `cai_jax.report` compares with a run of
yours. Once the table of critiques has been filled in, the same command counts it. Further runs are
the same with other seeds: they add means over seeds.
"""

from __future__ import annotations

import sys

from etils import epath

from cai_jax.errors import Parser, command

USAGE = (
    "python -m cai_jax.results RUN [RUN …] --out DIR [--critiques COUNT] [--of STAGE] "
    "[--no-prompts]"
)


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error."""
    parser = Parser(prog="cai_jax.results", usage=USAGE, description=__doc__)
    runs = "a run directory; further ones have other seeds"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    parser.add_argument("--out", required=True, help="where to write")
    count = "how many are drawn to be read (60)"
    parser.add_argument("--critiques", type=int, default=60, metavar="COUNT", help=count)
    stage = "the revise stage that they are drawn from (the first)"
    parser.add_argument("--of", default="", metavar="STAGE", help=stage)
    no_prompts = "name prompts and principles in the texts, do not copy them"
    parser.add_argument("--no-prompts", action="store_true", help=no_prompts)
    arguments = parser.parse_args((sys.argv if argv is None else argv)[1:])
    from cai_jax.report.results import write

    first, *others = arguments.runs
    written = write(
        first, arguments.out, arguments.critiques, arguments.of, others, not arguments.no_prompts
    )
    for name, size in written.items():
        print(f"{epath.Path(arguments.out) / name}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
