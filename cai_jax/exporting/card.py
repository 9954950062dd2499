"""The model card of an export: what it was made from, by which principles, with which settings, and
what was measured."""

from __future__ import annotations

import json

from cai_jax.constitution.loader import load_constitution
from cai_jax.errors import UserError
from cai_jax.reporting.markdown import plain, table
from cai_jax.reporting.run_data import Run, Stage

POLICY_USE = """\
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DIR)
    model = AutoModelForCausalLM.from_pretrained(DIR)
    turns = [{"role": "user", "content": "..."}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0]))
"""
REWARD_USE = """\
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DIR)
    model = AutoModelForSequenceClassification.from_pretrained(DIR)
    turns = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)  # must end with the token that ends the answer
    inputs = tokenizer([text], add_special_tokens=False, padding=True, return_tensors="pt")
    score = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0]
    score = score + model.config.score_offset

A row is read at its last token that is not padding. Only differences between answers to one prompt mean something; the
score is (raw − mean) / std of the preference model's own held-out dialogues.
"""
ADAPTER_USE = {
    "policy": """\
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DIR)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), DIR)

BASE is the model that the adapters were trained on (the table above names it); on other weights they mean nothing.
""",
    "reward": """\
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DIR)
    base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model = PeftModel.from_pretrained(base, DIR)

BASE is the model that the adapters were trained on (the table above names it). The score is the one logit plus the
`score_offset` in the table, read at the last token that is not padding, which must end the answer.
""",
}


def ancestors(run: Run, name: str) -> list[Stage]:
    """The stages that a stage rests on, and itself, in the order they ran."""
    found, waiting = set(), [name]
    while waiting:
        stage = waiting.pop()
        if stage in run.stages and stage not in found:
            found.add(stage)
            waiting += list(run.stages[stage].manifest.get("parents") or ())
    return [stage for stage in run.stages.values() if stage.name in found]


def model_card(
    run: Run,
    name: str,
    kind: str,
    facts: dict,
    adapters: bool = False,
    header: dict[str, str] | None = None,
) -> str:
    """Markdown with the hub's header. `facts`: {label: value} of the export itself (parameters,
    dtype, offset, …); adapters: whether the directory holds nothing but those; header: further
    fields of the hub's header (`origin.header`)."""
    stages = ancestors(run, name)
    task = "text-generation" if kind == "policy" else "text-classification"
    what = "policy" if kind == "policy" else "preference model"
    use = ADAPTER_USE[kind] if adapters else POLICY_USE if kind == "policy" else REWARD_USE
    library = "peft" if adapters else "transformers"
    parts = [
        f"---\n{_header(library, task, header or {})}---\n",
        f"# {plain(name)} of {plain(run.name)}: a {what} trained by Constitutional AI\n",
        (
            f"Made by stage `{name}` ({run.stages[name].kind}) of a cai_jax run, after Bai et al. "
            "2022 (arXiv 2212.08073).\n"
        ),
        table(["", ""], [[label, f"`{value}`"] for label, value in facts.items()]),
        "## Use\n\n" + use,
        "## Constitution\n\n" + _constitution(stages),
        "## Data and stages\n\n" + _stages(stages),
        "## Settings\n\n" + "\n".join(_settings(stage) for stage in stages),
        "## Numbers\n\n" + _numbers(run, stages, name),
        "## Provenance\n\n" + _provenance(run, run.stages[name]),
        "## Limits\n\nThe model learned from the judgements of a model. Its scores and "
        "refusals are as good as that judge and "
        "these principles; measure it on your own data before you rely on it. No interval that "
        "covers zero is evidence.\n",
    ]
    return "\n".join(parts)


def _header(library: str, task: str, more: dict[str, str]) -> str:
    lines = [f"{key}: {value}" for key, value in sorted(more.items())]
    lines += [f"library_name: {library}", f"pipeline_tag: {task}", "tags:"]
    return "".join(line + "\n" for line in (*lines, "- constitutional-ai", "- jax"))


def _constitution(stages: list[Stage]) -> str:
    lines = []
    for stage in stages:
        source = stage.fields.get("constitution")
        if not source or stage.kind not in ("revise", "feedback"):
            continue
        digest = stage.fields.get("constitution contents") or "unknown"
        lines.append(f"Stage `{stage.name}` drew from `{source}` (digest `{digest}`):\n")
        try:
            found = load_constitution(source)
        except UserError as error:
            lines.append(f"(no longer readable here: {plain(error)})\n")
            continue
        texts = (
            [(p.id, p.critique_request) for p in found.critique_principles]
            if stage.kind == "revise"
            else [(p.id, p.text) for p in found.comparison_principles]
        )
        lines += [f"- {plain(name)}: {plain(text)}" for name, text in texts] + [""]
    return "\n".join(lines) + "\n" if lines else "No stage behind this model read principles.\n"


def _stages(stages: list[Stage]) -> str:
    rows = []
    for stage in stages:
        sources = [
            f"`{stage.fields[key]['source']}`"
            for key in ("prompts", "human")
            if isinstance(stage.fields.get(key), dict) and stage.fields[key].get("source")
        ]
        sources += [f"@{parent}" for parent in stage.manifest.get("parents") or ()]
        models = [f"`{value}`" for key, value in stage.fields.items() if key.endswith(" →")]
        dropped = ", ".join(
            f"{count} {plain(reason)}" for reason, count in sorted(stage.dropped.items())
        )
        count = stage.summary.get(
            "rows", stage.summary.get("examples", stage.summary.get("updates", ""))
        )
        rows.append(
            [
                f"`{stage.name}`",
                stage.kind,
                ", ".join(dict.fromkeys(models)),
                ", ".join(sources),
                str(count),
                dropped,
            ]
        )
    return table(["stage", "kind", "models", "reads", "rows", "left out"], rows)


def _settings(stage: Stage) -> str:
    fields = {
        key: value
        for key, value in stage.fields.items()
        if key != "kind" and not key.endswith((" →", " contents"))
    }
    text = json.dumps(fields, sort_keys=True, ensure_ascii=True)
    return f"- `{stage.name}`: `{text.replace('`', chr(39))}`"


def _numbers(run: Run, stages: list[Stage], name: str) -> str:
    lines = [
        f"- `{stage.name}`: {plain(stage.summary['headline'])}"
        for stage in stages
        if stage.summary.get("headline")
    ]
    names = {
        key
        for stage in run.of_kind("evaluate")
        for key, reference in (stage.fields.get("models") or {}).items()
        if str(reference).partition(":")[0] == f"@{name}"
    }
    reward = any(stage.fields.get("reward") == f"@{name}" for stage in run.of_kind("evaluate"))
    rows = []
    for row in run.evaluation["rows"]:
        if isinstance(row.get("value"), int | float) and (
            row.get("model") in names or reward and row["metric"] == "pm_accuracy"
        ):
            low, high = row.get("low"), row.get("high")
            interval = f"[{low:.3g}, {high:.3g}]" if low is not None and high is not None else ""
            rows.append(
                [
                    plain(row["metric"]),
                    plain(row.get("on") or ""),
                    plain(row.get("against") or ""),
                    f"{row['value']:.3g} {interval}",
                    str(row.get("n", "")),
                ]
            )
    return (
        "\n".join(lines)
        + "\n\n"
        + table(["measured", "on", "against", "value [95 % interval]", "n"], rows)
    )


def _provenance(run: Run, stage: Stage) -> str:
    facts = {
        "fingerprint": stage.manifest.get("fingerprint"),
        "seed": run.config.get("seed"),
        "cai_jax": run.info.get("cai_jax"),
        "git revision": run.info.get("git_revision"),
        "versions": ", ".join(
            f"{key} {value}" for key, value in sorted((run.info.get("versions") or {}).items())
        ),
    }
    return "".join(f"- {label}: `{value}`\n" for label, value in facts.items() if value is not None)
