"""The numbers of an evaluation as one data frame, with the columns that say how to show each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pandas as pd

from cai_jax.report.text import headed, number

FIELDS = (  # of a row of metrics.json
    *("metric", "on", "model", "against", "over", "value", "low", "high", "n"),
    *("unit", "baseline", "null", "note", "stage"),
)


@dataclasses.dataclass(frozen=True)
class Column:
    """How one metric is shown: metrics.json has one for each metric of its rows.

    Args:
        name: the metric. label: its name in print. unit, percent, digits: of its values. good:
        "higher", "lower" or "". group: "answers", "judges", "revisions", "pairs", or any word: a
        table of its own. judge: the model whose opinion it is; scale: equal where two runs'
        numbers have a common scale. figure: "forest" to be drawn, with title and caption.
        compared: shown side by side for several runs.
    """

    name: str
    label: str = ""
    unit: str = ""
    good: str | None = None
    percent: bool | None = None
    digits: int | None = None
    group: str = "answers"
    judge: str = ""
    scale: str = ""
    figure: str = ""
    title: str = ""
    caption: str = ""
    compared: bool = True

    def __post_init__(self):
        percent = self.unit in ("share", "accuracy") if self.percent is None else self.percent
        whole = 0 if self.unit in ("tokens", "words", "Elo") else 2
        for name, value in (
            ("label", self.label or headed(self.name.replace("_", " "))),
            ("percent", percent),
            ("digits", whole if self.digits is None else self.digits),
        ):
            object.__setattr__(self, name, value)

    def format(self, value: float | None, sign: bool = False) -> str:
        return number(value, self.digits, sign=sign, percent=self.percent)

    def ends(self, row: Mapping, sign: bool = False) -> str:
        """[low, high], "" where there is no interval."""
        if pd.isna(row["low"]):
            return ""
        return f"[{self.format(row['low'], sign)}, {self.format(row['high'], sign)}]"


def columns(found: Sequence[Mapping], rows: Sequence[Mapping]) -> dict[str, Column]:
    """metric → its column, in the order given; a metric that no column describes has a default
    one."""
    known = {field.name for field in dataclasses.fields(Column)}
    out = {
        c["name"]: Column(**{k: v for k, v in c.items() if k in known and v is not None})
        for c in found
    }
    for row in rows:
        name, unit = row["metric"], row.get("unit") or ""
        out.setdefault(name, Column(name, unit=unit, group="others", good=row.get("good")))
    return out


def frame(rows: Sequence[Mapping], known: Mapping[str, Column]) -> pd.DataFrame:
    """One line a row of metrics.json: FIELDS with None where a row has none, the column's `group`
    and its `order` among the columns."""
    table = pd.DataFrame([{name: row.get(name) for name in FIELDS} for row in rows], columns=FIELDS)
    table[["value", "low", "high"]] = table[["value", "low", "high"]].astype(float)
    table["group"] = [known[metric].group for metric in table["metric"]]
    order = {name: i for i, name in enumerate(known)}
    table["order"] = [order[metric] for metric in table["metric"]]
    return table.sort_values("order", kind="stable")


def plain_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Those that are no differences."""
    return table[table["against"].isna()]
