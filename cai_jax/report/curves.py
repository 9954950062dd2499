"""Figures of AI labels and of training: distributions, position bias, and curves by step."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax.core import labels
from cai_jax.report.plot import Panel, Series
from cai_jax.report.run import Run, Stage
from cai_jax.report.text import model_name

MAX_POINTS = 240  # of a curve


def of_labels(runs: Sequence[Run]) -> list[Panel]:
    draws = (label_histogram, position_scatter)
    stages = [(run, stage) for run in runs for stage in run.of_kind("feedback")]
    drawn = [(run, draw(run, stage)) for run, stage in stages for draw in draws]
    several = len(runs) > 1
    return [
        dataclasses.replace(panel, key=f"{panel.key}-{runs.index(run) + 1}") if several else panel
        for run, panel in drawn
        if panel is not None
    ]


def label_histogram(run: Run, stage: Stage) -> Panel | None:
    """Distribution of p(first response is better), orders averaged where both were asked."""
    values = []
    for record in run.records(stage.name):
        try:
            values.append(labels.target([record]))
        except (KeyError, TypeError, ZeroDivisionError):
            continue
    if not values:
        return None
    counts, edges = np.histogram(values, bins=20, range=(0.0, 1.0))
    bars = edges[:-1].tolist(), counts.astype(float).tolist()
    return Panel(
        f"labels-{stage.name}",
        f"Labels of {stage.name}",
        "p(first response is better)",
        "labels",
        [Series(stage.name, *bars, mark="bars", tone=1)],
        size=(460, 220),
        caption="A peak in the middle: the judge hardly decides. Peaks at the ends after a "
        "chain of thought: clamp them.",
    )


def position_scatter(run: Run, stage: Stage) -> Panel | None:
    """p(first is better) asked in one order against the other: off the diagonal, position
    decided."""
    points = []
    for record in run.records(stage.name):
        asked = collections.defaultdict(list)
        for entry in record.get("logprobs") or ():
            asked[entry["order"]].append(labels.probability_first(entry))
        if asked["ab"] and asked["ba"]:
            points.append((float(np.mean(asked["ab"])), float(np.mean(asked["ba"]))))
    if not points:
        return None
    x, y = zip(*points[:600], strict=True)
    return Panel(
        f"orders-{stage.name}",
        f"Position bias of {stage.name}",
        "p(first), shown as (A)",
        "p(first), shown as (B)",
        [Series(stage.name, x, y, mark="dots", tone=1)],
        diagonal=True,
        size=(460, 240),
        caption="Points far from the dashed line changed their mind when the options changed "
        "places.",
    )


# Curves that are shown at once, in this order; the others in a fold. The names are those of
# metrics.jsonl.
FIRST = {
    "sl": {"loss": "loss", "heldout_loss": "held-out loss"},
    "pm": {"loss": "loss", "accuracy": "accuracy", "agreement": "agreement with the labels"},
    "rl": {
        "reward": "reward",
        "kl": "KL to the reference",
        "response_tokens": "tokens an answer",
        "entropy": "entropy",
        "explained_variance": "explained variance",
    },
    "harm": {"loss": "squared error to the rating"},
}


def training(runs: Sequence[Run]) -> tuple[list[Panel], list[Panel]]:
    """(main curves, further curves) of all training stages, runs overlaid."""
    main, more = [], []
    stages = {stage.name: kind for kind in FIRST for run in runs for stage in run.of_kind(kind)}
    for name, kind in stages.items():
        first = list(FIRST[kind])
        rows = [run.training(name) if name in run.stages else () for run in runs]
        keys = sorted({key for values in rows for row in values for key in row} - {"step"})
        for key in sorted(keys, key=lambda k: first.index(k) if k in first else len(first)):
            series = []
            for index, (run, values) in enumerate(zip(runs, rows, strict=True)):
                points = [(row["step"], row[key]) for row in values if row.get(key) is not None]
                if points:
                    tone = index + 1
                    series.append(Series(run.name, *thin(points), tone=tone))
            if series:
                who = model_name(name) if kind != "pm" else name
                shown = FIRST[kind].get(key, key.replace("_", " "))
                title, axis = f"{who}: {shown}", "update" if kind == "rl" else "step"
                panel = Panel(
                    f"{name}-{key}".replace("/", "-"), title, axis, "", series, integer_x=True,
                    size=(320, 175),
                )  # fmt: skip
                (main if key in first else more).append(panel)
    return main, more


def thin(points: Sequence[tuple], limit: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """Averages neighbours where there are more points than a drawing can show; a curve keeps its
    level and shape."""
    if len(points) <= limit:
        return [float(x) for x, _ in points], [float(y) for _, y in points]
    groups = np.array_split(np.asarray(points, np.float64), limit)
    return [float(g[-1, 0]) for g in groups], [float(g[:, 1].mean()) for g in groups]
