"""Figures of `metrics.json`: data that the report draws. A function returns a list, which is empty
where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cai_jax import references
from cai_jax.evals.evaluator import Task
from cai_jax.evals.rows import Column, find


def figure(
    name: str, title: str, axes: tuple[str, str], series: Sequence[dict], group: str, **more
) -> list[dict]:
    """A figure of `metrics.json`, where there is a series.

    Args:
        name: figures of the same name are drawn over each other.
        title: its title.
        axes: the labels of x and y.
        series: made by `points`.
        group: the section that it belongs to, see `Column.group`.
        **more: caption, percent, diagonal, zero, integer_x.
    """
    if not series:
        return []
    axes = {"x_label": axes[0], "y_label": axes[1]}
    return [{"name": name, "title": title, **axes, "group": group, **more, "series": list(series)}]


def points(label: str, x: Sequence[float], rows: Sequence[Mapping], **more) -> dict:
    """A series: `rows` are its values with their intervals; `more`: mark, texts, x_low, x_high."""
    values = {key: [row[key] for row in rows] for key in ("low", "high", "n")}
    return {"label": label, "x": list(x), "y": [row["value"] for row in rows], **values} | more


def line(
    name: str,
    title: str,
    axes: tuple[str, str],
    rows_of: Mapping[str, Sequence[Mapping]],
    x_of: Callable[[Mapping], float],
    group: str,
    **more,
) -> list[dict]:
    """A figure of rows along x, a series for each label with more than one of them.

    Args:
        name, title, axes, group: see `figure`.
        rows_of: label → rows.
        x_of: where a row is drawn.
        **more: see `figure`.
    """
    series = []
    for label, rows in rows_of.items():
        known = sorted((row for row in rows if row["value"] is not None), key=x_of)
        if len(known) > 1:
            series.append(points(label, [x_of(row) for row in known], known, mark="path"))
    return figure(name, title, axes, series, group, integer_x=True, **more)


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
                f"{column.label} along {stage}",
                ("update", column.unit),
                by_set,
                lambda row, steps=steps: steps[row["model"]],
                column.group,
                caption=f"{column.label} of the policy at several updates.",
            )
    return drawn


def _steps_of(task: Task, stage: str) -> dict[str, int]:
    """Evaluated model → the update of `stage` that it is a snapshot of; {} where no snapshot was
    evaluated."""
    fields, roles = task.ctx.run_config.graph[stage], task.ctx.run_config.models
    targets = {
        name: references.parse(references.resolve(roles, value))
        for name, value in task.models.items()
    }
    steps = {
        name: int(target.step)
        for name, target in targets.items()
        if target.stage == stage and target.step.isdigit()
    }
    ends = {f"@{stage}": int(fields.get("num_updates") or 0)}
    ends |= {references.resolve(roles, fields.get("policy") or ""): 0}
    of_ends = {name: ends[str(target)] for name, target in targets.items() if str(target) in ends}
    return steps | of_ends if steps else {}


def calibration(curves: Mapping[str, Sequence[Mapping]]) -> list[dict]:
    """Reliability diagram (Figure 9): stated confidence against how often the judge is right.

    Args:
        curves: label → points of `calibration.points`.
    """
    series = [
        points(
            label,
            [point["predicted"] for point in bins],
            [point | {"value": point["observed"]} for point in bins],
            mark="path",
        )
        for label, bins in curves.items()
        if bins
    ]
    return figure(
        "calibration",
        "Calibration",
        ("stated confidence", "how often right"),
        series,
        "judges",
        percent=True,
        diagonal=True,
        caption="On the dashed line a confidence of 70 % is right 70 % of the time; below it the "
        "judge is overconfident.",
    )
