"""The judge of a run: which model scored its answers, what it was itself measured on, and whether
several runs share it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cai_jax import references
from cai_jax.core.intervals import Estimate, wilson
from cai_jax.evals.rows import find
from cai_jax.report.numbers import Column
from cai_jax.report.render import say
from cai_jax.report.run import Run
from cai_jax.report.text import ITEM_SETS, words


@dataclasses.dataclass(frozen=True)
class Measured:
    """How many of `n` pairs of a kind the judge was right on (ties count a half). `people`: people
    chose the better side; AI labels are what it was trained to repeat. `helpful`: the pairs are
    about helpfulness; None where that is not known."""

    kind: str
    right: float
    n: int
    people: bool = True
    helpful: bool | None = None

    def __str__(self) -> str:
        return f"{self.right:g} of {self.n} {self.kind}"


def _column(run: Run, metric: str = "pm_score") -> Column:
    """The column of the judge's score."""
    return run.evaluation.columns.get(metric) or Column(metric, metric)


def differ(runs: Sequence[Run], metric: str = "pm_score") -> bool:
    """Whether the runs' numbers of this kind come from different models, so that they have no
    common scale."""
    return len({_column(run, metric).scale for run in runs}) > 1


def measured(run: Run) -> list[Measured]:
    """The pairs with a known better side that the judge of the answers was tried on and not trained
    on: those held out of its training, the evaluation's comparisons by source, and its sets of
    questions (their subsets about harm, where they have some)."""
    column = _column(run)
    stage = run.stages.get(references.stage_of(column.scale.partition(" ")[0]))
    held_out = (stage.summary if stage else {}).get("held_out") or {}
    out = []
    for source, entry in sorted(held_out.items()):
        accuracy = entry.get("accuracy") or {}
        if source != "all" and accuracy.get("value") is not None:
            out.append(_of_source(source, accuracy, "held-out "))
    sets: dict[str, dict[str, dict]] = {}  # → subset → row
    for row in find(run.rows, "pm_accuracy", model=column.judge):
        if row["value"] is not None:
            on, _, subset = row["on"].partition(":")
            sets.setdefault(on, {})[subset] = row
    for on, rows in sets.items():
        total = rows.pop("", None)
        rows = rows or {"": total}
        if on == "comparisons":
            out += [_of_source(source or _compared(run), row) for source, row in rows.items()]
            continue
        kind = f"{ITEM_SETS.get(on, on)} pairs"
        harm = [
            Measured(f"{kind} ({subset})", _right(row), row["n"], helpful=False)
            for subset, row in rows.items()
            if "harm" in subset
        ]
        row = total or next(iter(rows.values()))
        out += harm or [Measured(kind, _right(row), row["n"])]
    return out


def _compared(run: Run) -> str:
    """The source of the evaluation's comparisons; "human" where there are several, or no name."""
    given = run.stages[run.main].values("comparisons") if run.main in run.stages else []
    source = str(next((g["source"] for g in given if g.get("source")), "human")).partition("#")[0]
    return "human" if "+" in source else source


def _right(row: dict) -> float:
    return round(2 * row["value"] * row["n"]) / 2


def _of_source(source: str, accuracy: dict, which: str = "") -> Measured:
    """The name of a source says what its pairs are about."""
    name = source.rpartition("/")[2].rpartition(":")[2].partition(".")[0]
    right, n = _right(accuracy), accuracy["n"]
    if name == "ai":
        return Measured(f"{which}AI labels", right, n, people=False)
    about = "" if name == "human" else f" ({name.replace('_', ' ')})"
    helpful = True if "helpful" in name else False if "harm" in name else None
    return Measured(f"{which}human pairs{about}", right, n, helpful=helpful)


def shown_right(run: Run, helpful: bool = False) -> bool:
    """Whether the judge is shown to be right more often than chance on people's pairs about the
    topic's quality, or about helpfulness; pairs of which neither is known count for both."""
    pooled = _pooled(measured(run), helpful)
    return pooled.low is not None and pooled.low > 0.5


def _pooled(pairs: Sequence[Measured], helpful: bool) -> Estimate:
    kept = [pair for pair in pairs if pair.people and pair.helpful in (None, helpful)]
    return wilson(sum(pair.right for pair in kept), sum(pair.n for pair in kept))


def sentence(run: Run) -> str:
    """What the judge was measured on, for the head of the page; "" where nothing was scored."""
    reference = _column(run).judge
    if not reference or not find(run.rows, "pm_score"):
        return ""
    pairs = measured(run)
    people, labels = ([str(p) for p in pairs if p.people == side] for side in (True, False))
    return say("judge", reference, people, labels, _pooled(pairs, False), words().quality)
