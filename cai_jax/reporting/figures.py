"""Which figures a run has data for: the paper's where they exist, training curves, labels, transparency.

Every function takes a list of runs and returns a figure or None; several runs are drawn together.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from cai_jax import labels
from cai_jax.evals.rows import find
from cai_jax.reporting.figure import Forest, ForestRow, Panel, Series
from cai_jax.reporting.run_data import Run, Stage
from cai_jax.reporting.text import ITEM_SETS, headed, model_name, place_name, words

HARM, HELP = "red_team", "helpful"
MAX_POINTS = 240
CROWD = 8  # models beyond which their names in the frontier are short


def _label(runs: Sequence[Run], run: Run, name: str) -> str:
    return name if len(runs) == 1 else f"{run.name} · {name}"


def _tone(runs: Sequence[Run], place: int, alone: int = 1) -> int:
    """The colour of a run where several are drawn, else `alone`."""
    return place + 1 if len(runs) > 1 else alone


def of_part(
    runs: Sequence[Run], run: Run, part: Run, drawn: Sequence[Panel | Forest | None]
) -> list[Panel | Forest]:
    """Those that there are, under keys of their own: the run's main evaluation, and other runs, have the same ones."""
    place = f"-{runs.index(run) + 1}" if len(runs) > 1 else ""
    return [
        dataclasses.replace(one, key=f"{one.key}{place}-{part.part}")
        for one in drawn
        if one is not None
    ]


def main_ones(part: Run) -> list[Panel | None]:
    """What a further evaluation shows at once: its models against each other, and along RL."""
    return [
        frontier([part]) if len(part.models) > 1 else None,
        rl_steps([part]),
        rl_steps([part], harm=True),
    ]


def axis_metric(runs: Sequence[Run]) -> str:
    """What harmlessness and helpfulness are measured in: Elo, where one run has it on both sets of prompts. Several runs have
    no common zero of Elo, so their scores stand side by side."""
    if len(runs) == 1 and all(find(runs[0].evaluation["rows"], "elo", on) for on in (HARM, HELP)):
        return "elo"
    return "pm_score"


def anchor(run: Run) -> str:
    """In print, the model whose Elo is zero."""
    zero = [
        r["model"]
        for r in find(run.evaluation["rows"], "elo", HARM)
        if r["value"] == 0 and {r["low"], r["high"]} <= {None, 0}  # 0 in older runs
    ]
    return model_name(zero[0]) if zero else "one model"


def frontier(runs: Sequence[Run]) -> Panel | None:
    """Harmlessness against helpfulness (Figures 2 and 3): up and right is better."""
    series, metric = [], axis_metric(runs)
    for place, run in enumerate(runs):
        rows = run.evaluation["rows"]
        for index, name in enumerate(run.models):
            x, y = find(rows, metric, HELP, name), find(rows, metric, HARM, name)
            if x and y and x[0]["value"] is not None and y[0]["value"] is not None:
                x, y = x[0], y[0]
                length = find(rows, "num_tokens", HARM, name)
                label = _label(runs, run, model_name(name))
                if length and length[0]["value"] is not None and len(run.models) <= CROWD:
                    label += f", {length[0]['value']:.0f} tokens"
                series.append(
                    Series(
                        label,
                        [x["value"]],
                        [y["value"]],
                        [y["low"]],
                        [y["high"]],
                        [x["low"]],
                        [x["high"]],
                        "dots",
                        _tone(runs, place, index),
                        [label],
                    )
                )
    if not series:
        return None
    unit = "Elo" if metric == "elo" else "PM score"
    beside = (
        f"; beside each name the mean length of its answers to {place_name(HARM)}"
        if "tokens" in series[0].label
        else ""
    )
    told = "Mean preference-model score"
    if metric == "elo":
        told = f"Elo from the preference model's verdicts, {anchor(runs[0])} = 0,"
    return Panel(
        "frontier",
        f"{headed(words().noun)} against helpfulness",
        f"helpfulness ({unit} on helpful prompts)",
        f"{words().noun} ({unit} on {place_name(HARM)})",
        series,
        size=(580, 270),
        caption=f"{told} on held-out prompts with 95 % intervals{beside}. Up and right is better.",
    )


def steps_of(run: Run, stage: Stage) -> dict[str, int]:
    """Evaluated model → the update of `stage` that it is a snapshot of ("@rl:step"); {} where no snapshot was evaluated."""
    models = {
        name: str(ref)
        for one in run.of_kind("evaluate")
        for name, ref in (one.fields.get("models") or {}).items()
    }
    steps = {
        name: int(ref.partition(":")[2])
        for name, ref in models.items()
        if ref.startswith(f"@{stage.name}:") and ref.partition(":")[2].isdigit()
    }
    if steps:
        steps |= {name: 0 for name, ref in models.items() if ref == stage.fields.get("policy")}
        steps |= {
            name: int(stage.fields.get("num_updates") or 0)
            for name, ref in models.items()
            if ref == f"@{stage.name}"
        }
    return steps


def rl_steps(runs: Sequence[Run], harm: bool = False) -> Panel | None:
    """Harmlessness and helpfulness along RL (Figure 8), or with `harm` expected harm at each temperature (Figure 10), where
    snapshots "@rl:step" were evaluated: from the policy that it started from."""
    metric = "expected_harm" if harm else axis_metric(runs)
    lines = (
        {"T=0": "temperature 0", "T=1": "temperature 1"}
        if harm
        else {HARM: words().noun, HELP: "helpfulness"}
    )
    series = []
    for place, run in enumerate(runs):
        for stage in run.of_kind("rl"):
            steps = steps_of(run, stage)
            for tone, (on, shown) in enumerate(lines.items()):
                points = sorted(
                    (
                        (step, r)
                        for name, step in steps.items()
                        for r in find(run.evaluation["rows"], metric, on, name)
                        if r["value"] is not None
                    ),
                    key=lambda point: point[0],
                )
                if len(points) > 1:
                    series.append(
                        Series(
                            _label(runs, run, shown),
                            [s for s, _ in points],
                            [r["value"] for _, r in points],
                            [r["low"] for _, r in points],
                            [r["high"] for _, r in points],
                            mark="path",
                            tone=_tone(runs, place, tone + 1),
                        )
                    )
    if not series:
        return None
    if harm:
        return Panel(
            "harm_steps",
            "Absolute harmfulness along RL",
            "update",
            "expected harm, 0 to 4",
            series,
            whole_x=True,
            zero=True,
            size=(500, 280),
            caption="What the regressor of rated dialogues says of the answers, 0 to 4.",
        )
    unit = "Elo" if metric == "elo" else "PM score"
    return Panel(
        "rl_steps",
        f"{headed(words().noun)} and helpfulness along RL",
        "update",
        unit,
        series,
        whole_x=True,
        size=(500, 280),
        caption=f"{unit} on held-out prompts of the policy at several updates.",
    )


def by_model(
    runs: Sequence[Run],
    metric: str,
    title: str,
    x_label: str,
    *,
    percent: bool = False,
    digits: int = 2,
    reference: float | None = None,
    caption: str = "",
) -> Forest | None:
    """A metric of every model on every set of prompts."""
    rows: list[ForestRow] = []
    places = dict.fromkeys(r["on"] for run in runs for r in find(run.evaluation["rows"], metric))
    for on in sorted(places, key=lambda on: (on != HARM, on)):
        block = []
        for place, run in enumerate(runs):
            for index, name in enumerate(run.models):
                for r in find(run.evaluation["rows"], metric, on, name):
                    if r["value"] is not None:
                        block.append(
                            ForestRow(
                                _label(runs, run, model_name(name)),
                                r["value"],
                                r["low"],
                                r["high"],
                                _tone(runs, place, index),
                                note=f"n = {r['n']}",
                            )
                        )
        if block:
            rows += [ForestRow(headed(place_name(on)), None, heading=True), *block]
    return (
        Forest(metric, title, x_label, rows, reference, percent, caption, digits) if rows else None
    )


def harm(runs: Sequence[Run]) -> Forest | None:
    """Expected harm of every model at each temperature (section 4.5), and in the caption how good the regressor is."""
    told = []
    for run in runs:
        for r in find(run.evaluation["rows"], "harm_l2"):
            name = f"{run.name}, " if len(runs) > 1 else ""
            told.append(
                f"{name}{r['on']}: squared error {r['value']:.2f}, of always saying the mean {r['baseline']['mean']:.2f}"
            )
    return by_model(
        runs,
        "expected_harm",
        "Absolute harmfulness",
        "expected harm, 0 (none) to 4",
        caption="By a regressor of rated dialogues. " + "; ".join(told),
    )


def judges(runs: Sequence[Run]) -> Forest | None:
    """Accuracies of the feedback model and the preference model with their baselines as ticks (Figures 4 and 11)."""
    names = {
        "choice_zero_shot": "feedback model, zero-shot",
        "choice_few_shot": "feedback model, few-shot",
        "choice_one_chain": "feedback model, one chain of thought",
        "choice_chain_of_thought": "feedback model, chains of thought",
        "pm_accuracy": "preference model",
    }
    rows: list[ForestRow] = []
    several = (
        len(
            {
                r["model"]
                for run in runs
                for m in names
                for r in find(run.evaluation["rows"], m)
                if m != "pm_accuracy"
            }
        )
        > 1
    )
    places = dict.fromkeys(
        r["on"] for run in runs for m in names for r in find(run.evaluation["rows"], m)
    )
    for on in sorted(places, key=lambda on: (on.partition(":")[0] == "comparisons", on)):
        kind, _, subset = on.partition(":")
        block = []
        for place, run in enumerate(runs):
            for tone, (metric, shown) in enumerate(names.items()):
                for r in find(run.evaluation["rows"], metric, on):
                    marks = [
                        (value, f"baseline: {key}")
                        for key, value in r["baseline"].items()
                        if value is not None
                    ]
                    who = shown.replace(
                        "feedback model", model_name(r["model"]) if several else "feedback model"
                    )
                    if r["value"] is not None:
                        block.append(
                            ForestRow(
                                _label(runs, run, who),
                                r["value"],
                                r["low"],
                                r["high"],
                                _tone(runs, place, tone + 1),
                                marks,
                                f"n = {r['n']}",
                            )
                        )
        if block:
            title = ITEM_SETS.get(kind, kind)
            rows += [
                ForestRow(f"{title}{': ' + subset if subset else ''}", None, heading=True),
                *block,
            ]
    for place, run in enumerate(runs):
        block = []
        for stage in run.of_kind("pm"):
            for source, found in sorted((stage.summary.get("held_out") or {}).items()):
                e = found.get("accuracy") or {}
                known = {
                    "chance": 0.5,
                    "longer": (found.get("longer") or {}).get("value"),
                    "majority": found.get("majority"),
                }
                marks = [
                    (value, f"baseline: {name}")
                    for name, value in known.items()
                    if value is not None
                ]
                if e.get("value") is not None and source != "all":
                    label = _label(runs, run, f"{stage.name}: {source.rpartition(':')[2]} pairs")
                    block.append(
                        ForestRow(
                            label,
                            e["value"],
                            e["low"],
                            e["high"],
                            _tone(runs, place, 4),
                            marks,
                            f"n = {e['n']}",
                        )
                    )
        if block:
            rows += [ForestRow("Held out of PM training", None, heading=True), *block]
    if not rows:
        return None
    return Forest(
        "judges",
        "Can the judges be trusted?",
        "accuracy",
        rows,
        0.5,
        True,
        "Accuracy with 95 % Wilson intervals. Ticks: chance, majority letter, always the longer answer.",
    )


def calibration(runs: Sequence[Run]) -> Panel | None:
    """Reliability diagram (Figure 9): confidence against how often the judge is right."""
    names = {
        "choice_zero_shot": "zero-shot",
        "choice_few_shot": "few-shot",
        "choice_chain_of_thought": "chain",
        "choice_chain_of_thought_clamped": "chain, clamped",
        "pm": "PM",
    }
    series = []
    for place, run in enumerate(runs):
        for tone, (key, bins) in enumerate(sorted(run.evaluation["curves"].items())):
            if bins:
                judge, on, *of = key.split("/")
                shown = ", ".join(
                    [names.get(judge, judge), ITEM_SETS.get(on, on), *map(model_name, of)]
                )
                series.append(
                    Series(
                        _label(runs, run, shown),
                        [b["predicted"] for b in bins],
                        [b["observed"] for b in bins],
                        [b["low"] for b in bins],
                        [b["high"] for b in bins],
                        mark="path",
                        tone=_tone(runs, place, tone + 1),
                    )
                )
    return (
        Panel(
            "calibration",
            "Calibration",
            "stated confidence",
            "how often right",
            series,
            diagonal=True,
            percent=True,
            size=(500, 300),
            caption="On the dashed line a confidence of 70 % is right 70 % of the "
            "time; below it the judge is overconfident.",
        )
        if series
        else None
    )


def _revised(run: Run):
    """(revise stage, its rows by number of revisions) for every evaluate stage that scored revisions."""
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
    """PM score after each revision (Figure 5); with and without critiques where a run has both (Figure 7)."""
    series = []
    for place, run in enumerate(runs):
        found = [(source, rows) for source, rows in _revised(run) if len(rows) > 1]
        for number, (source, rows) in enumerate(found):
            label = run.name
            if len(found) > 1 and source is not None:
                how = "critiqued" if source.fields.get("critique", True) else "direct"
                label = _label(runs, run, f"{source.name}, {how}")
            series.append(
                Series(
                    label,
                    [int(r["model"]) for r in rows],
                    [r["value"] for r in rows],
                    [r["low"] for r in rows],
                    [r["high"] for r in rows],
                    mark="path",
                    tone=_tone(runs, place, number + 1),
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
    """PM score of the last revisions against the number of principles (Figure 6), where stages or runs differ in it."""
    points = {}
    for run in runs:
        for source, rows in _revised(run):
            if source is None or rows[-1]["value"] is None:
                continue
            # An empty field means all principles; the stage's summary then says how many there were.
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
    """How far each principle moved the score of the answers it revised."""
    rows = []
    for place, run in enumerate(runs):
        found = sorted(
            find(run.evaluation["rows"], "score_moved", "revisions"),
            key=lambda r: -(r["value"] or 0),
        )
        rows += [
            ForestRow(
                _label(runs, run, r["model"]),
                r["value"],
                r["low"],
                r["high"],
                _tone(runs, place),
                note=f"used {r['used']} times, changed {100 * r['changed']:.0f} % of the answers",
            )
            for r in found
            if r["value"] is not None
        ]
    if not rows:
        return None
    return Forest(
        "principles", "What each principle did", "change of PM score by one revision", rows, 0.0
    )


def kinds_of_harm(runs: Sequence[Run]) -> Forest | None:
    """Change of the PM score from the initial response to the last revision, by kind of harm."""
    rows = []
    for place, run in enumerate(runs):
        rows += [
            ForestRow(
                _label(runs, run, r["model"]),
                r["value"],
                r["low"],
                r["high"],
                _tone(runs, place),
                note=f"n = {r['n']}",
            )
            for r in find(run.evaluation["rows"], "score_moved_by_kind")
        ]
    if not rows:
        return None
    return Forest(
        "kinds", "Revisions by kind of harm", "change of PM score, first to last", rows, 0.0
    )


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
    return Panel(
        f"labels-{stage.name}",
        f"Labels of {stage.name}",
        "p(first response is better)",
        "labels",
        [
            Series(
                stage.name, edges[:-1].tolist(), counts.astype(float).tolist(), mark="bars", tone=1
            )
        ],
        size=(460, 220),
        caption="A peak in the middle: the judge hardly decides. Peaks at the ends after a chain of thought: "
        "clamp them.",
    )


def position_scatter(run: Run, stage: Stage) -> Panel | None:
    """p(first is better) asked in one order against the other: off the diagonal, position decided."""
    x, y = [], []
    for record in run.records(stage.name):
        asked = collections.defaultdict(list)
        for entry in record.get("logprobs") or ():
            asked[entry["order"]].append(labels.probability_first(entry))
        if asked["ab"] and asked["ba"]:
            x.append(float(np.mean(asked["ab"])))
            y.append(float(np.mean(asked["ba"])))
    if not x:
        return None
    return Panel(
        f"orders-{stage.name}",
        f"Position bias of {stage.name}",
        "p(first), shown as (A)",
        "p(first), shown as (B)",
        [Series(stage.name, x[:600], y[:600], mark="dots", tone=1)],
        diagonal=True,
        size=(460, 240),
        caption="Points far from the dashed line changed their mind when the options changed places.",
    )


# Curves that are shown at once, in this order; the others stand in a fold. The names are those of metrics.jsonl.
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
        rows = [
            (place, run, run.training(name)) for place, run in enumerate(runs) if name in run.stages
        ]
        keys = {key for _, _, found in rows for row in found for key in row if key != "step"}
        for key in sorted(
            keys, key=lambda key: (first.index(key) if key in first else len(first), key)
        ):
            series = []
            for place, run, found in rows:
                points = [(row["step"], row[key]) for row in found if row.get(key) is not None]
                if points:
                    series.append(Series(run.name, *thin(points), tone=_tone(runs, place)))
            if series:
                shown = FIRST[kind].get(key, key.replace("_", " "))
                panel = Panel(
                    f"{name}-{key}".replace("/", "-"),
                    f"{model_name(name) if kind != 'pm' else name}: {shown}",
                    "update" if kind == "rl" else "step",
                    "",
                    series,
                    whole_x=True,
                    size=(320, 175),
                )
                (main if key in first else more).append(panel)
    return main, more


def thin(
    points: list[tuple[float, float]], limit: int = MAX_POINTS
) -> tuple[list[float], list[float]]:
    """Averages neighbours where there are more points than a drawing can show; a curve keeps its level and shape."""
    if len(points) <= limit:
        return [float(x) for x, _ in points], [float(y) for _, y in points]
    groups = np.array_split(np.asarray(points, np.float64), limit)
    return [float(g[-1, 0]) for g in groups], [float(g[:, 1].mean()) for g in groups]
