"""Figures drawn by matplotlib: as SVG for the page, and from the same drawing as PNG.

The SVG has the page's CSS variables for colours, so that one drawing serves light, dark and print;
a title and a description that reads the numbers out; and a tooltip at every point.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cai_jax.report.spec import Figure, Forest, Panel, Series
from cai_jax.report.text import number, one_line, visible

# The light palette of report.css, in which PNGs are drawn; in the page each colour is a variable.
TONES = ("#77726a", "#2a67ad", "#bf4d2a", "#27795a", "#7d52ad",
         "#8a670f", "#0f7f8a", "#b0446f", "#5f7d17", "#3a3733")  # fmt: skip
INK, SOFT, FAINT, HAIR, PAPER = "#1d1b18", "#66615a", "#8d877d", "#e5e1d9", "#ffffff"
VARIABLES = {tone: f"--t{i}" for i, tone in enumerate(TONES)} | {
    INK: "--ink", SOFT: "--soft", FAINT: "--faint", HAIR: "--hair", PAPER: "--paper"
}  # fmt: skip
SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", LINK)
SETTINGS = {
    "text.parse_math": False,  # a label is text, whatever it holds
    "svg.fonttype": "none",
    "svg.hashsalt": "cai_jax",  # the same figure has the same ids
    "font.size": 11,
    "axes.unicode_minus": True,
}
PNG_DPI = 160
PNG_HEAD = 26  # pixels for the title, which the page writes itself
LINE = 14  # pixels from one line of text to the next
# Mean width of a letter in pixels: the page's fonts are not known here.
LETTER, BOLD, DIGIT = 6.2, 6.8, 7.2
SHORT = 24  # letters of a line's name; longer ones are broken where there is room
CROWD = 8  # named points beyond which those without room have no name
DASHES = (0, (3, 3))


class Drawing:
    """A figure that is drawn once. A unit of the drawing is a pixel of the page.

    Attributes: `tips`, id → tooltip of the points; `words`, what is read out.
    """

    def __init__(self, figure: Figure):
        self.figure, self.tips, self.words = figure, {}, []
        self.canvas = Canvas(figsize=(figure.size[0] / 72, figure.size[1] / 72), dpi=72)
        FigureCanvasAgg(self.canvas)
        with matplotlib.rc_context(SETTINGS):
            self.axes = self.canvas.add_axes((0.1, 0.1, 0.8, 0.8))
            self.axes.patch.set_visible(False)
            self.axes.spines[:].set_visible(False)
            self.axes.set_axisbelow(True)
            self.axes.tick_params(length=0, labelsize=11, labelcolor=SOFT)
            self.axes.set_xlabel(_plain(figure.x_label, 80), size=11, color=SOFT)
            (_forest if isinstance(figure, Forest) else _panel)(self, figure)

    def place(self, left: float, right: float, top: float) -> None:
        """Gives the axes all but these margins and the lines below them."""
        (width, height), bottom = self.figure.size, 38 if self.figure.x_label else 22
        inner = max(0.2 * width, width - left - right), max(0.2 * height, height - bottom - top)
        self.axes.set_position((left / width, bottom / height, inner[0] / width, inner[1] / height))

    def tip(self, artist, text: str) -> None:
        name = f"tip{len(self.tips)}"
        artist.set_gid(name)
        self.tips[name] = one_line(text, 200)

    def dot(self, at: tuple[float, float], tone: int, tip: str) -> None:
        style = {"color": colour(tone), "markersize": 8.5, "markeredgecolor": PAPER}
        (artist,) = self.axes.plot(*at, "o", mew=1.5, clip_on=False, zorder=4, **style)
        self.tip(artist, tip)

    def png(self) -> bytes:
        """The drawing with its title above; afterwards it is that much higher."""
        width, height = self.figure.size
        share, box = height / (height + PNG_HEAD), self.axes.get_position()
        buffer = io.BytesIO()
        with matplotlib.rc_context(SETTINGS):
            self.canvas.set_size_inches(width / 72, (height + PNG_HEAD) / 72)
            self.axes.set_position((box.x0, box.y0 * share, box.width, box.height * share))
            for text in self.axes.texts:  # readable where it crosses a line, as by the page's CSS
                text.set_path_effects([withStroke(linewidth=3, foreground=PAPER)])
            title = {"va": "top", "size": 12, "color": INK}
            self.canvas.text(0.01, 0.995, _plain(self.figure.title, 120), **title)
            # Packing them smaller takes longer than drawing.
            plain = {"facecolor": "white", "metadata": {"Software": None}}
            plain["pil_kwargs"] = {"compress_level": 1}
            self.canvas.savefig(buffer, format="png", dpi=PNG_DPI, **plain)
        return buffer.getvalue()

    def svg(self, prefix: str = "fig") -> str:
        """An `<svg>` for the page: ids of its own, colours by CSS variable, title, description."""
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        buffer = io.StringIO()
        with matplotlib.rc_context(SETTINGS):
            self.canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        root = ElementTree.fromstring(buffer.getvalue())
        name = f"{prefix}-{self.figure.key}"
        _adapt(root, name, self.tips)
        read = {"title": self.figure.title, "desc": "; ".join([*self.words, *self.tips.values()])}
        for index, (tag, text) in enumerate(read.items()):
            node = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag[0]}"})
            node.text = visible(text)
            root.insert(index, node)
        for key in ("width", "height", "version"):
            root.attrib.pop(key, None)
        width, height = self.figure.size
        root.attrib |= {
            "class": "plot",
            "style": f"max-width:{width * 1.15:.0f}px;--w:{width}px",
            "viewBox": f"0 0 {width} {height}",
            "role": "img",
            "aria-labelledby": f"{name}-t {name}-d",
        }
        return ElementTree.tostring(root, encoding="unicode")


def png(figure: Figure) -> bytes:
    return Drawing(figure).png()


def svg(figure: Figure) -> str:
    return Drawing(figure).svg()


def colour(tone: int) -> str:
    return TONES[tone % len(TONES)]


def _adapt(root, name: str, tips: dict[str, str]) -> None:
    """Colours become variables, ids and references get the figure's name, points their tips; style
    sheets, which would apply to the page, and metadata go."""

    def variable(match):
        return f"{match[1]}: var({VARIABLES.get(match[2], '--ink')})"

    for node in list(root.iter()):
        for child in list(node):
            if child.tag.endswith(("}metadata", "}style")):
                node.remove(child)
        if style := node.get("style"):
            style = re.sub(r"font-family: [^;]*;?", "", style)  # the page's font
            node.set("style", re.sub(r"(fill|stroke): (#[0-9a-f]{6})", variable, style))
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


# ---- Texts, ticks and limits ---------------------------------------------------------------------


def _plain(text: str, limit: int = 44) -> str:
    return one_line(str(text), limit)


def _widest(texts: Sequence[str], letter: float = LETTER) -> float:
    return letter * max(map(len, texts), default=0)


def finite(values) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def _known(*ends) -> bool:
    return len(finite(ends)) == len(ends)


def with_interval(value, low, high, percent: bool, digits: int) -> str:
    """The value in print with its interval.

    Args:
        value, low, high: None for none.
        percent, digits: see `number`.

    Returns:
        "value [low, high]", or the value alone.
    """
    shown = number(value, digits, percent=percent)
    if None in (low, high):
        return shown
    return f"{shown} [{', '.join(number(end, digits, percent=percent) for end in (low, high))}]"


def _ticks(axis, count: int, percent: bool = False, integer: bool = False) -> list[str]:
    """Sets at most `count` round ticks; returns their labels."""
    steps = [1, 2, 5, 10]
    axis.set_major_locator(MaxNLocator(max(2, count), integer=integer, steps=steps, min_n_ticks=2))
    values = axis.get_majorticklocs()
    if percent:  # as many digits as it takes to tell two ticks apart
        step = float(values[1] - values[0]) if len(values) > 1 else 0.01
        digits = max(0, -math.floor(math.log10(100 * step) + 1e-9)) if step > 0 else 0
        digits = min(digits, 4)
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: number(value, digits + 2, percent=True))
        )
    return axis.get_major_formatter().format_ticks(values)


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


# ---- One set of axes -----------------------------------------------------------------------------


def _panel(drawing: Drawing, figure: Panel) -> None:
    (width, height), axes, every = figure.size, drawing.axes, figure.series
    axes.set_title(_plain(figure.y_label, 80), loc="left", size=11, color=SOFT, pad=9)
    axes.grid(axis="y", color=HAIR, linewidth=1)
    bars = any(s.mark == "bars" for s in every)
    values = [v for s in every for part in (s.y, s.low or (), s.high or ()) for v in part]
    spread = [v for s in every for part in (s.x, s.x_low or (), s.x_high or ()) for v in part]
    values += spread if figure.diagonal else []  # so that the line y = x is in sight
    axes.set_ylim(*_limits(values, zero=figure.zero or bars))
    if not bars:
        axes.set_xlim(*_limits(spread))
    for value, label in figure.references:
        axes.axhline(value, color=FAINT, linewidth=1, linestyle=DASHES)
        at = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate(_plain(label), (1, value), size=11, color=SOFT, **at)
    if figure.diagonal:
        axes.axline((0, 0), slope=1, color=FAINT, linewidth=1, linestyle=DASHES)
    drawing.words.append(f"{figure.y_label} against {figure.x_label}")
    for series in every:
        _series(drawing, series, figure.percent)
    if figure.x_names:
        axes.set_xticks(range(len(figure.x_names)), [_plain(name) for name in figure.x_names])
    else:
        share = figure.percent and figure.diagonal
        _ticks(axes.xaxis, width // 75, percent=share, integer=figure.integer_x)
    ticks = _ticks(axes.yaxis, height // 48, percent=figure.percent)
    # Several lines have their names at their right ends, points next to them.
    lines = [s for s in every if s.mark in ("line", "path") and finite(s.y) and not s.texts]
    lines = lines if len(lines) > 1 else []
    names = [_plain(series.label) for series in lines]
    broken = [textwrap.fill(name, SHORT) for name in names]
    gap = LINE * max((name.count("\n") + 1 for name in broken), default=1)
    names, gap = (broken, gap) if gap * len(names) <= height - 60 else (names, LINE)
    right = _widest("\n".join(names).split("\n"), BOLD) + 10 if names else 14
    left = _widest(ticks, DIGIT) + 9
    drawing.place(left, right, 26 if figure.y_label else 10)
    _name_lines(axes, lines, names, gap / max(1.0, height - 60))
    _name_points(drawing, every)


def _series(drawing: Drawing, series: Series, percent: bool) -> None:
    axes, tone = drawing.axes, colour(series.tone)
    pairs = enumerate(zip(series.x, series.y, strict=True))
    points = [(i, a, b) for i, (a, b) in pairs if _known(a, b)]
    if not points:
        return
    _, x, y = (list(column) for column in zip(*points, strict=True))
    if series.mark == "bars":
        step = series.x[1] - series.x[0] if len(series.x) > 1 else 1.0
        for bar, a, b in zip(axes.bar(x, y, 0.92 * step, color=tone, align="edge"), x, y,
                             strict=True):  # fmt: skip
            shown = number(b, 3, percent=True) if percent else number(b, 0)
            drawing.tip(bar, f"{number(a)} to {number(a + step)}: {shown}")
        return
    ends = []  # (x, low, high)
    if series.low and series.high:
        ends = [(a, series.low[i], series.high[i]) for i, a, _ in points]
        ends = [end for end in ends if _known(*end)]
    if ends and series.mark == "line":
        axes.fill_between(*zip(*ends, strict=True), color=tone, alpha=0.16, linewidth=0)
    whisker = {"color": tone, "linewidth": 1.5, "alpha": 0.75, "clip_on": False}
    if ends and series.mark != "line":
        axes.vlines(*zip(*ends, strict=True), **whisker)
    if series.x_low and series.x_high:
        across = [(b, series.x_low[i], series.x_high[i]) for i, _, b in points]
        if across := [end for end in across if _known(*end)]:
            axes.hlines(*zip(*across, strict=True), **whisker)
    if series.mark in ("line", "path") and len(points) > 1:
        axes.plot(x, y, color=tone, linewidth=1.75, solid_capstyle="round", zorder=3)
    if series.mark == "line" and len(points) > 1:
        first, last, low, high = (number(v, 3) for v in (y[0], y[-1], min(y), max(y)))
        drawing.words.append(
            f"{series.label}: {len(y)} points, first {first}, last {last}, lowest {low}, "
            f"highest {high}"
        )
        return
    for i, a, b in points:
        name = series.texts[i] if series.texts else series.label
        bounds = (series.low[i], series.high[i]) if series.low and series.high else (None, None)
        shown = with_interval(b, *bounds, percent, 2)
        drawing.dot((a, b), series.tone, f"{name}: {number(a)}, {shown}")


def _name_lines(axes, lines: Sequence[Series], names: Sequence[str], gap: float) -> None:
    """The names of several lines, at their right ends and `gap` apart, in heights of the axes."""
    low, high = axes.get_ylim()
    ends = [(finite(series.y)[-1] - low) / (high - low) for series in lines]
    for series, name, at in zip(lines, names, apart(ends, gap), strict=True):
        style = {"va": "center", "weight": "bold", "size": 11, "color": colour(series.tone)}
        where = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(name, (1, at), xytext=(6, 0), **where, **style)


def apart(positions: Sequence[float], gap: float) -> list[float]:
    """The positions, moved as little as needed to be `gap` from each other and at most 1."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    moved, at = [0.0] * len(positions), -gap
    for i in order:
        at = moved[i] = max(positions[i], at + gap)
    limit = 1.0
    for i in reversed(order):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def _name_points(drawing: Drawing, every: Sequence[Series]) -> None:
    """Names next to their points: at the first of eight positions that meets no name or point; in
    a crowd a point without such a position has no name."""
    axes = drawing.axes
    points = [
        (_plain(text), axes.transData.transform((a, b)), series.tone)
        for series in every
        for text, a, b in zip(series.texts, series.x, series.y, strict=False)
        if _known(a, b)
    ]
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, (x, y), _ in points]
    area = axes.get_window_extent()
    for text, (x, y), tone in points:
        width, options = BOLD * len(text), []
        for up in (LINE // 2, -LINE // 2 - 4, 20, -20):
            for start in (9, -9 - width):
                box = (x + start, y + up - 7, x + start + width, y + up + 7)
                inside = area.x0 <= box[0] and box[2] <= drawing.figure.size[0]
                if inside and area.y0 <= box[1] and box[3] <= area.y1 + 9:
                    options.append((start, up, box))
        free = [option for option in options if not any(meet(option[2], b) for b in taken)]
        if not free and len(points) > CROWD:
            continue
        start, up, box = (free or options or [(9, LINE // 2, (x, y, x, y))])[0]
        taken.append(box)
        style = {"va": "center", "weight": "bold", "size": 11, "zorder": 6}
        at = {"xytext": (start, up), "textcoords": "offset points", "xycoords": "data"}
        at["xy"] = axes.transData.inverted().transform((x, y))
        axes.annotate(text, color=colour(tone), **at, **style)


def meet(a, b) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# ---- Rows over one axis --------------------------------------------------------------------------


def _forest(drawing: Drawing, figure: Forest) -> None:
    axes, count = drawing.axes, len(figure.rows)
    known = [v for r in figure.rows for v in (r.value, r.low, r.high, *(m for m, _ in r.marks))]
    axes.set_xlim(*_limits([*known, figure.reference]))
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks([])
    axes.grid(axis="x", color=HAIR, linewidth=1)
    _ticks(axes.xaxis, 4, percent=figure.percent)
    if figure.reference is not None:
        axes.axvline(figure.reference, color=FAINT, linewidth=1, linestyle=DASHES)
    labels = [_plain(row.label, 34) for row in figure.rows]
    shown = [
        "" if row.heading
        else with_interval(row.value, row.low, row.high, figure.percent, figure.digits)
        for row in figure.rows
    ]  # fmt: skip
    left = _widest([x for x, row in zip(labels, figure.rows, strict=True) if not row.heading]) + 12
    right = _widest(shown) + 12
    drawing.place(left, right, 8)
    drawing.words.append(figure.x_label)
    edge = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "baseline"}
    for at, (row, label, value) in enumerate(zip(figure.rows, labels, shown, strict=True)):
        style = {"weight": "bold", "color": SOFT} if row.heading else {"color": INK}
        axes.annotate(label, (0, at), xytext=(2 - left, -4), size=11, **edge, **style)
        axes.annotate(
            value, (1, at), xytext=(right - 5, -4), size=11, ha="right", color=INK, **edge
        )
        for mark, name in row.marks:
            line = axes.vlines(mark, at - 0.28, at + 0.28, color=FAINT, linewidth=1.5)
            drawing.tip(line, f"{name}: {number(mark, 3, percent=figure.percent)}")
        if _known(row.low, row.high):
            style = {"color": colour(row.tone), "linewidth": 1.5, "alpha": 0.75}
            axes.hlines(at, row.low, row.high, **style)
        if row.value is not None:
            note = f"; {row.note}" if row.note else ""
            drawing.dot((row.value, at), row.tone, f"{row.label}: {value}{note}")
