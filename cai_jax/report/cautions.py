"""What a reader must know before believing a number: null results, drift, biased labels,
truncation, small models.

Each rule is a few lines with its threshold in sight; what it says is in templates/sentences.j2.
Levels: "stop" (do not rely on this), "care", "note".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from cai_jax import references
from cai_jax.evals.rows import find
from cai_jax.report import copied, judge
from cai_jax.report.render import say
from cai_jax.report.run import Run

SMALL_MODEL = 1_000_000_000
LENGTH_DRIFT = 0.25  # of the first model's mean length
KL_LIMIT = 15.0  # nats a response: √KL ≈ 4, about where 2204's reward curves stop being linear
FLIP_LIMIT = 0.25
MOST_FLIP = 0.5  # beyond it most labels are decided by position
SIDE_LIMIT = 0.2  # of how often option (A) is chosen, around one half
UNSURE_LIMIT = 0.55
CUT_LIMIT = 0.25
FEW_ITEMS = 50
GAP_LIMIT = 1e-3
COPY_LIMIT = 0.05
EXAMPLES_LIMIT = 0.25  # of the requests: those that had fewer worked examples than wanted
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
    rules = (unfinished, ratios, judged, labels, clamps, accuracy, choices, harm, copies,
             null_results, notes, length, kl, small, few, cut_turns, cut_answers,
             worked_examples, dropped)  # fmt: skip
    every = [caution for rule in rules for caution in rule(run)]
    return sorted(every, key=lambda caution: LEVELS.index(caution.level))


# ---- The run and its training --------------------------------------------------------------------


def unfinished(run: Run) -> Iterator[Caution]:
    listed = run.config.get("stages", ())
    missing = [name for name in listed if name not in run.stages and name != "report"]
    begun = [stage.name for stage in run.stages.values() if not stage.done]
    what = {"not finished": begun, "not begun": missing}
    if any(what.values()):
        shown = "; ".join(f"{how}: {', '.join(names)}" for how, names in what.items() if names)
        yield Caution("stop", say("incomplete", shown), "cost")
    for problem in dict.fromkeys(run.problems):
        yield Caution("stop", say("unreadable", problem), "provenance")


def ratios(run: Run) -> Iterator[Caution]:
    for stage in run.of_kind("rl"):
        rows = run.training(stage.name)
        error = rows[0].get("first_ratio_error") if rows else None
        if error is not None and error > GAP_LIMIT:
            yield Caution("stop", say("first_ratio", stage, error), "training")
        gap = max((row.get("sampler_gap") or 0.0 for row in rows), default=0.0)
        if gap > GAP_LIMIT:
            yield Caution("stop", say("sampler_gap", stage, gap), "training")


def kl(run: Run) -> Iterator[Caution]:
    for stage in run.of_kind("rl"):
        known = [row["kl"] for row in run.training(stage.name) if row.get("kl") is not None]
        if known and known[-1] > KL_LIMIT:
            yield Caution("care", say("high_kl", stage, known[-1], KL_LIMIT), "training")
        if known and min(known) < -0.5:
            yield Caution("stop", say("negative_kl", stage, min(known)), "training")


def notes(run: Run) -> Iterator[Caution]:
    """Of the evaluation, and what of the topic was left at its default while other settings were
    the user's own."""
    for note in run.evaluation.notes:
        yield Caution("care", say("note", note), "judges")
    for note in run.info.get("topic_notes") or ():
        yield Caution("care", say("note", note), "provenance")


def small(run: Run) -> Iterator[Caution]:
    size = run.num_parameters
    if size and size < SMALL_MODEL and run.of_kind("revise"):
        yield Caution("note", say("small", size), "transcripts")


def dropped(run: Run) -> Iterator[Caution]:
    if stages := [stage for stage in run.stages.values() if stage.dropped]:
        yield Caution("note", say("dropped", stages), "cost")


def worked_examples(run: Run) -> Iterator[Caution]:
    """Few-shot requests that were too long with all their worked examples."""
    for stage in run.stages.values():
        counts = stage.summary.get("few_shot") or {}
        if counts.get("examples"):
            many = counts["requests"] > EXAMPLES_LIMIT * counts["of"]
            yield Caution("care" if many else "note", say("few_shot", stage, counts), "cost")


def cut_turns(run: Run) -> Iterator[Caution]:
    """Of evaluate stages see `cut_answers`, by set of prompts."""
    for stage in run.stages.values():
        counts = (stage.summary.get("cut") or {}).items() if stage.kind != "evaluate" else ()
        if high := {k: c for k, c in counts if c["of"] and c["cut"] / c["of"] > CUT_LIMIT}:
            yield Caution("note", say("cut", stage, high), "cost")
    for stage in run.of_kind("pm"):
        scored = [
            other
            for other in run.stages.values()
            if other.kind in ("rl", "best_of", "evaluate")
            and stage.name in map(references.stage_of, other.scorers.values())
        ]
        cut = any(c["cut"] for other in scored for c in (other.summary.get("cut") or {}).values())
        if cut and not stage.summary.get("reads_cut", True):
            yield Caution("note", say("reads_cut", stage), "judges")


# ---- The judge and the labels --------------------------------------------------------------------


def judged(run: Run) -> Iterator[Caution]:
    """Whether the judge of the answers was shown to be right on pairs of the kind that it
    judges."""
    if judge.sentence(run) and not judge.shown_right(run):
        yield Caution("stop", judge.sentence(run), "judges")


def labels(run: Run) -> Iterator[Caution]:
    for stage in run.of_kind("feedback"):
        keys = ("flip_rate", "chose_option_a", "mean_confidence")
        flip, first, sure = (stage.summary.get(key) for key in keys)
        flip = None if flip is None or flip <= FLIP_LIMIT else flip
        first = None if first is None or abs(first - 0.5) <= SIDE_LIMIT else first
        if flip is not None or first is not None:
            level = "stop" if (flip or 0) > MOST_FLIP else "care"
            yield Caution(level, say("position_bias", stage, flip, first), "labels")
        if tiers := stage.summary.get("tiers"):
            yield Caution("note", say("tiers", stage, tiers), "labels")
        if sure is not None and sure < UNSURE_LIMIT:
            yield Caution("care", say("unsure", stage, sure), "labels")


def clamps(run: Run) -> Iterator[Caution]:
    for stage in run.of_kind("pm"):
        if stage.summary.get("unclamped_chains"):
            yield Caution("care", say("unclamped", stage), "labels")
        if gap := stage.summary.get("clamp_undone"):
            yield Caution("care", say("clamp_undone", stage, gap), "labels")


def accuracy(run: Run) -> Iterator[Caution]:
    for row in find(run.rows, "pm_accuracy"):
        if ":" in row["on"] or row["value"] is None:
            continue
        longer = row["baseline"].get("longer")
        if row["low"] is not None and row["low"] <= 0.5:
            yield Caution("care", say("chance", row), "judges")
        elif longer is not None and row["value"] <= longer:
            yield Caution("care", say("longer", row), "judges")


def choices(run: Run) -> Iterator[Caution]:
    for mode in ("zero_shot", "few_shot", "chain_of_thought"):
        for row in find(run.rows, f"choice_{mode}"):
            chance = row["baseline"].get("chance") or 0.5
            of_answering = ":" in row["on"] or row["model"] in run.models
            if not of_answering and row["low"] is not None and row["low"] <= chance:
                yield Caution("care", say("no_signal", row, mode.replace("_", " ")), "judges")


# ---- The texts and the results -------------------------------------------------------------------


def differences(run: Run, metric: str) -> dict[str, list[dict]]:
    """Set of prompts → the metric's differences to other models."""
    out: dict[str, list[dict]] = {}
    for row in run.rows:
        if row["metric"] == metric and row["against"] and row["value"] is not None:
            out.setdefault(row["on"], []).append(row)
    return out


def null_results(run: Run) -> Iterator[Caution]:
    """One caution a set of prompts: which models do not differ from the first, and which score
    lower."""
    for on, rows in differences(run, "pm_score").items():
        if lower := [row for row in rows if not row.get("null") and row["value"] < 0]:
            yield Caution("stop", say("lower", on, lower), "results")
        if null := [row for row in rows if row.get("null")]:
            yield Caution("care", say("null", on, null), "results")


def harm(run: Run) -> Iterator[Caution]:
    """Absolute harmfulness: is the regressor better than saying the mean, and did a model's harm
    rise?"""
    for row in sum(differences(run, "harm_l2").values(), []):
        if row.get("null") or row["value"] >= 0:
            yield Caution("stop", say("regressor", row), "results")
    for row in sum(differences(run, "expected_harm").values(), []):
        if row["value"] > 0 and not row.get("null"):
            yield Caution("stop", say("more_harm", row), "results")


def length(run: Run) -> Iterator[Caution]:
    drifts = []
    for row in sum(differences(run, "num_tokens").values(), []):
        base = find(run.rows, "num_tokens", row["on"], row["against"])
        mean = base[0]["value"] if base else None
        if mean and abs(row["value"]) > LENGTH_DRIFT * mean and not row.get("null"):
            drifts.append((row, row["value"] / mean))
    if drifts:
        yield Caution("care", say("length", drifts), "results")


def copies(run: Run) -> Iterator[Caution]:
    for stage in run.of_kind("revise"):
        high = {r["metric"]: r for r in copied.rows(run, stage) if r["value"] > COPY_LIMIT}
        if row := high.pop("revision_echoes_critique", None):
            yield Caution("care", say("echoes", stage, row), "transparency")
        if high:
            yield Caution("care", say("copied", stage, list(high.values())), "transparency")


def few(run: Run) -> Iterator[Caution]:
    counts = {row["on"]: row for row in find(run.rows, "pm_score")}
    if rows := [row for _, row in sorted(counts.items()) if row["n"] < FEW_ITEMS]:
        yield Caution("note", say("few", rows), "results")


def cut_answers(run: Run) -> Iterator[Caution]:
    rows = [r for r in find(run.rows, "cut_rate") if (r["value"] or 0.0) > CUT_LIMIT]
    if rows:
        yield Caution("note", say("cut_answers", rows), "results")
