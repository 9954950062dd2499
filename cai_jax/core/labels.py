"""From the raw log-probabilities of a label record to the target that a preference model learns
(section 4.1, 4.3).

A record's `logprobs` are those of the option strings as they were shown: in order "ab" option (A)
is the first response of the pair, in order "ba" it is the second. Natural logarithms.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cai_jax.core.accuracy import wins
from cai_jax.core.intervals import Estimate, wilson


def normalise(logprobs: Sequence[float]) -> tuple[float, ...]:
    """softmax of the options' log-probabilities [C]."""
    x = np.asarray(logprobs, np.float64)
    if not np.any(np.isfinite(x)):
        raise ValueError("no option has a finite log-probability")
    weights = np.exp(x - x.max())
    return tuple((weights / weights.sum()).tolist())


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


def by_order(record: Mapping) -> dict[str, float]:
    """Order → p(first response is better), the mean over chains of thought."""
    values = collections.defaultdict(list)
    for entry in record["logprobs"]:
        values[entry["order"]].append(probability_first(entry))
    return {order: sum(of_order) / len(of_order) for order, of_order in values.items()}


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

    Args:
      records: of `feedback`, at least one.
      kind: "soft" or "hard".
      clamp: (low, high), or None.
      average_orders: whether both orders of the options count.
    Returns:
      A probability.
    Raises:
      ValueError: `clamp` is not two probabilities, the lower one first.
    """
    if clamp and not 0 <= clamp[0] <= clamp[1] <= 1:
        raise ValueError(f"clamp: expected two probabilities, the lower one first, not {clamp!r}")
    per_record = []
    for record in records:
        probabilities = by_order(record)
        if not average_orders and "ab" in probabilities:
            probabilities = {"ab": probabilities["ab"]}
        per_record.append(sum(probabilities.values()) / len(probabilities))
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


def flips(records: Iterable[Mapping]) -> Estimate:
    """The share of labels whose choice changes when the options are exchanged, among those asked in
    both orders."""
    asked = [p for p in map(by_order, records) if len(p) == 2]
    return wilson(sum((p["ab"] > 0.5) != (p["ba"] > 0.5) for p in asked), len(asked))


def right(target: float, preferred: int) -> float:
    """1 where the label p(first is better) is on the side that people preferred, ½ at one half,
    else 0."""
    return 0.5 if target == 0.5 else float((target > 0.5) == (preferred == 0))


def next_to_people(records: Sequence[Mapping], comparisons: Iterable[Mapping]) -> dict[str, dict]:
    """comparison id → {"on": its source, "target": the label with orders averaged, "one_order": the
    label of order ab, "right" and "right_one_order": 1, ½ or 0, "longer": the same for always
    preferring the longer response}, for comparisons that people have judged ("preferred") and that
    have labels."""
    by_id, pairs = collections.defaultdict(list), {}
    for record in records:
        by_id[record["comparison_id"]].append(record)
    for pair in comparisons:
        preferred, own = pair.get("preferred"), by_id.get(pair["id"])
        if preferred is None or own is None:
            continue
        both, ab = (target(own, average_orders=average) for average in (True, False))
        lengths = [len(text) for text in pair["responses"]]
        pairs[pair["id"]] = {
            "on": pair.get("kind") or "human",
            "target": both,
            "one_order": ab,
            "longer": float(wins([lengths[preferred]], [lengths[1 - preferred]])[0]),
            "right": right(both, preferred),
            "right_one_order": right(ab, preferred),
        }
    return pairs
