"""Groups of responses to the same prompt, to be compared by the feedback model (section 4.1; a pair
in the paper)."""

from __future__ import annotations

import collections

from cai_jax.data import fitting
from cai_jax.seeds import row_key
from cai_jax.stages.context import StageContext
from cai_jax.structs import SampleRequest, count_cut, dialogue_to_json

SCHEMA = 1


def run(ctx: StageContext) -> dict:
    """Writes one comparison record a prompt: `num_samples` responses by the same model, in order of
    their sample number."""
    config = ctx.config
    prompts = ctx.prompts()
    model = ctx.load_model(config.model, format=config.format)
    sampling = ctx.answering(model)
    journal = ctx.directory.journal()
    prompts = {prompt.id: prompt for prompt in prompts}
    requests = []
    for prompt in prompts.values():
        if prompt.id not in journal.finished:
            segments = model.format.prompt(prompt.dialogue)
            requests += [
                SampleRequest(
                    f"{prompt.id}/{sample:02d}",
                    segments,
                    row_key(ctx.seed, ctx.name, 0, prompt.id, sample),
                )
                for sample in range(config.num_samples)
            ]

    groups = collections.defaultdict(dict)
    for completion in (
        ctx.sample(ctx.engine(model), requests, sampling, ctx.name, count=False) if requests else ()
    ):
        prompt_id, _, sample = completion.id.rpartition("/")
        groups[prompt_id][sample] = completion
        if len(groups[prompt_id]) == config.num_samples:
            group = [completion for _, completion in sorted(groups.pop(prompt_id).items())]
            journal.append(
                {
                    "id": prompt_id,
                    "prompt_id": prompt_id,
                    "kind": prompts[prompt_id].kind,
                    "model": model.name,
                    "seed": ctx.seed,
                    "source": "ai",
                    "dialogue": dialogue_to_json(prompts[prompt_id].dialogue),
                    "responses": [completion.text for completion in group],
                    "stops": [completion.stop for completion in group],
                    "num_tokens": [len(completion.tokens) for completion in group],
                }
            )
    ctx.drop(fitting.CONTEXT, sum(name not in journal.finished for name in prompts))
    ctx.require_rows(journal.finished, "comparisons")
    digest = journal.finish()
    rows = list(journal.finished.values())
    equal = sum(len(set(row["responses"])) < len(row["responses"]) for row in rows)
    return {
        "rows": len(rows),
        "sha256": {"records": digest},
        "with_equal_responses": equal,
        "cut": {"answers": count_cut([stop for row in rows for stop in row["stops"]])},
        "headline": f"{len(rows)} groups of {config.num_samples}, {equal} with equal responses",
    }
