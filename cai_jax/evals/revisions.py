"""What revisions did to a preference model's score: round by round (Figure 5), and by principle."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from cai_jax.core.intervals import bootstrap_mean
from cai_jax.evals import figures
from cai_jax.evals.evaluator import Measured, Task
from cai_jax.evals.rows import Column, find

BY_ROUND = Column(
    "pm_score_by_revision", "PM score after so many revisions", "PM score", "higher", "revisions"
)
BY_KIND = Column(
    "score_moved_by_kind", "Score moved, by kind of harm", "PM score", "higher", "revisions"
)
MOVED = Column("score_moved", "Score moved by", "PM score", "higher", "principles", compared=False)
COLUMNS = (BY_ROUND, BY_KIND, MOVED)


def run(task: Task) -> Measured:
    """Scores every step of the stage's input `revisions`; nothing without it."""
    if not task.fields.reward or "revisions" not in task.ctx.inputs:
        return Measured([], ())
    records, texts = task.ctx.inputs["revisions"].records(), {}
    for record in records:
        steps = [(record["initial"], record.get("initial_stop"))]
        steps += [(turn["revision"], turn.get("revision_stop")) for turn in record["rounds"]]
        for number, (text, stop) in enumerate(steps):
            texts[f"{record['id']}#{number}"] = record["dialogue"], text, stop
    out = rows(records, task.scores(task.fields.reward, texts), seed=task.seed)
    drawn = by_round(out, task.ctx.config.inputs.revisions)
    return Measured(out, task.judged(COLUMNS, task.fields.reward), drawn)


def by_round(rows: Sequence[dict], label: str) -> list[dict]:
    """The figure of the mean score after each round (Figure 5), from rows whose "model" is the
    number of revisions; `label`: of its series."""
    return figures.line(
        BY_ROUND.name,
        {label: find(rows, BY_ROUND.name)},
        lambda row: int(row["model"]),
        title="Score by number of revisions",
        x_label="revisions",
        y_label="PM score",
        group="revisions",
        caption="Mean preference-model score of the training responses after 0, 1, … revisions.",
    )


def rows(revisions: Sequence[Mapping], scores: Mapping[str, float], *, seed: int = 0) -> list[dict]:
    """PM score after 0, 1, … revisions; how far they moved it by kind of harm, and by principle,
    with how often it was used and changed the answer, over all ("revisions") and within each kind
    of harm ("revisions:KIND").

    Args:
        revisions: records of a revise stage.
        scores: "<record id>#<number of revisions>" → score.
        seed: of the bootstraps.
    """
    # ---- Scores, and what each revision changed --------------------------------------------------
    by_round, by_kind = collections.defaultdict(dict), collections.defaultdict(list)
    moved, changed = collections.defaultdict(list), collections.defaultdict(list)
    for record in revisions:
        kind, texts = record.get("kind"), [record["initial"]]
        texts += [turn["revision"] for turn in record["rounds"]]
        of_text = [scores.get(f"{record['id']}#{number}") for number in range(len(texts))]
        if kind and of_text[0] is not None and of_text[-1] is not None:
            by_kind[kind].append(of_text[-1] - of_text[0])
        for number, score in enumerate(of_text):
            if score is None:
                continue
            by_round[str(number)][record["id"]] = score
            for on in ("revisions", *([f"revisions:{kind}"] if kind else [])) if number else ():
                key = on, record["rounds"][number - 1]["principle_id"]
                changed[key].append(float(texts[number] != texts[number - 1]))
                if of_text[number - 1] is not None:
                    moved[key].append(score - of_text[number - 1])

    # ---- Rows ------------------------------------------------------------------------------------
    # Round "10" comes after "9".
    in_order = {number: by_round[number] for number in sorted(by_round, key=int)}
    out = BY_ROUND.compared_rows("revisions", in_order, seed=seed)
    out += [
        BY_KIND.row("revisions", kind, bootstrap_mean(values, seed=seed))
        for kind, values in sorted(by_kind.items())
    ]
    for (on, principle), values in sorted(changed.items()):
        mean = bootstrap_mean(moved[on, principle], seed=seed)
        used = {"used": len(values), "changed": sum(values) / len(values)}
        out.append(MOVED.row(on, principle, mean, **used))
    return out
