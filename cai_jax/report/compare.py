"""Several runs next to each other, several seeds, and every two models of a run: differences of
numbers, paired by prompt or item where the runs kept those."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from cai_jax.core.intervals import Estimate, bootstrap_mean, difference_estimate
from cai_jax.evals import length
from cai_jax.evals.rows import row
from cai_jax.report import numbers
from cai_jax.report.run import Evaluation, Run

KEY = ["metric", "on", "model"]


@dataclasses.dataclass(frozen=True)
class Difference:
    """One number in all runs; `differences[i]` is run i − run 0 (None for run 0, where either lacks
    it, and where the two come from different judges and have no common scale: `scales`)."""

    column: numbers.Column
    on: str
    model: str
    values: list[float | None]
    differences: list[Estimate | None]
    paired: bool
    scales: bool = False


def mover(a: Estimate, b: Estimate) -> Estimate:
    """b − a of two independent estimates from their intervals (Newcombe 1998, method 10, for any
    pair of intervals)."""
    if None in (a.value, b.value):
        return Estimate(None, None, None, 0)
    d = b.value - a.value
    if None in (a.low, a.high, b.low, b.high):
        return Estimate(d, None, None, min(a.n, b.n))
    low = d - math.hypot(b.value - b.low, a.high - a.value)
    high = d + math.hypot(b.high - b.value, a.value - a.low)
    return Estimate(d, low, high, min(a.n, b.n))


def _estimate(row: Mapping) -> Estimate:
    value, low, high = (None if pd.isna(row[k]) else row[k] for k in ("value", "low", "high"))
    return Estimate(value, low, high, row["n"])


def differences(runs: Sequence[Run]) -> list[Difference]:
    """The numbers that at least two runs have."""
    columns = {n: c for run in reversed(runs) for n, c in run.evaluation.columns.items()}
    frames = [numbers.plain_rows(run.evaluation.frame) for run in runs]
    frames = [frame[frame["over"].isna()].drop_duplicates(KEY) for frame in frames]
    table = pd.concat([frame.assign(run=i) for i, frame in enumerate(frames)])
    table = table[[columns[metric].compared for metric in table["metric"]]]
    order = {name: i for i, name in enumerate(columns)}
    out = []
    for (metric, on, model), block in table.groupby(KEY, sort=False):
        by_run = {line["run"]: line for line in block.to_dict("records")}
        if len(by_run) >= 2:
            lines = [by_run.get(i) for i in range(len(runs))]
            out.append(_compared(runs, columns[metric], on, model, lines))
    return sorted(out, key=lambda d: (order[d.column.name], d.on, d.model))


def _compared(
    runs: Sequence[Run], column: numbers.Column, on: str, model: str, lines: Sequence[dict | None]
) -> Difference:
    """One number in all runs. `lines`: its row in each run or None; on, model: of these rows."""
    own = [run.evaluation.columns.get(column.name, column).scale for run in runs]
    values = [
        run.values_of(line["stage"]).get(line["name"]) if line else None
        for run, line in zip(runs, lines, strict=True)
    ]
    out, paired = [None], False
    for line, items, scale in zip(lines[1:], values[1:], own[1:], strict=True):
        if lines[0] is None or line is None or scale != own[0]:
            out.append(None)
        elif values[0] and items and len(set(values[0]) & set(items)) > 1:
            out.append(difference_estimate(values[0], items, column.unit, seed=0))
            paired = True
        else:
            out.append(mover(_estimate(lines[0]), _estimate(line)))
    shown = [_estimate(line).value if line else None for line in lines]
    return Difference(column, on, model, shown, out, paired, len(set(own)) > 1)


def over_seeds(runs: Sequence[tuple[Sequence[dict], Mapping[str, numbers.Column]]]) -> list[dict]:
    """Of rows that all runs (rows, columns) have: their mean with Student's interval over runs, and
    `by_run`. An opinion of a judge has no common scale over runs (each trains its own), so of these
    only differences are kept."""
    columns = runs[0][1]
    frames = [numbers.frame(rows, known).assign(run=i) for i, (rows, known) in enumerate(runs)]
    table = pd.concat(frames)
    table["against"] = table["against"].fillna("")
    table = table[table["over"].isna() & table["value"].notna()]
    out = []
    for (metric, on, model, against), block in table.groupby([*KEY, "against"], sort=False):
        column = columns.get(metric)
        values = block.drop_duplicates("run")["value"].tolist()
        judged = column is not None and column.judge and column.unit != "share"
        if (
            column is None
            or not column.compared
            or len(values) < len(runs)
            or (judged and not against)
        ):
            continue
        mean = bootstrap_mean(values)  # Student's t at least: seeds are few
        name = {"metric": metric, "on": on, "model": model, "against": against or None}
        out.append(
            {**name, "unit": column.unit, "good": column.good, **vars(mean), "by_run": values}
        )
    return out


def pairwise(run: Run, measured: Evaluation, seed: int = 0) -> list[dict]:
    """Differences of every two models, the later less the earlier, paired by prompt or item; those
    that `measured` holds are left out."""
    known = {(r["metric"], r["on"], r["model"], r["against"]) for r in measured.rows}
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for r in measured.rows:
        kept = run.values_of(r["stage"]) if r["stage"] in run.stages else {}
        if values := measured.values.get(r["name"]) or kept.get(r["name"]):
            groups.setdefault((r["metric"], r["on"]), {})[r["model"]] = values
    order = {name: i for i, name in enumerate(measured.models)}
    out = []
    for (metric, on), models in groups.items():
        column = measured.columns.get(metric)
        if column is None or not column.good:
            continue
        lengths = groups.get(("num_tokens", on), {}) if metric == "pm_score" else {}
        names = sorted(models, key=lambda name: order.get(name, len(order)))
        for a, b in itertools.combinations(names, 2):
            both = [models[a], models[b], lengths.get(a), lengths.get(b)]
            for name, estimate in _pair(metric, column, both, seed):
                if (name, on, b, a) not in known:
                    kind = {"unit": column.unit, "good": column.good}
                    out.append(row(name, on, b, estimate, against=a, **kind))
    return out


def _pair(metric: str, column: numbers.Column, both: Sequence[dict | None], seed: int):
    """(metric, difference) of two models' values by item, and at equal length where lengths are
    given."""
    a, b, length_a, length_b = both
    common = sorted(set(a) & set(b))
    if not common:
        return
    yield metric, difference_estimate(a, b, column.unit, seed)
    if length_a and length_b:
        score, tokens = [b[p] - a[p] for p in common], [length_b[p] - length_a[p] for p in common]
        yield f"{metric}_at_equal_length", length.score_difference(score, tokens, seed=seed)
