"""The run in plain sentences: what was trained on what, and what came of it. Only what the
manifests say."""

from __future__ import annotations

import dataclasses
import re

from cai_jax.data import fitting, sources
from cai_jax.evals.rows import find
from cai_jax.reporting import judge
from cai_jax.reporting.cautions import collect, interval
from cai_jax.reporting.figures import HARM, HELP
from cai_jax.reporting.run_data import Run, Stage
from cai_jax.reporting.text import (
    duration,
    gigabytes,
    headed,
    model_name,
    number,
    place_name,
    quantity,
    words,
)


def _target(stage: Stage, field: str) -> str:
    """What a model field points at after its roles are resolved, shortened to its last part."""
    value = str(stage.fields.get(f"{field} →") or stage.fields.get(field) or "a model")
    if value.startswith("@"):
        return value
    name = value.rstrip("/").rpartition("/")[2] or value
    return re.sub(r"@[0-9a-f]{40}$", "", name)  # the commit that a run pins a hub name to


def base_model(run: Run) -> str | None:
    for kind, field in (("sl", "init"), ("pm", "init"), ("respond", "model"), ("rl", "policy")):
        for stage in run.of_kind(kind):
            if not _target(stage, field).startswith("@"):
                return _target(stage, field)
    return None


def constitution(run: Run) -> str | None:
    """Which principles were used, by name of their source."""
    given = dict.fromkeys(
        str(stage.fields["constitution"])
        for stage in run.stages.values()
        if stage.fields.get("constitution") and stage.fields.get("num_few_shot_chains") != 0
    )
    names = [
        "the project's own 16 + 16 principles"
        if s == "embedded"
        else s.rstrip("/").rpartition("/")[2]
        for s in given
    ]
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
    return list(dict.fromkeys(place for source in found for place in sources.locations(source)))


def sentences(run: Run) -> list[str]:
    """What was trained, one sentence a step of the paper; where a run has several stages of a kind,
    of `run.method`'s."""
    out, more = [], []
    for kind, told in (
        ("revise", _revised),
        ("sl", _finetuned),
        ("pm", _preferring),
        ("rl", _reinforced),
        ("harm", _rated),
    ):
        stages = run.of_kind(kind)
        if stages:
            out += told(run, run.method[kind])
            more += [f"{len(stages) - 1} {kind}"] if len(stages) > 1 else []
    if more:
        out.append(
            f"Further stages of the same kinds ({', '.join(more)}) stand under Stages and cost."
        )
    if not out:
        answered = [
            f"{stage.summary['rows']:,} ({stage.name})"
            for stage in run.of_kind("respond")
            if stage.summary.get("rows")
        ]
        asked = [
            f"{stage.fields['choices']}"
            for stage in run.of_kind("evaluate")
            if stage.fields.get("choices")
        ]
        if answered:
            return [f"{base_model(run) or 'A model'} answered prompts: {', '.join(answered)}."]
        if asked:
            return [f"Nothing was trained; lettered questions were answered: {_short(asked[0])}."]
        out = ["No stage has finished yet."]
    return out


def _short(source: str) -> str:
    """File names without their folders, of "a+b"."""
    return " and ".join(place.rpartition("/")[2] for place in sources.locations(source))


def _revised(run: Run, stage: Stage) -> list[str]:
    rows, rounds = stage.summary.get("rows"), stage.fields.get("num_rounds")
    most = "up to " if fitting.OUTGROWN in stage.dropped else ""
    how = (
        "criticised and revised"
        if stage.fields.get("critique", True)
        else "revised without critique"
    )
    return (
        [
            f"{base_model(run) or 'A model'} answered {rows:,} {place_name(HARM)}; each answer "
            f"was {how} in {most}{rounds} "
            f"round{'s' if rounds != 1 else ''} by principles drawn at random."
        ]
        if rows
        else []
    )


def _finetuned(run: Run, stage: Stage) -> list[str]:
    count = stage.summary.get("examples")
    return [
        (
            f"{model_name(stage.name)} was finetuned on {f'{count:,} ' if count else ''}examples "
            "of these revisions"
        )
        + (" and helpful answers." if (stage.fields.get("inputs") or {}).get("helpful") else ".")
    ]


def _preferring(run: Run, stage: Stage) -> list[str]:
    human = (stage.fields.get("human") or {}).get("source")
    source = run.stages.get((stage.fields.get("inputs") or {}).get("labels", ""))
    of = [
        f"{source.summary['rows']:,} AI labels" if source and source.summary.get("rows") else "",
        f"human comparisons ({_short(human)})" if human else "",
    ]
    return [
        (
            "A preference model learned from "
            f"{' and '.join(part for part in of if part) or 'comparisons'}."
        )
    ]


def _reinforced(run: Run, stage: Stage) -> list[str]:
    updates, size = stage.fields.get("num_updates"), stage.fields.get("rollouts_per_update")
    pm = run.method.get("pm")
    against = (
        "it"
        if pm and _target(stage, "reward").partition(":")[0] == f"@{pm.name}"
        else _target(stage, "reward")
    )
    return [
        (
            f"{model_name(stage.name)} was trained against {against} with PPO for {updates} "
            f"updates of {size} rollouts."
        )
    ]


def _rated(run: Run, stage: Stage) -> list[str]:
    return [
        f"A regressor of harm learned from {stage.summary.get('examples', 0):,} rated "
        "dialogues; held out, its squared error "
        f"is {number(e['l2']['value'])}; of always saying the mean, {number(e['mean_predictor'])}."
        for e in list((stage.summary.get("held_out") or {}).values())[-1:]
    ]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the verdict: how the model shown differs from the first. `tone`: "good", "bad",
    or "" for neither."""

    axis: str
    word: str
    detail: str
    tone: str = ""

    def __str__(self) -> str:
        return f"{self.word}: {self.detail}" if self.detail else self.word


def verdict(run: Run) -> list[Finding]:
    """What changed, a line each: harmlessness, helpfulness, absolute harm, evasiveness, length. Of
    `run.shown` against the first; a difference whose interval covers zero is said to be none."""
    if len(run.models) < 2:
        return []
    first, last = run.models[0], run.shown
    found = [
        _difference(run, "pm_score", HARM, headed(words().noun), ("higher", "lower"), "PM score"),
        _difference(run, "pm_score", HELP, "Helpfulness", ("higher", "lower"), "PM score"),
    ]
    places = sorted({r["on"] for r in find(run.evaluation["rows"], "expected_harm", model=last)})
    found += [
        _difference(
            run, "expected_harm", on, "Expected harm", ("more", "less"), f"of 4, {place_name(on)}"
        )
        for on in places[-1:]
    ]
    found.append(
        _difference(
            run,
            "evasive_rate",
            HARM,
            "Evasiveness",
            ("more", "less"),
            f"of answers to {place_name(HARM)}",
            True,
        )
    )
    lengths = [find(run.evaluation["rows"], "num_tokens", HARM, name) for name in (first, last)]
    if all(lengths) and lengths[0][0]["value"] and lengths[1][0]["value"] is not None:
        a, b = (rows[0]["value"] for rows in lengths)
        found.append(
            Finding(
                "Length",
                "longer" if b > a else "shorter" if b < a else "the same",
                (
                    f"{number(a, 0)} → {number(b, 0)} tokens an answer "
                    f"({number(b / a - 1, sign=True, percent=True)})"
                ),
            )
        )
    return [one for one in found if one]


def _difference(
    run: Run, metric: str, on: str, axis: str, words: tuple[str, str], unit: str, percent=False
) -> Finding | None:
    """The paired difference of the model shown to the first. `words`: for a rise and for a fall. A
    share is told as both."""
    rows = find(run.evaluation["rows"], metric, on, run.shown, run.models[0])
    if not rows or rows[0]["value"] is None:
        return None
    r = rows[0]
    shown = f"{interval(r)} {unit}"
    if percent:
        both = (
            find(run.evaluation["rows"], metric, on, name)[0]["value"]
            for name in (r["against"], r["model"])
        )
        shown = f"{' → '.join(number(value, percent=True) for value in both)} {unit}"
    if r.get("null"):
        return Finding(axis, "no difference shown", shown)
    better = (r["value"] > 0) == (r["good"] == "higher")
    return Finding(
        axis, words[0] if r["value"] > 0 else words[1], shown, "good" if better else "bad"
    )


def trust(run: Run) -> Finding:
    """How many cautions stand beside the verdict, by their weight."""
    found = collect(run)
    serious, careful = (sum(c.level == level for c in found) for level in ("stop", "care"))
    counted = [
        f"{serious} serious warning{'s' * (serious != 1)}" if serious else "",
        f"{careful} {'' if serious else 'warnings ' if careful > 1 else 'warning '}to weigh"
        if careful
        else "",
    ]
    return Finding(
        "Trust",
        ", ".join(part for part in counted if part) or "no warning",
        "see the list" if serious or careful else "by the rules that this page applies",
        "bad" if serious else "",
    )


def cost(run: Run) -> Finding:
    """Time and memory in one line, the rest stands below the plot."""
    parts = [f"{quantity(run.flops)}FLOP"] if run.flops else []
    parts += [f"{gigabytes(run.peak_bytes)} at the peak"] if run.peak_bytes else []
    devices = run.info.get("devices") or []
    where = f" on {run.info.get('num_devices', 1)} × {', '.join(devices)}" if devices else ""
    return Finding("Cost", f"{duration(run.seconds)}{where}", ", ".join(parts))


def headline(run: Run) -> str | None:
    """The verdict on harmlessness and helpfulness in one sentence; None where nothing was
    compared."""
    told = {one.axis: one.word for one in verdict(run)}
    quality = headed(words().noun)
    if quality not in told:
        return None
    first, last = model_name(run.models[0]), model_name(run.shown)
    moved, still = [], []
    for axis, word in ((quality, words().quality), ("Helpfulness", "helpful")):
        if told.get(axis) in ("higher", "lower"):
            moved.append(f"{'more' if told[axis] == 'higher' else 'less'} {word}")
        elif axis in told:
            still.append(axis.lower())
    if not moved:
        return f"No difference shown between {last} and {first}"
    sure = all(
        judge.shown_right(run, helpful=axis == "Helpfulness")
        for axis in (quality, "Helpfulness")
        if told.get(axis) in ("higher", "lower")
    )
    doubt = "" if sure else ", by a judge that is not shown to be right"
    return f"{last} is judged {' and '.join(moved)} than {first}{doubt}" + (
        f"; no difference shown in {still[0]}" if still else ""
    )
