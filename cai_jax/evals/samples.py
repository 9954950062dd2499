"""Until the report reads values.jsonl: statistics and scores by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cai_jax.evals.answer_statistics import STATISTICS
from cai_jax.evals.evaluator import by_prompt as _by_prompt
from cai_jax.evals.intervals import difference_estimate

__all__ = ["by_prompt", "difference_estimate"]


def by_prompt(records: Sequence[Mapping], scores: Mapping[str, float]) -> dict:
    values = {column.name: _by_prompt(records, of) for column, of in STATISTICS}
    return values | {"pm_score": _by_prompt(records, lambda r: scores.get(r["id"]))}
