"""How often a revise stage's critiques and revisions repeat its worked examples, and revisions
their critiques."""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.constitution.loader import load_constitution
from cai_jax.core.intervals import wilson
from cai_jax.errors import UserError
from cai_jax.evals import copying
from cai_jax.evals.rows import row
from cai_jax.report.run import Run, Stage


def rows(run: Run, stage: Stage) -> list[dict]:
    """Shares of revisions that echo their critique; shares of critiques and of revisions that
    repeat an example, none where the stage showed no examples, or its constitution is not at
    hand."""
    records = run.records(stage.name)
    shares = {"revision_echoes_critique": copying.of_critiques(records)}
    if examples := _examples(stage, records):
        critiques, revisions = copying.of_revisions(records, examples)
        shares |= {"revision_critiques_copied": critiques, "revision_copied": revisions}
    kind = {"unit": "share", "good": "lower"}
    return [
        row(name, "revisions", stage.name, wilson(sum(which), len(which)), **kind)
        for name, which in shares.items()
        if which
    ]


def _examples(stage: Stage, records: Sequence[dict]) -> dict[str, list[str]]:
    """id → texts of the worked examples that the records name; {} where not all are known."""
    wanted = {name for record in records for name in record.get("few_shot_ids") or ()}
    try:
        known = load_constitution(stage.fields.get("constitution", "")) if wanted else None
    except UserError:
        known = None
    examples = {
        example.id: [m.text for m in example.messages if not m.role.endswith("_request")]
        for example in (known.critique_examples if known else ())
    }
    return {} if wanted - examples.keys() else examples
