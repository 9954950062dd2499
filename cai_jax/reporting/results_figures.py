"""The figures of published results, from what `results.collect` found."""

from __future__ import annotations

from collections.abc import Iterator

from cai_jax.evals.rows import find
from cai_jax.reporting import figures, figures_training
from cai_jax.reporting.figure import Forest, ForestRow, Panel, Series
from cai_jax.reporting.run_data import Run
from cai_jax.reporting.text import headed, model_name, place_name


def every(run: Run, found: dict) -> Iterator[Panel | Forest]:
    """Those that there are numbers for."""
    rows = found["rows"]
    drawn = [figures.frontier([run]), accuracies(rows), labels(rows), revisions(rows)]
    drawn += [
        calibration(
            found["curves"],
            "pm/comparisons/",
            "calibration",
            "Preference models: calibration on held-out pairs",
        ),
        calibration(
            found["curves"],
            "labels/human/",
            "calibration_labels",
            "AI labels: calibration on human pairs",
        ),
    ]
    drawn += [policies(rows, on) for on in sorted({r["on"] for r in find(rows, "num_tokens")})]
    drawn += [
        rl_curves(run, key, label)
        for key, label in (
            ("reward", "reward"),
            ("kl", "KL to the start, nats an answer"),
            ("response_tokens", "tokens an answer"),
        )
    ]
    yield from (one for one in drawn if one is not None)


def policies(rows, on: str) -> Forest | None:
    """Each policy's difference to the first: as it is, and at equal length."""
    lengths = {r["model"]: r["value"] for r in find(rows, "num_tokens", on)}
    out = []
    for r in (
        r
        for r in rows
        if r["metric"] == "pm_score" and r["on"] == on and r["against"] and r["value"] is not None
    ):
        even = find(rows, "pm_score_at_equal_length", on, r["model"], r["against"])
        out.append(
            ForestRow(
                f"{model_name(r['model'])}, {lengths[r['model']]:.0f} tokens",
                r["value"],
                r["low"],
                r["high"],
                1,
            )
        )
        out += [ForestRow("at equal length", e["value"], e["low"], e["high"], 2) for e in even]
    if not out:
        return None
    first = next(r["model"] for r in find(rows, "num_tokens", on))
    title = (
        f"{headed(place_name(on))}: judge's score less that of {model_name(first)} "
        f"({lengths[first]:.0f} tokens)"
    )
    return Forest(
        f"policies_{on.replace(':', '_')}",
        title,
        "difference of the judge's score",
        out,
        0.0,
        width=560,
    )


def _accuracy(rows, metric: str, key: str, title: str) -> Forest | None:
    out = []
    for on in dict.fromkeys(r["on"] for r in find(rows, metric)):
        pairs = "human pairs" + (f", {on}" if on != "human" else "")
        out.append(
            ForestRow(place_name(on) if metric == "pm_accuracy" else pairs, None, heading=True)
        )
        out += [
            ForestRow(
                model_name(r["model"]),
                r["value"],
                r["low"],
                r["high"],
                1,
                ((r["baseline"]["longer"], "always the longer"),),
            )
            for r in find(rows, metric, on)
        ]
    return (
        Forest(
            key,
            title,
            "accuracy; the tick is always the longer answer",
            out,
            0.5,
            percent=True,
            width=560,
        )
        if out
        else None
    )


def accuracies(rows) -> Forest | None:
    return _accuracy(
        rows, "pm_accuracy", "preference_models", "Preference models on held-out pairs"
    )


def labels(rows) -> Forest | None:
    return _accuracy(rows, "label_agreement", "labels", "AI labels that agree with people")


def revisions(rows) -> Forest | None:
    """How the judge's score moved from the first answer to the last revision."""
    out = [
        ForestRow(r["model"], r["value"], r["low"], r["high"], 1)
        for r in rows
        if r["metric"] == "revision_moved"
    ]
    return (
        Forest(
            "revisions",
            "Last revision less first answer",
            "difference of the judge's score",
            out,
            0.0,
        )
        if out
        else None
    )


def calibration(curves: dict, start: str, key: str, title: str) -> Panel | None:
    """Confidence against how often it was right, of the curves whose names begin with `start`."""
    kept = {
        name: points for name, points in sorted(curves.items()) if points and name.startswith(start)
    }
    series = [
        Series(
            name.removeprefix(start),
            [p["predicted"] for p in points],
            [p["observed"] for p in points],
            [p["low"] for p in points],
            [p["high"] for p in points],
            # Where a correction could only bound the mean confidence of a bin: the bounds.
            *(
                [[p[f"predicted_{end}"] for p in points] for end in ("low", "high")]
                if all("predicted_low" in p for p in points)
                else ()
            ),
            mark="path",
            tone=tone,
        )
        for tone, (name, points) in enumerate(kept.items(), 1)
    ]
    if not series:
        return None
    return Panel(
        key,
        title,
        "confidence",
        "how often right",
        series,
        diagonal=True,
        percent=True,
        size=(460, 300),
    )


def rl_curves(run: Run, key: str, label: str) -> Panel | None:
    """One number of every rl stage by update."""
    series = []
    for tone, stage in enumerate(run.of_kind("rl"), 1):
        points = [(r["step"], r[key]) for r in run.training(stage.name) if r.get(key) is not None]
        if points:
            series.append(
                Series(stage.name, *figures_training.thin(points), mark="path", tone=tone)
            )
    return (
        Panel(f"rl_{key}", f"PPO: {label}", "update", label, series, whole_x=True, size=(460, 240))
        if series
        else None
    )
