"""The best of several answers to a prompt, by a preference model: what RL is measured against
(2204, section 4).

`respond` draws the answers (`num_samples` a prompt); `evaluate` takes this stage as it takes a
policy, and `sl` can learn from its records.
"""

from __future__ import annotations

import collections

from cai_jax.errors import UserError
from cai_jax.stages.context import StageContext
from cai_jax.structs import count_cut, dialogue_from_json, sampled_turn

SCHEMA = 2


def check(fields, config, where: str) -> None:
    """The answers are those of a stage that draws several to a prompt."""
    kind = config.graph[fields.inputs.responses].kind
    if kind != "respond":
        raise UserError(
            f"{where}.inputs.responses: '{fields.inputs.responses}' is of kind {kind}; expected a "
            "stage of kind respond, which draws several answers to a prompt"
        )


def run(ctx: StageContext) -> dict:
    """Writes one response record a prompt: that of the highest score, of equal ones the first
    sample, as sample 0."""
    responses = ctx.inputs["responses"].records()
    ctx.require_rows(responses, "responses")
    judge = ctx.models.preference_model(ctx.config.reward)
    dialogues = [
        (*dialogue_from_json(row["dialogue"]), sampled_turn(row["response"], row.get("stop")))
        for row in responses
    ]
    ids = [row["id"] for row in responses]
    # Scores come by length of dialogue; records follow the order of the responses.
    scored = collections.defaultdict(list)
    for index, score in sorted(ctx.score_each(judge, dialogues, ctx.name, ids)):
        scored[responses[index]["prompt_id"]].append((score, responses[index]))

    records = []
    for prompt_id, answers in sorted(scored.items()):
        # Of equal scores the first sample: a tie must not depend on the order of scoring.
        score, best = max(answers, key=lambda pair: (pair[0], -pair[1]["sample"]))
        records.append(
            {
                **best,
                "id": f"{prompt_id}/00",
                "sample": 0,
                "drawn_as": best["id"],
                "score": score,
                "of": len(answers),
                "mean_score": sum(score for score, _ in answers) / len(answers),
            }
        )
    kept = ctx.write_records(records)
    gain = sum(row["score"] - row["mean_score"] for row in kept) / len(kept)
    return {
        "rows": len(kept),
        "mean_gain": gain,
        "cut": {"answers": count_cut([row.get("stop") for row in kept])},
        "headline": (
            f"{len(kept)} of {len(responses)} answers kept, {gain:+.2f} above the mean by "
            f"{ctx.config.reward}"
        ),
    }
