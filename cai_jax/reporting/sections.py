"""The sections of the page: each takes the runs and returns HTML, or "" where the runs have nothing
for it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cai_jax.evals.rows import find
from cai_jax.reporting import (
    compare,
    figures,
    figures_constitution,
    figures_training,
    numbers,
    story,
)
from cai_jax.reporting.elements import fold, grid, section, swatch, table
from cai_jax.reporting.run_data import Run
from cai_jax.reporting.text import (
    duration,
    escape,
    gigabytes,
    headed,
    model_name,
    number,
    place_name,
    quantity,
)


def _cell(rows, metric, on, name, first, digits=2, percent=False) -> str:
    """A value with its interval; below it the paired difference to the first model."""
    found = find(rows, metric, on, name)
    if not found or found[0]["value"] is None:
        return "–"
    r = found[0]
    shown = number(r["value"], digits, percent=percent)
    out = shown
    if r["low"] is not None:
        low, high = (number(r[k], digits, percent=percent) for k in ("low", "high"))
        out = f'<span title="95 % interval {low} to {high}, n = {r["n"]}">{shown}</span>'
    difference = find(rows, metric, on, name, first)
    if (
        difference
        and difference[0]["low"] is not None
        and difference[0]["low"] != difference[0]["high"]
    ):
        d = difference[0]
        low, high = (
            number(d[k], digits, sign=True, percent=percent).replace("\u202f%", "")
            for k in ("low", "high")
        )
        out += (
            "<small "
            f'class="{"null" if d.get("null") else "shown"}">{number(d["value"], digits, sign=True, percent=percent)} '
            f"[{low}, {high}]</small>"
        )
    return out


def results(runs: Sequence[Run]) -> str:
    tables, drawn = _tables(runs), _drawn(runs)
    return section(
        "results",
        "Results",
        "Every model answered the same held-out prompts. Under each number stands its paired "
        "difference to the first model with a 95 % interval; grey ones include zero.",
        *tables,
        grid(drawn, wide=True),
        numbers.win_rates(runs),
        *(_further(runs, run, part) for run in runs for part in run.parts()),
    )


def _further(runs: Sequence[Run], run: Run, part: Run) -> str:
    """A further evaluation of the run: its plot at once, its tables in a fold."""
    name = f"{escape(run.name)}: " if len(runs) > 1 else ""
    count = len(part.models)
    shown = grid(figures.of_part(runs, run, part, figures.main_ones(part)), wide=True)
    tables = (
        "".join(_tables([part]))
        + grid(figures.of_part(runs, run, part, _drawn([part], steps=False)), wide=True)
        + numbers.win_rates([part])
    )
    return (
        f"<h3>{name}{escape(part.part)}, {count} "
        f"model{'s' * (count != 1)}</h3>{shown}{fold('Its numbers', tables)}"
    )


def _tables(runs: Sequence[Run]) -> list[str]:
    parts = []
    for run in runs:
        rows, models = run.evaluation["rows"], run.models
        for on in sorted(
            {r["on"] for r in find(rows, "num_tokens")}, key=lambda on: (on != figures.HARM, on)
        ):
            counts = [r["n"] for r in find(rows, "num_tokens", on)]
            columns = [
                ("PM score", "pm_score", 2, False),
                ("Elo", "elo", 0, False),
                ("Tokens", "num_tokens", 0, False),
                ("Refusals", "refusal_rate", 2, True),
                ("Evasive", "evasive_rate", 2, True),
                ("by the judge", "evasive_rate_judge", 2, True),
                ("both agree", "evasive_agreement", 2, True),
                ("Repetition", "repetition", 2, False),
                ("Distinct-2", "distinct_2", 2, False),
                ("Stock phrases", "boilerplate", 2, False),
                ("Cut", "cut_rate", 2, True),
            ]
            columns = [c for c in columns if find(rows, c[1], on)]
            body = [
                [
                    swatch(i) + escape(model_name(name)),
                    *(
                        _cell(rows, metric, on, name, models[0], digits, percent)
                        for _, metric, digits, percent in columns
                    ),
                ]
                for i, name in enumerate(models)
            ]
            place = headed(place_name(on)) + (f", {run.name}" if len(runs) > 1 else "")
            parts.append(
                table(
                    ["Model", *(c[0] for c in columns)],
                    body,
                    numeric=range(1, 1 + len(columns)),
                    caption=f"{place} ({max(counts, default=0)})",
                )
            )
    return parts


def _drawn(runs: Sequence[Run], steps: bool = True) -> list:
    return figures.of_answers(runs, steps)


def judges(runs: Sequence[Run]) -> str:
    return section(
        "judges",
        "The judges",
        "A score is worth as much as the model that gives it.",
        grid([figures.judges(runs), figures.calibration(runs)], wide=True),
    )


def transparency(runs: Sequence[Run]) -> str:
    parts = [
        grid(
            figures_constitution.every(runs),
            wide=True,
        )
    ]
    parts += [numbers.principles(runs), numbers.by_kind(runs)]
    return section(
        "transparency",
        "What the constitution did",
        "Which principles were drawn, how often one changed the answer, "
        "and how far the preference model's score moved with it.",
        *parts,
    )


def training(runs: Sequence[Run]) -> str:
    main, more = figures_training.training(runs)
    return section(
        "training", "Training", "", grid(main), fold(f"{len(more)} more curves", grid(more))
    )


def labels(runs: Sequence[Run]) -> str:
    drawn = [
        draw(run, stage)
        for run in runs
        for stage in run.of_kind("feedback")
        for draw in (figures_training.label_histogram, figures_training.position_scatter)
    ]
    return section(
        "labels",
        "AI labels",
        "Raw log-probabilities are stored; what the preference model reads is derived from them.",
        grid(drawn, wide=True),
    )


def differences(runs: Sequence[Run]) -> str:
    """For several runs: values side by side and the difference to the first."""
    if len(runs) < 2:
        return ""
    body = []
    for d in compare.differences(runs):
        percent = next(value["unit"] for value in d.values if value) in numbers.SHARES
        digits = 0 if d.metric in ("elo", "elo_judge", "num_tokens") else 2
        cells = []
        for value, estimate in zip(d.values, d.differences, strict=True):
            shown = number(value["value"] if value else None, digits, percent=percent)
            if estimate is not None and estimate.low is not None:
                low, high = (
                    number(v, digits, sign=True, percent=percent).replace("\u202f%", "")
                    for v in (estimate.low, estimate.high)
                )
                shown += (
                    f'<small class="{"null" if estimate.covers_zero else "shown"}">'
                    f"{number(estimate.value, digits, sign=True, percent=percent)} [{low}, "
                    f"{high}]</small>"
                )
            cells.append(shown)
        body.append(
            [
                escape(d.metric.replace("_", " ")),
                escape(headed(place_name(d.on))),
                escape(model_name(d.model)),
                *(f'<span class="null">{cell}</span>' if d.scales else cell for cell in cells),
                "other judge" if d.scales else "by prompt" if d.paired else "no",
            ]
        )
    heads = [swatch(i + 1) + escape(run.name) for i, run in enumerate(runs)]
    return section(
        "differences",
        "Differences",
        "Under each number stands its difference to the first run with a 95 % "
        "interval; grey ones include zero. Where both runs answered the same prompts, the "
        "difference is paired. Numbers "
        "of other judges have no common scale: they stand side by side in grey, without a "
        "difference.",
        table(["Number", "On", "Model", *heads, "Paired"], body, numeric=range(3, 3 + len(runs))),
    )


def every_number(runs: Sequence[Run]) -> str:
    """All rows of metrics.json, folded: what the figures show, for a screen reader and for
    copying."""
    found = [(run, table_) for run in runs if (table_ := numbers.every(run))]
    return section(
        "numbers",
        "Every number",
        "All that the evaluations measured, one line each, as in the run's metrics.json: "
        "95 % intervals and, for accuracies, what chance, the most frequent answer and the "
        "longer text would reach.",
        *(
            fold(
                f"{len(run.evaluation['rows']):,} numbers"
                + (f" of {run.name}" if len(runs) > 1 else ""),
                shown,
            )
            for run, shown in found
        ),
    )


def cost(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        longest = max([stage.seconds or 0.0 for stage in run.stages.values()], default=0.0) or 1.0
        body = []
        for stage in run.stages.values():
            rows = stage.summary.get("rows", stage.summary.get("steps"))
            tokens = ", ".join(
                f"{quantity(count)} {kind}" for kind, count in sorted(stage.tokens.items())
            )
            dropped = ", ".join(
                f"{count} {reason}" for reason, count in sorted(stage.dropped.items())
            )
            share = 100 * (stage.seconds or 0.0) / longest
            body.append(
                [
                    escape(stage.name),
                    escape(stage.kind),
                    quantity(rows),
                    duration(stage.seconds)
                    + (f'<span class="share" style="width:{share:.1f}%"></span>' if share else ""),
                    escape(tokens) or "–",
                    gigabytes(stage.manifest.get("peak_bytes")),
                    (
                        escape(stage.summary.get("headline", ""))
                        if stage.done
                        else "<b>not finished</b>"
                    )
                    + (f"<small>left out: {escape(dropped)}</small>" if dropped else ""),
                ]
            )
        parts.append(
            table(
                ["Stage", "Kind", "Rows or steps", "Time", "Tokens", "Peak memory", "Result"],
                body,
                numeric=(2,),
                caption=(f"{run.name}, " if len(runs) > 1 else "")
                + f"{duration(run.seconds)} in all",
            )
        )
    return section("cost", "Stages and cost", "", *parts)


def provenance(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        info = {key: value for key, value in run.info.items() if key != "config"}
        prints = {stage.name: stage.manifest.get("fingerprint") for stage in run.stages.values()}
        sources = story.data_sources(run)
        parts.append(
            (f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else "")
            + (f"<p>Data: {escape(', '.join(sources))}.</p>" if sources else "")
            + _fold("Versions, command and fingerprints", {**info, "fingerprints": prints})
            + (_fold("The whole configuration", run.config) if run.config else "")
        )
    return section("provenance", "Where it comes from", "", *parts)


def _fold(title: str, value) -> str:
    return fold(
        title,
        f"<pre>{escape(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, default=str))}</pre>",
    )
