"""Groups of responses to the same prompt, to be compared by the feedback model (section 4.1; a pair
in the paper)."""

from __future__ import annotations

import collections

from cai_jax.data.prompts import read_prompts
from cai_jax.seeds import row_key
from cai_jax.stages.context import StageContext
from cai_jax.structs import count_cut, dialogue_to_json
from cai_jax.textmodels.protocol import Sampling, Turn

SCHEMA = 1


def run(ctx: StageContext) -> dict:
    """Writes one comparison record a prompt: `num_samples` responses by the same model, in order of
    their sample number."""
    config, journal = ctx.config, ctx.directory.journal()
    model = ctx.models.text_model(config.model, config.format)
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_k, config.top_p)
    prompts = {prompt.id: prompt for prompt in ctx.load(read_prompts, config.prompts)}
    turns = [
        Turn(
            f"{prompt.id}/{sample:02d}",
            prompt.dialogue,
            row_key(ctx.seed, ctx.name, 0, prompt.id, sample),
        )
        for prompt in prompts.values()
        for sample in range(config.num_samples)
        if prompt.id not in journal.finished
    ]

    # A prompt is recorded once all its samples are there.
    groups = collections.defaultdict(dict)
    for answer in ctx.generate(model, turns, sampling, count=False):
        prompt_id, _, sample = answer.id.rpartition("/")
        groups[prompt_id][sample] = answer
        if len(groups[prompt_id]) == config.num_samples:
            group = [answer for _, answer in sorted(groups.pop(prompt_id).items())]
            journal.append(
                {
                    "id": prompt_id,
                    "prompt_id": prompt_id,
                    "kind": prompts[prompt_id].kind,
                    "model": model.name,
                    "seed": ctx.seed,
                    "source": "ai",
                    "dialogue": dialogue_to_json(prompts[prompt_id].dialogue),
                    "responses": [answer.text for answer in group],
                    "stops": [answer.stop for answer in group],
                    "num_tokens": [answer.num_tokens for answer in group],
                }
            )

    for name in prompts.keys() - journal.finished.keys():
        ctx.drop(ctx.why(f"{name}/{sample:02d}" for sample in range(config.num_samples)))
    ctx.require_rows(journal.finished, "comparisons")
    journal.finish()
    records = journal.finished.values()
    equal = sum(len(set(record["responses"])) < len(record["responses"]) for record in records)
    return {
        "rows": len(records),
        "with_equal_responses": equal,
        "cut": {"answers": count_cut([stop for record in records for stop in record["stops"]])},
        "headline": f"{len(records)} groups of {config.num_samples}, {equal} with equal responses",
    }
