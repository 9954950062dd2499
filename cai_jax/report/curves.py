"""Figures of AI labels and of training: distributions, position bias, and curves by step."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence

import numpy as np

from cai_jax.core import labels
from cai_jax.report.run import Run, Stage
from cai_jax.report.spec import Panel, Series
from cai_jax.report.text import model_name

MAX_POINTS = 240  # of a curve
MAX_DOTS = 600

# ---- Labels --------------------------------------------------------------------------------------


def of_labels(runs: Sequence[Run]) -> list[Panel]:
    drawn = []
    for index, run in enumerate(runs, 1):
        suffix = f"-{index}" if len(runs) > 1 else ""
        for stage in run.of_kind("feedback"):
            drawn += [label_histogram(run, stage, suffix), position_scatter(run, stage, suffix)]
    return [panel for panel in drawn if panel is not None]


def label_histogram(run: Run, stage: Stage, suffix: str = "") -> Panel | None:
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
        f"labels-{stage.name}{suffix}",
        f"Labels of {stage.name}",
        "p(first response is better)",
        "labels",
        [Series(stage.name, *bars, mark="bars", tone=1)],
        size=(460, 220),
        caption="A peak in the middle: the judge hardly decides. Peaks at the ends after a "
        "chain of thought: clamp them.",
    )


def position_scatter(run: Run, stage: Stage, suffix: str = "") -> Panel | None:
    """p(first is better) asked in one order against the other: off the diagonal, position
    decided."""
    points = []
    for record in run.records(stage.name):
        asked = collections.defaultdict(list)
        for entry in record.get("logprobs") or ():
            asked[entry["order"]].append(labels.probability_first(entry))
        if asked["ab"] and asked["ba"]:
            points.append((statistics.fmean(asked["ab"]), statistics.fmean(asked["ba"])))
    if not points:
        return None
    return Panel(
        f"orders-{stage.name}{suffix}",
        f"Position bias of {stage.name}",
        "p(first), shown as (A)",
        "p(first), shown as (B)",
        [Series(stage.name, *zip(*points[:MAX_DOTS], strict=True), mark="dots", tone=1)],
        diagonal=True,
        size=(460, 240),
        caption="Points far from the dashed line changed their mind when the options changed "
        "places.",
    )


# ---- Training ------------------------------------------------------------------------------------

# Curves of metrics.jsonl that are shown at once, in this order, with their names in print; all
# others are in a fold.
FIRST = {
    "loss": "loss",
    "heldout_loss": "held-out loss",
    "accuracy": "accuracy",
    "agreement": "agreement with the labels",
    "margin": "margin",
    "reward": "reward",
    "kl": "KL to the reference",
    "response_tokens": "tokens an answer",
    "entropy": "entropy",
    "explained_variance": "explained variance",
}
FOLDED = {"rl": ("loss",)}  # kind → names of FIRST that say little there


def training(runs: Sequence[Run]) -> tuple[list[Panel], list[Panel]]:
    """(main curves, further curves) of every stage with a metrics.jsonl, runs overlaid."""
    main, more = [], []
    stages = {stage.name: stage.kind for run in runs for stage in run.stages.values()}
    for name, kind in stages.items():
        first = [key for key in FIRST if key not in FOLDED.get(kind, ())]
        rows = [run.training(name) if name in run.stages else () for run in runs]
        keys = sorted({key for values in rows for row in values for key in row} - {"step"})
        for key in sorted(keys, key=lambda k: first.index(k) if k in first else len(first)):
            points = [[(r["step"], r[key]) for r in of if _is_number(r.get(key))] for of in rows]
            series = [
                Series(run.name, *thin(of_run), tone=tone)
                for tone, (run, of_run) in enumerate(zip(runs, points, strict=True), 1)
                if of_run
            ]
            if not series:
                continue
            title = f"{model_name(name)}: {FIRST.get(key, key.replace('_', ' '))}"
            axis = "update" if kind == "rl" else "step"
            size = {"integer_x": True, "size": (320, 175)}
            panel = Panel(f"{name}-{key}".replace("/", "-"), title, axis, "", series, **size)
            (main if key in first else more).append(panel)
    return main, more


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def thin(points: Sequence[tuple], limit: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """Averages neighbours where there are more points than a drawing can show; a curve keeps its
    level and shape."""
    groups = np.array_split(np.asarray(points, np.float64), min(limit, len(points)))
    return [float(g[-1, 0]) for g in groups], [float(g[:, 1].mean()) for g in groups]
