"""The figures that runs have data for: the paper's, those that evaluations declare, and one of
every column that asks for it.

A `Source` is a run with one of its evaluations; several are drawn together, unless their numbers
come from different judges and so have no common scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from cai_jax.evals.rows import find
from cai_jax.report.numbers import Column
from cai_jax.report.run import Evaluation, Run
from cai_jax.report.spec import Figure, Forest, ForestRow, Panel, Series
from cai_jax.report.text import headed, model_name, set_name, words

HARM, HELP = "red_team", "helpful"
CROWD = 8  # models beyond which their names in the frontier are short
FEW_USES = 5  # of a principle: below it one answer decides its mean


@dataclasses.dataclass(frozen=True)
class Source:
    """`index` of the run among several, None where it is alone; `suffix` of its figures' keys."""

    run: Run
    evaluation: Evaluation
    index: int | None = None
    suffix: str = ""

    @property
    def rows(self) -> list[dict]:
        return self.evaluation.rows

    def label(self, name: str) -> str:
        return name if self.index is None else f"{self.run.name} · {name}"

    def tone(self, alone: int = 1) -> int:
        return alone if self.index is None else self.index + 1

    def forest_row(self, row: dict, name: str, tone: int = 1, note: str = "") -> ForestRow:
        """A number of this run in a forest.

        Args:
            row: of metrics.json.
            name: of the row in print.
            tone: its colour where the run is alone.
            note: of the tooltip; by default how many items the number is of.

        Returns:
            The forest's row, with the baselines as its marks.
        """
        marks = [(v, f"baseline: {key}") for key, v in row["baseline"].items() if v is not None]
        ends, note = (row["value"], row["low"], row["high"]), note or f"n = {row['n']}"
        return ForestRow(self.label(name), *ends, self.tone(tone), marks, note)


def main_sources(runs: Sequence[Run]) -> list[Source]:
    several = len(runs) > 1
    return [Source(run, run.evaluation, i if several else None) for i, run in enumerate(runs)]


def by_scale(sources: Sequence[Source], metric: str, draw: Callable) -> list[Figure]:
    """`draw(sources)`, or one figure a run where their numbers of this kind come from different
    judges: without a common scale they are not drawn on one axis."""
    scales = {c.scale for s in sources if (c := s.evaluation.columns.get(metric))}
    if len(scales) <= 1:
        figure, suffix = draw(sources), sources[0].suffix if sources else ""
        return [dataclasses.replace(figure, key=figure.key + suffix)] if figure else []
    drawn = [(s, draw([dataclasses.replace(s, index=None)])) for s in sources]
    return [
        dataclasses.replace(f, key=f"{f.key}-{s.index + 1}", title=f"{s.run.name}: {f.title}")
        for s, f in drawn
        if f
    ]


# ---- Answers of the models -----------------------------------------------------------------------


def frontier(sources: Sequence[Source]) -> list[Figure]:
    return by_scale(sources, "pm_score", _frontier)


def _frontier(sources: Sequence[Source]) -> Panel | None:
    """Harmlessness against helpfulness (Figures 2 and 3): up and right is better. In Elo where one
    run is drawn and has it: runs have no common zero of Elo."""
    rows = sources[0].rows
    elo = len(sources) == 1 and all(find(rows, "elo", on) for on in (HARM, HELP))
    metric, unit = ("elo", "Elo") if elo else ("pm_score", "PM score")
    series, lengths = [], False
    for source in sources:
        for index, name in enumerate(source.evaluation.models):
            x, y = (find(source.rows, metric, on, name) for on in (HELP, HARM))
            if not (x and y) or None in (x[0]["value"], y[0]["value"]):
                continue
            label = source.label(model_name(name))
            length = find(source.rows, "num_tokens", HARM, name)
            if length and length[0]["value"] is not None and len(source.evaluation.models) <= CROWD:
                label, lengths = f"{label}, {length[0]['value']:.0f} tokens", True
            (x, *_), (y, *_) = x, y
            ends = [[row[end]] for row in (y, x) for end in ("low", "high")]
            dot = {"mark": "dots", "tone": source.tone(index), "texts": [label]}
            series.append(Series(label, [x["value"]], [y["value"]], *ends, **dot))
    if not series:
        return None
    # In print, the model whose Elo is zero.
    zero = [r["model"] for r in find(rows, "elo", HARM) if r["value"] == 0 and r["low"] is None]
    zero = model_name(zero[0]) if zero else "one model"
    score = "Mean preference-model score"
    score = f"Elo from the preference model's verdicts, {zero} = 0," if elo else score
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


def of_columns(sources: Sequence[Source], groups: Sequence[str] | None = None) -> list[Figure]:
    """A forest of every model on every set for each column that asks for one; the accuracies of
    judges together in one."""
    columns = {n: c for s in sources for n, c in s.evaluation.columns.items()}.values()
    columns = [c for c in columns if groups is None or c.group in groups]
    drawn = []
    for column in columns:
        if column.figure == "forest" and column.group != "judges":
            drawn += by_scale(sources, column.name, lambda of, c=column: _by_model(of, c))
    judged = _judges(sources, [c for c in columns if c.group == "judges" and c.unit == "accuracy"])
    return [*drawn, judged] if judged else drawn


def _by_model(sources: Sequence[Source], column: Column) -> Forest | None:
    rows: list[ForestRow] = []
    sets = dict.fromkeys(r["on"] for s in sources for r in find(s.rows, column.name))
    for on in sorted(sets, key=lambda on: (on != HARM, on)):
        block = []
        for source in sources:
            every = find(source.rows, column.name)
            # Models in their order, then other names that the column has numbers of.
            names = dict.fromkeys([*source.evaluation.models, *(row["model"] for row in every)])
            block += [
                source.forest_row(row, model_name(name), index)
                for index, name in enumerate(names)
                for row in find(every, column.name, on, name)
                if row["value"] is not None
            ]
        rows += [ForestRow(headed(set_name(on)), heading=True), *block] if block else []
    return rows and Forest(
        column.name,
        column.title or column.label,
        "share of answers" if column.unit == "share" else column.unit,
        rows,
        0.0 if column.unit == "Elo" else None,
        column.digits,
        percent=column.percent,
        caption=column.caption,
    )


def _judges(sources: Sequence[Source], columns: Sequence[Column]) -> Forest | None:
    """Accuracies of the feedback model and the preference model with their baselines as ticks
    (Figures 4 and 11)."""
    rows: list[ForestRow] = []
    every = [
        (tone, column, source, row)
        for source in sources
        for tone, column in enumerate(columns, 1)
        for row in find(source.rows, column.name)
        if row["value"] is not None
    ]
    several = {c.name: len({r["model"] for _, d, _, r in every if c is d}) > 1 for c in columns}
    sets = dict.fromkeys(row["on"] for *_, row in every)
    for on in sorted(sets, key=lambda on: (on.partition(":")[0] == "comparisons", on)):
        rows.append(ForestRow(headed(set_name(on)), heading=True))
        for tone, column, source, row in every:
            if row["on"] == on:
                who = f"{model_name(row['model'])}, " if several[column.name] else ""
                rows.append(source.forest_row(row, f"{who}{column.label}", tone))
    held_out = list(_held_out(sources)) if columns else []
    if held_out:
        rows += [ForestRow("Held out of PM training", heading=True), *held_out]
    caption = "Accuracy with 95 % Wilson intervals. Ticks: chance, majority letter, always the "
    return rows and Forest(
        "judges",
        "Can the judges be trusted?",
        "accuracy",
        rows,
        0.5,
        percent=True,
        caption=f"{caption}longer answer.",
    )


def _held_out(sources: Sequence[Source]) -> Iterator[ForestRow]:
    """Accuracies of preference models on pairs held out of their training, by source."""
    for source in sources:
        for stage in source.run.of_kind("pm"):
            for name, values in sorted((stage.summary.get("held_out") or {}).items()):
                accuracy, longer = values.get("accuracy") or {}, values.get("longer") or {}
                if name == "all" or accuracy.get("value") is None:
                    continue
                baseline = {"chance": 0.5, "longer": longer.get("value")}
                baseline["majority"] = values.get("majority")
                pairs = name.rpartition(":")[2].replace("_", " ")
                label = f"{stage.name}: {'AI labels' if pairs == 'ai' else pairs}"
                yield source.forest_row({**accuracy, "baseline": baseline}, label, 4)


def declared(sources: Sequence[Source], groups: Sequence[str]) -> list[Figure]:
    """The figures that evaluations wrote as data; those of one name are drawn together."""
    names: dict[str, str] = {}  # → group
    for source in sources:
        names |= {
            f["name"]: f["group"] for f in source.evaluation.figures if f.get("group") in groups
        }
    drawn = []
    for name, group in names.items():
        metric = "" if group in ("judges", "labels") else "pm_score"
        drawn += by_scale(sources, metric, lambda of, name=name: _merged(of, name))
    return drawn


def _merged(sources: Sequence[Source], name: str) -> Panel | None:
    same = [(s, f) for s in sources for f in s.evaluation.figures if f["name"] == name]
    if not same:
        return None
    first, series = same[0][1], []
    several = len({figure.get("stage") for _, figure in same}) > 1
    fields = {field.name for field in dataclasses.fields(Series)} - {"label", "tone"}
    for source, figure in same:
        for drawn in figure["series"]:
            label = _about(source, figure, drawn["label"]) if several else drawn["label"]
            given = {key: value for key, value in drawn.items() if key in fields}
            label, tone = source.label(model_name(label)), source.tone(len(series) + 1)
            series.append(Series(label, tone=tone, **{"mark": "path", **given}))
    texts = [first.get(key) or "" for key in ("title", "x_label", "y_label")]
    flags = {key: bool(first.get(key)) for key in ("diagonal", "percent", "integer_x", "zero")}
    caption = first.get("caption", "")
    texts[0] = texts[0] or name
    return Panel(name, *texts, series, size=(500, 280), caption=caption, **flags)


def _about(source: Source, figure: dict, label: str) -> str:
    """In print, a series of one of several evaluations: the revise stage that it scored and how
    that revised (Figure 7), or the evaluation's name."""
    revised = source.run.revised_by(figure.get("stage", ""))
    if revised is None:
        return f"{figure.get('stage', '')}, {label}"
    return f"{revised.name}, {'critiqued' if revised.fields.get('critique', True) else 'direct'}"


def differences(sources: Sequence[Source]) -> list[Forest]:
    """Each model's paired difference to the first in the judge's score, for each set of prompts."""
    out = []
    for source in sources:
        measured, models = source.evaluation, source.evaluation.models
        columns = [c for c in measured.columns.values() if c.unit == "PM score"]
        for on in measured.prompt_sets:
            rows = [
                ForestRow(f"{model_name(r['model'])}, {column.label}",
                          r["value"], r["low"], r["high"], tone)
                for model in models[1:]
                for tone, column in enumerate(columns, 1)
                for r in find(source.rows, column.name, on, model, models[0])
                if r["value"] is not None
            ]  # fmt: skip
            if rows:
                title = f"{headed(set_name(on))}: judge's score less that of "
                title += model_name(models[0])
                key, axis = f"differences_{on.replace(':', '_')}", "difference of the judge's score"
                out.append(Forest(key, title, axis, rows, 0.0, width=560))
    return out


# ---- What the constitution did -------------------------------------------------------------------


def constitution(sources: Sequence[Source]) -> list[Figure]:
    draws = (principle_counts, principles, kinds_of_harm)
    drawn = [f for draw in draws for f in by_scale(sources, "pm_score_by_revision", draw)]
    return [*declared(sources, ("revisions",)), *drawn]


def principles(sources: Sequence[Source]) -> Forest | None:
    """How far each principle moved the score of the answers it revised. Those that were used often
    come first, by how far; then those used fewer than FEW_USES times, by how often."""
    rows, seldom = [], 0
    for source in sources:
        known = [r for r in find(source.rows, "score_moved", "revisions") if r["value"] is not None]
        few = [r for r in known if r["used"] < FEW_USES]
        seldom += len(few)
        often = sorted((r for r in known if r not in few), key=lambda r: -r["value"])
        for r in [*often, *sorted(few, key=lambda r: -r["used"])]:
            note = f"used {r['used']} times, changed {100 * r['changed']:.0f} % of the answers"
            rows.append(source.forest_row(r, f"{r['model']} ({r['used']})", note=note))
    caption = "In brackets how often each was used."
    if seldom:
        caption += (
            f" The last {seldom} were used fewer than {FEW_USES} times: single answers, "
            "no effect of a principle."
        )
    axis = "change of PM score by one revision"
    return rows and Forest("principles", "What each principle did", axis, rows, 0.0,
                           caption=caption)  # fmt: skip


def kinds_of_harm(sources: Sequence[Source]) -> Forest | None:
    """Change of the PM score from the initial response to the last revision, by kind of harm."""
    rows = [
        s.forest_row(r, r["model"]) for s in sources for r in find(s.rows, "score_moved_by_kind")
    ]
    axis = "change of PM score, first to last"
    return rows and Forest("kinds", "Revisions by kind of harm", axis, rows, 0.0)


def principle_counts(sources: Sequence[Source]) -> Panel | None:
    """PM score of the last revisions against the number of principles (Figure 6), where stages or
    runs differ in it."""
    last: dict[int, dict] = {}  # number of principles → the row of most revisions
    for source in sources:
        for row in find(source.rows, "pm_score_by_revision"):
            revised = source.run.revised_by(row["stage"])
            if revised is None or row["value"] is None:
                continue
            # An empty field means all principles; the stage's summary then says how many there
            # were.
            count = revised.fields.get("num_principles") or revised.summary.get("num_principles")
            if count and int(row["model"]) >= int(last.get(int(count), row)["model"]):
                last[int(count)] = row
    if len(last) < 2:
        return None
    counts = sorted(last)
    values = ([last[count][key] for count in counts] for key in ("value", "low", "high"))
    return Panel(
        "principle_counts",
        "Score by number of principles",
        "principles",
        "PM score",
        [Series("last revision", counts, *values, mark="path", tone=1)],
        integer_x=True,
        size=(460, 250),
        caption="Mean preference-model score of the last revision. The paper finds no effect.",
    )
