"""What the answers look like, printed next to every score: length, refusals, repetition, stock
phrases. A preference model that rewards length or preaching is caught by these (Goodhart watch).

A new number per answer is an entry of STATISTICS: its column, and a function of the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cai_jax.core.intervals import Estimate
from cai_jax.data import text_statistics
from cai_jax.data.text_statistics import refusal_kind
from cai_jax.evals.evaluator import Measured, Task, by_prompt, by_set
from cai_jax.evals.rows import Column

# Refusals are good or bad by the prompts that they answer, so neither here.
STATISTICS = (
    (
        Column("num_tokens", "Length", "tokens", figure="forest", title="Length"),
        lambda record: record["num_tokens"],
    ),
    (
        Column("refusal_rate", "Refusals", "share"),
        lambda record: float(refusal_kind(record["response"]) in ("evasive", "engaged")),
    ),
    (
        Column(
            "evasive_rate",
            "Evasive refusals",
            "share",
            "lower",
            figure="forest",
            caption="Refusals that give neither a reason nor an alternative, by a rule of visible "
            "phrases.",
        ),
        lambda record: float(refusal_kind(record["response"]) == "evasive"),
    ),
    (
        Column("empty_rate", "Empty", "share", "lower"),
        lambda record: float(refusal_kind(record["response"]) == "empty"),
    ),
    (
        Column("cut_rate", "Cut at the limit", "share", "lower"),
        lambda record: float(record["stop"] == "length"),
    ),
    (
        Column("repetition", "Repeated 4-grams", "share of 4-grams", "lower", percent=True),
        lambda record: text_statistics.repetition(record["response"]),
    ),
    (
        Column("boilerplate", "Stock phrases", "phrases an answer", "lower"),
        lambda record: text_statistics.boilerplate_count(record["response"]),
    ),
)
DISTINCT = Column("distinct_2", "Distinct bigrams", "share of bigrams", "higher", percent=True)
COLUMNS = (*(column for column, _ in STATISTICS), DISTINCT)


def run(task: Task) -> Measured:
    """Means of every statistic by model and set of prompts, with differences to the first model."""
    return Measured(rows(task.answers, list(task.models), task.seed), COLUMNS)


def rows(records: Sequence[Mapping], models: Sequence[str], seed: int = 0) -> list[dict]:
    """The rows of all sets of prompts; `models`: names, differences are to the first that
    answered."""
    out = []
    for on, by_model in by_set(records, models):
        for column, value in STATISTICS:
            values = {name: by_prompt(of, value) for name, of in by_model.items()}
            out += column.compared_rows(on, values, seed=seed)
        for name, of in by_model.items():
            share = text_statistics.distinct([record["response"] for record in of])
            note = "over the first 50 words of each answer; no interval"
            out.append(DISTINCT.row(on, name, Estimate(share, None, None, len(of)), note=note))
    return out
