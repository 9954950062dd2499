"""The report of the run: what was trained, what changed, and whether to believe it (report.html,
report.md, figures/)."""

from __future__ import annotations

from cai_jax.io import artefacts
from cai_jax.report.build import build
from cai_jax.stages.context import StageContext

SCHEMA = 1


def run(ctx: StageContext) -> dict:
    """Reads every stage's files under the run; the same as `python -m cai_jax.report RUN`."""
    result = {"headline": "report.html"}
    if artefacts.is_writer():
        result = build([ctx.run_path], ctx.directory.path)
    artefacts.barrier(f"report {ctx.directory.path}")
    return result
