"""Figures of what revisions and single principles did, for a list of runs: a figure or None
each."""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.evals.rows import find
from cai_jax.reporting.figure import Forest, ForestRow, Panel, Series
from cai_jax.reporting.figures import each_scale, label_of, tone_of
from cai_jax.reporting.run_data import Run

FEW_USES = 5  # of a principle: below it one answer decides its mean


def every(runs: Sequence[Run]) -> list[Panel | Forest]:
    """Those that there are; one a run where their scores are of different judges."""
    draws = (revisions, principle_counts, principles, kinds_of_harm)
    return [one for draw in draws for one in each_scale(runs, draw)]


def _revised(run: Run):
    """(revise stage, its rows by number of revisions) for every evaluate stage that scored
    revisions."""
    for stage in run.of_kind("evaluate"):
        source = run.stages.get((stage.fields.get("inputs") or {}).get("revisions") or "")
        rows = [
            r
            for r in find(run.evaluation["rows"], "pm_score_by_revision")
            if r["stage"] == stage.name
        ]
        if rows:
            yield source, sorted(rows, key=lambda r: int(r["model"]))


def revisions(runs: Sequence[Run]) -> Panel | None:
    """PM score after each revision (Figure 5); with and without critiques where a run has both
    (Figure 7)."""
    series = []
    for place, run in enumerate(runs):
        found = [(source, rows) for source, rows in _revised(run) if len(rows) > 1]
        for number, (source, rows) in enumerate(found):
            label = run.name
            if len(found) > 1 and source is not None:
                how = "critiqued" if source.fields.get("critique", True) else "direct"
                label = label_of(runs, run, f"{source.name}, {how}")
            series.append(
                Series(
                    label,
                    [int(r["model"]) for r in rows],
                    [r["value"] for r in rows],
                    [r["low"] for r in rows],
                    [r["high"] for r in rows],
                    mark="path",
                    tone=tone_of(runs, place, number + 1),
                )
            )
    if not series:
        return None
    return Panel(
        "revisions",
        "Score by number of revisions",
        "revisions",
        "PM score",
        series,
        whole_x=True,
        size=(460, 250),
        caption="Mean preference-model score of the training responses after 0, 1, … revisions.",
    )


def principle_counts(runs: Sequence[Run]) -> Panel | None:
    """PM score of the last revisions against the number of principles (Figure 6), where stages or
    runs differ in it."""
    points = {}
    for run in runs:
        for source, rows in _revised(run):
            if source is None or rows[-1]["value"] is None:
                continue
            # An empty field means all principles; the stage's summary then says how many there
            # were.
            count = source.fields.get("num_principles") or source.summary.get("num_principles")
            if count:
                points.setdefault(int(count), rows[-1])
    if len(points) < 2:
        return None
    rows = [points[count] for count in sorted(points)]
    one = Series(
        "last revision",
        sorted(points),
        [r["value"] for r in rows],
        [r["low"] for r in rows],
        [r["high"] for r in rows],
        mark="path",
        tone=1,
    )
    return Panel(
        "principle_counts",
        "Score by number of principles",
        "principles",
        "PM score",
        [one],
        whole_x=True,
        size=(460, 250),
        caption="Mean preference-model score of the last revision. The paper finds no effect.",
    )


def principles(runs: Sequence[Run]) -> Forest | None:
    """How far each principle moved the score of the answers it revised. Those that were used often
    come first, by how far; then those used fewer than FEW_USES times, by how often."""
    rows, seldom = [], 0
    for place, run in enumerate(runs):
        found = [
            r
            for r in find(run.evaluation["rows"], "score_moved", "revisions")
            if r["value"] is not None
        ]
        often = sorted((r for r in found if r["used"] >= FEW_USES), key=lambda r: -r["value"])
        few = sorted((r for r in found if r["used"] < FEW_USES), key=lambda r: -r["used"])
        seldom += len(few)
        rows += [
            ForestRow(
                f"{label_of(runs, run, r['model'])} ({r['used']})",
                r["value"],
                r["low"],
                r["high"],
                tone_of(runs, place),
                note=f"used {r['used']} times, changed {100 * r['changed']:.0f} % of the answers",
            )
            for r in (*often, *few)
        ]
    if not rows:
        return None
    caption = "In brackets how often each was used."
    if seldom:
        caption += (
            f" The last {seldom} were used fewer than {FEW_USES} times: single answers, "
            "no effect of a principle."
        )
    return Forest(
        "principles",
        "What each principle did",
        "change of PM score by one revision",
        rows,
        0.0,
        caption=caption,
    )


def kinds_of_harm(runs: Sequence[Run]) -> Forest | None:
    """Change of the PM score from the initial response to the last revision, by kind of harm."""
    rows = []
    for place, run in enumerate(runs):
        rows += [
            ForestRow(
                label_of(runs, run, r["model"]),
                r["value"],
                r["low"],
                r["high"],
                tone_of(runs, place),
                note=f"n = {r['n']}",
            )
            for r in find(run.evaluation["rows"], "score_moved_by_kind")
        ]
    if not rows:
        return None
    return Forest(
        "kinds", "Revisions by kind of harm", "change of PM score, first to last", rows, 0.0
    )
