"""The best of several answers to a prompt, by a preference model: what RL is measured against
(2204, section 4).

`respond` draws the answers (`num_samples` a prompt); `evaluate` takes this stage as it takes a
policy, and `sl` can learn from its records.
"""

from __future__ import annotations

import collections

from cai_jax.rewards.preference_model import RewardModel, collected
from cai_jax.stages.context import StageContext
from cai_jax.structs import count_cut, dialogue_from_json, sampled_turn

SCHEMA = 2


def run(ctx: StageContext) -> dict:
    """Writes one response record a prompt: that of the highest score, of equal ones the first
    sample, as sample 0."""
    rows = ctx.inputs["responses"].records()
    ctx.require_rows(rows, "responses")
    judge = ctx.load_model(ctx.config.reward, kind="reward")
    reward = RewardModel(
        judge.params,
        judge.config,
        judge.format,
        ctx.mesh,
        judge.normalisation,
        judge.name,
        reads_cut=judge.reads_cut,
    )
    dialogues = [
        (*dialogue_from_json(row["dialogue"]), sampled_turn(row["response"], row.get("stop")))
        for row in rows
    ]
    scores = collected(
        ctx.score_each(reward, dialogues, ctx.name, [row["id"] for row in rows]), len(rows)
    )
    answers = collections.defaultdict(list)
    for row, score in zip(rows, scores, strict=True):
        answers[row["prompt_id"]].append((float(score), row))
    journal = ctx.directory.journal()
    journal.discard(lambda row: False)
    for prompt_id, found in sorted(answers.items()):
        score, best = max(found, key=lambda pair: (pair[0], -pair[1]["sample"]))
        journal.append(
            {
                **best,
                "id": f"{prompt_id}/00",
                "sample": 0,
                "drawn_as": best["id"],
                "score": score,
                "of": len(found),
                "mean_score": sum(score for score, _ in found) / len(found),
            }
        )
    digest = journal.finish()
    gain = sum(row["score"] - row["mean_score"] for row in journal.finished.values()) / len(answers)
    return {
        "rows": len(answers),
        "sha256": {"records": digest},
        "mean_gain": gain,
        "cut": {"answers": count_cut([row.get("stop") for row in journal.finished.values()])},
        "headline": (
            f"{len(answers)} of {len(rows)} answers kept, {gain:+.2f} above the mean "
            f"by {ctx.config.reward}"
        ),
    }
