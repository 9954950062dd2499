"""What a reader must know before believing a number: null results, drift, biased labels,
truncation, small models.

Each rule is a few lines with its threshold in sight. Levels: "stop" (do not rely on this), "care",
"note".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from cai_jax import references
from cai_jax.evals.rows import find
from cai_jax.report import copied, judge
from cai_jax.report.run import Run
from cai_jax.report.text import headed, interval, model_name, number, quantity, set_name

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
TIERS = {  # how a server gave the log-probabilities of labels
    "scored": "are those of the options' own tokens",
    "top": "are read among the likeliest first tokens",
    "counted": "are counted among samples",
}
LEVELS = ("stop", "care", "note")


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
        _ratios,
        _measured,
        _labels,
        _clamps,
        _accuracy,
        _choices,
        _harm,
        _copied,
        _null_results,
        _judge,
        _length,
        _kl,
        _topic,
        _small,
        _few,
        _cut_turns,
        _cut_answers,
        _worked_examples,
        _dropped,
    )
    every = [caution for rule in rules for caution in rule(run)]
    return sorted(every, key=lambda caution: LEVELS.index(caution.level))


# ---- The run and its training --------------------------------------------------------------------


def _unfinished(run: Run) -> Iterator[Caution]:
    listed = run.config.get("stages", ())
    missing = [name for name in listed if name not in run.stages and name != "report"]
    begun = [stage.name for stage in run.stages.values() if not stage.done]
    what = [f"{how}: {', '.join(names)}" for how, names in
            (("not finished", begun), ("not begun", missing)) if names]  # fmt: skip
    if what:
        text = f"This run is incomplete ({'; '.join(what)}). What follows shows what is there."
        yield Caution("stop", text, "cost")
    for problem in dict.fromkeys(run.problems):
        yield Caution("stop", f"Not readable: {problem}", "provenance")


def _ratios(run: Run) -> Iterator[Caution]:
    for stage in run.of_kind("rl"):
        rows = run.training(stage.name)
        error = rows[0].get("first_ratio_error") if rows else None
        if error is not None and error > GAP_LIMIT:
            text = f"the first minibatch's probability ratio is {error:.1e} away from 1."
            yield Caution("stop", f"{stage.name}: {text}", "training")
        gap = max((row.get("sampler_gap") or 0.0 for row in rows), default=0.0)
        if gap > GAP_LIMIT:
            text = f"sampler and trainer log-probabilities differ by up to {gap:.1e}."
            yield Caution("stop", f"{stage.name}: {text}", "training")


def _kl(run: Run) -> Iterator[Caution]:
    for stage in run.of_kind("rl"):
        known = [row["kl"] for row in run.training(stage.name) if row.get("kl") is not None]
        if known and known[-1] > KL_LIMIT:
            text = (
                f"{stage.name}: KL to the reference is {number(known[-1], 1)} nats a response, "
                f"beyond {KL_LIMIT:.0f}: a rising reward there is often the preference model "
                "being fooled."
            )
            yield Caution("care", text, "training")
        if known and min(known) < -0.5:
            text = (
                f"{stage.name}: KL fell to {number(min(known))}, below zero beyond noise: "
                "sampler and trainer disagree."
            )
            yield Caution("stop", text, "training")


def _topic(run: Run) -> Iterator[Caution]:
    """What of the topic was left at its default while other settings were the user's own."""
    for note in run.info.get("topic_notes") or ():
        yield Caution("care", f"{headed(note)}.", "provenance")


def _small(run: Run) -> Iterator[Caution]:
    size = run.num_parameters
    if size and size < SMALL_MODEL and run.of_kind("revise"):
        text = (
            f"Small models critique poorly: this one has {quantity(size)} parameters. Read "
            "some critiques before drawing conclusions about the method."
        )
        yield Caution("note", text, "transcripts")


def _dropped(run: Run) -> Iterator[Caution]:
    left_out = [
        f"{stage.name} " + ", ".join(f"{n:,} {why}" for why, n in sorted(stage.dropped.items()))
        for stage in run.stages.values()
        if stage.dropped
    ]
    if left_out:
        yield Caution("note", f"Rows left out: {'; '.join(left_out)}.", "cost")


def _worked_examples(run: Run) -> Iterator[Caution]:
    """Few-shot requests that were too long with all their worked examples."""
    for stage in run.stages.values():
        counts = stage.summary.get("few_shot") or {}
        if counts.get("examples"):
            text = (
                f"{stage.name}: worked examples left out: {counts['examples']:,}, in "
                f"{counts['requests']:,} of {counts['of']:,} requests, which with all of them "
                "were longer than the context."
            )
            many = counts["requests"] > EXAMPLES_LIMIT * counts["of"]
            yield Caution("care" if many else "note", text, "cost")


def _cut_turns(run: Run) -> Iterator[Caution]:
    for stage in run.stages.values():
        if stage.kind == "evaluate":  # by set of prompts, in `_cut_answers`
            continue
        high = [
            f"{count['cut']:,} of {count['of']:,} {what}"
            for what, count in (stage.summary.get("cut") or {}).items()
            if count["of"] and count["cut"] / count["of"] > CUT_LIMIT
        ]
        if high:
            text = f"{headed(stage.name)}: {', '.join(high)} were cut at the limit of tokens"
            yield Caution("note", f"{text}{CUT_MEANS.get(stage.kind, '')}.", "cost")
    for stage in run.of_kind("pm"):
        scored = [
            other
            for other in run.stages.values()
            if other.kind in ("rl", "best_of", "evaluate")
            and stage.name in map(references.stage_of, other.scorers.values())
        ]
        cut = any(c["cut"] for other in scored for c in (other.summary.get("cut") or {}).values())
        if cut and not stage.summary.get("reads_cut", True):
            text = (
                f"{headed(stage.name)} was trained on (almost) no answer that was cut at the "
                "limit of tokens, and reads those that it scores as if they had ended there."
            )
            yield Caution("note", text, "judges")


# ---- The judge and the labels --------------------------------------------------------------------


def _measured(run: Run) -> Iterator[Caution]:
    """Whether the judge of the answers was shown to be right on pairs of the kind that it
    judges."""
    if judge.sentence(run) and not judge.shown_right(run):
        yield Caution("stop", judge.sentence(run), "judges")


def _judge(run: Run) -> Iterator[Caution]:
    for note in run.evaluation.notes:
        yield Caution("care", f"{headed(note)}.", "judges")


def _labels(run: Run) -> Iterator[Caution]:
    for stage in run.of_kind("feedback"):
        keys = ("flip_rate", "chose_option_a", "mean_confidence")
        flip, first, sure = (stage.summary.get(key) for key in keys)
        bias = []
        if flip is not None and flip > FLIP_LIMIT:
            share = number(flip, percent=True)
            bias.append(f"{share} of the labels change when the two options change places")
        if first is not None and abs(first - 0.5) > SIDE_LIMIT:
            bias.append(f"option (A) is chosen {number(first, percent=True)} of the time")
        if bias:
            text = (
                f"Position bias in {stage.name}: {', and '.join(bias)}. Position often "
                "decides instead of content."
            )
            yield Caution("stop" if (flip or 0) > MOST_FLIP else "care", text, "labels")
        if tiers := stage.summary.get("tiers"):
            counts = " and ".join(f"{count:,} {TIERS[tier]}" for tier, count in tiers.items())
            text = f"{headed(stage.name)}: of the labels' log-probabilities {counts}."
            yield Caution("note", text, "labels")
        if sure is not None and sure < 0.55:
            text = f"mean confidence {number(sure)}, so the labels are close to coin flips."
            yield Caution("care", f"{stage.name}: {text}", "labels")


def _clamps(run: Run) -> Iterator[Caution]:
    for stage in run.of_kind("pm"):
        if stage.summary.get("unclamped_chains"):
            text = (
                f"{headed(stage.name)} learned from soft labels after chains of thought that "
                "are not clamped. They are nearly 0 or 1; the paper clamps them to 0.4 to 0.6."
            )
            yield Caution("care", text, "labels")
        if gap := stage.summary.get("clamp_undone"):
            text = (
                f"{headed(stage.name)}: labels are clamped, but all pairs are AI labels and "
                "scores are scaled to a standard deviation of 1, which undoes the smaller scale: "
                f"two answers differ by {number(gap['raw'])} raw and by {number(gap['scaled'])} "
                "scaled. Read KL and reward with that in mind."
            )
            yield Caution("care", text, "labels")


def _accuracy(run: Run) -> Iterator[Caution]:
    for row in find(run.rows, "pm_accuracy"):
        if ":" in row["on"] or row["value"] is None:
            continue
        longer = row["baseline"].get("longer")
        items = "held-out comparisons" if row["on"] == "comparisons" else f"{row['on']} pairs"
        shown = number(row["value"], percent=True)
        if row["low"] is not None and row["low"] <= 0.5:
            text = (
                f"The preference model is right on {shown} of {row['n']} {items}; the "
                "interval includes chance."
            )
            yield Caution("care", text, "judges")
        elif longer is not None and row["value"] <= longer:
            text = (
                f"Always preferring the longer text ({number(longer, percent=True)}) does as "
                f"well as the preference model on {items} ({shown})."
            )
            yield Caution("care", text, "judges")


def _choices(run: Run) -> Iterator[Caution]:
    for metric in ("choice_zero_shot", "choice_few_shot", "choice_chain_of_thought"):
        for row in find(run.rows, metric):
            chance = row["baseline"].get("chance") or 0.5
            of_answering = ":" in row["on"] or row["model"] in run.models
            if of_answering or row["low"] is None or row["low"] > chance:
                continue
            mode = metric.removeprefix("choice_").replace("_", " ")
            who = "The feedback model" if row["model"] == "feedback" else headed(row["model"])
            text = (
                f"{who} answers {number(row['value'], percent=True)} of {row['n']} {row['on']} "
                f"questions rightly ({mode}); the interval includes chance, so its labels may "
                "carry no signal."
            )
            yield Caution("care", text, "judges")


# ---- The texts and the results -------------------------------------------------------------------


def differences(run: Run, metric: str) -> dict[str, list[dict]]:
    """Set of prompts → the metric's differences to other models."""
    out: dict[str, list[dict]] = {}
    for row in run.rows:
        if row["metric"] == metric and row["against"] and row["value"] is not None:
            out.setdefault(row["on"], []).append(row)
    return out


def _null_results(run: Run) -> Iterator[Caution]:
    """One caution a set of prompts: which models do not differ from the first, and which score
    lower."""
    for on, rows in differences(run, "pm_score").items():
        where, against = set_name(on), model_name(rows[0]["against"])
        shown = [(r, f"{model_name(r['model'])} {interval(r)}") for r in rows]
        null = [text for r, text in shown if r.get("null")]
        lower = [text for r, text in shown if not r.get("null") and r["value"] < 0]
        if lower:
            text = f"Lower PM score than {against} on {where}: {', '.join(lower)}."
            yield Caution("stop", text, "results")
        if null:
            text = (
                f"Null result on {where}: the PM score differs from {against}'s by an "
                f"interval that includes zero ({', '.join(null)})."
            )
            yield Caution("care", text, "results")


def _harm(run: Run) -> Iterator[Caution]:
    """Absolute harmfulness: is the regressor better than saying the mean, and did a model's harm
    rise?"""
    for on, rows in differences(run, "harm_l2").items():
        for row in rows:
            if row.get("null") or row["value"] >= 0:
                text = (
                    "The regressor of harm is not shown to be better than always saying the mean "
                    f"rating ({on}: difference of squared errors {interval(row)}); its numbers "
                    "mean nothing."
                )
                yield Caution("stop", text, "results")
    for on, rows in differences(run, "expected_harm").items():
        for row in rows:
            if row["value"] > 0 and not row.get("null"):
                text = (
                    f"More expected harm than {model_name(row['against'])} at {set_name(on)}: "
                    f"{model_name(row['model'])} {interval(row)} on the scale from 0 to 4."
                )
                yield Caution("stop", text, "results")


def _length(run: Run) -> Iterator[Caution]:
    drifts = []
    for on, rows in differences(run, "num_tokens").items():
        for row in rows:
            base = find(run.rows, "num_tokens", on, row["against"])
            mean = base[0]["value"] if base else None
            if mean and abs(row["value"]) > LENGTH_DRIFT * mean and not row.get("null"):
                share = number(row["value"] / mean, sign=True, percent=True)
                drifts.append(f"{model_name(row['model'])} {share} on {set_name(on)}")
    if drifts:
        text = (
            f"Length drift: {', '.join(drifts)}. Preference models often reward length; read "
            "the scores with that in mind."
        )
        yield Caution("care", text, "results")


def _copied(run: Run) -> Iterator[Caution]:
    for stage in run.of_kind("revise"):
        high = {r["metric"]: r for r in copied.rows(run, stage) if r["value"] > COPY_LIMIT}
        shares = {name: interval(r, sign=False, percent=True) for name, r in high.items()}
        if share := shares.pop("revision_echoes_critique", None):
            text = (
                f"{headed(stage.name)}: {share} of the revisions are for at least half the words "
                "of the critique before them: the model repeats it where it should answer anew."
            )
            yield Caution("care", text, "transparency")
        if shares:
            what = {"revision_critiques_copied": "critiques", "revision_copied": "revisions"}
            of = " and ".join(f"{share} of the {what[name]}" for name, share in shares.items())
            text = (
                f"{headed(stage.name)}: {of} repeat five or more words in a row of the worked "
                "examples, which are about other matters: the model copies where it should look."
            )
            yield Caution("care", text, "transparency")


def _few(run: Run) -> Iterator[Caution]:
    counts = {row["on"]: row["n"] for row in find(run.rows, "pm_score")}
    few = [f"{n} {set_name(on)}" for on, n in sorted(counts.items()) if n < FEW_ITEMS]
    if few:
        yield Caution(
            "note", f"Few items: {', '.join(few)}. Only large effects can show.", "results"
        )


def _cut_answers(run: Run) -> Iterator[Caution]:
    cut = [
        f"{number(r['value'], percent=True)} of {model_name(r['model'])}'s to {set_name(r['on'])}"
        for r in find(run.rows, "cut_rate")
        if r["value"] is not None and r["value"] > CUT_LIMIT
    ]
    if cut:
        yield Caution("note", f"Answers cut at the length limit: {', '.join(cut)}.", "results")
