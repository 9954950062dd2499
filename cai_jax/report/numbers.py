"""The numbers of an evaluation as one data frame, with the columns that say how to show each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from cai_jax.evals import rows
from cai_jax.report.text import headed, number

FIELDS = (  # of a row of metrics.json
    *("name", "metric", "on", "model", "against", "over", "value", "low", "high", "n"),
    *("unit", "baseline", "null", "note", "stage"),
)


class Column(rows.Column):
    """A column of metrics.json with its defaults filled in."""

    def format(self, value: float | None, sign: bool = False) -> str:
        return number(value, self.digits, sign=sign, percent=self.percent)

    def ends(self, row: Mapping, sign: bool = False) -> str:
        """[low, high], "" where there is no interval."""
        if pd.isna(row["low"]):
            return ""
        return f"[{self.format(row['low'], sign)}, {self.format(row['high'], sign)}]"


def columns(given: Sequence[Mapping], measured: Sequence[Mapping]) -> dict[str, Column]:
    """metric → its column, in the order given; the metric of a row that no column describes has a
    default one."""
    known = {column["name"]: Column(**column) for column in given}
    for row in measured:
        if (name := row["metric"]) not in known:
            label, unit = headed(name.replace("_", " ")), row.get("unit") or ""
            column = rows.Column(name, label, unit, row.get("good"), "others")
            known[name] = Column(**column.to_json())
    return known


def frame(measured: Sequence[Mapping], known: Mapping[str, Column]) -> pd.DataFrame:
    """One line a row of metrics.json, in the columns' order: FIELDS with None where a row has none,
    and the column's `group`."""
    order = {name: index for index, name in enumerate(known)}
    lines = [{name: row.get(name) for name in FIELDS} for row in measured]
    lines.sort(key=lambda line: order[line["metric"]])
    table = pd.DataFrame(lines, columns=FIELDS)
    table[["value", "low", "high"]] = table[["value", "low", "high"]].astype(float)
    table["group"] = [known[metric].group for metric in table["metric"]]
    return table


def plain_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Those that are no differences."""
    return table[table["against"].isna()]
