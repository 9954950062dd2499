"""How often a revise stage's critiques and revisions repeat its worked examples, and revisions
their critiques."""

from __future__ import annotations

from cai_jax.constitution.loader import load_constitution
from cai_jax.errors import UserError
from cai_jax.evals import copying
from cai_jax.evals.intervals import wilson
from cai_jax.evals.rows import row
from cai_jax.reporting.run_data import Run, Stage


def rows(run: Run, stage: Stage) -> list[dict]:
    """Shares of revisions that echo their critique; shares of critiques and of revisions that
    repeat an example, none where the stage showed no examples, or its constitution is not at
    hand."""
    records = run.records(stage.name)
    return [
        *_shares(stage, {"revision_echoes_critique": copying.of_critiques(records)}),
        *_repeated(stage, records),
    ]


def _shares(stage: Stage, found: dict[str, list[bool]]) -> list[dict]:
    return [
        row(
            name,
            "revisions",
            stage.name,
            wilson(sum(whether), len(whether)),
            unit="share",
            good="lower",
        )
        for name, whether in found.items()
        if whether
    ]


def _repeated(stage: Stage, records: list[dict]) -> list[dict]:
    wanted = {name for record in records for name in record.get("few_shot_ids") or ()}
    try:
        known = (
            load_constitution(stage.fields.get("constitution", "")).critique_examples
            if wanted
            else ()
        )
    except UserError:
        return []
    examples = {
        example.id: [
            message.text for message in example.messages if not message.role.endswith("_request")
        ]
        for example in known
    }
    if not wanted or wanted - examples.keys():
        return []
    critiques, revisions = copying.of_revisions(records, examples)
    return _shares(stage, {"revision_critiques_copied": critiques, "revision_copied": revisions})
