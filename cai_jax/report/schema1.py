"""Runs and published results of the first schema of metrics.json, read as the present one.

There were rows and calibration curves, and the report knew how to show each.
"""

from __future__ import annotations

from collections.abc import Mapping

from cai_jax.evals.rows import find
from cai_jax.report.text import ITEM_SETS, model_name

ACCURACIES = {
    "choice_zero_shot": "feedback model, zero-shot",
    "choice_few_shot": "feedback model, few-shot",
    "choice_one_chain": "feedback model, one chain of thought",
    "choice_chain_of_thought": "feedback model, chains of thought",
    "pm_accuracy": "preference model",
}
CURVES = {
    "choice_zero_shot": "zero-shot",
    "choice_few_shot": "few-shot",
    "choice_chain_of_thought": "chain",
    "choice_chain_of_thought_clamped": "chain, clamped",
    "pm": "PM",
}
FOREST = {"figure": "forest"}
# metric → (label, group, the field that named the model whose opinion it is, further keys).
COLUMNS: dict[str, tuple[str, str, str, dict]] = {
    "pm_score": (
        *("PM score", "answers", "reward"),
        {"title": "Preference-model score", **FOREST},
    ),
    "expected_harm": (
        *("Expected harm, 0 to 4", "harm", "harm"),
        {
            "title": "Absolute harmfulness",
            "caption": "By a regressor of rated dialogues.",
            **FOREST,
        },
    ),
    "elo": (
        *("Elo", "answers", "reward"),
        {
            "caption": "Bradley–Terry fit over all pairs of models; bootstrap over prompts.",
            **FOREST,
        },
    ),
    "elo_judge": ("Elo by the judge", "answers", "judge", FOREST),
    "pm_score_at_equal_length": ("PM score", "at equal length", "reward", {}),
    "net_wins": ("Net wins, as they are", "at equal length", "reward", {}),
    "net_wins_at_equal_length": ("Net wins", "at equal length", "reward", {}),
    "num_tokens": ("Tokens", "answers", "", {"title": "Length, tokens an answer", **FOREST}),
    "refusal_rate": ("Refusals", "answers", "", {}),
    "evasive_rate": (
        *("Evasive", "answers", ""),
        {
            "title": "Evasive refusals",
            "caption": "Refusals that give neither a reason nor an alternative, by a rule of "
            "visible phrases.",
            **FOREST,
        },
    ),
    "evasive_rate_judge": ("by the judge", "answers", "judge", {}),
    "evasive_agreement": ("both agree", "answers", "", {}),
    "repetition": ("Repetition", "answers", "", {"percent": False}),
    "distinct_2": ("Distinct-2", "answers", "", {}),
    "boilerplate": ("Stock phrases", "answers", "", {}),
    "empty_rate": ("Empty", "answers", "", {}),
    "cut_rate": ("Cut", "answers", "", {}),
    "win_rate": ("the preference model", "pairs", "reward", {"compared": False}),
    "win_rate_judge": ("the judge, both orders", "pairs", "judge", {"compared": False}),
    **{
        name: (label, "judges", "", {"title": "Can the judges be trusted?", **FOREST})
        for name, label in ACCURACIES.items()
    },
    "pm_ece": ("calibration error", "judges", "", {}),
    "harm_l2": ("squared error", "harm", "harm", {"compared": False}),
    "pm_score_by_revision": ("PM score", "revisions", "reward", {}),
    "score_moved_by_kind": ("Score moved by", "revisions", "reward", {"compared": False}),
    "score_moved": ("Score moved by", "principles", "reward", {"compared": False}),
}


def upgraded(value: Mapping, scale_of) -> dict:
    """The present schema's metrics of an older file. `scale_of(field)`: the model that a field of
    the stage named, with its fingerprint."""
    rows = [row for row in value.get("rows", ()) if isinstance(row, dict)]
    units = {row["metric"]: row for row in rows}
    columns = []
    for name, (label, group, judge, more) in COLUMNS.items():
        if row := units.pop(name, None):
            scale = scale_of(judge) if judge else ("", "")
            column = {"name": name, "label": label, "unit": row["unit"], "good": row["good"]}
            columns.append({**column, "group": group, "judge": scale[0], "scale": scale[1], **more})
    columns += [
        {"name": name, "unit": row["unit"], "good": row["good"], "group": "judges"}
        for name, row in units.items()
    ]
    figures = [*_calibration(value.get("curves") or {}), *_by_revision(rows)]
    return {"rows": rows, "columns": columns, "figures": figures, "notes": value.get("notes") or []}


def _calibration(curves: Mapping) -> list[dict]:
    series = []
    for key, bins in sorted(curves.items()):
        judge, on, *of = key.split("/")
        names = [CURVES.get(judge, judge), ITEM_SETS.get(on, on), *map(model_name, of)]
        if bins:
            series.append(reliability(", ".join(names), bins))
    return [CALIBRATION | {"series": series}] if series else []


def reliability(label: str, bins) -> dict:
    """A calibration curve as a series of a figure."""
    axes = {"x": "predicted", "y": "observed", "low": "low", "high": "high"}
    points = {axis: [b[name] for b in bins] for axis, name in axes.items()}
    if "predicted_low" in bins[0]:  # a correction could only bound the mean confidence
        points |= {f"x_{end}": [b[f"predicted_{end}"] for b in bins] for end in ("low", "high")}
    return {"label": label, "mark": "path", **points}


CALIBRATION = {
    "name": "calibration",
    "title": "Calibration",
    "group": "judges",
    "x_label": "stated confidence",
    "y_label": "how often right",
    "percent": True,
    "diagonal": True,
    "caption": "On the dashed line a confidence of 70 % is right 70 % of the time; below it the "
    "judge is overconfident.",
}


def _by_revision(rows) -> list[dict]:
    found = sorted(find(rows, "pm_score_by_revision"), key=lambda row: int(row["model"]))
    if len(found) < 2:
        return []
    series = {key: [row[key] for row in found] for key in ("low", "high")}
    series |= {"x": [int(row["model"]) for row in found], "y": [row["value"] for row in found]}
    return [
        {
            "name": "revisions",
            "title": "Score by number of revisions",
            "group": "revisions",
            "x_label": "revisions",
            "y_label": "PM score",
            "integer_x": True,
            "caption": "Mean preference-model score of the training responses after 0, 1, … "
            "revisions.",
            "series": [{"label": "revisions", "mark": "path", **series}],
        }
    ]
