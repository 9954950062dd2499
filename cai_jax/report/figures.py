"""The figures that runs have data for: the paper's, those that evaluations declare, one of every
column that asks for it, labels and training curves.

A `Source` is a run with one of its evaluations; several are drawn together, unless their numbers
come from different judges and so have no common scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from cai_jax.evals.rows import find
from cai_jax.report.numbers import Column
from cai_jax.report.plot import Forest, ForestRow, Panel, Series
from cai_jax.report.run import Evaluation, Run, Stage
from cai_jax.report.story import HARM, HELP
from cai_jax.report.text import headed, model_name, set_name, words

Drawing = Panel | Forest
CROWD = 8  # models beyond which their names in the frontier are short
FEW_USES = 5  # of a principle: below it one answer decides its mean


@dataclasses.dataclass(frozen=True)
class Source:
    """`index` of the run among several, None where it is alone; `suffix` of its figures' keys."""

    run: Run
    evaluation: Evaluation
    index: int | None = None
    suffix: str = ""

    def label(self, name: str) -> str:
        return name if self.index is None else f"{self.run.name} · {name}"

    def tone(self, alone: int = 1) -> int:
        return alone if self.index is None else self.index + 1


def main_sources(runs: Sequence[Run]) -> list[Source]:
    several = len(runs) > 1
    return [Source(run, run.evaluation, i if several else None) for i, run in enumerate(runs)]


def by_scale(sources: Sequence[Source], metric: str, draw: Callable) -> list[Drawing]:
    """`draw(sources)`, or one figure a run where their numbers of this kind come from different
    judges: without a common scale they are not drawn on one axis."""
    scales = {c.scale for s in sources if (c := s.evaluation.columns.get(metric))}
    if len(scales) <= 1:
        drawn = [(draw(sources), sources[0].suffix if sources else "")]
    else:
        drawn = [(draw([dataclasses.replace(s, index=None)]), f"-{s.index + 1}") for s in sources]
        titles = [source.run.name for source in sources]
        drawn = [
            (figure and dataclasses.replace(figure, title=f"{title}: {figure.title}"), suffix)
            for (figure, suffix), title in zip(drawn, titles, strict=True)
        ]
    return [dataclasses.replace(f, key=f.key + suffix) for f, suffix in drawn if f is not None]


# ---- Answers of the models -----------------------------------------------------------------------


def frontier(sources: Sequence[Source]) -> list[Drawing]:
    return by_scale(sources, "pm_score", _frontier)


def _frontier(sources: Sequence[Source]) -> Panel | None:
    """Harmlessness against helpfulness (Figures 2 and 3): up and right is better. In Elo where one
    run is drawn and has it: runs have no common zero of Elo."""
    rows = sources[0].evaluation.rows
    elo = len(sources) == 1 and all(find(rows, "elo", on) for on in (HARM, HELP))
    metric, unit = ("elo", "Elo") if elo else ("pm_score", "PM score")
    series, lengths = [], False
    for source in sources:
        rows, models = source.evaluation.rows, source.evaluation.models
        for index, name in enumerate(models):
            x, y = (find(rows, metric, on, name) for on in (HELP, HARM))
            if not (x and y) or None in (x[0]["value"], y[0]["value"]):
                continue
            label = source.label(model_name(name))
            length = find(rows, "num_tokens", HARM, name)
            if length and length[0]["value"] is not None and len(models) <= CROWD:
                label, lengths = f"{label}, {length[0]['value']:.0f} tokens", True
            (x,), (y,) = x[:1], y[:1]
            bounds = [[y["low"]], [y["high"]], [x["low"]], [x["high"]]]
            series.append(
                Series(
                    label, [x["value"]], [y["value"]], *bounds, "dots", source.tone(index), [label]
                )
            )
    if not series:
        return None
    score = "Mean preference-model score"
    if elo:
        score = f"Elo from the preference model's verdicts, {_zero(rows)} = 0,"
    length = f"; next to each name the mean length of its answers to {set_name(HARM)}"
    return Panel(
        "frontier",
        f"{headed(words().noun)} against helpfulness",
        f"helpfulness ({unit} on helpful prompts)",
        f"{words().noun} ({unit} on {set_name(HARM)})",
        series,
        size=(400, 290),
        caption=f"{score} on held-out prompts with 95 % intervals{length if lengths else ''}. "
        "Up and right is better.",
    )


def _zero(rows) -> str:
    """In print, the model whose Elo is zero."""
    zero = [r["model"] for r in find(rows, "elo", HARM) if r["value"] == 0 and r["low"] is None]
    return model_name(zero[0]) if zero else "one model"


def of_columns(sources: Sequence[Source], groups: Sequence[str] | None = None) -> list[Drawing]:
    """A forest of every model on every set for each column that asks for one; the accuracies of
    judges together in one."""
    drawn = []
    columns = {
        n: c for s in sources for n, c in s.evaluation.columns.items() if c.figure == "forest"
    }
    for column in columns.values():
        if column.group != "judges" and (groups is None or column.group in groups):
            drawn += by_scale(sources, column.name, lambda of, c=column: _by_model(of, c))
    every = {n: c for s in sources for n, c in s.evaluation.columns.items()}.values()
    judging = [c for c in every if c.group == "judges" and c.unit == "accuracy"]
    if judging and (groups is None or "judges" in groups):
        judged = _judges(sources, judging)
        drawn += [judged] if judged else []
    return drawn


def _by_model(sources: Sequence[Source], column: Column) -> Forest | None:
    rows: list[ForestRow] = []
    sets = dict.fromkeys(r["on"] for s in sources for r in find(s.evaluation.rows, column.name))
    for on in sorted(sets, key=lambda on: (on != HARM, on)):
        block = [
            _forest_row(source, r, model_name(name), index)
            for source in sources
            for index, name in enumerate(_of(source, column))
            for r in find(source.evaluation.rows, column.name, on, name)
            if r["value"] is not None
        ]
        if block:
            rows += [ForestRow(headed(set_name(on)), None, heading=True), *block]
    if not rows:
        return None
    unit = "share of answers" if column.unit == "share" else column.unit
    return Forest(
        column.name,
        column.title or column.label,
        unit,
        rows,
        0.0 if column.unit == "Elo" else None,
        column.percent,
        column.caption,
        column.digits,
    )


def _of(source: Source, column: Column) -> list[str]:
    """Whatever the numbers of a column are of: models in their order, then other names."""
    rows = find(source.evaluation.rows, column.name)
    return list(dict.fromkeys([*source.evaluation.models, *(row["model"] for row in rows)]))


def _forest_row(source: Source, row: dict, name: str, tone: int, note: str = "") -> ForestRow:
    marks = [(v, f"baseline: {key}") for key, v in row["baseline"].items() if v is not None]
    low, high = row["low"], row["high"]
    note = note or f"n = {row['n']}"
    return ForestRow(source.label(name), row["value"], low, high, source.tone(tone), marks, note)


def _judges(sources: Sequence[Source], columns: Sequence[Column]) -> Forest | None:
    """Accuracies of the feedback model and the preference model with their baselines as ticks
    (Figures 4 and 11)."""
    rows: list[ForestRow] = []
    every = [
        (tone, column, source, row)
        for source in sources
        for tone, column in enumerate(columns, 1)
        for row in find(source.evaluation.rows, column.name)
        if row["value"] is not None
    ]
    several = {c.name: len({r["model"] for _, d, _, r in every if c is d}) > 1 for c in columns}
    sets = dict.fromkeys(row["on"] for *_, row in every)
    for on in sorted(sets, key=lambda on: (on.partition(":")[0] == "comparisons", on)):
        rows.append(ForestRow(set_name(on), None, heading=True))
        for tone, column, source, row in every:
            if row["on"] == on:
                who = f"{model_name(row['model'])}, " if several[column.name] else ""
                rows.append(_forest_row(source, row, f"{who}{column.label}", tone))
    held_out = [
        _forest_row(source, row, f"{stage.name}: {name.rpartition(':')[2]} pairs", 4)
        for source in sources
        for stage in source.run.of_kind("pm")
        for name, row in _held_out(stage)
    ]
    if held_out:
        rows += [ForestRow("Held out of PM training", None, heading=True), *held_out]
    if not rows:
        return None
    return Forest(
        "judges",
        "Can the judges be trusted?",
        "accuracy",
        rows,
        0.5,
        True,
        "Accuracy with 95 % Wilson intervals. Ticks: chance, majority letter, always the longer "
        "answer.",
    )


def _held_out(stage: Stage):
    for source, values in sorted((stage.summary.get("held_out") or {}).items()):
        accuracy, longer = values.get("accuracy") or {}, (values.get("longer") or {}).get("value")
        if accuracy.get("value") is not None and source != "all":
            baseline = {"chance": 0.5, "longer": longer, "majority": values.get("majority")}
            yield source, {**accuracy, "baseline": baseline}


def declared(sources: Sequence[Source], groups: Sequence[str]) -> list[Drawing]:
    """The figures that evaluations wrote as data; those of one name are drawn together."""
    every = [(s, f) for s in sources for f in s.evaluation.figures if f.get("group") in groups]
    drawn = []
    for name in dict.fromkeys(figure["name"] for _, figure in every):
        same = [(source, figure) for source, figure in every if figure["name"] == name]
        metric = "" if same[0][1]["group"] in ("judges", "labels") else "pm_score"
        drawn += by_scale(
            [source for source, _ in same][:1] if len(sources) == 1 else sources,
            metric,
            lambda of, same=same: _merged(
                [(s, f) for s, f in same if s.run in [o.run for o in of]]
            ),
        )
    return drawn


def _merged(same: Sequence[tuple[Source, dict]]) -> Panel | None:
    if not same:
        return None
    first, series = same[0][1], []
    several = len({figure.get("stage") for _, figure in same}) > 1
    keys = ("low", "high", "x_low", "x_high")
    for source, figure in same:
        for s in figure["series"]:
            label = _about(source, figure, s["label"]) if several else s["label"]
            bounds = {key: s.get(key) for key in keys}
            tone = source.tone(len(series) + 1)
            texts = s.get("texts") or ()
            mark = s.get("mark") or "path"
            label = source.label(model_name(label))
            series.append(
                Series(label, s["x"], s["y"], **bounds, mark=mark, tone=tone, texts=texts)
            )
    return Panel(
        first["name"],
        first.get("title") or first["name"],
        first.get("x_label", ""),
        first.get("y_label", ""),
        series,
        diagonal=bool(first.get("diagonal")),
        percent=bool(first.get("percent")),
        integer_x=bool(first.get("integer_x")),
        zero=bool(first.get("zero")),
        caption=first.get("caption", ""),
        size=(500, 280),
    )


def _about(source: Source, figure: dict, label: str) -> str:
    """In print, a series of one of several evaluations: the revise stage that it scored and how
    that revised (Figure 7), or the evaluation's name."""
    stage = source.run.stages.get(figure.get("stage", ""))
    revised = source.run.stages.get(stage.inputs.get("revisions") or "") if stage else None
    if revised is None:
        return f"{figure.get('stage', '')}, {label}"
    return f"{revised.name}, {'critiqued' if revised.fields.get('critique', True) else 'direct'}"


def differences(sources: Sequence[Source]) -> list[Forest]:
    """Each model's paired difference to the first in the judge's score, for each set of prompts."""
    out = []
    for source in sources:
        names = [c.name for c in source.evaluation.columns.values() if c.unit == "PM score"]
        for on in source.evaluation.prompt_sets:
            rows = [
                ForestRow(f"{model_name(r['model'])}, {source.evaluation.columns[name].label}",
                          r["value"], r["low"], r["high"], tone)
                for model in source.evaluation.models[1:]
                for tone, name in enumerate(names, 1)
                for r in find(source.evaluation.rows, name, on, model, source.evaluation.models[0])
                if r["value"] is not None
            ]  # fmt: skip
            if rows:
                first = model_name(source.evaluation.models[0])
                title = f"{headed(set_name(on))}: judge's score less that of {first}"
                key = f"differences_{on.replace(':', '_')}"
                out.append(
                    Forest(key, title, "difference of the judge's score", rows, 0.0, width=560)
                )
    return out


# ---- What the constitution did -------------------------------------------------------------------


def constitution(sources: Sequence[Source]) -> list[Drawing]:
    draws = (principle_counts, principles, kinds_of_harm)
    drawn = [f for draw in draws for f in by_scale(sources, "pm_score_by_revision", draw)]
    return [*declared(sources, ("revisions",)), *drawn]


def principles(sources: Sequence[Source]) -> Forest | None:
    """How far each principle moved the score of the answers it revised. Those that were used often
    come first, by how far; then those used fewer than FEW_USES times, by how often."""
    rows, seldom = [], 0
    for source in sources:
        every = find(source.evaluation.rows, "score_moved", "revisions")
        known = [r for r in every if r["value"] is not None]
        often = sorted((r for r in known if r["used"] >= FEW_USES), key=lambda r: -r["value"])
        few = sorted((r for r in known if r["used"] < FEW_USES), key=lambda r: -r["used"])
        seldom += len(few)
        for r in (*often, *few):
            note = f"used {r['used']} times, changed {100 * r['changed']:.0f} % of the answers"
            rows.append(_forest_row(source, r, f"{r['model']} ({r['used']})", 1, note))
    if not rows:
        return None
    caption = "In brackets how often each was used."
    if seldom:
        caption += (
            f" The last {seldom} were used fewer than {FEW_USES} times: single answers, "
            "no effect of a principle."
        )
    axis = "change of PM score by one revision"
    return Forest("principles", "What each principle did", axis, rows, 0.0, caption=caption)


def kinds_of_harm(sources: Sequence[Source]) -> Forest | None:
    """Change of the PM score from the initial response to the last revision, by kind of harm."""
    rows = [
        _forest_row(source, r, r["model"], 1)
        for source in sources
        for r in find(source.evaluation.rows, "score_moved_by_kind")
    ]
    axis = "change of PM score, first to last"
    return Forest("kinds", "Revisions by kind of harm", axis, rows, 0.0) if rows else None


def principle_counts(sources: Sequence[Source]) -> Panel | None:
    """PM score of the last revisions against the number of principles (Figure 6), where stages or
    runs differ in it."""
    points = {}
    for source in sources:
        for row in find(source.evaluation.rows, "pm_score_by_revision"):
            stage = source.run.stages.get(row["stage"])
            revised = source.run.stages.get(stage.inputs.get("revisions") or "") if stage else None
            if revised is None or row["value"] is None:
                continue
            # An empty field means all principles; the stage's summary then says how many there
            # were.
            fields, summary = revised.fields, revised.summary
            count = fields.get("num_principles") or summary.get("num_principles")
            if count:
                points.setdefault(int(count), {})[int(row["model"])] = row
    if len(points) < 2:
        return None
    rows = [max(points[count].items())[1] for count in sorted(points)]
    values = ([r[key] for r in rows] for key in ("value", "low", "high"))
    series = Series("last revision", sorted(points), *values, mark="path", tone=1)
    return Panel(
        "principle_counts",
        "Score by number of principles",
        "principles",
        "PM score",
        [series],
        integer_x=True,
        size=(460, 250),
        caption="Mean preference-model score of the last revision. The paper finds no effect.",
    )
