"""What a figure shows, as plain data: `plot.py` draws it."""

from __future__ import annotations

import dataclasses
import re
import zlib
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
class Figure:
    """What all figures have. `key` names a file and ids in the page; one that came with a run is
    made safe for both. `percent`: values are shares."""

    key: str
    title: str
    x_label: str
    caption: str = dataclasses.field(default="", kw_only=True)
    percent: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        object.__setattr__(self, "key", safe_key(str(self.key)))


@dataclasses.dataclass(frozen=True)
class Panel(Figure):
    """One set of axes. `references`: (y value, label) dashed lines; `diagonal`: the line y = x;
    `zero`: y begins there; `x_names` are shown at x = 0, 1, … instead of numbers."""

    y_label: str
    series: Sequence[Series]
    references: Sequence[tuple[float, str]] = ()
    diagonal: bool = False
    integer_x: bool = False
    zero: bool = False
    x_names: Sequence[str] = ()
    size: tuple[int, int] = (320, 205)


@dataclasses.dataclass(frozen=True)
class ForestRow:
    """A named value with its interval; `marks`: (value, label) of its baselines, drawn as ticks. A
    `heading` is a line of text that begins a group; it has no value."""

    label: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    tone: int = 0
    marks: Sequence[tuple[float, str]] = ()
    note: str = ""
    heading: bool = False


@dataclasses.dataclass(frozen=True)
class Forest(Figure):
    """Rows of dots with intervals over one axis. `reference`: a vertical line, zero for
    differences."""

    rows: Sequence[ForestRow]
    reference: float | None = None
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
