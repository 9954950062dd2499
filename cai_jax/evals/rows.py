"""The one schema of `metrics.json`: rows, each a number with its interval, its baselines, and what
it means."""

from __future__ import annotations

from collections.abc import Mapping

from cai_jax.evals.intervals import Estimate

SCHEMA = 1
# Which way is good, for the tables. None: neither (length, answer order).
DIRECTIONS = {"higher", "lower", None}


def row(
    metric: str,
    on: str,
    model: str,
    estimate: Estimate,
    *,
    against: str | None = None,
    unit: str = "",
    good: str | None = None,
    baseline: Mapping[str, float | None] | None = None,
    note: str = "",
    **extra,
) -> dict:
    """A JSON-able row. `name` is unique: metric/on/model, with −against for a paired difference
    (model − against).

    `on`: the set of prompts or items. `baseline`: name → value. A difference whose interval covers
    zero has null = True and says so in `note`: a null result is a result.
    """
    if good not in DIRECTIONS:
        raise ValueError(f"good is one of {DIRECTIONS}")
    name = f"{metric}/{on}/{model}" + (f"-{against}" if against else "")
    out = {
        "name": name,
        "metric": metric,
        "on": on,
        "model": model,
        "against": against,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "unit": unit,
        "good": good,
        "baseline": dict(baseline or {}),
        "note": note,
        **extra,
    }
    if against is not None and estimate.value is not None:
        out["null"] = estimate.covers_zero
        if estimate.covers_zero and not note:
            out["note"] = "no difference shown: the 95 % interval covers zero"
    return out


def find(
    rows, metric: str, on: str | None = None, model: str | None = None, against: str | None = None
) -> list[dict]:
    """Rows by field; `against` None means the plain numbers, not the differences."""
    return [
        r
        for r in rows
        if r.get("metric") == metric
        and r.get("against") == against
        and (on is None or r.get("on") == on)
        and (model is None or r.get("model") == model)
    ]
