"""The run in plain sentences: what was trained on what, and what came of it. Only what the
manifests say."""

from __future__ import annotations

import dataclasses
import re

from cai_jax import references
from cai_jax.data import fitting, sources
from cai_jax.evals.rows import find
from cai_jax.report import cautions, judge
from cai_jax.report.run import Run, Stage
from cai_jax.report.text import (
    duration,
    gigabytes,
    headed,
    interval,
    model_name,
    number,
    quantity,
    set_name,
    words,
)

HARM, HELP = "red_team", "helpful"

# ---- What was trained on what --------------------------------------------------------------------


def _target(stage: Stage, field: str) -> str:
    """What a model field points at after its roles are resolved, without its folders."""
    return _short_name(str(stage.fields.get(f"{field} →") or stage.fields.get(field) or "a model"))


def _short_name(value: str) -> str:
    """Of what a name points at."""
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
    own = {"embedded": "the project's own 16 + 16 principles"}
    names = [own.get(source) or source.rstrip("/").rpartition("/")[2] for source in given]
    return " and ".join(names) or None


def data_sources(run: Run) -> list[str]:
    """Every data source that a stage read, once."""
    read = []
    for stage in run.stages.values():
        for fields in (stage.fields, *(stage.fields.get("evals") or {}).values()):
            for key, value in sorted(fields.items()):
                source = value.get("source") if isinstance(value, dict) else value
                if isinstance(source, str) and (isinstance(value, dict) or key == "choices"):
                    read += [source] if source else []
    return list(dict.fromkeys(place for source in read for place in sources.locations(source)))


def sentences(run: Run) -> list[str]:
    """What was trained, one sentence a step of the paper; where a run has several stages of a kind,
    of `run.method`'s."""
    steps = {
        "revise": _revised,
        "sl": _finetuned,
        "pm": _preferring,
        "rl": _reinforced,
        "harm": _rated,
    }
    out = [s for kind, sentence in steps.items() if run.of_kind(kind)
           for s in sentence(run, run.method[kind])]  # fmt: skip
    counts = {kind: len(run.of_kind(kind)) - 1 for kind in steps}
    if more := ", ".join(f"{count} {kind}" for kind, count in counts.items() if count > 0):
        out.append(f"Further stages of the same kinds ({more}) are listed under Stages and cost.")
    if out:
        return out
    answered = [
        f"{stage.summary['rows']:,} ({stage.name})"
        for stage in run.of_kind("respond")
        if stage.summary.get("rows")
    ]
    if answered:
        return [f"{base_model(run) or 'A model'} answered prompts: {', '.join(answered)}."]
    asked = [choices for s in run.of_kind("evaluate") for choices in s.values("choices")]
    if asked:
        return [f"Nothing was trained; lettered questions were answered: {_short(asked[0])}."]
    return ["No stage has finished yet."]


def _short(source: str) -> str:
    """File names without their folders, of "a+b"."""
    return " and ".join(place.rpartition("/")[2] for place in sources.locations(str(source)))


def _revised(run: Run, stage: Stage) -> list[str]:
    rows, rounds = stage.summary.get("rows"), stage.fields.get("num_rounds")
    if not rows:
        return []
    most = "up to " if fitting.OUTGROWN in stage.dropped else ""
    critiqued = stage.fields.get("critique", True)
    how = "criticised and revised" if critiqued else "revised without critique"
    return [
        f"{base_model(run) or 'A model'} answered {rows:,} {set_name(HARM)}; each answer was {how} "
        f"in {most}{rounds} round{'s' if rounds != 1 else ''} by principles drawn at random."
    ]


def _finetuned(run: Run, stage: Stage) -> list[str]:
    count = stage.summary.get("examples")
    examples = f"{f'{count:,} ' if count else ''}examples of these revisions"
    helpful = " and helpful answers" if stage.inputs.get("helpful") else ""
    return [f"{model_name(stage.name)} was finetuned on {examples}{helpful}."]


def _preferring(run: Run, stage: Stage) -> list[str]:
    human = (stage.fields.get("human") or {}).get("source")
    source = run.stages.get(stage.inputs.get("labels", ""))
    of = [f"{source.summary['rows']:,} AI labels"] if source and source.summary.get("rows") else []
    of += [f"human comparisons ({_short(human)})"] if human else []
    return [f"A preference model learned from {' and '.join(of) or 'comparisons'}."]


def _reinforced(run: Run, stage: Stage) -> list[str]:
    updates, size = stage.fields.get("num_updates"), stage.fields.get("rollouts_per_update")
    algorithm = str(stage.fields.get("algorithm") or "ppo").upper()
    return [
        f"{model_name(stage.name)} was trained against {_rewards(run, stage)} with {algorithm} for "
        f"{updates} updates of {size} rollouts."
    ]


def _rewards(run: Run, stage: Stage) -> str:
    """What scored the answers of an rl stage; of a sum, its terms with their weights."""
    pm, terms = run.method.get("pm"), stage.fields.get("rewards") or {}

    def shown(name: str) -> str:
        target = stage.scorers.get(name, name)
        return "it" if pm and references.stage_of(target) == pm.name else _short_name(target)

    if not terms:
        return shown(str(stage.fields.get("reward") or "a model"))
    out = []
    for term in terms.values():
        kind, weight = str(term.get("kind")).replace("_", " "), term.get("weight", 1.0)
        what = shown(term.get("model") or term.get("function") or kind)
        out.append(what if weight == 1 else f"{weight:g} × {what}".replace("-", "−", 1))
    return " + ".join(out)


def _rated(run: Run, stage: Stage) -> list[str]:
    held_out = list((stage.summary.get("held_out") or {}).values())[-1:]
    return [
        f"A regressor of harm learned from {stage.summary.get('examples', 0):,} rated dialogues; "
        f"held out, its squared error is {number(e['l2']['value'])}; of always saying the mean, "
        f"{number(e['mean_predictor'])}."
        for e in held_out
    ]


# ---- What came of it -----------------------------------------------------------------------------


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
    `run.shown` against the first; a difference whose interval covers zero counts as none."""
    if len(run.models) < 2:
        return []
    rise, harm_sets = ("higher", "lower"), find(run.rows, "expected_harm", model=run.shown)
    at = max((row["on"] for row in harm_sets), default="")
    answers = f"of answers to {set_name(HARM)}"
    out = [
        _difference(run, "pm_score", HARM, headed(words().noun), rise, "PM score"),
        _difference(run, "pm_score", HELP, "Helpfulness", rise, "PM score"),
        _difference(
            run, "expected_harm", at, "Expected harm", ("more", "less"), f"of 4, {set_name(at)}"
        ),
        _difference(run, "evasive_rate", HARM, "Evasiveness", ("more", "less"), answers),
        _length(run),
    ]
    return [line for line in out if line]


def _difference(
    run: Run, metric: str, on: str, axis: str, directions: tuple[str, str], unit: str
) -> Finding | None:
    """The paired difference of the model shown to the first.

    Args:
        run: the run. metric, on: of its rows. axis: what changed, in print. directions: the words
        for a rise and a fall. unit: after the numbers. A share is shown as both values.
    """
    rows = find(run.rows, metric, on, run.shown, run.models[0])
    if not rows or rows[0]["value"] is None:
        return None
    row = rows[0]
    shown = f"{interval(row)} {unit}"
    if row["unit"] == "share":
        both = [find(run.rows, metric, on, row[side])[0]["value"] for side in ("against", "model")]
        shown = f"{' → '.join(number(value, percent=True) for value in both)} {unit}"
    if row.get("null"):
        return Finding(axis, "no difference shown", shown)
    better = (row["value"] > 0) == (row["good"] == "higher")
    direction = directions[0] if row["value"] > 0 else directions[1]
    return Finding(axis, direction, shown, "good" if better else "bad")


def _length(run: Run) -> Finding | None:
    rows = [find(run.rows, "num_tokens", HARM, name) for name in (run.models[0], run.shown)]
    a, b = (known[0]["value"] if known else None for known in rows)
    if not a or b is None:
        return None
    word = "longer" if b > a else "shorter" if b < a else "the same"
    share = number(b / a - 1, sign=True, percent=True)
    return Finding("Length", word, f"{number(a, 0)} → {number(b, 0)} tokens an answer ({share})")


def trust(run: Run) -> Finding:
    """How many cautions there are, by their weight."""
    every = cautions.collect(run)
    serious, careful = (sum(c.level == level for c in every) for level in ("stop", "care"))
    counted = [f"{serious} serious warning{'s' * (serious != 1)}"] if serious else []
    if careful:
        unit = "" if serious else "warnings " if careful > 1 else "warning "
        counted.append(f"{careful} {unit}to weigh")
    detail = "see the list" if counted else "by the rules that this page applies"
    return Finding("Trust", ", ".join(counted) or "no warning", detail, "bad" if serious else "")


def cost(run: Run) -> Finding:
    """Time and memory in one line."""
    parts = [f"{quantity(run.flops)}FLOP"] if run.flops else []
    parts += [f"{gigabytes(run.peak_bytes)} at the peak"] if run.peak_bytes else []
    on = f" on {devices(run)}" if devices(run) else ""
    return Finding("Cost", f"{duration(run.seconds)}{on}", ", ".join(parts))


def devices(run: Run) -> str:
    kinds = run.info.get("devices") or []
    return f"{run.info.get('num_devices', 1)} × {', '.join(kinds)}" if kinds else ""


def headline(run: Run) -> str | None:
    """The verdict on harmlessness and helpfulness in one sentence; None where nothing was
    compared."""
    words_of = {finding.axis: finding.word for finding in verdict(run)}
    quality = headed(words().noun)
    if quality not in words_of:
        return None
    first, last = model_name(run.models[0]), model_name(run.shown)
    names = {quality: words().quality, "Helpfulness": "helpful"}
    moved = {axis: words_of[axis] for axis in names if words_of.get(axis) in ("higher", "lower")}
    still = [axis.lower() for axis in names if axis in words_of and axis not in moved]
    if not moved:
        return f"No difference shown between {last} and {first}"
    shown = " and ".join(
        f"{'more' if word == 'higher' else 'less'} {names[axis]}" for axis, word in moved.items()
    )
    sure = all(judge.shown_right(run, helpful=axis == "Helpfulness") for axis in moved)
    doubt = "" if sure else ", by a judge that is not shown to be right"
    rest = f"; no difference shown in {still[0]}" if still else ""
    return f"{last} is judged {shown} than {first}{doubt}{rest}"
