"""Answers to prompts by one model (section 3.1: the helpful model answers red-team prompts; also
helpful samples)."""

from __future__ import annotations

from cai_jax.data.prompts import read_prompts
from cai_jax.seeds import row_key
from cai_jax.stages.context import StageContext
from cai_jax.structs import count_cut, dialogue_to_json
from cai_jax.textmodels.protocol import Sampling, Turn

SCHEMA = 1


def run(ctx: StageContext) -> dict:
    """Writes `num_samples` response records a prompt."""
    config, journal = ctx.config, ctx.directory.journal()
    model = ctx.models.text_model(config.model, config.format)
    sampling = Sampling(config.max_new_tokens, config.temperature, config.top_k, config.top_p)
    # Keys name the prompt and the sample: a restart draws the same.
    asked, turns = {}, []
    for prompt in ctx.load(read_prompts, config.prompts):
        for sample in range(config.num_samples):
            key = row_key(ctx.seed, ctx.name, 0, prompt.id, sample)
            turn = Turn(f"{prompt.id}/{sample:02d}", prompt.dialogue, key)
            asked[turn.id] = prompt, sample
            if turn.id not in journal.finished:
                turns.append(turn)

    for answer in ctx.generate(model, turns, sampling):
        prompt, sample = asked[answer.id]
        journal.append(
            {
                "id": answer.id,
                "prompt_id": prompt.id,
                "kind": prompt.kind,
                "model": model.name,
                "seed": ctx.seed,
                "dialogue": dialogue_to_json(prompt.dialogue),
                "sample": sample,
                "response": answer.text,
                "stop": answer.stop,
                "num_tokens": answer.num_tokens,
                "logprob": answer.logprob,
            }
        )

    ctx.require_rows(journal.finished, "responses")
    journal.finish()
    records = journal.finished.values()
    mean = sum(record["num_tokens"] for record in records) / len(records)
    cut = count_cut([record["stop"] for record in records])
    return {
        "rows": len(records),
        "mean_tokens": mean,
        "cut": {"answers": cut},
        "headline": f"{mean:.0f} tokens a response, {cut['cut']} cut at the limit",
    }
