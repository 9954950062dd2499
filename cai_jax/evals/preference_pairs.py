"""A preference model ranks pairs whose better side is known: dialogues of lettered questions, and
human comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from cai_jax.core import accuracy
from cai_jax.data.comparisons import load_comparisons
from cai_jax.evals import figures
from cai_jax.evals.evaluator import Measured, Task
from cai_jax.evals.items import choice_sets
from cai_jax.evals.rows import Column
from cai_jax.rewards.preference_model import collected
from cai_jax.structs import Dialogue, Message

ACCURACY = Column("pm_accuracy", "PM accuracy", "accuracy", "higher", "judges")
ERROR = Column("pm_ece", "Calibration error of the PM", "ECE", "lower", "judges", compared=False)
COLUMNS = (ACCURACY, ERROR)


def check(fields: Mapping) -> None:
    """Raises UserError where the questions cannot be read."""
    if fields["reward"]:
        choice_sets(fields["choices"], fields["num_choices"], fields["big_bench"])


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two dialogues of which it is known which ends better."""

    id: str
    subset: str | None
    better: Dialogue
    worse: Dialogue


def run(task: Task) -> Measured:
    """Accuracy of the preference model on each set, over all and by subset."""
    name, out, curves = task.fields.reward, [], {}
    for on, pairs in _sets(task).items() if name else ():
        scores, scale = _scores(task, on, pairs), task.judge(name).scale
        subsets = {on: pairs} if pairs else {}
        if len({pair.subset for pair in pairs}) > 1:
            # The set is already there under its own name; subsets follow in alphabetical order.
            for pair in sorted(pairs, key=lambda pair: str(pair.subset)):
                subsets.setdefault(f"{on}:{pair.subset}", []).append(pair)
        for subset, chosen in subsets.items():
            judged = accuracy.of_pairs(
                [scores[pair.id]["better"] for pair in chosen],
                [scores[pair.id]["worse"] for pair in chosen],
                [pair.better[-1].text for pair in chosen],
                [pair.worse[-1].text for pair in chosen],
                scale=scale,
            )
            ids = [pair.id for pair in chosen]
            right, longer = (
                dict(zip(ids, values, strict=True)) for values in (judged.wins, judged.longer)
            )
            out += ACCURACY.accuracy_rows(subset, name, right, longer)
            if subset == on:
                curves[f"PM, {on}"] = judged.points
                out.append(ERROR.row(on, name, accuracy.calibration(judged.points)))
    headline = "".join(f"PM accuracy {row['value']:.2f}" for row in out[:1])
    columns = COLUMNS if out else ()
    return Measured(out, columns, figures.calibration(curves), headline=headline)


def _sets(task: Task) -> dict[str, list[Pair]]:
    fields = task.fields
    asked = choice_sets(fields.choices, fields.num_choices, fields.big_bench)
    sets = {
        on: [Pair(item.id, item.subset, *item.dialogues) for item in items if item.dialogues]
        for on, items in asked.items()
    }
    if fields.comparisons.source:
        # People's comparisons: dialogues without letters, as a preference model learns them.
        sets["comparisons"] = []
        for pair in task.ctx.load(load_comparisons, fields.comparisons, "comparison"):
            sides = (Message("assistant", text) for text in (pair.chosen, pair.rejected))
            dialogues = ((*pair.dialogue, side) for side in sides)
            sets["comparisons"].append(Pair(pair.id, pair.source, *dialogues))
    return sets


def _scores(task: Task, on: str, pairs: list[Pair]) -> dict[str, dict]:
    """Pair id → record with the scores of both sides, from the journal or by the model."""
    journal, ctx = task.journal("pairs"), task.ctx
    missing = [pair for pair in pairs if f"{on}/{pair.id}" not in journal.finished]
    # Both sides of a pair are neighbours, so that the scores can be read in twos.
    sides = [side for pair in missing for side in (pair.better, pair.worse)]
    ids = [f"{on}/{pair.id}" for pair in missing for _ in range(2)]
    scored = ctx.score_each(task.judge(task.fields.reward), sides, f"{ctx.name}: {on}", ids)
    by_pair = collected(scored, len(sides)).reshape(-1, 2).tolist()
    for pair, (better, worse) in zip(missing, by_pair, strict=True):
        about = {"id": f"{on}/{pair.id}", "on": on, "subset": pair.subset}
        journal.append({**about, "better": better, "worse": worse})
    return {pair.id: journal.finished[f"{on}/{pair.id}"] for pair in pairs}
