"""The model card of an export: what it was made from, by which principles, with which settings, and
what was measured."""

from __future__ import annotations

import json
import pathlib

import jinja2

from cai_jax import references
from cai_jax.constitution.loader import load_constitution
from cai_jax.errors import UserError
from cai_jax.report.run import Run, Stage
from cai_jax.report.text import plain

TEMPLATE = pathlib.Path(__file__).with_name("card.md.jinja")


class Raw(str):
    """Text that is Markdown already."""


def ancestors(run: Run, name: str) -> list[Stage]:
    """The stages that a stage depends on, and itself, in the order they ran."""
    seen, waiting = set(), [name]
    while waiting:
        stage = waiting.pop()
        if stage in run.stages and stage not in seen:
            seen.add(stage)
            waiting += list(run.stages[stage].manifest.get("parents") or ())
    return [stage for stage in run.stages.values() if stage.name in seen]


def model_card(
    run: Run,
    name: str,
    kind: str,
    facts: dict,
    adapters: bool = False,
    header: dict[str, str] | None = None,
) -> str:
    """Markdown with the hub's header.

    Args:
      run: the run that made the model.
      name: of the stage that trained it.
      kind: "policy" or "reward".
      facts: {label: value} of the export itself (parameters, dtype, offset, …).
      adapters: whether the directory holds nothing but those.
      header: further fields of the hub's header (`origin.header`).
    Returns:
      The text of README.md.
    """
    environment = jinja2.Environment(
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Raw) else plain(value),
    )
    environment.filters |= {
        "raw": Raw,
        "code": lambda value: Raw(f"`{str(value).replace('`', chr(39))}`"),
    }
    causal = "AutoModelForCausalLM"
    stages = ancestors(run, name)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        name=name,
        kind=kind,
        facts=facts,
        adapters=adapters,
        header=header or {},
        stage=run.stages[name],
        auto_class=causal if kind == "policy" else "AutoModelForSequenceClassification",
        constitutions=_constitutions(stages),
        stages=[_described(stage) for stage in stages],
        numbers=_numbers(run, name),
        provenance=_provenance(run, run.stages[name]),
    )


def _constitutions(stages: list[Stage]) -> list[dict]:
    """What each stage that drew principles drew from."""
    drawn = []
    for stage in stages:
        source = stage.fields.get("constitution")
        if not source or stage.kind not in ("revise", "feedback"):
            continue
        read = (stage.fields.get("contents") or {}).get("constitution") or {}
        digest = "+".join(part["digest"] for part in read.get("parts", ())) or "unknown"
        principles, error = [], ""
        try:
            known = load_constitution(source)
            principles = (
                [(p.id, p.critique_request) for p in known.critique_principles]
                if stage.kind == "revise"
                else [(p.id, p.text) for p in known.comparison_principles]
            )
        except UserError as problem:
            error = str(problem)
        drawn.append({"stage": stage.name, "source": source, "digest": digest, "error": error})
        drawn[-1]["principles"] = principles
    return drawn


def _described(stage: Stage) -> dict:
    """A stage's row: its models, what it reads, counts, and its own fields. `contents` is left
    out: names of local files are nobody else's business."""
    given = [stage.fields.get(key) for key in ("prompts", "human")]
    reads = [value["source"] for value in given if isinstance(value, dict) and value.get("source")]
    reads += [f"@{parent}" for parent in stage.manifest.get("parents") or ()]
    fields = {
        key: value
        for key, value in stage.fields.items()
        if key not in ("kind", "contents") and not key.endswith((" →", " contents"))
    }
    models = [value for key, value in stage.fields.items() if key.endswith(" →") and value]
    counts = (stage.summary.get(key) for key in ("rows", "examples", "updates"))
    return {
        "name": stage.name,
        "kind": stage.kind,
        "models": list(dict.fromkeys(models)),
        "reads": reads,
        "count": next((count for count in counts if count is not None), ""),
        "dropped": ", ".join(f"{n} {reason}" for reason, n in sorted(stage.dropped.items())),
        "settings": json.dumps(fields, sort_keys=True, ensure_ascii=True),
        "headline": stage.summary.get("headline"),
    }


def _numbers(run: Run, name: str) -> list[dict]:
    """The rows of the run's evaluations that are about this model."""
    evaluations = run.of_kind("evaluate")
    names = {
        key
        for stage in evaluations
        for key, reference in (stage.fields.get("models") or {}).items()
        if references.stage_of(str(reference)) == name
    }
    judges = {
        key
        for stage in evaluations
        for key, target in stage.scorers.items()
        if references.stage_of(target) == name
    }
    rows = []
    for row in run.rows:  # a second evaluation of a kind ends its metrics in ":NAME"
        accuracy = row["metric"].partition(":")[0] == "pm_accuracy" and row.get("model") in judges
        about = row.get("model") in names or accuracy
        if about and isinstance(row.get("value"), int | float):
            low, high = row.get("low"), row.get("high")
            interval = f" [{low:.3g}, {high:.3g}]" if low is not None and high is not None else ""
            rows.append({"n": "", **row, "shown": f"{row['value']:.3g}{interval}"})
    return rows


def _provenance(run: Run, stage: Stage) -> dict:
    versions = sorted((run.info.get("versions") or {}).items())
    return {
        "fingerprint": stage.manifest.get("fingerprint"),
        "seed": run.config.get("seed"),
        "cai_jax": run.info.get("cai_jax"),
        "git revision": run.info.get("git_revision"),
        "versions": ", ".join(f"{key} {value}" for key, value in versions),
    }
