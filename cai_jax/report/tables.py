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
    notes: tuple[Note, ...] = ()
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


def _note(row: Mapping, column: Column, label: str = "") -> Note:
    text, ends = column.format(row["value"], sign=True), column.ends(row, sign=True)
    if not ends:
        return Note(text, None, label)
    low, high = row["low"], row["high"]
    return Note(f"{text} {_unitless(ends)}", bool(low <= 0 <= high), label, row["value"] > 0)


def _unitless(ends: str) -> str:
    return ends.replace("\u202f%", "")


def _cell(rows: Sequence[Mapping], column: Column, first: str | None) -> Cell:
    """One model's number of one kind on one set: the value, and under it its differences; those to
    the first model need no name."""
    plain = next((r for r in rows if r["against"] is None and r["over"] is None), None)
    notes = [
        _note(r, column, "" if r["against"] == first else model_name(r["against"]))
        for r in rows
        if r["against"] is not None and not pd.isna(r["value"])
    ]
    if plain is None:
        return Cell("" if notes else "–", notes=tuple(notes))
    known = {key: v for key, v in (plain["baseline"] or {}).items() if v is not None}
    base = ", ".join(f"{key} {column.format(value)}" for key, value in known.items())
    notes += [Note(base)] if base else []
    interval = column.ends(plain)
    return Cell(column.format(plain["value"]), interval, int(plain["n"]), tuple(notes))


def _grid(
    block: pd.DataFrame, columns: Mapping[str, Column], names: Sequence[Sequence], first: str | None
) -> tuple[list[str], list[list[Cell]]]:
    """(heads, cells): one line for each (model, set) of `names`, one column for each metric."""
    groups: dict[tuple, list[dict]] = {}
    for row in block.astype(object).where(block.notna(), None).to_dict("records"):
        groups.setdefault((row["model"], row["on"], row["metric"]), []).append(row)
    metrics = list(dict.fromkeys(block["metric"]))
    cells = [
        [_cell(groups.get((*name, metric), ()), columns[metric], first) for metric in metrics]
        for name in names
    ]
    return [columns[metric].label for metric in metrics], cells


def answers(measured: Evaluation, suffix: str = "") -> list[Table]:
    """For each set of prompts: what was measured of every model's answers, with the differences to
    the first."""
    block, out = measured.frame[measured.frame["group"] == "answers"], []
    for on in measured.prompt_sets:
        here = block[(block["on"] == on)]
        if here.empty:
            continue
        first = measured.models[0] if measured.models else None
        names = [(name, on) for name in measured.models]
        heads, cells = _grid(here, measured.columns, names, first)
        rows = [
            [Cell(model_name(name), tone=i), *line]
            for i, ((name, _), line) in enumerate(zip(names, cells, strict=True))
        ]
        caption = f"{headed(set_name(on))}{suffix} ({plain_rows(here)['n'].max():.0f})"
        out.append(Table(caption, ["Model", *heads], rows, range(1, 1 + len(heads))))
    return out


def others(
    measured: Evaluation, groups: Iterable[str] | None = None, suffix: str = ""
) -> list[Table]:
    """Tables of the further groups of numbers, a line for each model and set; models that were
    measured in other ways have a table of their own."""
    out, first = [], measured.models[0] if measured.models else None
    there = [g for g in dict.fromkeys(measured.frame["group"]) if g not in OWN_TABLES]
    for group in there if groups is None else [g for g in groups if g in there]:
        block = measured.frame[measured.frame["group"] == group]
        kinds = block.groupby("model", sort=False)["metric"].agg(lambda names: tuple(set(names)))
        for _, models in kinds.groupby(kinds.map(sorted).map(tuple), sort=False):
            own = block[block["model"].isin(models.index)]
            names = list(dict.fromkeys(zip(own["model"], own["on"], strict=True)))
            heads, cells = _grid(own, measured.columns, names, first)
            rows = [
                [Cell(model_name(model)), set_name(on), *line]
                for (model, on), line in zip(names, cells, strict=True)
            ]
            head = ["Of", "On", *heads]
            out.append(Table(f"{headed(group)}{suffix}", head, rows, range(2, len(head))))
    return out


def win_rates(measured: Evaluation, suffix: str = "") -> list[Table]:
    """How often each model's answer is preferred to each other's, by each judge."""
    block = measured.frame[(measured.frame["group"] == "pairs") & measured.frame["value"].notna()]
    out = []
    for (metric, on), rows in block.groupby(["metric", "on"], sort=False):
        column, cells = measured.columns[metric], {}
        for r in rows.to_dict("records"):
            value, low, high = r["value"], r["low"], r["high"]
            cells[r["model"], r["over"]] = _rate(value, low, high)
            cells[r["over"], r["model"]] = _rate(1 - value, 1 - high, 1 - low)
        names = [name for name in measured.models if any(name in pair for pair in cells)]
        lines = [
            [
                Cell(model_name(a), tone=measured.models.index(a)),
                *(cells.get((a, b), "") for b in names),
            ]
            for a in names
        ]
        caption = f"{headed(set_name(on))}, verdicts of {column.label}{suffix}"
        head = ["Wins of", *(f"over {model_name(name)}" for name in names)]
        out.append(Table(caption, head, lines, range(1, 1 + len(names)), "narrow"))
    return out


def _rate(value: float, low: float, high: float) -> Cell:
    note = Note(f"{number(100 * low, 0)} to {number(100 * high, 0)}")
    return Cell(number(value, percent=True), notes=(note,))


def principles(measured: Evaluation, suffix: str = "") -> list[Table]:
    """What each principle did: over all revisions, then within each kind of harm."""
    extras = {r["name"]: r for r in measured.rows if "used" in r}
    sets: dict[str, list[dict]] = {}
    for r in extras.values():
        sets.setdefault(r["on"], []).append(r)
    out = []
    for on, rows in sets.items():
        column = measured.columns[rows[0]["metric"]]
        lines = [
            [
                r["model"],
                str(r["used"]),
                number(r["changed"], percent=True),
                f"{column.format(r['value'], sign=True)} {column.ends(_nan(r), sign=True)}".strip(),
            ]
            for r in sorted(rows, key=lambda r: -r["used"])
        ]
        kind = on.partition(":")[2].replace("_", " ")
        head = ["Principle", "Used", "Changed the answer", column.label]
        out.append(Table(headed(kind or "principles") + suffix, head, lines, (1, 2, 3), "narrow"))
    return out


def _nan(row: Mapping) -> dict:
    return {key: float("nan") if row[key] is None else row[key] for key in ("low", "high")}


def differences(runs: Sequence[Run], measured: Sequence[Difference]) -> Table:
    """Numbers of several runs next to each other, with their differences to the first run."""
    rows = []
    for d in measured:
        cells = []
        for value, estimate in zip(d.values, d.differences, strict=True):
            note = ()
            if estimate is not None and estimate.low is not None:
                note = (_note(vars(estimate), d.column),)
            cells.append(Cell(d.column.format(value), notes=note, soft=d.scales))
        how = "other judge" if d.scales else "by prompt" if d.paired else "no"
        rows.append([d.column.label, headed(set_name(d.on)), model_name(d.model), *cells, how])
    heads = [Cell(run.name, tone=i + 1) for i, run in enumerate(runs)]
    head = ["Number", "On", "Model", *heads, "Paired"]
    return Table("Differences to the first run", head, rows, range(3, 3 + len(runs)))


def every(run: Run) -> Table:
    """All rows of the run's metrics.json."""
    measured, rows = run.evaluation, []
    for r in measured.rows:
        column = measured.columns[r["metric"]]
        base = {key: v for key, v in r["baseline"].items() if v is not None}
        rows.append(
            [
                r["metric"].replace("_", " "),
                r["on"],
                r["model"],
                r["against"] or r.get("over") or "",
                column.format(r["value"], sign=r["against"] is not None),
                column.ends(r).strip("[]").replace(", ", " to "),
                f"{r['n']:,}",
                ", ".join(f"{key} {column.format(v)}" for key, v in base.items()),
                r.get("unit") or "",
            ]
        )
    head = ["Number", "On", "Of", "Against", "Value", "95 %", "n", "Baselines", "Unit"]
    return Table("metrics.json", head, rows, (4, 5, 6), "tight")


def cost(run: Run, prefix: str = "") -> Table:
    longest = max([stage.seconds or 0.0 for stage in run.stages.values()], default=0.0) or 1.0
    rows = []
    for stage in run.stages.values():
        tokens = [f"{quantity(count)} {kind}" for kind, count in sorted(stage.tokens.items())]
        dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(stage.dropped.items()))
        notes = (Note(f"left out: {dropped}"),) if dropped else ()
        result = stage.summary.get("headline", "") if stage.done else "not finished"
        cpu = f", {duration(stage.cpu_seconds)} of the processors" if stage.cpu_seconds else ""
        rows.append(
            [
                stage.name,
                stage.kind,
                quantity(stage.summary.get("rows", stage.summary.get("steps"))),
                Cell(duration(stage.seconds) + cpu, bar=(stage.seconds or 0.0) / longest),
                ", ".join(tokens) or "–",
                gigabytes(stage.manifest.get("peak_bytes")),
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
        note = _note(r, column) if r["against"] else None
        cell = Cell(column.format(r["value"]), column.ends(_nan(r) if r["low"] is None else r))
        each = ", ".join(column.format(value) for value in r["by_run"])
        names = [column.label, set_name(r["on"]), model_name(r["model"]), r["against"] or "–"]
        rows.append([*names, cell, note.verdict if note else "–", each])
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
            [model_name(r["model"]), model_name(r["against"]), _note(r, column).text]
            for r in apart.to_dict("records")
        ]
        caption = (
            f"{column.label}, {set_name(on)}: of {len(block)} pairs {len(apart)} differ at 95 % "
            f"each; {len(block) / 20:.1f} would by chance"
        )
        out.append(Table(caption, ["This", "Less this", "Difference"], rows, (2,), "narrow"))
    return out
