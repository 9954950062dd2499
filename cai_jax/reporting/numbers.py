"""Tables of numbers: who wins against whom, what each principle did within each kind of harm, and
every number there is."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from cai_jax.evals.rows import find
from cai_jax.reporting.cautions import interval
from cai_jax.reporting.elements import fold, swatch, table
from cai_jax.reporting.run_data import Run
from cai_jax.reporting.text import escape, headed, model_name, number, place_name

SHARES = ("share", "accuracy")  # units that are shown as per cent
WHOLE = ("Elo", "tokens")  # and those without decimals


def _of(runs: Sequence[Run], run: Run) -> str:
    return f", {run.name}" if len(runs) > 1 else ""


def win_rates(runs: Sequence[Run]) -> str:
    """How often each model's answer is preferred to each other's, by the preference model and by
    the judge."""
    parts = []
    for run in runs:
        for metric, judge in (
            ("win_rate", "the preference model"),
            ("win_rate_judge", "the judge, both orders"),
        ):
            found = collections.defaultdict(dict)
            for r in find(run.evaluation["rows"], metric):
                if r["value"] is not None:
                    found[r["on"]][r["model"], r["over"]] = _rate(r["value"], r["low"], r["high"])
                    found[r["on"]][r["over"], r["model"]] = _rate(
                        1 - r["value"], 1 - r["high"], 1 - r["low"]
                    )
            for on, cells in found.items():
                names = [name for name in run.models if any(name in pair for pair in cells)]
                body = [
                    [
                        swatch(run.models.index(a)) + escape(model_name(a)),
                        *(cells.get((a, b), "") for b in names),
                    ]
                    for a in names
                ]
                parts.append(
                    table(
                        ["Wins of", *(f"over {escape(model_name(name))}" for name in names)],
                        body,
                        numeric=range(1, 1 + len(names)),
                        css="narrow",
                        caption=f"{headed(place_name(on))}, verdicts of {judge}{_of(runs, run)}",
                    )
                )
    return fold("Win rates of every two models", "".join(parts))


def _rate(value: float, low: float, high: float) -> str:
    return (
        f"{number(value, percent=True)}<small>{number(100 * low, 0)} to "
        f"{number(100 * high, 0)}</small>"
    )


def principles(runs: Sequence[Run]) -> str:
    return "".join(
        _moved(
            find(run.evaluation["rows"], "score_moved", "revisions"),
            "Principle",
            f"Principles{_of(runs, run)}",
        )
        for run in runs
    )


def by_kind(runs: Sequence[Run]) -> str:
    """The same within each kind of harm."""
    parts = []
    for run in runs:
        places = dict.fromkeys(
            r["on"] for r in find(run.evaluation["rows"], "score_moved") if r["on"] != "revisions"
        )
        parts += [
            _moved(
                find(run.evaluation["rows"], "score_moved", on),
                "Principle",
                f"{headed(on.partition(':')[2].replace('_', ' '))}{_of(runs, run)}",
            )
            for on in places
        ]
    return fold("Principles by kind of harm", "".join(parts))


def _moved(rows: Sequence[dict], head: str, caption: str) -> str:
    body = [
        [
            escape(r["model"]),
            str(r["used"]),
            number(r["changed"], percent=True),
            escape(interval(r)),
        ]
        for r in sorted(rows, key=lambda r: -r["used"])
    ]
    return table(
        [head, "Used", "Changed the answer", "Score moved by"],
        body,
        numeric=(1, 2, 3),
        css="narrow",
        caption=caption,
    )


def every(run: Run) -> str:
    """All rows of the run's metrics.json."""
    body = []
    for r in run.evaluation["rows"]:
        against = r["against"] or r.get("over") or ""
        percent, digits = r["unit"] in SHARES, 0 if r["unit"] in WHOLE else 2
        shown = number(
            r["value"], 3 if percent else digits, sign=r["against"] is not None, percent=percent
        )
        ends = (
            ""
            if r["low"] is None
            else " to ".join(
                number(r[key], 3 if percent else digits, percent=percent) for key in ("low", "high")
            )
        )
        base = ", ".join(
            f"{name} {number(value, 3 if percent else 2, percent=percent)}"
            for name, value in r["baseline"].items()
            if value is not None
        )
        body.append(
            [
                escape(r["metric"].replace("_", " ")),
                escape(r["on"]),
                escape(r["model"]),
                escape(against),
                shown,
                ends,
                f"{r['n']:,}",
                escape(base),
                escape(r["unit"]),
            ]
        )
    heads = ["Number", "On", "Of", "Against", "Value", "95 %", "n", "Baselines", "Unit"]
    return table(heads, body, numeric=(4, 5, 6), caption="metrics.json", css="tight")
