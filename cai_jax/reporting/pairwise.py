"""Every two policies, preference models and label sources of a run against one another, paired by
prompt or by pair of answers."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence

from cai_jax.evals import agreement, length, preference, samples
from cai_jax.evals.intervals import paired_difference
from cai_jax.evals.rows import row
from cai_jax.reporting.cautions import interval
from cai_jax.reporting.markdown import plain, table
from cai_jax.reporting.run_data import Run
from cai_jax.reporting.text import headed, place_name

TITLES = {
    "pm_score": "the judge's score",
    "pm_score_at_equal_length": "the judge's score at equal length",
    "pm_accuracy": "accuracy on the same human pairs",
    "label_agreement": "agreement with people on the same pairs",
}


def rows(run: Run, seed: int = 0) -> list[dict]:
    """Differences of all pairs, the later less the earlier; those to the first policy stand in the
    evaluation already."""
    out, groups = [], collections.defaultdict(list)
    for record in run.answers:
        groups[record["on"], record["name"]].append(record)
    for on in sorted({on for on, _ in groups}):
        means = {
            name: samples.by_prompt(groups[on, name], run.scores)
            for name in run.models
            if (on, name) in groups
        }
        for a, b in itertools.combinations(list(means)[1:], 2):
            common = sorted(set(means[a]["pm_score"]) & set(means[b]["pm_score"]))
            score, tokens = (
                [means[b][key][p] - means[a][key][p] for p in common]
                for key in ("pm_score", "num_tokens")
            )
            if common:
                plain_difference = paired_difference(
                    means[a]["pm_score"], means[b]["pm_score"], seed=seed
                )
                even = length.score_difference(score, tokens, seed=seed)
                out += [
                    row(metric, on, b, found, against=a, unit="PM score", good="higher")
                    for metric, found in (
                        ("pm_score", plain_difference),
                        ("pm_score_at_equal_length", even),
                    )
                ]
    judged, labelled = {}, {}
    for stage in run.of_kind("evaluate"):
        won = {
            pair["id"]: float(preference.wins([pair["better"]], [pair["worse"]])[0])
            for pair in run.records(stage.name, "pairs")
            if pair["on"] == "comparisons"
        }
        if won:
            judged[stage.fields.get("reward")] = won
    for stage in run.of_kind("feedback"):
        source = (stage.fields.get("inputs") or {}).get("comparisons")
        found = (
            agreement.of_pairs(run.records(stage.name), run.records(source))
            if source in run.stages
            else {}
        )
        if found:
            labelled[stage.name] = {name: pair["right"] for name, pair in found.items()}
    return (
        out
        + _each("pm_accuracy", "comparisons", judged, seed)
        + _each("label_agreement", "human", labelled, seed)
    )


def _each(metric: str, on: str, values: Mapping[str, Mapping[str, float]], seed: int) -> list[dict]:
    return [
        row(
            metric,
            on,
            b,
            paired_difference(values[a], values[b], shares=True),
            against=a,
            unit="accuracy",
            good="higher",
        )
        for a, b in itertools.combinations(values, 2)
        if set(values[a]) & set(values[b])
    ]


def tables(found: Sequence[dict]) -> str:
    """The pairs whose difference is shown, and how many are not. Of many pairs one in twenty
    differs by chance."""
    parts, groups = [], collections.defaultdict(list)
    for r in found:
        if r["value"] is not None and r["low"] is not None:
            groups[r["metric"], r["on"]].append(r)
    for (metric, on), group in groups.items():
        percent = group[0]["unit"] == "accuracy"
        apart = sorted((r for r in group if not r["null"]), key=lambda r: -abs(r["value"]))
        where = f", {place_name(on)}" if metric.startswith("pm_score") else ""
        parts.append(
            f"**{headed(TITLES[metric])}{plain(where)}.** Of {len(group)} pairs {len(apart)} "
            "differ at 95 % each; "
            f"{len(group) / 20:.1f} would by chance.\n"
        )
        body = [
            [plain(r["model"]), plain(r["against"]), interval(r, percent=percent)] for r in apart
        ]
        parts += [table(["this", "less this", "difference"], body)] if body else []
    return "### Against one another\n\n" + "\n".join(parts) if parts else ""
