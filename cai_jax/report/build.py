"""Run directories in, report files out: report.html, report.md and figures/*.png.

The templates escape by themselves; nothing that a model wrote acts in a page, and no request leaves
it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence

from etils import epath
from markupsafe import Markup

from cai_jax.configuration.topic import Words
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.report import plot, sections, text
from cai_jax.report.render import TEMPLATES, render
from cai_jax.report.run import Run
from cai_jax.report.spec import Figure


def page(runs: Sequence[Run], content: sections.Content | None = None, svg=None) -> str:
    """The page for one run or several next to each other.

    Args:
        runs: the runs.
        content: what it shows, if it is known already.
        svg: figure → its drawing; by default it is drawn.
    """
    css, script = ((TEMPLATES / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    more = {"css": Markup(css), "script": Markup(script), "digest": digest}
    more |= {"tones": len(plot.TONES), "svg": lambda figure: Markup((svg or plot.svg)(figure))}
    content = content or sections.content(runs)
    return render("report.html.j2", "html", runs=runs, **more, **content)


def markdown(runs: Sequence[Run], content: sections.Content | None = None) -> str:
    """The same report as Markdown, for a pull request or a terminal."""
    return render("report.md.j2", "md", runs=runs, **(content or sections.content(runs)))


def drawings(figures: Iterable[Figure]) -> dict[str, plot.Drawing]:
    return {figure.key: plot.Drawing(figure) for figure in figures}


def write_figures(drawn: Mapping[str, plot.Drawing], out: epath.Path) -> dict[str, int]:
    """Writes figures/KEY.png under `out`; returns {file name: bytes}.

    Raises:
        UserError: where nothing can be written there.
    """
    sizes = {}
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for key, drawing in drawn.items():
            data = drawing.png()
            (out / "figures" / f"{key}.png").write_bytes(data)
            sizes[f"figures/{key}.png"] = len(data)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{out}: cannot write ({reason}); choose another --out") from error
    return sizes


def build(run_paths: Sequence, out) -> dict:
    """Writes the report of one run, or of several next to each other, under `out`; returns
    {"html_bytes", "figures", "headline"}. Raises UserError where a path is no run."""
    runs, out = [Run(path) for path in run_paths], epath.Path(out)
    if len({run.name for run in runs}) < len(runs):
        for run in runs:  # two directories of the same last name
            run.name = str(run.path)
    with text.speaking(Words.of(runs[0].config)):
        content = sections.content(runs)
        # A figure in a fold is in the page alone. A PNG changes its drawing, so the page is first.
        drawn = drawings(sections.open_figures(content))
        html = page(runs, content, lambda f: (drawn.get(f.key) or plot.Drawing(f)).svg())
        write_figures(drawn, out)
        artefacts.write_text(out / "report.html", html)
        artefacts.write_text(out / "report.md", markdown(runs, content))
    size = len(html.encode())
    return {
        "html_bytes": size,
        "figures": len(drawn),
        "headline": f"report.html, {size / 1e6:.1f} MB, {len(drawn)} figures",
    }
