"""A preference model ranks pairs whose better side is known: dialogues of lettered questions, and
human comparisons."""

from __future__ import annotations

from collections.abc import Mapping

from cai_jax.data.comparisons import load_comparisons
from cai_jax.evals import calibration, figures, preference
from cai_jax.evals.evaluator import Measured, Task
from cai_jax.evals.intervals import Estimate, paired_difference
from cai_jax.evals.multiple_choice import choice_sets
from cai_jax.evals.rows import Column, find
from cai_jax.rewards.preference_model import collected
from cai_jax.structs import Message

ACCURACY = Column("pm_accuracy", "PM accuracy", "accuracy", "higher", "judges")
ERROR = Column("pm_ece", "Calibration error of the PM", "ECE", "lower", "judges", compared=False)
COLUMNS = (ACCURACY, ERROR)


def check(fields: Mapping) -> None:
    """Raises UserError where the questions cannot be read."""
    choice_sets(fields["choices"], fields["num_choices"], fields["big_bench"])


def run(task: Task) -> Measured:
    """Accuracy of the preference model on each set, over all and by subset."""
    if not task.fields.reward:
        return Measured([], ())
    out, curves, name = [], {}, task.fields.reward
    for on, pairs in _sets(task).items():
        out += _rows(on, pairs, _ranked(task, on, pairs), task.judge(name).scale, name, curves)
    accuracies = find(out, ACCURACY.name)[:1]
    headline = "".join(f"PM accuracy {row['value']:.2f}" for row in accuracies)
    drawn = figures.calibration(curves)
    return Measured(out, task.judged(COLUMNS, name), drawn, headline=headline)


def _sets(task: Task) -> dict[str, list[tuple]]:
    """Name → pairs (id, subset, better dialogue, worse dialogue)."""
    fields = task.fields
    sets = {
        on: [(item.id, item.subset, *item.dialogues) for item in items if item.dialogues]
        for on, items in choice_sets(fields.choices, fields.num_choices, fields.big_bench).items()
    }
    if fields.comparisons.source:
        pairs, dropped = load_comparisons(**fields.comparisons.to_dict())
        for reason, count in dropped.items():
            task.ctx.drop(f"comparison: {reason}", count)
        sets["comparisons"] = [
            (
                pair.id,
                pair.source,
                (*pair.dialogue, Message("assistant", pair.chosen)),
                (*pair.dialogue, Message("assistant", pair.rejected)),
            )
            for pair in pairs
        ]
    return sets


def _ranked(task: Task, on: str, pairs: list[tuple]) -> dict[str, dict]:
    """Pair id → record with the scores of both sides, from the journal or by the model."""
    journal, ctx = task.journal("pairs"), task.ctx
    missing = [pair for pair in pairs if f"{on}/{pair[0]}" not in journal.finished]
    sides = [side for *_, better, worse in missing for side in (better, worse)]
    ids = [f"{on}/{name}" for name, *_ in missing for _ in range(2)]
    scores = ctx.score_each(task.judge(task.fields.reward), sides, f"{ctx.name}: {on}", ids)
    by_pair = collected(scores, len(sides)).reshape(-1, 2).tolist()
    for (name, subset, *_), (better, worse) in zip(missing, by_pair, strict=True):
        pair = {"on": on, "subset": subset, "better": better, "worse": worse}
        journal.append({"id": f"{on}/{name}", **pair})
    return {name: journal.finished[f"{on}/{name}"] for name, *_ in pairs}


def _rows(
    on: str,
    pairs: list[tuple],
    ranked: Mapping[str, Mapping],
    scale: float,
    reward: str,
    curves: dict,
) -> list[dict]:
    """The rows of a set: accuracy with its baselines, the paired difference to always preferring
    the longer text, and calibration.

    Args:
        on: the set's name.
        pairs: of `_sets`.
        ranked: pair id → {"better", "worse"}.
        scale: of the scores, see `preference.pair_accuracy`.
        reward: the preference model, as the config names it.
        curves: where the reliability curve goes.
    """
    subsets, out = {on: pairs} if pairs else {}, []
    if len({subset for _, subset, *_ in pairs}) > 1:
        for pair in sorted(pairs, key=lambda pair: str(pair[1])):
            subsets.setdefault(f"{on}:{pair[1]}", []).append(pair)
    for subset, chosen in subsets.items():
        scores = [ranked[pair[0]] for pair in chosen]
        found = preference.pair_accuracy(
            [score["better"] for score in scores],
            [score["worse"] for score in scores],
            [better[-1].text for *_, better, _ in chosen],
            [worse[-1].text for *_, worse in chosen],
            scale=scale,
        )
        wins, longer = (
            {pair[0]: value for pair, value in zip(chosen, values, strict=True)}
            for values in (found.wins, found.longer_wins)
        )
        base = {"chance": 0.5, "longer": found.longer.value}
        gap = paired_difference(longer, wins, shares=True)
        out.append(ACCURACY.row(subset, reward, found.accuracy, baseline=base, values=wins))
        out.append(ACCURACY.row(subset, reward, gap, against="longer"))
        if subset == on:
            curves[f"PM, {on}"] = calibration.points(found.bins)
            out.append(ERROR.row(on, reward, Estimate(found.ece, None, None, len(chosen))))
    return out
