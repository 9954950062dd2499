"""Figures: what they show as plain data, drawn by matplotlib as SVG for the page and as PNG.

The SVG has the page's CSS variables for colours, so that one drawing serves light, dark and print;
a title and a description that reads the numbers out; and a tooltip at every point.
"""

from __future__ import annotations

import functools
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cai_jax.report.spec import (
    Forest,
    ForestRow,
    Panel,
    Series,
    describe,
    finite,
    interval_of,
    with_interval,
)
from cai_jax.report.text import number, one_line, visible

__all__ = ["Forest", "ForestRow", "Panel", "Series", "png", "svg"]

# The light palette of report.css, in which PNGs are drawn; in the page each colour is a variable.
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
INK, SOFT, FAINT, HAIR = "#1d1b18", "#66615a", "#8d877d", "#e5e1d9"
VARIABLES = {tone: f"--t{i}" for i, tone in enumerate(TONES)} | {
    INK: "--ink",
    SOFT: "--soft",
    FAINT: "--faint",
    HAIR: "--hair",
    "#ffffff": "--paper",
}
SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
SETTINGS = {
    "text.parse_math": False,  # a label is text, whatever it holds
    "svg.fonttype": "none",
    "svg.hashsalt": "cai_jax",  # the same figure has the same ids
    "font.size": 11,
    "axes.unicode_minus": True,
}
PNG_DPI = 160
CROWD = 8  # named points beyond which those without room have no name
DASHES = (0, (3, 3))


def png(figure: Panel | Forest) -> bytes:
    """The PNG's bytes, with the title inside."""
    with matplotlib.rc_context(SETTINGS):
        canvas, _ = _drawn(figure, head=26)
        canvas.text(0.01, 0.995, _plain(figure.title, 120), va="top", size=12, color=INK)
        buffer = io.BytesIO()
        plain = {"facecolor": "white", "metadata": {"Software": None}}
        canvas.savefig(buffer, format="png", dpi=PNG_DPI, **plain)
    return buffer.getvalue()


def svg(figure: Panel | Forest, prefix: str = "fig") -> str:
    """An `<svg>` for the page: ids of its own, colours by CSS variable, title, description."""
    with matplotlib.rc_context(SETTINGS):
        canvas, tips = _drawn(figure)
        buffer = io.StringIO()
        canvas.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", LINK)
    root = ElementTree.fromstring(buffer.getvalue())
    _adapt(root, f"{prefix}-{figure.key}", tips)
    return _described(root, figure, f"{prefix}-{figure.key}")


# ---- SVG for the page ----------------------------------------------------------------------------


def _adapt(root, name: str, tips: dict[str, str]) -> None:
    """Colours become variables, ids and references get the figure's name, points their tips."""

    def colour(match):
        return f"{match[1]}: var({VARIABLES.get(match[2], '--ink')})"

    for node in root.iter():
        if style := node.get("style"):
            style = re.sub(r"font-family: [^;]*;?", "", style)  # the page's font
            node.set("style", re.sub(r"(fill|stroke): (#[0-9a-f]{6})", colour, style))
        own = node.attrib.pop("id", None)
        if own in tips:
            tip = ElementTree.Element(f"{{{SVG}}}title")
            tip.text = tips[own]
            node.insert(0, tip)
        elif own and not node.tag.endswith("}g"):
            node.set("id", f"{name}-{own}")
        for key in (f"{{{LINK}}}href", "clip-path"):
            if key in node.attrib:
                node.set(key, node.get(key).replace("#", f"#{name}-"))
        if node.tag.endswith("}text"):
            node.set("class", "text")


def _described(root, figure: Panel | Forest, name: str) -> str:
    for node in list(root.iter()):
        for child in list(node):  # a style sheet inside would apply to the page around it
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                node.remove(child)
    for place, (tag, text) in enumerate((("title", figure.title), ("desc", describe(figure)))):
        node = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag[0]}"})
        node.text = visible(text)
        root.insert(place, node)
    width, height = (float(value) for value in root.get("viewBox").split()[2:])
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("class", "plot")
    root.set("style", f"max-width:{width * 1.15:.0f}px;--w:{width:.0f}px")
    root.set("viewBox", f"0 0 {width:.0f} {height:.0f}")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-t {name}-d")
    return ElementTree.tostring(root, encoding="unicode")


# ---- Drawing -------------------------------------------------------------------------------------


def _drawn(figure: Panel | Forest, head: int = 0) -> tuple[Figure, dict[str, str]]:
    """The matplotlib figure, a unit of the drawing being a pixel of the page, and id → tooltip of
    its points. `head`: pixels that are left free at the top."""
    width, height = figure.size[0], figure.size[1] + head
    canvas = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasAgg(canvas)
    axes = canvas.add_axes((0.1, 0.2, 0.8, 0.75))
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=11, labelcolor=SOFT)
    axes.set_xlabel(_plain(figure.x_label, 80), size=11, color=SOFT)
    tips: dict[str, str] = {}
    finish = (_forest if isinstance(figure, Forest) else _panel)(axes, figure, tips)
    _fit(canvas, axes, head)
    finish()
    return canvas, tips


def _fit(canvas: Figure, axes, head: int) -> None:
    """Moves the axes so that all their labels are inside the figure."""
    box = axes.get_tightbbox(canvas.canvas.get_renderer())
    area, (width, height) = axes.get_window_extent(), canvas.get_size_inches() * 72
    left, bottom = area.x0 - box.x0 + 1, area.y0 - box.y0 + 2
    right, top = max(6.0, box.x1 - area.x1 + 2), max(8.0, box.y1 - area.y1 + 2) + head
    axes.set_position(
        (
            left / width,
            bottom / height,
            max(0.2, 1 - (left + right) / width),
            max(0.2, 1 - (bottom + top) / height),
        )
    )


def _plain(text: str, limit: int = 44) -> str:
    return one_line(str(text), limit)


def _tip(artist, tips: dict[str, str], text: str) -> None:
    name = f"tip{len(tips)}"
    artist.set_gid(name)
    tips[name] = one_line(text, 200)


def _dot(axes, x: float, y: float, tone: int, tips: dict[str, str], tip: str) -> None:
    style = {"color": TONES[tone % len(TONES)], "markersize": 8.5, "markeredgecolor": "#ffffff"}
    (artist,) = axes.plot([x], [y], "o", markeredgewidth=1.5, clip_on=False, zorder=4, **style)
    _tip(artist, tips, tip)


def _share(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(100 * step) + 1e-9)) if step > 0 else 0
    return f"{100 * value:.{min(digits, 4)}f}%".replace("-", "−")


def _ticks(axis, count: int, percent: bool = False, integer: bool = False) -> None:
    axis.set_major_locator(
        MaxNLocator(max(2, count), integer=integer, steps=[1, 2, 5, 10], min_n_ticks=2)
    )
    if percent:  # as many digits as it takes to tell two ticks apart
        values = axis.get_majorticklocs()
        step = float(values[1] - values[0]) if len(values) > 1 else 0.01
        axis.set_major_formatter(FuncFormatter(lambda value, _: _share(value, step)))


def _limits(values: Sequence[float | None], zero: bool = False) -> tuple[float, float]:
    """(low, high) with a little air around the finite values."""
    known = finite(values) + [0.0] * zero
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    if high - low < 1e-9 * max(1.0, abs(high)):
        return low - 0.5, high + 0.5
    air = 0.06 * (high - low)
    return (low if zero and low == 0 else low - air), high + air


def _panel(axes, figure: Panel, tips: dict[str, str]):
    width, height = figure.size
    every = figure.series
    axes.set_title(_plain(figure.y_label, 80), loc="left", size=11, color=SOFT, pad=9)
    axes.grid(axis="y", color=HAIR, linewidth=1)
    bars = [s for s in every if s.mark == "bars"]
    values = [v for s in every for part in (s.y, s.low or (), s.high or ()) for v in part]
    axes.set_ylim(*_limits(values, zero=figure.zero or bool(bars)))
    if not bars:
        spread = [v for s in every for part in (s.x, s.x_low or (), s.x_high or ()) for v in part]
        axes.set_xlim(*_limits(spread))
    for value, label in figure.references:
        axes.axhline(value, color=FAINT, linewidth=1, linestyle=DASHES)
        at = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate(_plain(label), (1, value), size=11, color=SOFT, **at)
    for series in every:
        _series(axes, figure, series, tips)
    if figure.diagonal:
        axes.axline((0, 0), slope=1, color=FAINT, linewidth=1, linestyle=DASHES)
    if figure.x_names:
        axes.set_xticks(range(len(figure.x_names)), [_plain(name) for name in figure.x_names])
    else:
        _ticks(
            axes.xaxis,
            width // 75,
            percent=figure.percent and figure.diagonal,
            integer=figure.integer_x,
        )
    _ticks(axes.yaxis, height // 48, percent=figure.percent)
    lines = [s for s in every if s.mark in ("line", "path") and finite(s.y) and not s.texts]
    if len(lines) > 1:
        _name_lines(axes, lines, height)
    return functools.partial(_name_points, axes, every)


def _series(axes, figure: Panel, series: Series, tips: dict[str, str]) -> None:
    tone = TONES[series.tone % len(TONES)]
    pairs = enumerate(zip(series.x, series.y, strict=True))
    points = [(i, a, b) for i, (a, b) in pairs if len(finite([a, b])) == 2]
    if not points:
        return
    if series.mark == "bars":
        step = series.x[1] - series.x[0] if len(series.x) > 1 else 1.0
        heights = [b for *_, b in points]
        drawn = axes.bar([a for _, a, _ in points], heights, 0.92 * step, color=tone, align="edge")
        for bar, (_, a, b) in zip(drawn, points, strict=True):
            shown = number(b, 3, percent=True) if figure.percent else number(b, 0)
            _tip(bar, tips, f"{number(a)} to {number(a + step)}: {shown}")
        return
    ends = [
        (a, b, (series.low[i], series.high[i]))
        for i, a, b in points
        if series.low and series.high and len(finite([series.low[i], series.high[i]])) == 2
    ]
    if ends and series.mark == "line":
        low, high = zip(*(bounds for *_, bounds in ends), strict=True)
        axes.fill_between([a for a, *_ in ends], low, high, color=tone, alpha=0.16, linewidth=0)
    whisker = {"color": tone, "linewidth": 1.5, "alpha": 0.75, "clip_on": False}
    for a, _, (low, high) in ends if series.mark != "line" else ():
        axes.vlines(a, low, high, **whisker)
    for i, _, b in points if series.x_low and series.x_high else ():
        if len(finite([series.x_low[i], series.x_high[i]])) == 2:
            axes.hlines(b, series.x_low[i], series.x_high[i], **whisker)
    if series.mark in ("line", "path") and len(points) > 1:
        x, y = [a for _, a, _ in points], [b for *_, b in points]
        axes.plot(x, y, color=tone, linewidth=1.75, solid_capstyle="round", zorder=3)
    if series.mark != "line" or len(points) == 1:
        for i, a, b in points:
            name = series.texts[i] if series.texts else series.label
            bounds = (series.low[i], series.high[i]) if series.low and series.high else (None, None)
            shown = with_interval(b, *bounds, figure.percent, 2)
            _dot(axes, a, b, series.tone, tips, f"{name}: {number(a)}, {shown}")


def _name_lines(axes, lines: Sequence[Series], height: float) -> None:
    """The names of several lines, at their right ends and apart from each other."""
    low, high = axes.get_ylim()
    ends = [(finite(series.y)[-1] - low) / (high - low) for series in lines]
    gap = 14 / max(1.0, height - 60)
    for series, at in zip(lines, apart(ends, gap, 0.0, 1.0), strict=True):
        axes.annotate(
            _plain(series.label),
            (1, at),
            xytext=(6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            weight="bold",
            size=11,
            color=TONES[series.tone % len(TONES)],
        )


def apart(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves positions as little as needed.

    Args:
        positions: wanted. gap: least distance of neighbours. low, high: the range.

    Returns:
        The positions in the same order.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    moved, at = [0.0] * len(positions), low - gap
    for i in order:
        at = moved[i] = max(positions[i], at + gap)
    limit = high
    for i in reversed(order):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def _name_points(axes, every: Sequence[Series]) -> None:
    """Names next to their points: of eight positions that meet no name or point the one that
    crosses the fewest whiskers."""
    points = [
        (text, axes.transData.transform((a, b)), series.tone)
        for series in every
        for text, a, b in zip(series.texts, series.x, series.y, strict=False)
        if len(finite([a, b])) == 2
    ]
    lines = [
        _around(axes.transData.transform(ends), 2)
        for s in every
        if s.texts
        for i, (a, b) in enumerate(zip(s.x, s.y, strict=True))
        for ends in (
            s.low and s.high and [(a, s.low[i]), (a, s.high[i])],
            s.x_low and s.x_high and [(s.x_low[i], b), (s.x_high[i], b)],
        )
        if ends and len(finite([a, b, *ends[0], *ends[1]])) == 6
    ]
    area, taken = axes.get_window_extent(), [_around([at], 5) for _, at, _ in points]
    right = axes.figure.get_window_extent().x1
    for text, (x, y), tone in points:
        name = axes.annotate(
            _plain(text),
            (x, y),
            xycoords="figure pixels",
            size=11,
            weight="bold",
            color=TONES[tone % len(TONES)],
            zorder=6,
        )
        extent = name.get_window_extent()
        options = []
        for up in (5, -17, 18, -30):
            for start in (x + 9, x - 9 - extent.width):
                box = (start, y + up, start + extent.width, y + up + extent.height)
                inside = area.x0 <= box[0] and box[2] <= right
                if inside and area.y0 <= box[1] and box[3] <= area.y1 + 9:
                    options.append(box)
        free = [box for box in options if not any(_meet(box, other) for other in taken)]
        if not free and len(points) > CROWD:
            name.remove()
            continue
        crossed = [sum(_meet(box, line) for line in lines) for box in free]
        box = free[crossed.index(min(crossed))] if free else (options or [(x + 9, y + 5, x, y)])[0]
        taken.append(box)
        name.set_position((box[0], box[1] + 2))


def _around(points, air: float) -> tuple[float, float, float, float]:
    xs, ys = zip(*points, strict=True)
    return min(xs) - air, min(ys) - air, max(xs) + air, max(ys) + air


def _meet(a, b) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _forest(axes, figure: Forest, tips: dict[str, str]):
    known = [v for r in figure.rows for v in (r.value, r.low, r.high, *(m for m, _ in r.marks))]
    axes.set_xlim(*_limits([*known, figure.reference]))
    axes.set_ylim(len(figure.rows) - 0.4, -0.6)
    axes.grid(axis="x", color=HAIR, linewidth=1)
    if figure.reference is not None:
        axes.axvline(figure.reference, color=FAINT, linewidth=1, linestyle=DASHES)
    values = []
    for at, row in enumerate(figure.rows):
        tone = TONES[row.tone % len(TONES)]
        for value, name in row.marks:
            mark = axes.vlines(value, at - 0.28, at + 0.28, color=FAINT, linewidth=1.5)
            _tip(mark, tips, f"{name}: {number(value, 3, percent=figure.percent)}")
        if row.low is not None and row.high is not None:
            axes.hlines(at, row.low, row.high, color=tone, linewidth=1.5, alpha=0.75)
        shown = "" if row.heading else interval_of(figure, row)
        if row.value is not None:
            note = f"; {row.note}" if row.note else ""
            _dot(axes, row.value, at, row.tone, tips, f"{row.label}: {shown}{note}")
        edge = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        style = {"va": "center", "ha": "right", "size": 11, "color": INK}
        values.append(axes.annotate(shown, (1, at), xytext=(0, 0), **edge, **style))
    room = 8 + max(value.get_window_extent().width for value in values)
    for value in values:
        value.set_position((room, 0))
    labels = [_plain(row.label, 34) for row in figure.rows]
    axes.set_yticks(range(len(labels)), labels, ha="left")
    renderer = axes.figure.canvas.get_renderer()
    for label, row in zip(axes.get_yticklabels(), figure.rows, strict=True):
        label.set(weight="bold" if row.heading else "normal", color=(INK, SOFT)[row.heading])
    drawn = zip(axes.get_yticklabels(), figure.rows, strict=True)
    widths = [label.get_window_extent(renderer).width for label, row in drawn if not row.heading]
    axes.tick_params(axis="y", pad=max(widths, default=20) + 6)
    _ticks(axes.xaxis, 4, percent=figure.percent)
    return lambda: None
