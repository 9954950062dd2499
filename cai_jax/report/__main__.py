"""Reports: `python -m cai_jax.report RUN [RUN …] [--out=DIR]`. One run, or several next to each
other with their differences.

Writes report.html (one self-contained file), report.md and figures/*.png, for finished and
unfinished runs alike.
"""

from __future__ import annotations

import sys

from etils import epath

from cai_jax.errors import Parser, command

USAGE = "python -m cai_jax.report RUN [RUN …] [--out=DIR]"


def default_out(paths: list[str]) -> str:
    """RUN/report for one run; compare-A-B next to the first run for several."""
    if len(paths) == 1:
        return str(epath.Path(paths[0]) / "report")
    names = "-".join(epath.Path(path).name for path in paths)
    return str(epath.Path(paths[0]).parent / f"compare-{names}")


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error."""
    parser = Parser(prog="cai_jax.report", usage=USAGE, description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument(
        "--out", help="where to write; RUN/report by default, compare-A-B for several runs"
    )
    arguments = parser.parse_args((sys.argv if argv is None else argv)[1:])
    from cai_jax.report.build import build

    out = arguments.out or default_out(arguments.runs)
    result = build(arguments.runs, out)
    print(
        f"{epath.Path(out) / 'report.html'}: {result['html_bytes'] / 1e6:.1f} MB, "
        f"{result['figures']} figures"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
