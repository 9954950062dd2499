"""Do the labels of a feedback model agree with people? Accuracy on human pairs, position, and
calibration of the labels."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

from cai_jax.core import accuracy, labels
from cai_jax.core.intervals import bootstrap_mean, wilson
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
    for pair_id, pair in labels.next_to_people(records, comparisons).items():
        on[pair["on"]][pair_id] = pair
    if len(on) > 1:
        # Over all sources as well.
        on["human"] = {key: pair for of_source in [*on.values()] for key, pair in of_source.items()}
    for source, pairs in sorted(on.items()):
        longer = {pair_id: pair["longer"] for pair_id, pair in pairs.items()}
        for column, key in ((AGREEMENT, "right"), (ONE_ORDER, "right_one_order")):
            right = {pair_id: pair[key] for pair_id, pair in pairs.items()}
            out += column.accuracy_rows(source, name, right, longer)
        # Which side comes first is arbitrary, so calibration is that of the likelier side.
        sure = [max(pair["target"], 1 - pair["target"]) for pair in pairs.values()]
        points = accuracy.reliability(sure, [pair["right"] for pair in pairs.values()])
        curves[f"labels/{source}/{name}"] = points
        out.append(ERROR.row(source, name, accuracy.calibration(points)))
    # A habit of position needs no people: all labels count.
    first = [labels.target([r], average_orders=False) for r in records]
    if (flipped := labels.flips(records)).n:
        share = wilson(sum(p > 0.5 for p in first), len(first))
        out += [FLIPS.row("labels", name, flipped), FIRST.row("labels", name, share)]
    mean = bootstrap_mean([max(p, 1 - p) for p in first], seed=seed)
    return [*out, CONFIDENCE.row("labels", name, mean)]
