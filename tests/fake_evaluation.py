"""The evaluation of the run that `fake_run` writes: answers, scores, rows and curves."""

import dataclasses

import numpy as np

from cai_jax.core import accuracy
from cai_jax.core.accuracy import confidence, reliability
from cai_jax.core.intervals import wilson
from cai_jax.evals import answer_statistics, figures, harm, preference_scores
from cai_jax.evals import revisions as revisions_eval
from cai_jax.evals.registry import KINDS as EVALUATIONS
from cai_jax.evals.rows import SCHEMA, row
from tests.fake_texts import BAD, GOOD, HELPFUL, KINDS, PROMPTS

JUDGED = ("preference_scores", "revisions")


def metrics(rows, notes=(), curves=None):
    """metrics.json of these rows, where the preference model `@pm` is the judge."""
    columns = [
        dataclasses.replace(column, judge="@pm", scale="@pm 1") if kind in JUDGED else column
        for kind, module in EVALUATIONS.items()
        for column in module.COLUMNS
    ]
    by_round = revisions_eval.by_round(rows, "revisions")
    return {
        "schema": SCHEMA,
        "rows": list(rows),
        "columns": [column.to_json() for column in columns],
        "figures": [*figures.calibration(curves or {}), *by_round],
        "notes": list(notes),
    }


def evaluate(w, num_prompts, seed, lift, revisions, scores, answer):
    rng, records, models = w.rng, [], ("initial", "sl", "rl")
    held = {
        "red_team": [
            (f"held-{i:03d}", KINDS[i % 7], PROMPTS[KINDS[i % 7]])
            for i in range(max(4, num_prompts * 3 // 4))
        ],
        "helpful": [
            (f"help-{i:03d}", None, HELPFUL[i % 6]) for i in range(max(4, num_prompts * 3 // 8))
        ],
    }
    for on, prompts in held.items():
        base = {p: rng.normal(-0.3 if on == "red_team" else 0.2, 0.6) for p, _, _ in prompts}
        for place, name in enumerate(models):
            for p, kind, text in prompts:
                good = rng.random() < 0.3 + 0.25 * place
                record = {
                    "id": f"{on}/{name}/{p}/00",
                    "prompt_id": p,
                    "kind": kind,
                    "on": on,
                    "name": name,
                    "model": f"@{name}",
                    "seed": seed,
                    "dialogue": [{"role": "human", "text": text}],
                    "sample": 0,
                    "response": answer(GOOD if good else BAD, 3 if place < 2 else 4),
                    "stop": "eos" if rng.random() < 0.8 else "length",
                    "num_tokens": int(rng.integers(20, 34) + 5 * place),
                    "logprob": -35.0,
                }
                records.append(record)
                scores[record["id"]] = (
                    base[p] + lift * place * (1 if on == "red_team" else 0.3) + rng.normal(0, 0.4)
                )
    rows = answer_statistics.rows(records, models, seed)
    rows += preference_scores.rows(records, scores, models, anchor="sl", seed=seed)
    rows += revisions_eval.rows(revisions, scores, seed=seed)
    for subset, right, n in (
        ("", 26, 48),
        (":harmless", 7, 12),
        (":helpful", 6, 12),
        (":honest", 7, 12),
        (":other", 6, 12),
    ):
        for mode in ("zero_shot", "few_shot"):
            rows.append(
                row(
                    f"choice_{mode}",
                    f"hhh{subset}",
                    "feedback",
                    wilson(right + (mode == "few_shot"), n),
                    unit="accuracy",
                    good="higher",
                    baseline={"chance": 0.5, "majority": 0.5, "longer": 0.54},
                )
            )
        rows.append(
            row(
                "pm_accuracy",
                f"hhh{subset}",
                "@pm",
                wilson(right + 3, n),
                unit="accuracy",
                good="higher",
                baseline={"chance": 0.5, "longer": 0.54},
            )
        )
    rows.append(
        row(
            "pm_accuracy",
            "comparisons",
            "@pm",
            wilson(27, 40),
            unit="accuracy",
            good="higher",
            baseline={"chance": 0.5, "longer": 0.55},
        )
    )
    p = rng.beta(2, 1.4, 200)
    curve = reliability(*confidence(p))
    rows.append(
        row(
            "pm_ece",
            "hhh",
            "@pm",
            accuracy.calibration(curve),
            good="lower",
        )
    )
    asked = [
        {"id": f"{on}/{name}/{p}/{i}", "on": on, "name": name, "prompt_id": p}
        for on, n in (("T=0", 1), ("T=1", 2))
        for name in models
        for p, *_ in held["red_team"]
        for i in range(n)
    ]
    harms = {
        r["id"]: float(np.clip(2.2 - 0.5 * models.index(r["name"]) + rng.normal(0, 0.6), 0, 4))
        for r in asked
    }
    rows += harm.rows(asked, harms, models, seed=seed)
    truth = rng.uniform(0, 4, 60)
    rated = [{"source": "ratings", "rating": t, "predicted": t + rng.normal(0, 0.6)} for t in truth]
    rows += harm.regressor_rows(accuracy.regression_errors(rated, 2.0), "@harm")
    w.lines("evaluate/harm.jsonl", asked)
    w.lines(
        "evaluate/harm_scores.jsonl",
        [{"id": key, "harm": value} for key, value in sorted(harms.items())],
    )
    picked = {str(i): float(p > 0.5) for i, p in enumerate(rng.random(48))}
    w.lines("evaluate/records.jsonl", records)
    w.lines(
        "evaluate/scores.jsonl",
        [{"id": key, "score": value} for key, value in sorted(scores.items())],
    )
    values = {row["name"]: row.pop("values") for row in rows if "values" in row}
    values["choice_zero_shot/hhh/feedback"] = picked
    values = [{"name": name, "values": by_item} for name, by_item in values.items()]
    w.lines("evaluate/values.jsonl", values)
    w.json(
        "evaluate/metrics.json",
        metrics(
            rows,
            [
                "the judge @pm is the preference model that rl was trained against: its score "
                "is expected to rise and is no independent evidence"
            ],
            {"PM, HHH": curve, "zero-shot, HHH": curve[1:]},
        ),
    )
    w.stage(
        "evaluate",
        "evaluate",
        {
            "models": {"initial": "helpful", "sl": "@sl", "rl": "@rl"},
            "reward": "@pm",
            "inputs": {"revisions": "revise"},
            "choices": "embedded:hhh",
        },
        133.0,
        "PM score on red-team prompts: −0.25 → 0.2 → 0.7",
        {"sampled": 3_000, "scored": 20_000},
        rows=len(rows),
        answers=len(records),
    )
