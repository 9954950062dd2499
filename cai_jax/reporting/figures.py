"""Which figures a run has data for: the paper's where they exist, training curves, labels,
transparency.

Every function takes a list of runs and returns a figure or None; several runs are drawn together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from cai_jax.evals.rows import find
from cai_jax.reporting import judge
from cai_jax.reporting.figure import Forest, ForestRow, Panel, Series
from cai_jax.reporting.run_data import Run, Stage
from cai_jax.reporting.text import ITEM_SETS, headed, model_name, place_name, words

HARM, HELP = "red_team", "helpful"
CROWD = 8  # models beyond which their names in the frontier are short


def label_of(runs: Sequence[Run], run: Run, name: str) -> str:
    return name if len(runs) == 1 else f"{run.name} · {name}"


def tone_of(runs: Sequence[Run], place: int, alone: int = 1) -> int:
    """The colour of a run where several are drawn, else `alone`."""
    return place + 1 if len(runs) > 1 else alone


def of_part(
    runs: Sequence[Run], run: Run, part: Run, drawn: Sequence[Panel | Forest | None]
) -> list[Panel | Forest]:
    """Those that there are, under keys of their own: the run's main evaluation, and other runs,
    have the same ones."""
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


def each_scale(
    runs: Sequence[Run], draw: Callable, metric: str = "pm_score"
) -> list[Panel | Forest]:
    """`draw(runs)`, or one figure a run where their numbers of this kind come from different
    judges: without a common scale they are not drawn on one axis."""
    if not judge.differ(runs, metric):
        return [one for one in [draw(runs)] if one is not None]
    drawn = [(run, draw([run])) for run in runs]
    return [
        dataclasses.replace(one, key=f"{one.key}-{place}", title=f"{one.title}, {run.name}")
        for place, (run, one) in enumerate(drawn, 1)
        if one is not None
    ]


def axis_metric(runs: Sequence[Run]) -> str:
    """What harmlessness and helpfulness are measured in: Elo, where one run has it on both sets of
    prompts. Several runs have no common zero of Elo, so their scores stand side by side."""
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
                label = label_of(runs, run, model_name(name))
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
                        tone_of(runs, place, index),
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
        size=(400, 290),
        caption=f"{told} on held-out prompts with 95 % intervals{beside}. Up and right is better.",
    )


def steps_of(run: Run, stage: Stage) -> dict[str, int]:
    """Evaluated model → the update of `stage` that it is a snapshot of ("@rl:step"); {} where no
    snapshot was evaluated."""
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
    """Harmlessness and helpfulness along RL (Figure 8), or with `harm` expected harm at each
    temperature (Figure 10), where snapshots "@rl:step" were evaluated: from the policy that it
    started from."""
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
                            label_of(runs, run, shown),
                            [s for s, _ in points],
                            [r["value"] for _, r in points],
                            [r["low"] for _, r in points],
                            [r["high"] for _, r in points],
                            mark="path",
                            tone=tone_of(runs, place, tone + 1),
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
                                label_of(runs, run, model_name(name)),
                                r["value"],
                                r["low"],
                                r["high"],
                                tone_of(runs, place, index),
                                note=f"n = {r['n']}",
                            )
                        )
        if block:
            rows += [ForestRow(headed(place_name(on)), None, heading=True), *block]
    return (
        Forest(metric, title, x_label, rows, reference, percent, caption, digits) if rows else None
    )


def of_answers(runs: Sequence[Run], steps: bool = True) -> list[Panel | Forest]:
    """What there is to draw of the models' answers; `steps`: along RL too."""
    scored = [
        ("pm_score", lambda of: by_model(of, "pm_score", "Preference-model score", "mean PM score"))
    ]
    scored += [("pm_score", rl_steps)] * steps + [("expected_harm", harm)]
    scored += [("expected_harm", lambda of: rl_steps(of, harm=True))] * steps
    scored += [("elo", _elo), ("elo_judge", _elo_by_judge)]
    drawn = [one for metric, draw in scored for one in each_scale(runs, draw, metric)]
    counted = [
        by_model(runs, "num_tokens", "Length", "tokens an answer", digits=0),
        by_model(
            runs,
            "evasive_rate",
            "Evasive refusals",
            "share of answers",
            percent=True,
            caption=(
                "Refusals that give neither a reason nor an alternative, by a rule of "
                "visible phrases."
            ),
        ),
    ]
    return drawn + [one for one in counted if one is not None]


def _elo(runs: Sequence[Run]) -> Forest | None:
    return by_model(
        runs,
        "elo",
        "Elo",
        "Elo from PM verdicts",
        reference=0.0,
        digits=0,
        caption="Bradley–Terry fit over all pairs of models; intervals by bootstrap over prompts.",
    )


def _elo_by_judge(runs: Sequence[Run]) -> Forest | None:
    title, label = "Elo by the judge", "Elo from a language model's verdicts"
    return by_model(runs, "elo_judge", title, label, reference=0.0, digits=0)


def harm(runs: Sequence[Run]) -> Forest | None:
    """Expected harm of every model at each temperature (section 4.5), and in the caption how good
    the regressor is."""
    told = []
    for run in runs:
        for r in find(run.evaluation["rows"], "harm_l2"):
            name = f"{run.name}, " if len(runs) > 1 else ""
            told.append(
                f"{name}{r['on']}: squared error {r['value']:.2f}, of always saying the mean "
                f"{r['baseline']['mean']:.2f}"
            )
    return by_model(
        runs,
        "expected_harm",
        "Absolute harmfulness",
        "expected harm, 0 (none) to 4",
        caption="By a regressor of rated dialogues. " + "; ".join(told),
    )


def judges(runs: Sequence[Run]) -> Forest | None:
    """Accuracies of the feedback model and the preference model with their baselines as ticks
    (Figures 4 and 11)."""
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
                                label_of(runs, run, who),
                                r["value"],
                                r["low"],
                                r["high"],
                                tone_of(runs, place, tone + 1),
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
                    label = label_of(runs, run, f"{stage.name}: {source.rpartition(':')[2]} pairs")
                    block.append(
                        ForestRow(
                            label,
                            e["value"],
                            e["low"],
                            e["high"],
                            tone_of(runs, place, 4),
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
        (
            "Accuracy with 95 % Wilson intervals. Ticks: chance, majority letter, always the "
            "longer answer."
        ),
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
                        label_of(runs, run, shown),
                        [b["predicted"] for b in bins],
                        [b["observed"] for b in bins],
                        [b["low"] for b in bins],
                        [b["high"] for b in bins],
                        mark="path",
                        tone=tone_of(runs, place, tone + 1),
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
