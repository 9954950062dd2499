"""Figures as PNG files, for papers and slides: the same specifications drawn by matplotlib without
a display."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cai_jax.reporting.figure import Forest, Panel, finite, tick_label
from cai_jax.reporting.text import one_line, visible

# The light palette of report.css.
TONES = (
    "#77726a",
    "#2a67ad",
    "#bf4d2a",
    "#27795a",
    "#7d52ad",
    "#8a670f",
    "#0f7f8a",
    "#b0446f",
    "#5f7d17",
    "#3a3733",
)
INK, SOFT, GRID = "#1d1b18", "#6b665e", "#e4e0d8"
DPI = 160


def draw(figure: Panel | Forest) -> bytes:
    """The PNG's bytes. Text is plain: no markup of a label is interpreted."""
    wide = figure.width / 80 if isinstance(figure, Forest) else figure.size[0] / 80
    high = (
        (1.1 + 0.3 * len(figure.rows)) if isinstance(figure, Forest) else figure.size[1] / 80 + 0.3
    )
    canvas = Figure(
        figsize=(max(wide, 4.5), high), dpi=DPI, layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelsize=8, labelcolor=SOFT)
    axes.set_axisbelow(True)
    (_forest if isinstance(figure, Forest) else _panel)(axes, figure)
    axes.set_title(figure.title, loc="left", fontsize=10, color=INK, pad=10)
    axes.set_xlabel(figure.x_label, fontsize=8, color=SOFT)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _plain(text: str, limit: int = 40) -> str:
    return one_line(visible(text), limit).replace("$", r"\$")


def _percent(axis) -> None:
    """Shares as per cent, with as many digits as it takes to tell two marks apart."""
    marks = axis.get_majorticklocs()
    step = float(marks[1] - marks[0]) if len(marks) > 1 else 0.01
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value, step, True)))


def _panel(axes, figure: Panel) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_ylabel(figure.y_label, fontsize=8, color=SOFT)
    for value, label in figure.references:
        axes.axhline(value, color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.annotate(
            _plain(label),
            (1, value),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            color=SOFT,
            ha="right",
            va="bottom",
        )
    for series in figure.series:
        tone = TONES[series.tone % len(TONES)]
        pairs = enumerate(zip(series.x, series.y, strict=True))
        points = [(i, a, b) for i, (a, b) in pairs if finite([a, b]) == [a, b]]
        if not points:
            continue
        x, y = [a for _, a, _ in points], [b for _, _, b in points]
        if series.mark == "bars":
            step = series.x[1] - series.x[0] if len(series.x) > 1 else 1.0
            axes.bar(x, y, width=0.92 * step, align="edge", color=tone)
            continue
        if series.low and series.high:
            known = [
                (i, a) for i, a, _ in points if len(finite([series.low[i], series.high[i]])) == 2
            ]
            low, high = [series.low[i] for i, _ in known], [series.high[i] for i, _ in known]
            if series.mark == "line":
                axes.fill_between(
                    [a for _, a in known], low, high, color=tone, alpha=0.16, linewidth=0
                )
            else:
                axes.vlines([a for _, a in known], low, high, color=tone, linewidth=1.3)
        if series.x_low and series.x_high:
            known = [
                (i, b)
                for i, _, b in points
                if len(finite([series.x_low[i], series.x_high[i]])) == 2
            ]
            low, high = [series.x_low[i] for i, _ in known], [series.x_high[i] for i, _ in known]
            axes.hlines([b for _, b in known], low, high, color=tone, linewidth=1.3)
        line = "-" if series.mark in ("line", "path") else "none"
        axes.plot(
            x,
            y,
            linestyle=line,
            marker="" if series.mark == "line" and len(x) > 1 else "o",
            color=tone,
            linewidth=1.6,
            markersize=5,
            label=_plain(series.label),
        )
        for (i, a, b), text in zip(points, series.texts, strict=False):
            del i
            axes.annotate(
                _plain(text),
                (a, b),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=8,
                color=tone,
            )
    if figure.diagonal:
        axes.axline((0, 0), slope=1, color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)))
    if (
        sum(not s.texts and s.mark != "bars" for s in figure.series) > 1
    ):  # series with texts at their points name themselves
        # Below the curves: among them, no place is free in every figure.
        axes.figure.legend(
            fontsize=7, frameon=False, labelcolor=SOFT, loc="outside lower left", ncols=2
        )
    if figure.x_names:
        axes.set_xticks(range(len(figure.x_names)), [_plain(name) for name in figure.x_names])
    elif figure.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if figure.percent:
        _percent(axes.yaxis)
        if figure.diagonal:
            _percent(axes.xaxis)


def _forest(axes, figure: Forest) -> None:
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    if figure.reference is not None:
        axes.axvline(figure.reference, color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)))
    for place, row in enumerate(figure.rows):
        tone = TONES[row.tone % len(TONES)]
        if row.low is not None and row.high is not None:
            axes.hlines(place, row.low, row.high, color=tone, linewidth=1.6)
        if row.value is not None:
            axes.plot(row.value, place, "o", color=tone, markersize=5)
        for value, _ in row.marks:
            axes.vlines(value, place - 0.28, place + 0.28, color=SOFT, linewidth=1.1)
    axes.set_yticks(range(len(figure.rows)), [_plain(row.label, 34) for row in figure.rows])
    for label, row in zip(axes.get_yticklabels(), figure.rows, strict=True):
        label.set_fontweight("bold" if row.heading else "normal")
    axes.set_ylim(len(figure.rows) - 0.4, -0.6)
    if figure.percent:
        _percent(axes.xaxis)
