"""From the raw log-probabilities of a label record to the target that a preference model learns
(section 4.1, 4.3).

A record's `logprobs` are those of the option strings as they were shown: in order "ab" option (A)
is the first response of the pair, in order "ba" it is the second. Pure Python on floats; natural
logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def probability_first(entry: Mapping) -> float:
    """p(first response is better) from one {order, a, b}: softmax of the two log-probabilities,
    order undone."""
    difference = entry["a"] - entry["b"] if entry["order"] == "ab" else entry["b"] - entry["a"]
    # The logistic function without overflow on either side.
    return (
        1 / (1 + math.exp(-difference))
        if difference >= 0
        else math.exp(difference) / (1 + math.exp(difference))
    )


def target(
    records: Sequence[Mapping],
    *,
    kind: str = "soft",
    clamp: tuple[float, float] | None = None,
    average_orders: bool = True,
) -> float:
    """p(first response is better) of one pair, from all its label records (one a principle).

    Chains of thought, orders (only "ab" where `average_orders` is false) and principles are
    averaged as probabilities; then the mean is clamped to [low, high] where `clamp` is given, or
    made hard (0, ½ for a tie, 1) for kind "hard".
    """
    if clamp and not 0 <= clamp[0] <= clamp[1] <= 1:
        raise ValueError(f"clamp: expected two probabilities, the lower one first, not {clamp!r}")
    per_record = []
    for record in records:
        by_order: dict[str, list[float]] = {}
        for entry in record["logprobs"]:
            by_order.setdefault(entry["order"], []).append(probability_first(entry))
        if not average_orders and "ab" in by_order:
            by_order = {"ab": by_order["ab"]}
        per_record.append(
            sum(sum(values) / len(values) for values in by_order.values()) / len(by_order)
        )
    mean = sum(per_record) / len(per_record)
    if not 0 <= mean <= 1:
        raise ValueError(
            f"label: expected a probability, not {mean!r}; are its log-probabilities finite?"
        )
    if kind == "hard":
        return 0.5 if mean == 0.5 else float(mean > 0.5)
    if kind != "soft":
        raise ValueError(f"label kind: expected soft or hard, not {kind!r}")
    return min(max(mean, clamp[0]), clamp[1]) if clamp else mean
