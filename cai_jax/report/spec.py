"""What a figure shows, as plain data: `plot.py` draws it."""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Sequence

from cai_jax.report.text import number


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


class Keyed:
    """What figures have in common: `key`, which names a file and ids in the page; a name that came
    with a run is made safe for both."""

    def __post_init__(self):
        object.__setattr__(self, "key", safe_key(str(self.key)))


@dataclasses.dataclass(frozen=True)
class Panel(Keyed):
    """One set of axes. `references`: (y value, label) dashed lines; `diagonal`: the line y = x."""

    key: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    references: Sequence[tuple[float, str]] = ()
    diagonal: bool = False
    percent: bool = False  # y values are shares
    integer_x: bool = False  # x ticks are integers
    zero: bool = False  # y begins at zero
    x_names: Sequence[str] = ()  # shown at x = 0, 1, … instead of numbers
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
class Forest(Keyed):
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

    @property
    def size(self) -> tuple[int, int]:
        return self.width, 24 * len(self.rows) + 48


def safe_key(key: str) -> str:
    """Letters, digits, "_" and "-"; a key that has others ends in a checksum, so that different
    keys stay different."""
    if re.fullmatch(r"[\w-]{1,100}", key, re.ASCII):
        return key
    mark = zlib.crc32(key.encode("utf-8", "surrogatepass"))
    return f"{re.sub(r'[^a-zA-Z0-9_-]+', '-', key)[:60].strip('-')}-{mark:08x}".lstrip("-")


def describe(figure: Panel | Forest) -> str:
    """The figure in words, for screen readers."""
    if isinstance(figure, Forest):
        rows = [
            f"{row.label}: {interval_of(figure, row)}" for row in figure.rows if not row.heading
        ]
        return f"{figure.x_label}. " + "; ".join(rows)
    parts = []
    for series in figure.series:
        y = finite(series.y)
        if not y:
            continue
        if series.mark == "line":
            first, last, low, high = (number(v, 3) for v in (y[0], y[-1], min(y), max(y)))
            parts.append(
                f"{series.label}: {len(y)} points, first {first}, last {last}, "
                f"lowest {low}, highest {high}"
            )
        else:
            points = zip(series.x[:24], series.y[:24], strict=True)
            shown = " ".join(f"({number(a)}, {number(b)})" for a, b in points)
            parts.append(f"{series.label}: {shown}")
    return f"{figure.y_label} against {figure.x_label}. " + "; ".join(parts)


def finite(values) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def with_interval(value, low, high, percent: bool, digits: int) -> str:
    """The value in print with its interval.

    Args:
        value, low, high: None for none. percent, digits: see `number`.

    Returns:
        "value [low, high]", or the value alone.
    """
    shown = number(value, digits, percent=percent)
    if None in (low, high):
        return shown
    return f"{shown} [{', '.join(number(end, digits, percent=percent) for end in (low, high))}]"


def interval_of(figure: Forest, row: ForestRow) -> str:
    return with_interval(row.value, row.low, row.high, figure.percent, figure.digits)
