"""Published results of a run.

    python -m cai_jax.results RUN [RUN …] --out DIR [--critiques 60] [--of revise] [--no-prompts]

Writes under DIR: metrics.json (every number with its interval, curves, cost, versions), tables.md,
figures/*.png, transcripts.md (drawn by rule), critiques_to_read.md with critiques_to_read.csv, and
reference/, a run directory without weights and texts that `cai_jax.report` lays beside a run of
yours. Once the table of critiques has been filled in, the same command counts it. Further runs are
the same with other seeds: they add means over seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from etils import epath

from cai_jax.configuration.topic import Words
from cai_jax.errors import Parser, UserError, command
from cai_jax.io import artefacts

USAGE = (
    "python -m cai_jax.results RUN [RUN …] --out DIR [--critiques COUNT] [--of STAGE] "
    "[--no-prompts]"
)


def write(
    run_path, out, count: int = 60, of: str = "", others: Sequence = (), prompts: bool = True
) -> dict:
    """Writes everything under `out`; returns {file name: bytes}. `others`: runs with other seeds.
    `prompts`: whether texts show them, or name them. UserError where a path is no run, or `of` no
    revise stage."""
    from cai_jax.reporting.run_data import Run
    from cai_jax.reporting.text import speaking

    run = Run(run_path)
    with speaking(Words.of(run.config)):
        return _write(run, epath.Path(out), count, of, others, prompts)


def _write(run, out, count: int, of: str, others: Sequence, prompts: bool) -> dict:
    from cai_jax.reporting import over_seeds, png, results, results_figures, transcripts
    from cai_jax.reporting.run_data import Run

    critiqued = [stage.name for stage in run.of_kind("revise") if stage.fields.get("critique")]
    if of and of not in critiqued:
        raise UserError(
            f"--of {of}: not a revise stage with critiques; there are "
            f"{', '.join(critiqued) or 'none'}"
        )
    drawn = transcripts.critiques(run, of or critiqued[0], count) if critiqued else []
    files, counted = {}, []
    if drawn:
        path = out / "critiques_to_read.csv"
        if path.exists():
            counted = transcripts.count_marks(path.read_text(), drawn, str(path))
        if not counted:
            files["critiques_to_read.csv"] = transcripts.blank(drawn)
        files["critiques_to_read.md"] = transcripts.sheet(drawn, prompts=prompts)
    found = results.collect(run, counted)
    if others:
        found["over_seeds"] = over_seeds.rows(
            [found["rows"], *(results.collect(Run(path))["rows"] for path in others)]
        )
    files["tables.md"] = (
        results.tables(found) + "\n" + over_seeds.tables(found.get("over_seeds", ()))
    )
    files["transcripts.md"] = transcripts.render(run, run.models, prompts=prompts)
    for name, text in files.items():
        artefacts.write_text(out / name, text if text.endswith("\n") else text + "\n")
    artefacts.write_json(out / "metrics.json", found)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for panel in results_figures.every(run, found):
        drawing = png.draw(panel)
        (out / "figures" / f"{panel.key}.png").write_bytes(drawing)
        files[f"figures/{panel.key}.png"] = drawing
    size = results.write_reference(run, out / "reference")
    return {
        **{name: len(text) for name, text in files.items()},
        "metrics.json": len(artefacts.dump(found)),
        "reference/": size,
    }


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error."""
    parser = Parser(prog="cai_jax.results", usage=USAGE, description=__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory; further ones have other seeds"
    )
    parser.add_argument("--out", required=True, help="where to write")
    parser.add_argument(
        "--critiques",
        type=int,
        default=60,
        metavar="COUNT",
        help="how many are drawn to be read (60)",
    )
    parser.add_argument(
        "--of",
        default="",
        metavar="STAGE",
        help="the revise stage that they are drawn from (the first)",
    )
    parser.add_argument(
        "--no-prompts",
        action="store_true",
        help="name prompts and principles in the texts, do not copy them",
    )
    arguments = parser.parse_args((sys.argv if argv is None else argv)[1:])
    first, *others = arguments.runs
    written = write(
        first, arguments.out, arguments.critiques, arguments.of, others, not arguments.no_prompts
    )
    for name, size in written.items():
        print(f"{epath.Path(arguments.out) / name}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
