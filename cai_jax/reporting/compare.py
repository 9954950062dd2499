"""Several runs side by side: every number they share, with the difference to the first run and its
interval."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

from cai_jax.evals import multiple_choice, preference, samples
from cai_jax.evals.intervals import Estimate, cluster_means
from cai_jax.reporting import judge
from cai_jax.reporting.run_data import Run

COMPARED = (
    "pm_score",
    "elo",
    "elo_judge",
    "expected_harm",
    "num_tokens",
    "refusal_rate",
    "evasive_rate",
    "evasive_rate_judge",
    "repetition",
    "boilerplate",
    "choice_zero_shot",
    "choice_few_shot",
    "choice_one_chain",
    "choice_chain_of_thought",
    "pm_accuracy",
    "pm_score_by_revision",
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """One metric in all runs; `differences[i]` is run i − run 0 (None for run 0, where either lacks
    it, and where the two numbers come from different judges and have no common scale: `scales`)."""

    metric: str
    on: str
    model: str
    values: list[dict | None]
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


def _by_item(run: Run) -> dict[tuple[str, str, str], dict[str, float]]:
    """(metric, set of prompts or items, model) → prompt or item id → value, for whatever was kept
    one by one."""
    groups, found = collections.defaultdict(list), collections.defaultdict(dict)
    for record in run.answers:
        groups[record["on"], record["name"]].append(record)
    for (on, name), records in groups.items():
        for metric, values in samples.by_prompt(records, run.scores).items():
            found[metric, on, name] = values
    for stage in run.of_kind("evaluate"):
        for answer in run.records(stage.name, "choices"):
            for on in _places(answer):
                name = answer.get("name", stage.fields.get("feedback"))
                found[f"choice_{answer['mode']}", on, name][answer["item"]] = multiple_choice.right(
                    answer
                )
        for pair in run.records(stage.name, "pairs"):
            for on in _places(pair):
                won = preference.wins([pair["better"]], [pair["worse"]])
                found["pm_accuracy", on, stage.fields.get("reward")][pair["id"]] = float(won[0])
        harms, groups = (
            {row["id"]: row["harm"] for row in run.records(stage.name, "harm_scores")},
            collections.defaultdict(list),
        )
        for record in run.records(stage.name, "harm"):
            if record["id"] in harms:
                groups[record["on"], record["name"]].append(
                    (harms[record["id"]], record["prompt_id"])
                )
        for (on, name), values in groups.items():
            found["expected_harm", on, name] = cluster_means(*zip(*values, strict=True))
    return found


def _places(row: dict) -> list[str]:
    return [row["on"], *([f"{row['on']}:{row['subset']}"] if row.get("subset") else [])]


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Rows that at least two runs have. Paired by prompt or item where those are on disk, else from
    the intervals."""
    tables = [
        {
            (r["metric"], r["on"], r["model"]): r
            for r in run.evaluation["rows"]
            if r["against"] is None
        }
        for run in runs
    ]
    items = [_by_item(run) for run in runs]
    out = []
    for key in dict.fromkeys(key for table in tables for key in table):
        metric, on, model = key
        values = [table.get(key) for table in tables]
        if metric not in COMPARED or sum(v is not None for v in values) < 2:
            continue
        first, found, paired = values[0], [None], False
        scales = [judge.differ((runs[0], run), metric) for run in runs]
        for place, value in list(enumerate(values))[1:]:
            if first is None or value is None or scales[place]:
                found.append(None)
                continue
            a, b = (items[i].get(key) for i in (0, place))
            if a and b and len(set(a) & set(b)) > 1:
                found.append(samples.difference_estimate(a, b, first["unit"], seed=0))
                paired = True
            else:
                found.append(
                    mover(
                        *(Estimate(r["value"], r["low"], r["high"], r["n"]) for r in (first, value))
                    )
                )
        out.append(Difference(metric, on, model, values, found, paired, any(scales)))
    order = {metric: i for i, metric in enumerate(COMPARED)}
    return sorted(out, key=lambda d: (order[d.metric], d.on, d.model))
