"""Run directories in, report files out: report.html, report.md and figures/*.png.

The templates escape by themselves: HTML by Jinja, Markdown by `text.plain`; nothing that a model
wrote acts in a page, and no request leaves it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
from collections.abc import Iterable, Sequence

import jinja2
from etils import epath
from markupsafe import Markup

from cai_jax.configuration.topic import Words
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.report import plot, sections, text
from cai_jax.report.run import Run

TEMPLATES = importlib.resources.files("cai_jax.report") / "templates"


@functools.cache
def environment(markdown: bool) -> jinja2.Environment:
    """The templates' environment. What is inserted is escaped for the language, unless a template
    made it."""
    escaped = text.plain if markdown else text.visible

    def finalize(value):
        if hasattr(value, "__html__"):
            return value
        return Markup(escaped(str(value))) if markdown else escaped(str(value))

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(TEMPLATES)),
        autoescape=True,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    env.filters |= {
        "clip": text.clip,
        "headed": text.headed,
        "model_name": text.model_name,
        "number": text.number,
        "visible": text.visible,
        "quoted": lambda value: Markup(text.quoted(str(value))),
    }
    env.globals["svg"] = lambda figure: Markup(plot.svg(figure))
    return env


def page(runs: Sequence[Run], content: Sequence[sections.Section] | None = None) -> str:
    """The page for one run or several next to each other."""
    css, script = ((TEMPLATES / f"report.{kind}").read_text("utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment(False).get_template("report.html.j2").render(
        runs=runs,
        sections=sections.every(runs) if content is None else content,
        css=Markup(css),
        script=Markup(script),
        digest=digest,
        tones=len(plot.TONES),
        **sections.opening(runs),
    )  # fmt: skip


def markdown(runs: Sequence[Run], content: Sequence[sections.Section] | None = None) -> str:
    """The same report as Markdown, for a pull request or a terminal."""
    return environment(True).get_template("report.md.j2").render(
        runs=runs,
        sections=sections.every(runs) if content is None else content,
        **sections.opening(runs),
    )  # fmt: skip


def drawings(content: Iterable[sections.Section]) -> dict[str, plot.Panel | plot.Forest]:
    """key → figure, of every section; not what is folded."""
    parts = [part for section in content for part in section.parts if not part.fold]
    return {figure.key: figure for part in parts for figure in part.figures}


def write_figures(figures: Iterable[plot.Panel | plot.Forest], out: epath.Path) -> dict[str, bytes]:
    """Writes figures/KEY.png under `out`; returns {file name: bytes}.

    Raises:
        UserError: where nothing can be written there.
    """
    drawn = {f"figures/{figure.key}.png": plot.png(figure) for figure in figures}
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for name, data in drawn.items():
            (out / name).write_bytes(data)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{out}: cannot write ({reason}); choose another --out") from error
    return drawn


def build(run_paths: Sequence, out) -> dict:
    """Writes the report of one run, or of several next to each other, under `out`; returns
    {"html_bytes", "figures", "headline"}. Raises UserError where a path is no run."""
    runs, out = [Run(path) for path in run_paths], epath.Path(out)
    if len({run.name for run in runs}) < len(runs):
        for run in runs:  # two directories of the same last name
            run.name = str(run.path)
    with text.speaking(Words.of(runs[0].config)):
        content = sections.every(runs)
        first = sections.opening(runs)["frontier"]
        drawn = write_figures([*first, *drawings(content).values()], out)
        html = page(runs, content)
        artefacts.write_text(out / "report.html", html)
        artefacts.write_text(out / "report.md", markdown(runs, content))
    size = len(html.encode())
    return {
        "html_bytes": size,
        "figures": len(drawn),
        "headline": f"report.html, {size / 1e6:.1f} MB, {len(drawn)} figures",
    }
