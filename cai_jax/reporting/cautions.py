"""What a reader must know before believing a number: null results, drift, biased labels,
truncation, small models.

Each rule is a few lines with its threshold in sight. Levels: "stop" (do not rely on this), "care",
"note".
"""

from __future__ import annotations

import dataclasses

from cai_jax.evals.rows import find
from cai_jax.reporting import copied, judge
from cai_jax.reporting.run_data import Run
from cai_jax.reporting.text import headed, model_name, number, place_name, quantity

SMALL_MODEL = 1_000_000_000
LENGTH_DRIFT = 0.25  # of the first model's mean length
KL_LIMIT = 15.0  # nats a response: √KL ≈ 4, about where 2204's reward curves stop being linear
FLIP_LIMIT = 0.25
MOST_FLIP = 0.5  # beyond it most labels are decided by position
SIDE_LIMIT = 0.2  # of how often option (A) is chosen, around one half
CUT_LIMIT = 0.25
FEW_ITEMS = 50
CUT_MEANS = {  # by kind of stage, what that does further on
    "sl": "; they are learned without an end",
    "feedback": "; their labels follow from half a thought",
    "rl": "; `missing_eos_penalty` makes them cost",
}
GAP_LIMIT = 1e-3
COPY_LIMIT = 0.05
EXAMPLES_LIMIT = 0.25  # of the requests: those that had fewer worked examples than wanted


@dataclasses.dataclass(frozen=True)
class Caution:
    level: str
    text: str
    anchor: str  # the section of the page that shows more


def collect(run: Run) -> list[Caution]:
    """All cautions of a run, the gravest level first, and within a level what undoes the most:
    whether the run is sound, then its judge, its labels, the texts that were learned from, what
    came out, and how much there was of it."""
    rules = (
        _unfinished,
        _training,
        _measured,
        _labels,
        _clamps,
        _preference,
        _harm,
        _copied,
        _null_results,
        _judge,
        _length,
        _kl,
        _topic,
        _small,
        _few,
        _truncation,
        _worked_examples,
        _dropped,
    )
    return sorted(
        (c for rule in rules for c in rule(run)),
        key=lambda c: ("stop", "care", "note").index(c.level),
    )


def interval(row: dict, sign: bool = True, percent: bool = False) -> str:
    value, low, high = (
        number(row.get(key), sign=sign, percent=percent) for key in ("value", "low", "high")
    )
    if row.get("low") is None:
        return f"{value} (no interval: {row['n']} item{'s' * (row['n'] != 1)})"
    return f"{value} [{low}, {high}]"


def _unfinished(run: Run):
    missing = [
        name for name in run.config.get("stages", ()) if name not in run.stages and name != "report"
    ]
    begun = [s.name for s in run.stages.values() if not s.done and s.kind != "report"]
    if begun or missing:
        told = "; ".join(
            part
            for part in (
                f"not finished: {', '.join(begun)}" if begun else "",
                f"not begun: {', '.join(missing)}" if missing else "",
            )
            if part
        )
        yield Caution(
            "stop", f"This run is incomplete ({told}). What follows shows what is there.", "cost"
        )
    for problem in dict.fromkeys(run.problems):
        yield Caution("stop", f"Not readable: {problem}", "provenance")


def _measured(run: Run):
    """Whether the judge of the answers was shown to be right on pairs of the kind that it
    judges."""
    if judge.sentence(run) and not judge.shown_right(run):
        yield Caution("stop", judge.sentence(run), "judges")


def _topic(run: Run):
    """What of the topic was left at its default while other parts were the user's own."""
    for note in run.info.get("topic_notes") or ():
        yield Caution("care", f"{headed(note)}.", "provenance")


def _null_results(run: Run):
    """One caution a set of prompts: which models do not differ from the first, and which score
    lower."""
    for on, rows in _by_place(run, "pm_score").items():
        where = place_name(on)
        null = [f"{model_name(r['model'])} {interval(r)}" for r in rows if r.get("null")]
        lower = [
            f"{model_name(r['model'])} {interval(r)}"
            for r in rows
            if not r.get("null") and r["value"] < 0
        ]
        against = model_name(rows[0]["against"])
        if lower:
            yield Caution(
                "stop", f"Lower PM score than {against} on {where}: {', '.join(lower)}.", "results"
            )
        if null:
            told = (
                f"Null result on {where}: the PM score differs from {against}'s by an "
                "interval that includes zero"
            )
            yield Caution("care", f"{told} ({', '.join(null)}).", "results")


def _harm(run: Run):
    """Absolute harmfulness: is the regressor better than saying the mean, and did the last model's
    harm rise?"""
    for row in run.evaluation["rows"]:
        if row["metric"] == "harm_l2" and row["against"] and (row.get("null") or row["value"] >= 0):
            told = (
                "The regressor of harm is not shown to be better than always saying the mean "
                f"rating ({row['on']}: "
                f"difference of squared errors {interval(row)}); its numbers mean nothing."
            )
            yield Caution("stop", told, "results")
    for row in find_differences(run, "expected_harm"):
        if row["value"] > 0 and not row.get("null"):
            yield Caution(
                "stop",
                f"More expected harm than {model_name(row['against'])} at {place_name(row['on'])}: "
                f"{model_name(row['model'])} {interval(row)} on the scale from 0 to 4.",
                "results",
            )


def _length(run: Run):
    drifts = []
    for on, rows in _by_place(run, "num_tokens").items():
        for row in rows:
            base = find(run.evaluation["rows"], "num_tokens", on, row["against"])
            if (
                base
                and base[0]["value"]
                and abs(row["value"]) > LENGTH_DRIFT * base[0]["value"]
                and not row.get("null")
            ):
                share = number(row["value"] / base[0]["value"], sign=True, percent=True)
                drifts.append(f"{model_name(row['model'])} {share} on {place_name(on)}")
    if drifts:
        told = (
            f"Length drift: {', '.join(drifts)}. Preference models often reward length; read "
            "the scores with "
            "that in mind."
        )
        yield Caution("care", told, "results")


def _copied(run: Run):
    for stage in run.of_kind("revise"):
        every = {r["metric"]: r for r in copied.rows(run, stage) if r["value"] > COPY_LIMIT}
        if echoes := every.pop("revision_echoes_critique", None):
            told = (
                f"{headed(stage.name)}: {interval(echoes, sign=False, percent=True)} of the "
                "revisions"
            )
            yield Caution(
                "care",
                f"{told} are for at least half the words of the critique before them: the "
                "model repeats it where "
                "it should answer anew.",
                "transparency",
            )
        if high := list(every.values()):
            what = {"revision_critiques_copied": "critiques", "revision_copied": "revisions"}
            told = " and ".join(
                f"{interval(r, sign=False, percent=True)} of the {what[r['metric']]}" for r in high
            )
            yield Caution(
                "care",
                f"{headed(stage.name)}: {told} repeat five or more words in a row of the "
                "worked examples, which "
                "are about other matters: the model copies where it should look.",
                "transparency",
            )


def _by_place(run: Run, metric: str) -> dict[str, list[dict]]:
    """Set of prompts → the metric's differences to the first model."""
    places: dict[str, list[dict]] = {}
    for row in find_differences(run, metric):
        places.setdefault(row["on"], []).append(row)
    return places


def find_differences(run: Run, metric: str) -> list[dict]:
    return [
        r
        for r in run.evaluation["rows"]
        if r["metric"] == metric and r["against"] and r["value"] is not None
    ]


def _kl(run: Run):
    for stage in run.of_kind("rl"):
        known = [row["kl"] for row in run.training(stage.name) if row.get("kl") is not None]
        if known and known[-1] > KL_LIMIT:
            told = (
                f"{stage.name}: KL to the reference is {number(known[-1], 1)} nats a response, "
                "beyond "
                f"{KL_LIMIT:.0f}: "
                "a rising reward there is often the preference model being fooled."
            )
            yield Caution("care", told, "training")
        if known and min(known) < -0.5:
            told = (
                f"{stage.name}: KL fell to {number(min(known))}, below zero beyond noise: "
                "sampler and trainer "
                "disagree."
            )
            yield Caution("stop", told, "training")


def _labels(run: Run):
    for stage in run.of_kind("feedback"):
        flip, first, sure = (
            stage.summary.get(k) for k in ("flip_rate", "chose_option_a", "mean_confidence")
        )
        found = []
        if flip is not None and flip > FLIP_LIMIT:
            found.append(
                f"{number(flip, percent=True)} of the labels change when the two options "
                "change places"
            )
        if first is not None and abs(first - 0.5) > SIDE_LIMIT:
            found.append(f"option (A) is chosen {number(first, percent=True)} of the time")
        if found:
            told = (
                f"Position bias in {stage.name}: {', and '.join(found)}. Position often "
                "decides instead of content."
            )
            yield Caution("stop" if (flip or 0) > MOST_FLIP else "care", told, "labels")
        if sure is not None and sure < 0.55:
            told = (
                f"{stage.name}: mean confidence {number(sure)}, so the labels are close to "
                "coin flips."
            )
            yield Caution("care", told, "labels")


def _preference(run: Run):
    for row in find(run.evaluation["rows"], "pm_accuracy"):
        if ":" in row["on"] or row["value"] is None:
            continue
        longer = row["baseline"].get("longer")
        items = "held-out comparisons" if row["on"] == "comparisons" else f"{row['on']} pairs"
        shown = number(row["value"], percent=True)
        if row["low"] is not None and row["low"] <= 0.5:
            told = (
                f"The preference model is right on {shown} of {row['n']} {items}; the "
                "interval includes chance."
            )
            yield Caution("care", told, "judges")
        elif longer is not None and row["value"] <= longer:
            told = (
                f"Always preferring the longer text ({number(longer, percent=True)}) does as "
                "well as the "
                "preference "
                f"model on {items} ({shown})."
            )
            yield Caution("care", told, "judges")
    for metric in ("choice_zero_shot", "choice_few_shot", "choice_chain_of_thought"):
        for row in find(run.evaluation["rows"], metric):
            if ":" in row["on"] or row["model"] in run.models:
                continue
            chance = row["baseline"].get("chance") or 0.5
            if row["low"] is not None and row["low"] <= chance:
                mode = metric.removeprefix("choice_").replace("_", " ")
                who = "The feedback model" if row["model"] == "feedback" else headed(row["model"])
                told = (
                    f"{who} answers {number(row['value'], percent=True)} of {row['n']} "
                    f"{row['on']} questions "
                    f"rightly ({mode}); the interval includes chance, so its labels may carry "
                    "no signal."
                )
                yield Caution("care", told, "judges")


def _truncation(run: Run):
    for stage in run.stages.values():
        if stage.kind == "evaluate":  # by set of prompts, below
            continue
        counts = (stage.summary.get("cut") or {}).items()
        high = [
            f"{count['cut']:,} of {count['of']:,} {what}"
            for what, count in counts
            if count["of"] and count["cut"] / count["of"] > CUT_LIMIT
        ]
        if high:
            told = f"{headed(stage.name)}: {', '.join(high)} were cut at the limit of tokens"
            yield Caution("note", f"{told}{CUT_MEANS.get(stage.kind, '')}.", "cost")
    for stage in run.of_kind("pm"):
        unknown = not stage.summary.get("reads_cut", True)
        if unknown and any(_cut_in(other) for other in _scored_by(run, stage.name)):
            told = (
                f"{headed(stage.name)} was trained on (almost) no answer that was cut at the "
                "limit of tokens, and "
                "reads those that it scores as if they had ended there."
            )
            yield Caution("note", told, "judges")
    cut = [
        (
            f"{number(row['value'], percent=True)} of {model_name(row['model'])}'s to "
            f"{place_name(row['on'])}"
        )
        for row in find(run.evaluation["rows"], "cut_rate")
        if row["value"] is not None and row["value"] > CUT_LIMIT
    ]
    if cut:
        yield Caution("note", f"Answers cut at the length limit: {', '.join(cut)}.", "results")


def _clamps(run: Run):
    for stage in run.of_kind("pm"):
        if stage.summary.get("unclamped_chains"):
            told = (
                f"{headed(stage.name)} learned from soft labels after chains of thought that "
                "are not clamped. They are "
                "nearly 0 or 1; the paper clamps them to 0.4 to 0.6."
            )
            yield Caution("care", told, "labels")
        if gap := stage.summary.get("clamp_undone"):
            told = (
                f"{headed(stage.name)}: labels are clamped, but all pairs are AI labels and "
                "scores are scaled to a standard "
                "deviation of 1, which undoes the smaller scale: two answers differ by "
                f"{number(gap['raw'])} raw and by "
                f"{number(gap['scaled'])} scaled. Read KL and reward with that in mind."
            )
            yield Caution("care", told, "labels")


def _cut_in(stage) -> bool:
    return any(count["cut"] for count in (stage.summary.get("cut") or {}).values())


def _scored_by(run: Run, name: str) -> list:
    """The stages whose answers the preference model of that name scores."""
    return [
        stage
        for stage in run.stages.values()
        if stage.kind in ("rl", "best_of", "evaluate") and stage.fields.get("reward") == f"@{name}"
    ]


def _training(run: Run):
    for stage in run.of_kind("rl"):
        for row in run.training(stage.name)[:1]:
            error = row.get("first_ratio_error")
            if error is not None and error > GAP_LIMIT:
                told = (
                    f"{stage.name}: the first minibatch's probability ratio is {error:.1e} "
                    "away from 1."
                )
                yield Caution("stop", told, "training")
        gaps = [
            row["sampler_gap"]
            for row in run.training(stage.name)
            if row.get("sampler_gap") is not None
        ]
        if gaps and max(gaps) > GAP_LIMIT:
            told = (
                f"{stage.name}: sampler and trainer log-probabilities differ by up to "
                f"{max(gaps):.1e}."
            )
            yield Caution("stop", told, "training")


def _judge(run: Run):
    for note in run.evaluation["notes"]:
        yield Caution("care", f"{note[:1].upper()}{note[1:]}.", "judges")


def _small(run: Run):
    size = run.num_parameters
    if size and size < SMALL_MODEL and run.of_kind("revise"):
        told = (
            f"Small models critique poorly: this one has {quantity(size)} parameters. Read "
            "some critiques before "
            "drawing conclusions about the method."
        )
        yield Caution("note", told, "transcripts")


def _few(run: Run):
    counts = {row["on"]: row["n"] for row in find(run.evaluation["rows"], "pm_score")}
    few = {on: n for on, n in counts.items() if n < FEW_ITEMS}
    if few:
        told = ", ".join(f"{n} {place_name(on)}" for on, n in sorted(few.items()))
        yield Caution("note", f"Few items: {told}. Only large effects can show.", "results")


def _dropped(run: Run):
    left_out = [
        f"{stage.name} "
        + ", ".join(f"{n:,} {reason}" for reason, n in sorted(stage.dropped.items()))
        for stage in run.stages.values()
        if stage.dropped
    ]
    if left_out:
        yield Caution("note", f"Rows left out: {'; '.join(left_out)}.", "cost")


def _worked_examples(run: Run):
    """Few-shot requests that were too long with all their worked examples."""
    for stage in run.stages.values():
        counts = stage.summary.get("few_shot") or {}
        if counts.get("examples"):
            told = (
                f"{stage.name}: worked examples left out: {counts['examples']:,}, in "
                f"{counts['requests']:,} of "
                f"{counts['of']:,} requests, which with all of them were longer than the context."
            )
            many = counts["requests"] > EXAMPLES_LIMIT * counts["of"]
            yield Caution("care" if many else "note", told, "cost")
