"""The run in plain sentences: what was trained on what, and what came of it. Only what the manifests say."""

from __future__ import annotations

from cai_jax.evals.rows import find
from cai_jax.reporting.cautions import interval
from cai_jax.reporting.figures import HARM, HELP
from cai_jax.reporting.run_data import Run, Stage
from cai_jax.reporting.text import model_name, number


def _target(stage: Stage, field: str) -> str:
    """What a model field points at after its roles are resolved, shortened to its last part."""
    value = str(stage.fields.get(f"{field} →") or stage.fields.get(field) or "a model")
    return value if value.startswith("@") else value.rstrip("/").rpartition("/")[2] or value


def base_model(run: Run) -> str | None:
    for kind, field in (("sl", "init"), ("pm", "init"), ("respond", "model"), ("rl", "policy")):
        for stage in run.of_kind(kind):
            if not _target(stage, field).startswith("@"):
                return _target(stage, field)
    return None


def constitution(run: Run) -> str | None:
    """Which principles were used, by name of their source."""
    sources = dict.fromkeys(str(stage.fields["constitution"]) for stage in run.stages.values()
                            if stage.fields.get("constitution"))
    names = ["the project's own 16 + 16 principles" if s == "embedded" else s for s in sources]
    return " and ".join(names) or None


def data_sources(run: Run) -> list[str]:
    """Every data source that a stage read, once."""
    found = []
    for stage in run.stages.values():
        for key, value in sorted(stage.fields.items()):
            if isinstance(value, dict) and isinstance(value.get("source"), str) and value["source"]:
                found.append(value["source"])
            elif key == "choices" and isinstance(value, str) and value:
                found.append(value)
    return list(dict.fromkeys(part.strip() for source in found for part in source.split("+")))


def sentences(run: Run) -> list[str]:
    """What was trained, one sentence a step of the paper."""
    out = []
    base = base_model(run)
    for stage in run.of_kind("revise"):
        rows, rounds = stage.summary.get("rows"), stage.fields.get("num_rounds")
        if rows:
            how = "criticised and revised" if stage.fields.get("critique", True) else "revised without critique"
            out.append(f"{base or 'A model'} answered {rows:,} red-team prompts; each answer was {how} in {rounds} "
                       f"round{'s' if rounds != 1 else ''} by principles drawn at random.")
    for stage in run.of_kind("sl"):
        count = stage.summary.get("examples")
        out.append(f"{model_name(stage.name)} was finetuned on {f'{count:,} ' if count else ''}examples of these revisions"
                   + (" and helpful answers." if (stage.fields.get("inputs") or {}).get("helpful") else "."))
    for stage in run.of_kind("pm"):
        human = (stage.fields.get("human") or {}).get("source")
        source = run.stages.get((stage.fields.get("inputs") or {}).get("labels", ""))
        of = [f"{source.summary['rows']:,} AI labels" if source and source.summary.get("rows") else "",
              f"human comparisons ({human})" if human else ""]
        held = ((stage.summary.get("held_out") or {}).get("all") or {}).get("accuracy") or {}
        right = (f" and is right on {number(held['value'], percent=True)} of {held['n']} pairs held out of it"
                 if held.get("value") is not None else "")
        out.append(f"A preference model learned from {' and '.join(part for part in of if part) or 'comparisons'}{right}.")
    for stage in run.of_kind("rl"):
        updates, size = stage.fields.get("num_updates"), stage.fields.get("rollouts_per_update")
        out.append(f"{model_name(stage.name)} was trained against it with PPO for {updates} updates of {size} rollouts.")
    if not out:
        answered = [f"{stage.summary['rows']:,} ({stage.name})" for stage in run.of_kind("respond") if stage.summary.get("rows")]
        out = [f"{base or 'A model'} answered prompts: {', '.join(answered)}."] if answered else ["No stage has finished yet."]
    return out


def verdict(run: Run) -> list[tuple[str, str]]:
    """(axis, sentence) for harmlessness and helpfulness: the last model against the first."""
    if len(run.models) < 2:
        return []
    first, last = run.models[0], run.models[-1]
    out = []
    for on, axis in ((HARM, "Harmlessness"), (HELP, "Helpfulness")):
        found = find(run.evaluation["rows"], "pm_score", on, last, first)
        if not found or found[0]["value"] is None:
            continue
        r = found[0]
        shown = interval(r)
        if r.get("null"):
            out.append((axis, f"No difference shown between {model_name(last)} and {model_name(first)}: {shown}."))
        else:
            word = "higher" if r["value"] > 0 else "lower"
            out.append((axis, f"{model_name(last)} scores {word} than {model_name(first)}: {shown}."))
    return out


def length_sentence(run: Run) -> str | None:
    """How the mean length moved from the first to the last model."""
    if len(run.models) < 2:
        return None
    first, last = run.models[0], run.models[-1]
    a, b = (find(run.evaluation["rows"], "num_tokens", HARM, name) for name in (first, last))
    if not a or not b or not a[0]["value"] or b[0]["value"] is None:
        return None
    change = b[0]["value"] / a[0]["value"] - 1
    return (f"{number(a[0]['value'], 0)} → {number(b[0]['value'], 0)} tokens an answer "
            f"({number(change, sign=True, percent=True)}).")
