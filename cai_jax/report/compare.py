"""Several runs next to each other, several seeds, and every two models of a run: differences of
numbers, paired by prompt or item where the runs kept those."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

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


def _frames(measured: Sequence[Evaluation]) -> pd.DataFrame:
    """The numbers of all of them that are no win rates, with the index of the `run`."""
    frames = [of.frame.assign(run=index) for index, of in enumerate(measured)]
    table = pd.concat(frames)
    return table[table["over"].isna()].drop_duplicates([*KEY, "against", "run"])


def differences(runs: Sequence[Run]) -> list[Difference]:
    """The numbers that at least two runs have."""
    columns = {n: c for run in reversed(runs) for n, c in run.evaluation.columns.items()}
    order = {name: i for i, name in enumerate(columns)}
    table = numbers.plain_rows(_frames([run.evaluation for run in runs]))
    out = []
    for (metric, on, model), block in table.groupby(KEY, sort=False):
        if len(block) >= 2 and columns[metric].compared:
            lines = {line["run"]: line for line in block.to_dict("records")}
            lines = [lines.get(i) for i in range(len(runs))]
            out.append(_compared(runs, columns[metric], on, model, lines))
    return sorted(out, key=lambda d: (order[d.column.name], d.on, d.model))


def _compared(
    runs: Sequence[Run], column: numbers.Column, on: str, model: str, lines: Sequence[dict | None]
) -> Difference:
    """One number in all runs. `lines`: its row in each run or None; on, model: of these rows."""
    scales = [run.evaluation.columns.get(column.name, column).scale for run in runs]
    estimates, items = [], []
    for run, line in zip(runs, lines, strict=True):
        ends = ("value", "low", "high")
        value = [None if pd.isna(line[k]) else line[k] for k in ends] if line else [None] * 3
        estimates.append(Estimate(*value, line["n"] if line else 0))
        items.append(run.values_of(line["stage"]).get(line["name"]) if line else None)
    out, paired = [None], False
    for i in range(1, len(runs)):
        if lines[0] is None or lines[i] is None or scales[i] != scales[0]:
            out.append(None)
        elif items[0] and items[i] and len(set(items[0]) & set(items[i])) > 1:
            out.append(difference_estimate(items[0], items[i], column.unit, seed=0))
            paired = True
        else:
            out.append(mover(estimates[0], estimates[i]))
    values = [estimate.value for estimate in estimates]
    return Difference(column, on, model, values, out, paired, len(set(scales)) > 1)


def over_seeds(runs: Sequence[Evaluation]) -> list[dict]:
    """Of rows that all runs have: their mean with Student's interval over runs, and `by_run`. An
    opinion of a judge has no common scale over runs (each trains its own), so of these only
    differences are kept."""
    table, out = _frames(runs), []
    table = table[table["value"].notna()].fillna({"against": ""})
    for (metric, on, model, against), block in table.groupby([*KEY, "against"], sort=False):
        column = runs[0].columns.get(metric)
        if column is None or not column.compared or len(block) < len(runs):
            continue
        if column.judge and column.unit != "share" and not against:
            continue
        values = block["value"].tolist()
        mean = bootstrap_mean(values)  # Student's t at least: seeds are few
        name = {"metric": metric, "on": on, "model": model, "against": against or None}
        kind = {"unit": column.unit, "good": column.good}
        out.append({**name, **kind, **vars(mean), "by_run": values})
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
            both = (models[a], models[b], lengths.get(a), lengths.get(b))
            for name, estimate in _pair(metric, column, both, seed):
                if (name, on, b, a) not in known:
                    kind = {"unit": column.unit, "good": column.good}
                    out.append(row(name, on, b, estimate, against=a, **kind))
    return out


def _pair(
    metric: str, column: numbers.Column, both: Sequence[Mapping | None], seed: int
) -> Iterator[tuple[str, Estimate]]:
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
