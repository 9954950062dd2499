"""Runs and published results of the first schema of metrics.json, which had rows and calibration
curves only, read as the present one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from cai_jax.evals import figures, revisions
from cai_jax.evals.registry import KINDS
from cai_jax.evals.rows import Column
from cai_jax.report.text import ITEM_SETS, model_name

# Kind of evaluation → the field of the evaluate stage that named the model whose opinion it was.
JUDGED_BY = {
    "preference_scores": "reward",
    "revisions": "reward",
    "judge": "judge",
    "harm": "harm",
}
CURVES = {
    "choice_zero_shot": "zero-shot",
    "choice_few_shot": "few-shot",
    "choice_chain_of_thought": "chain",
    "choice_chain_of_thought_clamped": "chain, clamped",
    "pm": "PM",
}


def upgraded(value: Mapping, judge_of: Callable[[str], tuple[str, str]]) -> dict:
    """The present schema's metrics of an older file.

    Args:
        value: the file. judge_of: field of the stage → the model that it names, and its scale.
    """
    rows = [row for row in value.get("rows", ()) if isinstance(row, dict)]
    metrics, columns = {row["metric"]: row for row in rows}, {}
    for kind, module in KINDS.items():
        judge, scale = judge_of(JUDGED_BY[kind]) if kind in JUDGED_BY else ("", "")
        for column in module.COLUMNS:
            columns[column.name] = dataclasses.replace(column, judge=judge, scale=scale)
    for name, row in metrics.items():
        columns.setdefault(name, Column(name, name.replace("_", " "), row["unit"], group="others"))
    curves = {_curve(key): bins for key, bins in sorted((value.get("curves") or {}).items())}
    return {
        "rows": rows,
        "columns": [column.to_json() for name, column in columns.items() if name in metrics],
        "figures": [*figures.calibration(curves), *revisions.by_round(rows, "revisions")],
        "notes": value.get("notes") or [],
    }


def _curve(key: str) -> str:
    judge, on, *of = key.split("/")
    return ", ".join([CURVES.get(judge, judge), ITEM_SETS.get(on, on), *map(model_name, of)])
