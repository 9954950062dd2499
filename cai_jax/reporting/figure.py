"""What a figure shows, apart from how it is drawn: `svg.py` draws it into the page, `png.py` into a
file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one colour. `low`, `high`: interval in y (a band under lines, bars on dots);
    `x_low`, `x_high` in x.

    mark: "line", "dots", "path" (dots joined by a line) or "bars" (a histogram: x are left edges of
    equal width). `tone` is an index into the palette; `texts` label single points.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    x_low: Sequence[float | None] | None = None
    x_high: Sequence[float | None] | None = None
    mark: str = "line"
    tone: int = 0
    texts: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Panel:
    """One set of axes. `references`: (y value, label) dashed lines; `diagonal`: the line y = x."""

    key: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    references: Sequence[tuple[float, str]] = ()
    diagonal: bool = False
    percent: bool = False  # y values are shares
    whole_x: bool = False  # x ticks are whole numbers
    zero: bool = False  # y begins at zero
    x_names: Sequence[str] = ()  # what stands at x = 0, 1, … in place of numbers
    caption: str = ""
    size: tuple[int, int] = (320, 205)


@dataclasses.dataclass(frozen=True)
class ForestRow:
    """A named value with its interval; `marks`: (value, label) of its baselines, drawn as ticks."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    tone: int = 0
    marks: Sequence[tuple[float, str]] = ()
    note: str = ""
    heading: bool = False  # a line of text that begins a group; it has no value


@dataclasses.dataclass(frozen=True)
class Forest:
    """Rows of dots with intervals over one axis. `reference`: a vertical line, zero for
    differences."""

    key: str
    title: str
    x_label: str
    rows: Sequence[ForestRow]
    reference: float | None = None
    percent: bool = False
    caption: str = ""
    digits: int = 2
    width: int = 460


def finite(values) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def span(values: Sequence[float | None], *, zero: bool = False) -> tuple[float, float]:
    """(low, high) with a little air around the finite values; a window of 1 where there are none or
    one."""
    known = finite(values)
    if zero:
        known.append(0.0)
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    if high - low < 1e-9 * max(1.0, abs(high)):
        return low - 0.5, high + 0.5
    air = 0.06 * (high - low)
    return (low if zero and low == 0 else low - air), high + air


def ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """About `count` round values (1, 2, 5 × 10ⁿ apart) inside [low, high]."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, step: float, percent: bool = False) -> str:
    """As many digits as the distance between ticks needs."""
    if percent:
        value, step = 100 * value, 100 * step
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return f"{value:.{min(digits, 4)}f}".replace("-", "−") + ("%" if percent else "")


def apart(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves label positions as little as needed so that neighbours are `gap` apart, within [low,
    high]."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [0.0] * len(positions)
    at = low - gap
    for i in order:
        at = max(positions[i], at + gap)
        placed[i] = at
    limit = high
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed
