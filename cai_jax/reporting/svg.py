"""Figures as inline SVG: colours are the page's CSS variables, so one drawing serves light, dark
and print."""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.reporting.figure import (
    Forest,
    ForestRow,
    Panel,
    Series,
    apart,
    finite,
    span,
    tick_label,
    ticks,
)
from cai_jax.reporting.text import escape, number, one_line

CHAR = 6.1  # mean width of a character at 11 px
NUM_TONES = 10
CROWD = 8  # points with names


def draw(figure: Panel | Forest, prefix: str = "fig") -> str:
    """An `<svg>` with a title and a description that reads the numbers out."""
    body, width, height = (_forest if isinstance(figure, Forest) else _panel)(figure)
    name = f"{prefix}-{figure.key}"
    return (
        f'<svg class="plot" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width:{width * 1.15:.0f}px;--w:{width:.0f}px" '
        f'role="img" aria-labelledby="{escape(name)}-t {escape(name)}-d">'
        f'<title id="{escape(name)}-t">{escape(figure.title)}</title>'
        f'<desc id="{escape(name)}-d">{escape(describe(figure))}</desc>{"".join(body)}</svg>'
    )


def describe(figure: Panel | Forest) -> str:
    """The figure in words, for screen readers."""
    if isinstance(figure, Forest):
        parts = [
            f"{row.label}: {_interval(row.value, row.low, row.high, figure.percent, figure.digits)}"
            for row in figure.rows
            if not row.heading
        ]
        return f"{figure.x_label}. " + "; ".join(parts)
    parts = []
    for series in figure.series:
        y = finite(series.y)
        if not y:
            continue
        if series.mark == "line":
            parts.append(
                f"{series.label}: {len(y)} points, first {number(y[0], 3)}, last "
                f"{number(y[-1], 3)}, "
                f"lowest {number(min(y), 3)}, highest {number(max(y), 3)}"
            )
        else:
            points = [
                f"({number(a, 2)}, {number(b, 2)})" for a, b in zip(series.x, series.y, strict=True)
            ][:24]
            parts.append(f"{series.label}: {' '.join(points)}")
    return f"{figure.y_label} against {figure.x_label}. " + "; ".join(parts)


def _interval(value, low, high, percent=False, digits=2) -> str:
    shown = number(value, digits, percent=percent)
    if low is None or high is None:
        return shown
    return (
        f"{shown} [{number(low, digits, percent=percent)}, {number(high, digits, percent=percent)}]"
    )


class _Scale:
    """Maps [low, high] to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float):
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _text(x, y, value, anchor="start", css="") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(value)}</text>'
    )


def _line(x1, y1, x2, y2, css) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def _dot(x, y, tone, tip) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="dot '
        f'{tone}"><title>{escape(tip)}</title></circle>'
    )


def _panel(figure: Panel) -> tuple[list[str], float, float]:
    width, height = figure.size
    lines = [s for s in figure.series if s.mark in ("line", "path") and finite(s.y)]
    named = len(lines) > 1
    right = 12 + (CHAR * max(len(s.label) for s in lines) + 8 if named else 0)
    ys = [v for s in figure.series for part in (s.y, s.low or (), s.high or ()) for v in part]
    xs = [v for s in figure.series for part in (s.x, s.x_low or (), s.x_high or ()) for v in part]
    bars = [s for s in figure.series if s.mark == "bars"]
    if bars and len(bars[0].x) > 1:
        xs.append(bars[0].x[-1] + bars[0].x[1] - bars[0].x[0])
    y_low, y_high = span(
        [*ys, *(value for value, _ in figure.references)], zero=figure.zero or bool(bars)
    )
    x_low, x_high = (min(finite(xs)), max(finite(xs))) if bars else span(xs)
    if figure.diagonal and not figure.percent:
        x_low, x_high = min(x_low, y_low), max(x_high, y_high)
        y_low, y_high = x_low, x_high
    y_ticks = ticks(y_low, y_high, max(4, height // 45))
    step = y_ticks[1] - y_ticks[0] if len(y_ticks) > 1 else y_high - y_low
    labels = [tick_label(v, step, figure.percent) for v in y_ticks]
    left = 10 + CHAR * max([len(label) for label in labels], default=1)
    x, y = (
        _Scale(x_low, x_high, left, width - right),
        _Scale(y_low, y_high, height - 36, 26 if figure.y_label else 10),
    )
    out = [_text(0, 11, figure.y_label, css="axis")] if figure.y_label else []
    for value, label in zip(y_ticks, labels, strict=True):
        out += [
            _line(left, y(value), width - right, y(value), "grid"),
            _text(left - 6, y(value) + 3.5, label, "end", "tick"),
        ]
    x_ticks = ticks(x_low, x_high, max(3, int((width - left - right) / 60)), figure.whole_x)
    step = x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else 1
    shares = figure.diagonal and figure.percent
    names = dict(enumerate(figure.x_names)) or {v: tick_label(v, step, shares) for v in x_ticks}
    out += [_text(x(v), height - 20, name, "middle", "tick") for v, name in names.items()]
    out.append(_text((left + width - right) / 2, height - 4, figure.x_label, "middle", "axis"))
    if figure.diagonal:
        low, high = max(x_low, y_low), min(x_high, y_high)
        out.append(_line(x(low), y(low), x(high), y(high), "reference"))
    for value, label in figure.references:
        out += [
            _line(left, y(value), width - right, y(value), "reference"),
            _text(width - right, y(value) - 4, label, "end", "tick"),
        ]
    for series in figure.series:
        out += _series(series, x, y, figure)
    labelled = [
        (text, x(a), y(b), f"name t{series.tone % NUM_TONES}")
        for series in figure.series
        for text, a, b in zip(series.texts, series.x, series.y, strict=False)
        if finite([a, b]) == [a, b]
    ]
    whiskers = [
        _box(x(a), y(s.low[i]), x(a), y(s.high[i]))
        for s in figure.series
        if s.texts and s.low and s.high
        for i, a in enumerate(s.x)
        if len(finite([a, s.low[i], s.high[i]])) == 3
    ]
    whiskers += [
        _box(x(s.x_low[i]), y(b), x(s.x_high[i]), y(b))
        for s in figure.series
        if s.texts and s.x_low and s.x_high
        for i, b in enumerate(s.y)
        if len(finite([b, s.x_low[i], s.x_high[i]])) == 3
    ]
    out += _names(labelled, left, width, 14, height - 36, whiskers)  # above every mark
    if named:
        ends = [y(finite(s.y)[-1]) for s in lines]
        for series, at in zip(lines, apart(ends, 13, 22, height - 36), strict=True):
            out.append(
                _text(
                    width - right + 6,
                    at + 3.5,
                    series.label,
                    css=f"name t{series.tone % NUM_TONES}",
                )
            )
    return out, width, height


def _meet(a, b) -> bool:
    """Whether two boxes (left, top, right, bottom) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _box(x1, y1, x2, y2) -> tuple:
    return min(x1, x2) - 2, min(y1, y2) - 2, max(x1, x2) + 2, max(y1, y2) + 2


def _names(points, left: float, right: float, top: float, bottom: float, lines=()) -> list[str]:
    """Labels (text, x, y, css) beside their points: of the eight places that meet no label or point
    the one that crosses the fewest `lines` (boxes), the first where several do. Of many points one
    without such a place has no label: its dot tells."""
    taken = [(x - 5, y - 5, x + 5, y + 5) for _, x, y, _ in points]
    out = []
    for text, x, y, css in points:
        wide = 1.08 * CHAR * len(text)
        places = []
        for down in (-8, 18, -22, 32):
            for start in (x + 9, x - 9 - wide):
                box = (start, y + down - 10, start + wide, y + down + 3)
                if box[0] >= left and box[2] <= right and box[1] >= top - 12 and box[3] <= bottom:
                    places.append((box, start, y + down))
        free = [p for p in places if not any(_meet(p[0], other) for other in taken)]
        crossed = [sum(_meet(p[0], line) for line in lines) for p in free]
        if not free and len(points) > CROWD:
            continue
        place = [free[crossed.index(min(crossed))]] if free else places
        box, start, at = (place or [((x, y, x, y), x + 9, y - 8)])[0]
        taken.append(box)
        out.append(_text(start, at, text, css=css))
    return out


def _series(series: Series, x: _Scale, y: _Scale, figure: Panel) -> list[str]:
    tone = f"t{series.tone % NUM_TONES}"
    out = []
    points = [
        (i, a, b)
        for i, (a, b) in enumerate(zip(series.x, series.y, strict=True))
        if finite([a, b]) == [a, b]
    ]
    if not points:
        return out
    if series.mark == "bars":
        wide = (series.x[1] - series.x[0]) if len(series.x) > 1 else x.high - x.low
        for _, a, b in points:
            shown = number(b, 3, percent=True) if figure.percent else number(b, 0)
            tip = f"{number(a, 2)} to {number(a + wide, 2)}: {shown}"
            out.append(
                f'<rect x="{x(a) + 0.8:.1f}" y="{y(b):.1f}" '
                f'width="{max(1.0, x(a + wide) - x(a) - 1.6):.1f}" '
                f'height="{max(0.0, y(0) - y(b)):.1f}" class="bar '
                f'{tone}"><title>{escape(tip)}</title></rect>'
            )
        return out
    banded = [
        (x(a), y(series.low[i]), y(series.high[i]))
        for i, a, _ in points
        if series.low and series.high and finite([series.low[i], series.high[i]])[1:]
    ]
    if series.mark == "line" and len(banded) > 1:
        outline = [f"{a:.1f},{b:.1f}" for a, b, _ in banded] + [
            f"{a:.1f},{c:.1f}" for a, _, c in reversed(banded)
        ]
        out.append(f'<polygon points="{" ".join(outline)}" class="band {tone}"/>')
    elif series.mark != "line":
        out += [_line(a, b, a, c, f"whisker {tone}") for a, b, c in banded]
        if series.x_low and series.x_high:
            out += [
                _line(x(series.x_low[i]), y(b), x(series.x_high[i]), y(b), f"whisker {tone}")
                for i, _, b in points
                if len(finite([series.x_low[i], series.x_high[i]])) == 2
            ]
    if series.mark in ("line", "path") and len(points) > 1:
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for _, a, b in points)
        out.append(f'<polyline points="{path}" class="line {tone}"/>')
    if series.mark != "line" or len(points) == 1:
        for i, a, b in points:
            name = series.texts[i] if series.texts else series.label
            tip = f"{name}: {number(a, 2)}, {_interval(b, *_bounds(series, i), figure.percent)}"
            out.append(_dot(x(a), y(b), tone, tip))
    return out


def _bounds(series: Series, i: int):
    return (series.low[i], series.high[i]) if series.low and series.high else (None, None)


def _forest(figure: Forest) -> tuple[list[str], float, float]:
    rows: Sequence[ForestRow] = figure.rows
    known = [v for r in rows for v in (r.value, r.low, r.high, *(m for m, _ in r.marks))]
    low, high = span([*known, figure.reference])
    texts = [_interval(r.value, r.low, r.high, figure.percent, figure.digits) for r in rows]
    labels = [one_line(r.label, 34) for r in rows]
    shown = [i for i, r in enumerate(rows) if not r.heading]
    left = min(0.42 * figure.width, 10 + CHAR * max([len(labels[i]) for i in shown], default=4))
    right = 12 + CHAR * max([len(texts[i]) for i in shown], default=4)
    row_height, top = 24, 12
    height = top + row_height * len(rows) + 38
    x = _Scale(low, high, left + 6, figure.width - right)
    bottom = top + row_height * len(rows) + 2
    out = []
    values = ticks(low, high, max(4, int((x.end - x.start) / 55)))
    step = values[1] - values[0] if len(values) > 1 else 1
    for value in values:
        out += [
            _line(x(value), top, x(value), bottom, "grid"),
            _text(x(value), bottom + 13, tick_label(value, step, figure.percent), "middle", "tick"),
        ]
    if figure.reference is not None:
        out.append(_line(x(figure.reference), top - 4, x(figure.reference), bottom, "reference"))
    out.append(_text((x.start + x.end) / 2, height - 5, figure.x_label, "middle", "axis"))
    for index, (row, text, label) in enumerate(zip(rows, texts, labels, strict=True)):
        at, tone = top + row_height * (index + 0.5), f"t{row.tone % NUM_TONES}"
        if row.heading:
            out.append(_text(0, at + 4, label, css="group"))
            continue
        out.append(_text(0, at + 4, label, css="label"))
        for value, name in row.marks:
            out.append(
                f"<g>{_line(x(value), at - 7, x(value), at + 7, 'baseline')}<title>{escape(name)}: "
                f"{escape(number(value, 3, percent=figure.percent))}</title></g>"
            )
        if row.low is not None and row.high is not None:
            out.append(_line(x(row.low), at, x(row.high), at, f"whisker {tone}"))
        if row.value is not None:
            tip = f"{row.label}: {text}{'; ' + row.note if row.note else ''}"
            out.append(_dot(x(row.value), at, tone, tip))
        out.append(_text(figure.width, at + 4, text, "end", "value"))
    return out, figure.width, height
