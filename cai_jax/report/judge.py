"""The judge of a run: which model scored its answers, what it was itself measured on, and whether
several runs share it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cai_jax import references
from cai_jax.core.intervals import Estimate, wilson
from cai_jax.evals.rows import find
from cai_jax.report.numbers import Column
from cai_jax.report.run import Run
from cai_jax.report.text import ITEM_SETS, model_name, number, words

HELPFULNESS = "helpful"  # in the name of a source of pairs: they say nothing of the topic's quality


@dataclasses.dataclass(frozen=True)
class Measured:
    """How many of `n` pairs of figure kind the judge was right on (ties count a half). `people`:
    people chose the better side; AI labels are what it was trained to repeat. `helpful`: the
    pairs are about helpfulness; None where that is not known."""

    kind: str
    right: float
    n: int
    people: bool
    helpful: bool | None

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
            out.append(_counted(source, accuracy, "held-out "))
    sets: dict[str, list[dict]] = {}
    for row in find(run.rows, "pm_accuracy", model=column.judge):
        if row["value"] is not None:
            sets.setdefault(row["on"].partition(":")[0], []).append(row)
    for on, rows in sets.items():
        subsets = [row for row in rows if ":" in row["on"]]
        if on == "comparisons":
            named = [(r["on"].partition(":")[2] or _compared(run), r) for r in subsets or rows]
            out += [_counted(source, r, "") for source, r in named]
            continue
        kind = f"{ITEM_SETS.get(on, on)} pairs"
        harm = [row for row in subsets if "harm" in row["on"].partition(":")[2]]
        out += [
            Measured(f"{kind} ({r['on'].partition(':')[2]})", _right(r), r["n"], True, False)
            for r in harm
        ] or [Measured(kind, _right(r), r["n"], True, None) for r in rows[:1]]
    return out


def _compared(run: Run) -> str:
    """The source of the evaluation's comparisons; "human" where there are several, or no name."""
    given = run.stages[run.main].values("comparisons") if run.main in run.stages else []
    source = str(next((g["source"] for g in given if g.get("source")), "human")).partition("#")[0]
    return "human" if "+" in source else source


def _right(row: dict) -> float:
    return round(2 * row["value"] * row["n"]) / 2


def _counted(source: str, accuracy: dict, which: str) -> Measured:
    name = source.rpartition("/")[2].rpartition(":")[2].partition(".")[0]
    if name == "ai":
        return Measured(f"{which}AI labels", _right(accuracy), accuracy["n"], False, None)
    about = "" if name == "human" else f" ({name.replace('_', ' ')})"
    helpful = True if HELPFULNESS in name else False if "harm" in name else None
    return Measured(f"{which}human pairs{about}", _right(accuracy), accuracy["n"], True, helpful)


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
    who = f"The judge, {model_name(reference)},"
    if not pairs:
        return f"{who} was measured on no pairs whose better side is known."
    people, labels = ([p for p in pairs if p.people == side] for side in (True, False))
    out = (
        f"{who} is right on {_listed(people)}"
        if people
        else f"{who} was measured on no pairs of people"
    )
    out += f" and agrees with {_listed(labels)}" if labels else ""
    pooled = _pooled(pairs, False)
    if pooled.n == 0:
        out += f"; on no pairs of people about what is {words().quality}"
    elif pooled.low <= 0.5:
        low, high = (number(end, percent=True) for end in (pooled.low, pooled.high))
        out += (
            "; on people's pairs that are not of helpfulness it is not shown to beat chance "
            f"({low} to {high})"
        )
    return out + "."


def _listed(pairs: Sequence[Measured]) -> str:
    *rest, last = map(str, pairs)
    return f"{', '.join(rest)} and {last}" if rest else last
