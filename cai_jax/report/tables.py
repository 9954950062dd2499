"""Tables as data, from the frame of numbers: the templates write the same ones as HTML and as
Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from cai_jax.report.compare import Difference
from cai_jax.report.numbers import Column, frame, plain_rows
from cai_jax.report.run import Evaluation, Run
from cai_jax.report.text import duration, gigabytes, headed, model_name, number, quantity, set_name

OWN_TABLES = ("answers", "pairs", "principles")  # groups that are not one table of models and sets


@dataclasses.dataclass(frozen=True)
class Note:
    """A line under a number: its difference to something. `null`: the interval covers zero."""

    text: str
    null: bool | None = None
    against: str = ""
    rise: bool = False

    @property
    def verdict(self) -> str:
        """In words, where there is an interval: only one without zero is a rise or a fall."""
        if self.null is None:
            return ""
        return "no difference shown" if self.null else "higher" if self.rise else "lower"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A text or a number. `tone`: of a colour mark before it; `bar`: a share drawn under it;
    `soft`: grey; `strong`: bold."""

    text: str
    interval: str = ""
    n: int | None = None
    notes: Sequence[Note] = ()
    tone: int | None = None
    bar: float | None = None
    soft: bool = False
    strong: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """The first column names its row; `numeric` columns are aligned to the right; `css`: "narrow",
    "tight" or ""."""

    caption: str
    head: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]
    numeric: Sequence[int] = ()
    css: str = ""


def difference_note(row: Mapping, column: Column, against: str = "") -> Note:
    text, ends = column.format(row["value"], sign=True), column.ends(row, sign=True)
    if not ends:
        return Note(text, None, against)
    null = bool(row["low"] <= 0 <= row["high"])
    ends = ends.replace("\u202f%", "")  # the value has the unit
    return Note(f"{text} {ends}", null, against, row["value"] > 0)


def _baselines(row: Mapping, column: Column) -> str:
    known = {key: v for key, v in (row["baseline"] or {}).items() if v is not None}
    return ", ".join(f"{key} {column.format(value)}" for key, value in known.items())


# ---- Models and sets -----------------------------------------------------------------------------


def _grid(measured: Evaluation, block: pd.DataFrame) -> tuple[list[str], dict[tuple, list[Cell]]]:
    """(heads, (model, set) → cells): one column for each metric of the block."""
    metrics = list(dict.fromkeys(block["metric"]))
    first, lines = measured.models[0] if measured.models else None, {}
    for row in block.astype(object).where(block.notna(), None).to_dict("records"):
        line = lines.setdefault((row["model"], row["on"]), {})
        line.setdefault(row["metric"], []).append(row)
    cells = {
        name: [_cell(line.get(m, ()), measured.columns[m], first) for m in metrics]
        for name, line in lines.items()
    }
    return [measured.columns[metric].label for metric in metrics], cells


def _cell(rows: Sequence[Mapping], column: Column, first: str | None) -> Cell:
    """One model's number of one kind on one set: the value, and under it its differences; those to
    the first model need no name."""
    notes = [
        difference_note(r, column, "" if r["against"] == first else model_name(r["against"]))
        for r in rows
        if r["against"] is not None and r["value"] is not None
    ]
    plain = next((r for r in rows if r["against"] is None and r["over"] is None), None)
    if plain is None:
        return Cell("" if notes else "–", notes=notes)
    base = _baselines(plain, column)
    notes += [Note(base)] if base else []
    return Cell(column.format(plain["value"]), column.ends(plain), int(plain["n"]), notes)


def answers(measured: Evaluation, suffix: str = "") -> list[Table]:
    """For each set of prompts: what was measured of every model's answers, with the differences to
    the first."""
    block, out = measured.frame[measured.frame["group"] == "answers"], []
    for on in measured.prompt_sets:
        here = block[block["on"] == on]
        if here.empty:
            continue
        heads, cells = _grid(measured, here)
        missing = [Cell("–")] * len(heads)
        rows = [
            [Cell(model_name(name), tone=i), *cells.get((name, on), missing)]
            for i, name in enumerate(measured.models)
        ]
        caption = f"{headed(set_name(on))}{suffix} ({plain_rows(here)['n'].max():.0f})"
        out.append(Table(caption, ["Model", *heads], rows, range(1, 1 + len(heads))))
    return out


def others(
    measured: Evaluation, groups: Iterable[str] | None = None, suffix: str = ""
) -> list[Table]:
    """Tables of the further groups of numbers, a line for each model and set; models that were
    measured in other ways have a table of their own."""
    out, every = [], measured.frame
    there = [g for g in dict.fromkeys(every["group"]) if g not in OWN_TABLES]
    for group in there if groups is None else [g for g in groups if g in there]:
        block = every[every["group"] == group]
        kinds = block.groupby("model", sort=False)["metric"].agg(lambda m: tuple(sorted(set(m))))
        for _, models in kinds.groupby(kinds, sort=False):
            heads, cells = _grid(measured, block[block["model"].isin(models.index)])
            rows = [[Cell(model_name(m)), set_name(on), *line] for (m, on), line in cells.items()]
            head = ["Of", "On", *heads]
            out.append(Table(f"{headed(group)}{suffix}", head, rows, range(2, len(head))))
    return out


def win_rates(measured: Evaluation, suffix: str = "") -> list[Table]:
    """How often each model's answer is preferred to each other's, by each judge."""
    block = measured.frame[(measured.frame["group"] == "pairs") & measured.frame["value"].notna()]
    out = []
    for (metric, on), rows in block.groupby(["metric", "on"], sort=False):
        cells = {}
        for r in rows.to_dict("records"):
            cells[r["model"], r["over"]] = _rate(r["value"], r["low"], r["high"])
            cells[r["over"], r["model"]] = _rate(1 - r["value"], 1 - r["high"], 1 - r["low"])
        names = [name for name in measured.models if any(name in pair for pair in cells)]
        lines = [
            [Cell(model_name(a), tone=measured.models.index(a)), *(cells.get((a, b), "")
                                                                   for b in names)]
            for a in names
        ]  # fmt: skip
        caption = f"{headed(set_name(on))}, verdicts of {measured.columns[metric].label}{suffix}"
        head = ["Wins of", *(f"over {model_name(name)}" for name in names)]
        out.append(Table(caption, head, lines, range(1, 1 + len(names)), "narrow"))
    return out


def _rate(value: float, low: float, high: float) -> Cell:
    note = Note(f"{number(100 * low, 0)} to {number(100 * high, 0)}")
    return Cell(number(value, percent=True), notes=(note,))


def principles(measured: Evaluation, suffix: str = "") -> list[Table]:
    """What each principle did: over all revisions, then within each kind of harm."""
    sets: dict[str, dict[str, dict]] = {}
    for r in measured.rows:
        if "used" in r:
            sets.setdefault(r["on"], {})[r["name"]] = r
    out = []
    for on, by_name in sets.items():
        rows = sorted(by_name.values(), key=lambda r: -r["used"])
        column = measured.columns[rows[0]["metric"]]
        lines = [
            [
                r["model"],
                str(r["used"]),
                number(r["changed"], percent=True),
                f"{column.format(r['value'], sign=True)} {column.ends(r, sign=True)}".strip(),
            ]
            for r in rows
        ]
        kind = on.partition(":")[2].replace("_", " ")
        head = ["Principle", "Used", "Changed the answer", column.label]
        out.append(Table(headed(kind or "principles") + suffix, head, lines, (1, 2, 3), "narrow"))
    return out


def every(run: Run) -> Table:
    """All rows of the run's metrics.json."""
    rows = []
    for r in run.rows:
        column = run.evaluation.columns[r["metric"]]
        rows.append(
            [
                r["metric"].replace("_", " "),
                r["on"],
                r["model"],
                r["against"] or r.get("over") or "",
                column.format(r["value"], sign=r["against"] is not None),
                column.ends(r).strip("[]").replace(", ", " to "),
                f"{r['n']:,}",
                _baselines(r, column),
                r.get("unit") or "",
            ]
        )
    head = ["Number", "On", "Of", "Against", "Value", "95 %", "n", "Baselines", "Unit"]
    return Table("metrics.json", head, rows, (4, 5, 6), "tight")


# ---- Runs ----------------------------------------------------------------------------------------


def differences(runs: Sequence[Run], measured: Sequence[Difference]) -> list[Table]:
    """Numbers of several runs next to each other, with their differences to the first run."""
    rows = []
    for d in measured:
        cells = []
        for value, estimate in zip(d.values, d.differences, strict=True):
            shown = estimate is not None and estimate.low is not None
            notes = [difference_note(vars(estimate), d.column)] if shown else []
            cells.append(Cell(d.column.format(value), notes=notes, soft=d.scales))
        how = "other judge" if d.scales else "by prompt" if d.paired else "no"
        rows.append([d.column.label, headed(set_name(d.on)), model_name(d.model), *cells, how])
    heads = [Cell(run.name, tone=i + 1) for i, run in enumerate(runs)]
    head = ["Number", "On", "Model", *heads, "Paired"]
    numeric = range(3, 3 + len(runs))
    return [Table("Differences to the first run", head, rows, numeric)] if rows else []


def cost(run: Run, prefix: str = "") -> Table:
    longest = max(stage.seconds or 0.0 for stage in run.stages.values()) or 1.0
    rows = []
    for stage in run.stages.values():
        tokens = [f"{quantity(count)} {kind}" for kind, count in sorted(stage.tokens.items())]
        dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(stage.dropped.items()))
        notes = [Note(f"left out: {dropped}")] if dropped else []
        result = stage.summary.get("headline", "") if stage.done else "not finished"
        cpu = f", {duration(stage.cpu_seconds)} of the processors" if stage.cpu_seconds else ""
        rows.append(
            [
                stage.name,
                stage.kind,
                quantity(stage.summary.get("rows", stage.summary.get("steps"))),
                Cell(duration(stage.seconds) + cpu, bar=(stage.seconds or 0.0) / longest),
                ", ".join(tokens) or "–",
                gigabytes(stage.peak_bytes),
                Cell(result, notes=notes, strong=not stage.done),
            ]
        )
    head = ["Stage", "Kind", "Rows or steps", "Time", "Tokens", "Peak memory", "Result"]
    return Table(f"{prefix}{duration(run.seconds)} in all", head, rows, (2,))


def over_seeds(measured: Sequence[Mapping], columns: Mapping[str, Column]) -> list[Table]:
    """Means over runs with other seeds."""
    rows = []
    for r in measured:
        column = columns[r["metric"]]
        verdict = difference_note(r, column).verdict if r["against"] else ""
        cell = Cell(column.format(r["value"]), column.ends(r))
        each = ", ".join(column.format(value) for value in r["by_run"])
        names = [column.label, set_name(r["on"]), model_name(r["model"]), r["against"] or "–"]
        rows.append([*names, cell, verdict or "–", each])
    head = ["Number", "On", "Model", "Less that of", "Mean over runs", "", "Each run"]
    caption = f"Over {measured[0]['n']} runs with different seeds" if measured else ""
    return [Table(caption, head, rows, (4,))] if measured else []


def pairwise(measured: Sequence[Mapping], columns: Mapping[str, Column]) -> list[Table]:
    """The pairs whose difference is shown, and how many are not. Of many pairs one in twenty
    differs by chance."""
    out = []
    table = frame(measured, columns)
    for (metric, on), block in table[table["low"].notna()].groupby(["metric", "on"], sort=False):
        column = columns[metric]
        apart = block[(block["low"] > 0) | (block["high"] < 0)]
        apart = apart.sort_values("value", key=lambda values: -values.abs())
        rows = [
            [model_name(r["model"]), model_name(r["against"]), difference_note(r, column).text]
            for r in apart.to_dict("records")
        ]
        caption = (
            f"{column.label}, {set_name(on)}: of {len(block)} pairs {len(apart)} differ at 95 % "
            f"each; {len(block) / 20:.1f} would by chance"
        )
        out.append(Table(caption, ["This", "Less this", "Difference"], rows, (2,), "narrow"))
    return out
