"""People's comparisons as comparison records: for a feedback model to judge what people have
judged.

With them a `feedback` stage says how often its labels agree with people, and a `pm` stage can learn
from AI labels on pairs that others learn from with people's labels.
"""

from __future__ import annotations

import collections

from cai_jax.data.comparisons import load_comparisons
from cai_jax.seeds import row_rng
from cai_jax.stages.context import StageContext
from cai_jax.structs import dialogue_to_json

SCHEMA = 1


def run(ctx: StageContext) -> dict:
    """Writes a comparison record for each pair; `preferred` is the index of the response that was
    chosen. Which one comes first is drawn, so that "the first" is no answer."""
    records = []
    for pair in ctx.load(load_comparisons, ctx.config.human):
        # Files of comparisons have the chosen answer first; a labeller with a habit would be right.
        preferred = int(row_rng(ctx.seed, ctx.name, "side", pair.id).integers(2))
        responses = (pair.chosen, pair.rejected) if preferred == 0 else (pair.rejected, pair.chosen)
        records.append(
            {
                "id": pair.id,
                "prompt_id": pair.id,
                "kind": pair.source,
                "model": "human",
                "seed": ctx.seed,
                "source": "human",
                "dialogue": dialogue_to_json(pair.dialogue),
                "responses": list(responses),
                "preferred": preferred,
            }
        )
    ctx.write_records(records)
    counts = collections.Counter(record["kind"] for record in records)
    headline = ", ".join(f"{count} of {source}" for source, count in sorted(counts.items()))
    return {"rows": len(records), "headline": headline}
