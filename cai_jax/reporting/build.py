"""Run directories in, report files out: report.html, report.md and figures/*.png."""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from cai_jax.configuration.topic import Words
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.reporting import (
    figures,
    figures_constitution,
    figures_training,
    markdown,
    page,
    png,
)
from cai_jax.reporting.run_data import Run
from cai_jax.reporting.text import speaking

FIGURE_NAMES = {
    "frontier": "Harmlessness against helpfulness",
    "pm_score": "PM score",
    "num_tokens": "Length",
    "judges": "Judges",
    "revisions": "Score by number of revisions",
    "harm": "Absolute harmfulness",
}


def build(run_paths: Sequence, out) -> dict:
    """Writes the report of one run, or of several side by side, under `out`; returns {"html_bytes",
    "figures", "cautions", "headline"}. Raises UserError where a path is no run."""
    runs = [Run(path) for path in run_paths]
    if len({run.name for run in runs}) < len(runs):
        for run in runs:  # two directories of the same last name
            run.name = str(run.path)
    with speaking(Words.of(runs[0].config)):
        return _write(runs, epath.Path(out))


def _write(runs: Sequence[Run], out: epath.Path) -> dict:
    drawn = [one for one in _all_figures(runs) if one is not None]
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for one in drawn:
            (out / "figures" / f"{one.key}.png").write_bytes(png.draw(one))
    except OSError as error:
        raise UserError(
            f"{out}: cannot write ({error.strerror or error}); choose another --out"
        ) from error
    html = page.render(runs)
    artefacts.write_text(out / "report.html", html)
    pictures = [
        (one.title, f"figures/{one.key}.png")
        for one in drawn
        if one.key.rstrip("-0123456789") in FIGURE_NAMES  # -1, -2: one a run
    ]
    artefacts.write_text(out / "report.md", markdown.render(runs, pictures))
    size = len(html.encode())
    return {
        "html_bytes": size,
        "figures": len(drawn),
        "headline": f"report.html, {size / 1e6:.1f} MB, {len(drawn)} figures",
    }


def _all_figures(runs: Sequence[Run]):
    yield from figures.each_scale(runs, figures.frontier)
    yield from figures.of_answers(runs)
    yield figures.judges(runs)
    yield figures.calibration(runs)
    yield from figures_constitution.every(runs)
    for run in runs:
        for part in run.parts():
            yield from figures.of_part(runs, run, part, figures.main_ones(part))
    for run in runs if len(runs) == 1 else ():
        for stage in run.of_kind("feedback"):
            yield figures_training.label_histogram(run, stage)
            yield figures_training.position_scatter(run, stage)
    yield from figures_training.training(runs)[0]
