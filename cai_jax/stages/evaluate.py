"""What changed? Every model answers held-out prompts, and evaluations measure the answers, the
judges and the preference model.

1. Every model answers the sets of prompts `prompts_NAME`; each answer is a record, journalled as it
  finishes.
2. The evaluations of `evals` run one after the other (`cai_jax/evals/KIND.py`): each makes rows,
  columns that say what the rows are, and figures.
3. metrics.json has all of them; values.jsonl the values by prompt or item behind each mean, by
  which runs are compared in pairs.
"""

from __future__ import annotations

import collections
import json

from cai_jax import references
from cai_jax.data import answers as answers_lib
from cai_jax.data import fitting
from cai_jax.data.prompts import read_prompts
from cai_jax.errors import Waits, in_field
from cai_jax.evals import collect
from cai_jax.evals.evaluator import Measured, Task
from cai_jax.evals.registry import KINDS
from cai_jax.evals.rows import SCHEMA as METRICS_SCHEMA
from cai_jax.io import artefacts
from cai_jax.stages.context import StageContext
from cai_jax.structs import Message, count_cut
from cai_jax.textmodels.protocol import COUNTED, TOP

SCHEMA = 4
# How a server gave the probabilities of options, where it was not by scoring them.
TIERS = {
    TOP: "have probabilities read among a server's likeliest first tokens",
    COUNTED: "have probabilities counted among a server's samples",
}


def check(fields, config, where: str) -> None:
    """What evaluations ask of their own fields; answers in files are of the prompts that they are
    compared on."""
    for name, own in fields.evals.items():
        if check_evaluation := getattr(KINDS[own.kind], "check", None):
            with in_field(f"{where}.evals.{name}"):
                check_evaluation(own)
    written = {}
    for name, reference in fields.models.items():
        target = references.resolve(config.models, reference)
        if references.parse(target).kind == references.RESPONSES:
            with in_field(f"{where}.models.{name}"):
                written[name] = answers_lib.from_file(target)
    if written:
        sets = {
            name.removeprefix(collect.PROMPT_FIELD): read_prompts(**fields[name].to_dict())[0]
            for name in fields
            if name.startswith(collect.PROMPT_FIELD) and fields[name].source
        }
        answers_lib.require_common(written, sets, where)


def shortest(fields):
    """The shortest requests, as `pipeline.limits` wants them. A judge only scores, and the model of
    a multiple choice answers only questions."""
    empty = (Message("human", ""),)
    models = list(fields.models.values())
    for reference in models:
        yield reference, "max_new_tokens", "assistant", empty
    for name, own in fields.evals.items():
        asked = [own.get("feedback"), *(models if own.get("choices_of_models") else ())]
        for reference in filter(None, asked if own.get("num_chains") else ()):
            yield reference, f"evals.{name}.max_chain_tokens", "assistant", empty


def run(ctx: StageContext) -> dict:
    """Writes records.jsonl (answers), the evaluations' journals, metrics.json ({schema, rows,
    columns, figures, notes}) and values.jsonl."""
    # ---- Answers ---------------------------------------------------------------------------------
    config = ctx.config
    models, sets = collect.in_order(config.models, ctx.run_config), collect.prompt_sets(ctx)
    written = collect.written(ctx, models)
    answers_lib.require_common(written, sets, f"config.graph.{ctx.name}")
    journal = ctx.directory.journal()
    draws = collect.Draws(sets, config.num_samples, config.temperature)
    collect.answers(ctx, models, written, draws, journal)
    answers = list(journal.finished.values())

    # ---- Evaluations -----------------------------------------------------------------------------
    order, journals, judges = list(KINDS), {"records": journal}, {}
    # A ConfigDict has no order; the registry's is that of the report.
    evals = sorted(config.evals.items(), key=lambda item: (order.index(item[1].kind), item[0]))
    measured, waits = [], Waits()
    for name, fields in evals:
        task = Task(ctx, name, fields, models, written, answers, journals, judges)
        with waits.later():
            measured.append(KINDS[fields.kind].run(task).named(task))
    waits.check()

    # ---- What they come to -----------------------------------------------------------------------
    metrics, values = _merged(measured)
    metrics["notes"] += [
        f"lengths of {name} are in words: {existing.location} has no 'num_tokens' for some answers"
        for name, existing in written.items()
        if existing.in_words
    ]
    for name, each in journals.items():
        metrics["notes"] += tier_notes(name, each.finished.values())
    if artefacts.is_writer():
        artefacts.write_json(ctx.directory.path / "metrics.json", metrics)
        lines = "".join(json.dumps(value) + "\n" for value in values)
        artefacts.write_text(ctx.directory.path / "values.jsonl", lines)
    for each in journals.values():
        each.finish()
    few_shot = collections.Counter()  # over all evaluations that show worked examples
    for each in measured:
        few_shot.update(each.few_shot)
    headlines = [each.headline for each in measured if each.headline]
    headline = headlines[0] if models and headlines else ", ".join(headlines)
    return {
        "rows": len(metrics["rows"]),
        "answers": len(answers),
        "cut": cut_answers(answers),
        "few_shot": dict(few_shot),
        "headline": (headline or f"{len(metrics['rows'])} numbers")
        + fitting.describe_left_out(few_shot),
    }


def tier_notes(name: str, records) -> list[str]:
    """A line where probabilities are not those of the options' own tokens."""
    tiers = collections.Counter(record.get("how") for record in records)
    parts = [f"{tiers[tier]:,} {TIERS[tier]}" for tier in TIERS if tiers[tier]]
    return [f"of the {name}, {' and '.join(parts)}"] if parts else []


def cut_answers(records) -> dict[str, dict[str, int]]:
    """ "answers of sl", … → how many were cut at the limit of tokens, of how many."""
    stops = collections.defaultdict(list)
    for record in records:
        stops[f"answers of {record['name']}"].append(record.get("stop"))
    return {name: count_cut(of_model) for name, of_model in sorted(stops.items())}


def _merged(measured: list[Measured]) -> tuple[dict, list[dict]]:
    """(metrics.json, records of values.jsonl). Figures of one name are drawn over each other."""
    rows = [row for each in measured for row in each.rows]
    metrics = {row["metric"] for row in rows}
    columns = [c.to_json() for each in measured for c in each.columns if c.name in metrics]
    drawn: dict[str, dict] = {}
    for figure in (figure for each in measured for figure in each.figures):
        drawn.setdefault(figure["name"], figure | {"series": []})["series"] += figure["series"]
    values = [{"name": row["name"], "values": row.pop("values")} for row in rows if "values" in row]
    notes = [note for each in measured for note in each.notes]
    parts = {"rows": rows, "columns": columns, "figures": list(drawn.values()), "notes": notes}
    return {"schema": METRICS_SCHEMA, **parts}, values
