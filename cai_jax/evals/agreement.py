"""Do the labels of a feedback model agree with people? Accuracy on human pairs, position, and
calibration of the labels."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

from cai_jax.core import labels
from cai_jax.evals import calibration
from cai_jax.evals.intervals import Estimate, bootstrap_mean, paired_difference, wilson
from cai_jax.evals.preference import wins
from cai_jax.evals.rows import Column

AGREEMENT = Column(
    "label_agreement",
    "Agree with people",
    "accuracy",
    "higher",
    "labels",
    figure="forest",
    title="AI labels that agree with people",
)
ONE_ORDER = Column(
    "label_agreement_one_order", "Agree with people, one order", "accuracy", "higher", "labels"
)
ERROR = Column("label_ece", "Calibration error of labels", "ECE", "lower", "labels")
FLIPS = Column("label_flip_rate", "Flip rate", "share", "lower", "labels")
FIRST = Column("label_first_option", "Option (A) chosen", "share", None, "labels")
CONFIDENCE = Column("label_confidence", "Mean confidence", "probability", None, "labels")
COLUMNS = (AGREEMENT, ONE_ORDER, ERROR, FLIPS, FIRST, CONFIDENCE)


def right(target: float, preferred: int) -> float:
    """1 where the label p(first is better) is on the side that people preferred, ½ at one half,
    else 0."""
    return 0.5 if target == 0.5 else float((target > 0.5) == (preferred == 0))


def of_pairs(records: Sequence[Mapping], comparisons: Iterable[Mapping]) -> dict[str, dict]:
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
        both, ab = (labels.target(own, average_orders=average) for average in (True, False))
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


def flips(records: Sequence[Mapping]) -> Estimate:
    """The share of labels whose choice changes when the options are exchanged, among those asked in
    both orders."""
    changed = []
    for record in records:
        first = collections.defaultdict(list)
        for entry in record["logprobs"]:
            first[entry["order"]].append(labels.probability_first(entry))
        if len(first) == 2:
            ab, ba = (sum(first[order]) / len(first[order]) > 0.5 for order in ("ab", "ba"))
            changed.append(ab != ba)
    return wilson(sum(changed), len(changed))


def rows(
    name: str,
    records: Sequence[Mapping],
    comparisons: Iterable[Mapping],
    curves: dict,
    *,
    seed: int = 0,
) -> list[dict]:
    """The rows of one feedback stage.

    Args:
        name: of the stage.
        records: its labels.
        comparisons: what was labelled.
        curves: where reliability curves go.
        seed: of the bootstrap.

    Returns:
        Agreement with people by source, with and without averaged orders, its paired difference to
        the length-only baseline, calibration, the flip rate and the share of first options.
    """
    out, on = [], collections.defaultdict(dict)
    for pair_id, pair in of_pairs(records, comparisons).items():
        on[pair["on"]][pair_id] = pair
    if len(on) > 1:
        on["human"] = {key: pair for of_source in [*on.values()] for key, pair in of_source.items()}
    for source, pairs in sorted(on.items()):
        longer = {pair_id: pair["longer"] for pair_id, pair in pairs.items()}
        base = {"chance": 0.5, "longer": sum(longer.values()) / len(longer)}
        for column, key in ((AGREEMENT, "right"), (ONE_ORDER, "right_one_order")):
            values = {pair_id: pair[key] for pair_id, pair in pairs.items()}
            mean = wilson(sum(values.values()), len(values))
            gap = paired_difference(longer, values, shares=True)
            out.append(column.row(source, name, mean, baseline=base, values=values))
            out.append(column.row(source, name, gap, against="longer"))
        sure = [max(pair["target"], 1 - pair["target"]) for pair in pairs.values()]
        bins = calibration.reliability(sure, [pair["right"] for pair in pairs.values()])
        curves[f"labels/{source}/{name}"], error = calibration.curve(bins)
        out.append(ERROR.row(source, name, error))
    first, flipped = [labels.target([r], average_orders=False) for r in records], flips(records)
    if flipped.n:
        share = wilson(sum(p > 0.5 for p in first), len(first))
        out += [FLIPS.row("labels", name, flipped), FIRST.row("labels", name, share)]
    mean = bootstrap_mean([max(p, 1 - p) for p in first], seed=seed)
    return [*out, CONFIDENCE.row("labels", name, mean)]
