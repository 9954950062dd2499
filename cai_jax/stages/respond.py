"""Answers to prompts by one model (section 3.1: the helpful model answers red-team prompts; also
helpful samples)."""

from __future__ import annotations

from cai_jax.seeds import row_key
from cai_jax.stages.context import StageContext
from cai_jax.structs import SampleRequest, count_cut, dialogue_to_json

SCHEMA = 1


def run(ctx: StageContext) -> dict:
    """Writes `num_samples` response records a prompt."""
    config = ctx.config
    prompts = ctx.prompts()
    model = ctx.load_model(config.model, format=config.format)
    sampling = ctx.answering(model)
    journal = ctx.directory.journal()

    requests, prompt_of = [], {}
    for prompt in prompts:
        segments = model.format.prompt(prompt.dialogue)
        for sample in range(config.num_samples):
            key = row_key(ctx.seed, ctx.name, 0, prompt.id, sample)
            request = SampleRequest(f"{prompt.id}/{sample:02d}", segments, key)
            prompt_of[request.id] = prompt, sample
            if request.id not in journal.finished:
                requests.append(request)

    if requests:
        for completion in ctx.sample(ctx.engine(model), requests, sampling, ctx.name):
            prompt, sample = prompt_of[completion.id]
            journal.append(
                {
                    "id": completion.id,
                    "prompt_id": prompt.id,
                    "kind": prompt.kind,
                    "model": model.name,
                    "seed": ctx.seed,
                    "dialogue": dialogue_to_json(prompt.dialogue),
                    "sample": sample,
                    "response": completion.text,
                    "stop": completion.stop,
                    "num_tokens": len(completion.tokens),
                    "logprob": float(sum(completion.logprobs)),
                }
            )
    ctx.require_rows(journal.finished, "responses")
    digest = journal.finish()
    lengths = [row["num_tokens"] for row in journal.finished.values()]
    cut = count_cut([row["stop"] for row in journal.finished.values()])
    mean = sum(lengths) / len(lengths)
    return {
        "rows": len(lengths),
        "sha256": {"records": digest},
        "mean_tokens": mean,
        "cut": {"answers": cut},
        "headline": f"{mean:.0f} tokens a response, {cut['cut']} cut at the limit",
    }
