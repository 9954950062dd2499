"""The same experiment with several seeds: means of its numbers over the runs, with what the runs
differ by as the interval."""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.evals.intervals import bootstrap_mean
from cai_jax.reporting.markdown import plain, table
from cai_jax.reporting.text import number, place_name

# What a run's seed can change; with the model that it is against, where it is a difference.
COMPARED = (
    "pm_score",
    "pm_score_at_equal_length",
    "net_wins_at_equal_length",
    "num_tokens",
    "pm_accuracy",
    "label_agreement",
    "label_flip_rate",
    "revision_moved",
)
PERCENT = ("net_wins_at_equal_length", "pm_accuracy", "label_agreement", "label_flip_rate")


def rows(runs: Sequence[Sequence[dict]]) -> list[dict]:
    """Of rows that all runs have: their mean with Student's interval over runs, and `by_run`.
    Scores themselves have no common scale over runs (each has a judge of its own), so of them only
    differences are kept."""
    tables = [
        {(r["metric"], r["on"], r["model"], r["against"]): r for r in found} for found in runs
    ]
    out = []
    for key, first in tables[0].items():
        values = [
            found[key]["value"]
            for found in tables
            if key in found and found[key]["value"] is not None
        ]
        if (
            key[0] not in COMPARED
            or len(values) < len(tables)
            or (key[0] == "pm_score" and key[3] is None)
        ):
            continue
        mean = bootstrap_mean(values)  # Student's t at least: seeds are few
        out.append(
            {
                **{
                    name: first[name]
                    for name in ("metric", "on", "model", "against", "unit", "good")
                },
                "value": mean.value,
                "low": mean.low,
                "high": mean.high,
                "n": mean.n,
                "by_run": values,
            }
        )
    return out


def tables(found: Sequence[dict]) -> str:
    if not found:
        return ""
    body = []
    for r in found:
        percent, digits = r["metric"] in PERCENT, 0 if r["metric"] == "num_tokens" else 2
        value, low, high, *each = (
            number(v, digits, percent=percent)
            for v in (r["value"], r["low"], r["high"], *r["by_run"])
        )
        shown = (
            "–"
            if r["against"] is None
            else "no difference shown"
            if r["low"] <= 0 <= r["high"]
            else ("**higher**" if r["value"] > 0 else "**lower**")
        )
        body.append(
            [
                plain(r["metric"]),
                plain(place_name(r["on"])),
                plain(r["model"]),
                plain(r["against"] or "–"),
                f"{value} [{low}, {high}]",
                shown,
                ", ".join(each),
            ]
        )
    head = ["number", "on", "model", "less that of", "mean over runs", "", "each run"]
    return f"### Over {found[0]['n']} runs with different seeds\n\n{table(head, body)}"
