"""The judge of a run: which model scored its answers, what it was itself measured on, and whether
several runs share it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cai_jax.evals.intervals import Estimate, wilson
from cai_jax.evals.rows import find
from cai_jax.reporting.run_data import Run, Stage
from cai_jax.reporting.text import ITEM_SETS, model_name, number, words

# Numbers that are one model's opinion: the field of the main evaluate stage that names the model.
# Across runs they have a common scale only where that model is the same.
JUDGED_BY = {
    "pm_score": "reward",
    "elo": "reward",
    "pm_score_by_revision": "reward",
    "pm_score_at_equal_length": "reward",
    "elo_judge": "judge",
    "evasive_rate_judge": "judge",
    "expected_harm": "harm",
}
HELPFULNESS = (
    "helpful"  # in the name of a source of pairs: its pairs say nothing of the topic's quality
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """How many of `n` pairs of one kind the judge was right on (ties count a half). `people`:
    people said which side is better; AI labels are what it was trained to repeat. `helpful`: the
    pairs are about helpfulness; None where that is not known."""

    kind: str
    right: float
    n: int
    people: bool
    helpful: bool | None

    def __str__(self) -> str:
        return f"{self.right:g} of {self.n} {self.kind}"


def _named(run: Run, field: str) -> str:
    """The model as the config names it, which is its name in rows."""
    value = (run.stages[run.main].fields if run.main in run.stages else {}).get(field)
    return value if isinstance(value, str) else ""


def _reference(run: Run, field: str) -> str:
    """The model that the name stands for after roles are resolved."""
    fields = run.stages[run.main].fields if run.main in run.stages else {}
    value = fields.get(field)
    if isinstance(value, dict):  # evaluate.harm.model
        value = value.get("model")
    return str(fields.get(f"{field} →") or value or "")


def _stage(run: Run, reference: str) -> Stage | None:
    return run.stages.get(reference[1:].partition(":")[0]) if reference.startswith("@") else None


def identity(run: Run, metric: str) -> str | None:
    """The model behind a number of JUDGED_BY, by its stage's fingerprint where a stage trained it;
    None for other numbers."""
    if metric not in JUDGED_BY:
        return None
    reference = _reference(run, JUDGED_BY[metric])
    stage = _stage(run, reference)
    mark = stage.manifest.get("fingerprint") if stage else None
    return f"{reference} {mark}" if mark else reference


def differ(runs: Sequence[Run], metric: str = "pm_score") -> bool:
    """Whether the runs' numbers of this kind come from different models, so that they have no
    common scale."""
    return len({identity(run, metric) for run in runs}) > 1


def measured(run: Run) -> list[Measured]:
    """The pairs with a known better side that the judge of the answers was tried on and not trained
    on: those held out of its training, the evaluation's comparisons by source, and its sets of
    questions (their parts about harm, where they have some)."""
    reference = _reference(run, "reward")
    stage = _stage(run, reference)
    found = []
    for source, part in sorted(((stage.summary if stage else {}).get("held_out") or {}).items()):
        accuracy = part.get("accuracy") or {}
        if source != "all" and accuracy.get("value") is not None:
            found.append(_counted(source, accuracy, "held-out "))
    sets: dict[str, list[dict]] = {}
    for row in find(run.evaluation["rows"], "pm_accuracy", model=_named(run, "reward")):
        if row["value"] is not None:
            sets.setdefault(row["on"].partition(":")[0], []).append(row)
    for on, rows in sets.items():
        parts = [row for row in rows if ":" in row["on"]]
        if on == "comparisons":
            found += [
                _counted(r["on"].partition(":")[2] or _compared(run), r, "") for r in parts or rows
            ]
        else:
            harm = [row for row in parts if "harm" in row["on"].partition(":")[2]]
            kind = f"{ITEM_SETS.get(on, on)} pairs"
            found += [
                Measured(f"{kind} ({r['on'].partition(':')[2]})", _right(r), r["n"], True, False)
                for r in harm
            ] or [Measured(kind, _right(r), r["n"], True, None) for r in rows[:1]]
    return found


def _compared(run: Run) -> str:
    """The source of the evaluation's comparisons; "human" where there are several, or no name."""
    fields = run.stages[run.main].fields.get("comparisons") if run.main in run.stages else None
    source = str((fields or {}).get("source") or "human").partition("#")[0]
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


def _pooled(parts: Sequence[Measured], helpful: bool) -> Estimate:
    kept = [part for part in parts if part.people and part.helpful in (None, helpful)]
    return wilson(sum(part.right for part in kept), sum(part.n for part in kept))


def sentence(run: Run) -> str:
    """What the judge was measured on, for the head of the page; "" where nothing was scored."""
    reference = _named(run, "reward")
    if not reference or not find(run.evaluation["rows"], "pm_score"):
        return ""
    parts = measured(run)
    if not parts:
        return (
            f"The judge, {model_name(reference)}, was measured on no pairs whose better "
            "side is known."
        )
    people, labels = ([p for p in parts if p.people == side] for side in (True, False))
    told = f"The judge, {model_name(reference)}, "
    told += f"is right on {_listed(people)}" if people else "was measured on no pairs of people"
    told += f" and agrees with {_listed(labels)}" if labels else ""
    pooled = _pooled(parts, False)
    if pooled.n == 0:
        told += f"; on no pairs of people about what is {words().quality}"
    elif pooled.low <= 0.5:
        told += (
            "; on people's pairs that are not of helpfulness it is not shown to beat chance "
            f"({number(pooled.low, percent=True)} "
            f"to {number(pooled.high, percent=True)})"
        )
    return told + "."


def _listed(parts: Sequence[Measured]) -> str:
    *rest, last = map(str, parts)
    return f"{', '.join(rest)} and {last}" if rest else last
