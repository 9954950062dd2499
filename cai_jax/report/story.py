"""The run in plain sentences: what was trained on what, and what came of it. Only what the
manifests say; the sentences are in templates/sentences.j2."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from cai_jax import references
from cai_jax.data import fitting, sources
from cai_jax.evals.rows import find
from cai_jax.report import cautions, judge
from cai_jax.report.figures import HARM, HELP
from cai_jax.report.render import say
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

# ---- What was trained on what --------------------------------------------------------------------


def _short_name(value: str) -> str:
    """Of what a model's name points at: no folders, and no commit that a run pinned."""
    if value.startswith("@"):
        return value
    name = value.rstrip("/").rpartition("/")[2] or value
    return re.sub(r"@[0-9a-f]{40}$", "", name)


def base_model(run: Run) -> str | None:
    """The first model that no stage of the run made."""
    for kind, field in (("sl", "init"), ("pm", "init"), ("respond", "model"), ("rl", "policy")):
        for stage in run.of_kind(kind):
            target = stage.fields.get(f"{field} →") or stage.fields.get(field) or "a model"
            if not str(target).startswith("@"):
                return _short_name(str(target))
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
    read: dict[str, None] = {}
    for stage in run.stages.values():
        for fields in (stage.fields, *(stage.fields.get("evals") or {}).values()):
            for key, value in sorted(fields.items()):
                source = value.get("source") if isinstance(value, dict) else value
                if source and isinstance(source, str) and (source is not value or key == "choices"):
                    read |= dict.fromkeys(sources.locations(source))
    return list(read)


def sentences(run: Run) -> list[str]:
    """What was trained, one sentence a step of the paper; where a run has several stages of a kind,
    of `run.method`'s."""
    out = list(_trained(run))
    counts = {
        kind: len(run.of_kind(kind)) - 1 for kind in ("revise", "sl", "pm", "dpo", "rl", "harm")
    }
    if more := ", ".join(f"{count} {kind}" for kind, count in counts.items() if count > 0):
        out.append(say("further", more))
    if out:
        return out
    responses = [(s.name, s.summary.get("rows")) for s in run.of_kind("respond")]
    if counts := ", ".join(f"{rows:,} ({name})" for name, rows in responses if rows):
        return [say("answered", base_model(run), counts)]
    asked = [choices for s in run.of_kind("evaluate") for choices in s.values("choices")]
    return [say("asked", _files(asked[0])) if asked else "No stage has finished yet."]


def _trained(run: Run) -> Iterator[str]:
    method = run.method
    if (stage := method.get("revise")) and (rows := stage.summary.get("rows")):
        yield say("revise", base_model(run), rows, fitting.OUTGROWN in stage.dropped, stage)
    if stage := method.get("sl"):
        yield say("sl", stage)
    if stage := method.get("pm"):
        source = run.stages.get(stage.inputs.get("labels", ""))
        human = (stage.fields.get("human") or {}).get("source")
        labels = source.summary.get("rows") if source else None
        yield say("pm", labels, _files(human) if human else "")
    if stage := method.get("dpo"):
        yield say("dpo", stage)
    if stage := method.get("rl"):
        yield say("rl", stage, _rewards(run, stage))
    if (stage := method.get("harm")) and (held_out := stage.summary.get("held_out")):
        yield say("harm", stage.summary.get("examples", 0), list(held_out.values())[-1])


def _files(source: str) -> str:
    """File names without their folders, of "a+b"."""
    return " and ".join(part.rpartition("/")[2] for part in sources.locations(str(source)))


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
    harm_sets = find(run.rows, "expected_harm", model=run.shown)
    at = max((row["on"] for row in harm_sets), default="")
    answers = f"of answers to {set_name(HARM)}"
    lines = (  # metric, set, axis, words of a rise and a fall, unit
        ("pm_score", HARM, headed(words().noun), "higher lower", "PM score"),
        ("pm_score", HELP, "Helpfulness", "higher lower", "PM score"),
        ("expected_harm", at, "Expected harm", "more less", f"of 4, {set_name(at)}"),
        ("evasive_rate", HARM, "Evasiveness", "more less", answers),
    )
    return [f for f in (*(_difference(run, *line) for line in lines), _length(run)) if f]


def _difference(run: Run, metric: str, on: str, axis: str, rise_fall: str, unit: str):
    """The Finding of the paired difference of the model shown to the first; a share is shown as
    both values. See `verdict` for the arguments."""
    rows = find(run.rows, metric, on, run.shown, run.models[0])
    if not rows or rows[0]["value"] is None:
        return None
    row, shown = rows[0], f"{interval(rows[0])} {unit}"
    if row["unit"] == "share":
        both = [find(run.rows, metric, on, row[side])[0]["value"] for side in ("against", "model")]
        shown = f"{' → '.join(number(value, percent=True) for value in both)} {unit}"
    if row.get("null"):
        return Finding(axis, "no difference shown", shown)
    tone = "good" if (row["value"] > 0) == (row["good"] == "higher") else "bad"
    return Finding(axis, rise_fall.split()[row["value"] < 0], shown, tone)


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
    levels = [caution.level for caution in cautions.collect(run)]
    serious, careful = levels.count("stop"), levels.count("care")
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
