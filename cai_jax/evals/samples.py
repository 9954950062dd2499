"""From sampled answers and their preference-model scores to rows: every score with its length,
style and Elo beside it.

Records are response records with `on` (the set of prompts) and `name` (the model). Samples of one
prompt are averaged first: the prompt is the independent unit. Differences are paired by prompt and
taken against the first model.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from cai_jax.evals import elo as elo_lib
from cai_jax.evals import length, text_statistics
from cai_jax.evals.intervals import (
    Estimate,
    bootstrap_mean,
    cluster_means,
    net_wins,
    paired_difference,
    wilson,
)
from cai_jax.evals.rows import row

# metric → (unit, which way is good). Refusals are good or bad by the prompts they answer, so
# neither here.
METRICS = {
    "pm_score": ("PM score", "higher"),
    "num_tokens": ("tokens", None),
    "refusal_rate": ("share", None),
    "evasive_rate": ("share", "lower"),
    "empty_rate": ("share", "lower"),
    "cut_rate": ("share", "lower"),
    "repetition": ("share of 4-grams", "lower"),
    "boilerplate": ("phrases an answer", "lower"),
}

# Units of means of values that are 0 or 1 (or ½), whose intervals are those of shares.
SHARES = ("share", "accuracy")

# Kinds of prompts like "safe:homonyms" (the XSTest schema) are counted apart: a refusal of a safe
# one is over-refusal.
LABELS = ("safe", "unsafe")


def by_prompt(
    records: Sequence[Mapping], scores: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """metric → prompt id → mean over its samples, for the records of one model on one set of
    prompts."""
    style = text_statistics.describe([r["response"] for r in records])
    values = {
        "num_tokens": [r["num_tokens"] for r in records],
        "refusal_rate": style.share("evasive", "engaged"),
        "evasive_rate": style.share("evasive"),
        "empty_rate": style.share("empty"),
        "cut_rate": [float(r["stop"] == "length") for r in records],
        "repetition": style.repetition,
        "boilerplate": style.boilerplate,
    }
    prompts = [r["prompt_id"] for r in records]
    result = {
        metric: dict(zip(*cluster_means(v, prompts), strict=True)) for metric, v in values.items()
    }
    scored = [(scores[r["id"]], r["prompt_id"]) for r in records if r["id"] in scores]
    result["pm_score"] = dict(
        zip(*cluster_means([s for s, _ in scored], [p for _, p in scored]), strict=True)
    )
    return result


def rows(
    records: Sequence[Mapping],
    scores: Mapping[str, float],
    models: Sequence[str],
    *,
    anchor: str | None = None,
    ties: str = "drop",
    seed: int = 0,
) -> list[dict]:
    """All rows for all sets of prompts.

    Args:
        records: answers of all models on all sets of prompts.
        scores: record id → PM score.
        models: names in the order of the run; differences are to the first.
        anchor: the model with Elo 0 (default: the first).
        ties: what Elo does with equal scores, see `elo.elo`.
        seed: of the bootstraps.
    """
    groups = collections.defaultdict(list)
    for record in records:
        groups[record["on"], record["name"]].append(record)
        label = str(record.get("kind") or "").partition(":")[0]
        if label in LABELS:
            groups[f"{record['on']}:{label}", record["name"]].append(record)
    out = []
    for on in sorted({on for on, _ in groups}):
        present = [name for name in models if (on, name) in groups]
        means = {name: by_prompt(groups[on, name], scores) for name in present}
        first = present[0]
        for metric, (unit, good) in METRICS.items():
            for name in present:
                values = means[name][metric]
                if not values:
                    continue
                estimate = mean_estimate(list(values.values()), unit, seed)
                out.append(row(metric, on, name, estimate, unit=unit, good=good))
                if name != first and means[first][metric]:
                    difference = difference_estimate(means[first][metric], values, unit, seed)
                    out.append(
                        row(metric, on, name, difference, against=first, unit=unit, good=good)
                    )
        for name in present[1:]:
            out += _at_equal_length(on, name, first, means[name], means[first], seed)
        for name in present:
            value = text_statistics.distinct([r["response"] for r in groups[on, name]])
            out.append(
                row(
                    "distinct_2",
                    on,
                    name,
                    Estimate(value, None, None, len(groups[on, name])),
                    good="higher",
                    unit="share of bigrams",
                    note="over the first 50 words of each answer; no interval",
                )
            )
        judged = {name: means[name]["pm_score"] for name in present if means[name]["pm_score"]}
        if len(judged) > 1:
            zero, won = anchor if anchor in judged else first, elo_lib.outcomes_from_scores(judged)
            for name, estimate in elo_lib.elo(won, zero, ties=ties, seed=seed).items():
                out.append(
                    row(
                        "elo",
                        on,
                        name,
                        estimate,
                        unit="Elo",
                        good="higher",
                        note=f"Bradley–Terry on PM verdicts, {zero} = 0, {elo_lib.TIES[ties]}",
                    )
                )
            out += win_rows("win_rate", on, won)
    return out


def mean_estimate(values: Sequence[float], unit: str, seed: int) -> Estimate:
    """The mean of a metric with this unit: all zeros among n prompts do not make a share zero, and
    Wilson says how large it may still be. A share of 4-grams varies less than a share of answers,
    so only where all are equal is it treated as one."""
    estimate = bootstrap_mean(values, seed=seed)
    if unit == "share" or (unit.startswith("share") and estimate.low is None):
        return wilson(sum(values), len(values))
    return estimate


def difference_estimate(
    before: Mapping[str, float], after: Mapping[str, float], unit: str, seed: int
) -> Estimate:
    """The paired difference after − before of a metric with this unit, by prompt; of shares as in
    `mean_estimate`."""
    estimate = paired_difference(before, after, seed=seed, shares=unit in SHARES)
    if unit.startswith("share") and estimate.low is None:
        return paired_difference(before, after, shares=True)
    return estimate


def win_rows(
    metric: str, on: str, won: Mapping[tuple[str, str], Mapping[str, float]]
) -> list[dict]:
    """How often the second model of each pair beats the first (`elo.outcomes_from_scores`); a tie
    is half a win."""
    found = []
    for (a, b), by_prompt in won.items():
        rate = wilson(sum(1 - share for share in by_prompt.values()), len(by_prompt))
        found.append(
            row(metric, on, b, rate, over=a, unit="share", good="higher", baseline={"even": 0.5})
        )
        found[-1]["name"] += f">{a}"
    return found


def _at_equal_length(
    on: str, name: str, first: str, means: Mapping, before: Mapping, seed: int
) -> list[dict]:
    """Differences to the first model with what length explains taken out (`length.py`), beside the
    plain net wins."""
    common = sorted(set(means["pm_score"]) & set(before["pm_score"]))
    if not common:
        return []
    scores, tokens = (
        [means[metric][p] - before[metric][p] for p in common]
        for metric in ("pm_score", "num_tokens")
    )
    found = {
        "pm_score_at_equal_length": (
            length.score_difference(scores, tokens, seed=seed),
            "PM score",
        ),
        "net_wins": (net_wins(scores), "share"),
        "net_wins_at_equal_length": (length.net_wins(scores, tokens, seed=seed), "share"),
    }
    return [
        row(metric, on, name, estimate, against=first, unit=unit, good="higher")
        for metric, (estimate, unit) in found.items()
    ]


def revision_rows(
    revisions: Sequence[Mapping], scores: Mapping[str, float], *, seed: int = 0
) -> list[dict]:
    """PM score after 0, 1, … revisions (Figure 5); how far they moved it by kind of harm, and by
    principle with how often it was used and changed the answer, over all ("revisions") and within
    each kind of harm ("revisions:KIND").

    `scores`: "<record id>#<number of revisions>" → score.
    """
    out, by_round, by_kind = [], collections.defaultdict(dict), collections.defaultdict(list)
    moved, changed = (
        collections.defaultdict(list),
        collections.defaultdict(list),
    )  # (place, principle) → one a revision
    for record in revisions:
        texts = [record["initial"], *(r["revision"] for r in record["rounds"])]
        first, last = (scores.get(f"{record['id']}#{number}") for number in (0, len(texts) - 1))
        if record.get("kind") and first is not None and last is not None:
            by_kind[record["kind"]].append(last - first)
        for number in range(len(texts)):
            score = scores.get(f"{record['id']}#{number}")
            if score is None:
                continue
            by_round[number][record["id"]] = score
            if number:
                principle = record["rounds"][number - 1]["principle_id"]
                before = scores.get(f"{record['id']}#{number - 1}")
                for on in (
                    "revisions",
                    *([f"revisions:{record['kind']}"] if record.get("kind") else []),
                ):
                    changed[on, principle].append(float(texts[number] != texts[number - 1]))
                    if before is not None:
                        moved[on, principle].append(score - before)
    for number, values in sorted(by_round.items()):
        out.append(
            row(
                "pm_score_by_revision",
                "revisions",
                str(number),
                bootstrap_mean(list(values.values()), seed=seed),
                unit="PM score",
                good="higher",
            )
        )
        if number:
            difference = paired_difference(by_round[0], values, seed=seed)
            out.append(
                row(
                    "pm_score_by_revision",
                    "revisions",
                    str(number),
                    difference,
                    against="0",
                    unit="PM score",
                    good="higher",
                )
            )
    out += [
        row(
            "score_moved_by_kind",
            "revisions",
            kind,
            bootstrap_mean(values, seed=seed),
            unit="PM score",
            good="higher",
        )
        for kind, values in sorted(by_kind.items())
    ]
    for on, principle in sorted(changed):
        estimate, found = bootstrap_mean(moved[on, principle], seed=seed), changed[on, principle]
        out.append(
            row(
                "score_moved",
                on,
                principle,
                estimate,
                unit="PM score",
                good="higher",
                used=len(found),
                changed=sum(found) / len(found),
            )
        )
    return out
