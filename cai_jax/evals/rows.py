"""The rows and columns of `metrics.json`: a row is a number with its interval, a column says what a
metric's numbers are, so that a reader can show them without knowing the evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from cai_jax.core import intervals
from cai_jax.core.intervals import SHARES, Estimate

SCHEMA = 2
DIRECTIONS = {"higher", "lower", None}
WHOLE = ("Elo", "tokens")  # units that are shown without decimals


@dataclasses.dataclass(frozen=True)
class Column:
    """How a metric is shown.

    Attributes:
        name: the metric of its rows.
        label: its name in print, the head of a table's column.
        unit: of the numbers; a mean of values that are 0 or 1 has the unit "share" or "accuracy".
        good: which way is good, "higher" or "lower"; None: neither (length, answer order).
        group: the table: "answers", "judges", "revisions", "pairs", "labels", or a title.
        percent: shown as per cent; by default where the unit is a share.
        digits: after the decimal point; by default 2, none for Elo and tokens.
        figure: "forest": every model on every set of prompts is drawn.
        title, caption: of the figure.
        compared: shown where runs are compared.
        judge: the model whose opinion the numbers are, as the config names it; "" for none.
        scale: that model and its fingerprint: two runs have a common scale where it is equal.
    """

    name: str
    label: str
    unit: str = ""
    good: str | None = None
    group: str = "answers"
    percent: bool | None = None
    digits: int | None = None
    figure: str = ""
    title: str = ""
    caption: str = ""
    compared: bool = True
    judge: str = ""
    scale: str = ""

    def to_json(self) -> dict:
        """The column as a value of `metrics.json`, with its defaults filled in."""
        percent = self.unit in SHARES if self.percent is None else self.percent
        digits = 2 * (self.unit not in WHOLE) if self.digits is None else self.digits
        return dataclasses.asdict(self) | {"percent": percent, "digits": digits}

    def row(self, on: str, model: str, estimate: Estimate, **more) -> dict:
        """A row of this metric; `more`: arguments of `row`."""
        return row(self.name, on, model, estimate, unit=self.unit, good=self.good, **more)

    def compared_rows(
        self, on: str, values: Mapping[str, Mapping[str, float]], *, seed: int = 0
    ) -> list[dict]:
        """Every model's mean and, after the first one's, the difference to the first.

        Args:
            on: the set of prompts or items.
            values: model → prompt or item id → value; pairs of models are compared by id.
            seed: of the bootstrap.
        """
        rows, first = [], next(iter(values), None)
        for model, by_item in values.items():
            if not by_item:
                continue
            mean = intervals.mean_estimate(list(by_item.values()), self.unit, seed)
            rows.append(self.row(on, model, mean, values=by_item))
            if model != first and values[first]:
                # Paired by item: the spread between prompts is far larger than that between models.
                gap = intervals.difference_estimate(values[first], by_item, self.unit, seed)
                rows.append(self.row(on, model, gap, against=first))
        return rows

    def accuracy_rows(
        self, on: str, model: str, right: Mapping[str, float], longer: Mapping[str, float]
    ) -> list[dict]:
        """The accuracy on pairs with its baselines, and the paired difference to always preferring
        the longer text.

        Args:
            on: the set of pairs.
            model: who judged them.
            right: pair id → 1, ½ or 0.
            longer: the same of the longer text.

        Returns:
            Two rows.
        """
        mean = intervals.wilson(sum(right.values()), len(right))
        base = {"chance": 0.5, "longer": sum(longer.values()) / len(longer)}
        # A judge that only counts words is as right as this baseline.
        gap = intervals.paired_difference(longer, right, shares=True)
        plain = self.row(on, model, mean, baseline=base, values=right)
        return [plain, self.row(on, model, gap, against="longer")]


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
    """A row that JSON can hold.

    Args:
        metric: what is measured.
        on: the set of prompts or items.
        model: whose number it is.
        estimate: the number.
        against: of a paired difference (model − against) the other model. One whose interval covers
            zero has null = True and says so in `note`: a null result is a result.
        unit, good: see `Column`.
        baseline: name → value.
        note: what a reader must know.
        **extra: further fields. `over` is the model that a win rate is over; `values` is item id →
            value, which the evaluate stage writes to values.jsonl.

    Returns:
        The row. Its `name` is unique: metric/on/model, with -against or >over.

    Raises:
        ValueError: for another word in `good`.
    """
    if good not in DIRECTIONS:
        raise ValueError(f"good is one of {DIRECTIONS}")
    name = f"{metric}/{on}/{model}" + (f"-{against}" if against else "")
    out = {
        "name": name + (f">{extra['over']}" if "over" in extra else ""),
        "metric": metric,
        "on": on,
        "model": model,
        "against": against,
        **dataclasses.asdict(estimate),
        "unit": unit,
        "good": good,
        "baseline": dict(baseline or {}),
        "note": note,
        **extra,
    }
    if against is not None and estimate.value is not None:
        # A reader of the JSON alone must not take a difference within noise for a result.
        out["null"] = estimate.covers_zero
        if estimate.covers_zero and not note:
            out["note"] = "no difference shown: the 95 % interval covers zero"
    return out


def find(
    rows: Iterable[dict],
    metric: str,
    on: str | None = None,
    model: str | None = None,
    against: str | None = None,
) -> list[dict]:
    """The rows with these fields.

    Args:
        rows: those of metrics.json.
        metric: of the rows.
        on, model: of the rows; None for any.
        against: of the rows; None for plain numbers, not differences.

    Returns:
        Those rows, in their order.
    """
    wanted = {"metric": metric, "against": against}
    wanted |= {key: value for key, value in (("on", on), ("model", model)) if value is not None}
    return [r for r in rows if all(r.get(key) == value for key, value in wanted.items())]
