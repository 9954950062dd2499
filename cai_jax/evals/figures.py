"""Figures of `metrics.json`: data that the report draws. A function returns a list, which is empty
where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cai_jax import references
from cai_jax.evals.evaluator import Task
from cai_jax.evals.rows import Column, find


def figure(name: str, series: Sequence[dict], **fields) -> list[dict]:
    """A figure, where there is a series. `fields`: title, x_label, y_label, caption, group (see
    `Column.group`), percent, diagonal, zero, integer_x. Figures of a name are drawn over each
    other."""
    return [{"name": name, **fields, "series": list(series)}] if series else []


def points(label: str, x: Sequence[float], rows: Sequence[Mapping], y: str = "value") -> dict:
    """A series of the rows' values, which are fields `y`, with their intervals.

    Args:
        label: of the series.
        x: where the rows are drawn.
        rows: mappings with low, high and n.
        y: the field that is drawn.

    Returns:
        A series of a figure.
    """
    values = {key: [row[key] for row in rows] for key in ("low", "high", "n")}
    return {"label": label, "x": list(x), "y": [row[y] for row in rows], **values, "mark": "path"}


def line(name: str, rows_of: Mapping[str, Sequence[Mapping]], x_of: Callable, **fields):
    """A figure of rows along x (`x_of(row)`), a series for each label with more than one of
    them."""
    series = []
    for label, rows in rows_of.items():
        known = sorted((row for row in rows if row["value"] is not None), key=x_of)
        if len(known) > 1:
            series.append(points(label, list(map(x_of, known)), known))
    return figure(name, series, integer_x=True, **fields)


def along_training(task: Task, rows: Sequence[dict], columns: Sequence[Column]) -> list[dict]:
    """Each metric along the updates of RL (Figures 8 and 10), where snapshots "@rl:step" were
    evaluated: from the policy that it began with."""
    drawn = []
    for stage in task.ctx.run_config.graph:
        steps = _steps_of(task, stage)
        for column in columns if steps else ():
            by_set: dict[str, list[dict]] = {}
            for row in find(rows, column.name):
                if row["model"] in steps:
                    by_set.setdefault(row["on"], []).append(row)
            drawn += line(
                f"{column.name}_along_{stage}",
                by_set,
                lambda row, steps=steps: steps[row["model"]],
                title=f"{column.label} along {stage}",
                x_label="update",
                y_label=column.unit,
                group=column.group,
                caption=f"{column.label} of the policy at several updates.",
            )
    return drawn


def _steps_of(task: Task, stage: str) -> dict[str, int]:
    """Evaluated model → the update of `stage` that it is a snapshot of; {} where no snapshot was
    evaluated."""
    fields, roles = task.ctx.run_config.graph[stage], task.ctx.run_config.models
    # A snapshot may be named by a role of config.models.
    targets = {
        name: references.parse(references.resolve(roles, value))
        for name, value in task.models.items()
    }
    steps = {
        name: int(target.step)
        for name, target in targets.items()
        if target.stage == stage and target.step.isdigit()
    }
    # The ends of the curve: the policy that training began with, and the one that it made.
    ends = {f"@{stage}": int(fields.get("num_updates") or 0)}
    ends |= {references.resolve(roles, fields.get("policy") or ""): 0}
    of_ends = {name: ends[str(target)] for name, target in targets.items() if str(target) in ends}
    return steps | of_ends if steps else {}


def calibration(curves: Mapping[str, Sequence[Mapping]]) -> list[dict]:
    """Reliability diagram (Figure 9): stated confidence against how often the judge is right, of
    label → `accuracy.reliability`."""
    series = [
        points(label, [point["predicted"] for point in curve], curve, "observed")
        for label, curve in curves.items()
        if curve
    ]
    return figure(
        "calibration",
        series,
        title="Calibration",
        x_label="stated confidence",
        y_label="how often right",
        group="judges",
        percent=True,
        diagonal=True,
        caption="On the dashed line a confidence of 70 % is right 70 % of the time; below it the "
        "judge is overconfident.",
    )
