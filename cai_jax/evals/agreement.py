"""Do the labels of a feedback model agree with people? Accuracy on human pairs, position, and
calibration of the labels."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

from cai_jax.core import labels
from cai_jax.evals import calibration, preference
from cai_jax.evals.intervals import Estimate, bootstrap_mean, paired_difference, wilson
from cai_jax.evals.rows import row


def right(target: float, preferred: int) -> float:
    """1 where the label p(first is better) is on the side that people preferred, ½ at one half,
    else 0."""
    return 0.5 if target == 0.5 else float((target > 0.5) == (preferred == 0))


def of_pairs(records: Sequence[Mapping], comparisons: Iterable[Mapping]) -> dict[str, dict]:
    """comparison id → {"on": its source, "target": the label with orders averaged, "one_order": the
    label of order ab, "right" and "right_one_order": 1, ½ or 0, "longer": the same for always
    preferring the longer response}, for comparisons that people have judged ("preferred") and that
    have labels."""
    by_id, found = collections.defaultdict(list), {}
    for record in records:
        by_id[record["comparison_id"]].append(record)
    for pair in comparisons:
        if pair.get("preferred") is None or pair["id"] not in by_id:
            continue
        target, one = (
            labels.target(by_id[pair["id"]], average_orders=both) for both in (True, False)
        )
        lengths = [len(text) for text in pair["responses"]]
        longer = preference.wins([lengths[pair["preferred"]]], [lengths[1 - pair["preferred"]]])
        found[pair["id"]] = {
            "on": pair.get("kind") or "human",
            "target": target,
            "one_order": one,
            "longer": float(longer[0]),
            "right": right(target, pair["preferred"]),
            "right_one_order": right(one, pair["preferred"]),
        }
    return found


def flips(records: Sequence[Mapping]) -> Estimate:
    """The share of labels whose choice changes when the options change places, among those asked in
    both orders."""
    changed = []
    for record in records:
        sides = [
            [labels.probability_first(e) for e in record["logprobs"] if e["order"] == order]
            for order in ("ab", "ba")
        ]
        if all(sides):
            ab, ba = (sum(side) / len(side) for side in sides)
            changed.append((ab > 0.5) != (ba > 0.5))
    return wilson(sum(changed), len(changed))


def rows(
    name: str,
    records: Sequence[Mapping],
    comparisons: Iterable[Mapping],
    curves: dict,
    *,
    seed: int = 0,
) -> list[dict]:
    """The rows of one feedback stage: agreement with people by source, with and without averaged
    orders, its paired difference to the length-only baseline, calibration (to `curves`), the flip
    rate and the share of first options."""
    out, on = [], collections.defaultdict(dict)
    for pair_id, pair in of_pairs(records, comparisons).items():
        on[pair["on"]][pair_id] = pair
    if len(on) > 1:
        on["human"] = {
            pair_id: pair for part in list(on.values()) for pair_id, pair in part.items()
        }
    for source, pairs in sorted(on.items()):
        longer = {pair_id: pair["longer"] for pair_id, pair in pairs.items()}
        base = {"chance": 0.5, "longer": sum(longer.values()) / len(longer)}
        for metric, key in (
            ("label_agreement", "right"),
            ("label_agreement_one_order", "right_one_order"),
        ):
            values = {pair_id: pair[key] for pair_id, pair in pairs.items()}
            out.append(
                row(
                    metric,
                    source,
                    name,
                    wilson(sum(values.values()), len(values)),
                    unit="accuracy",
                    good="higher",
                    baseline=base,
                )
            )
            out.append(
                row(
                    metric,
                    source,
                    name,
                    paired_difference(longer, values, shares=True),
                    against="longer",
                    unit="accuracy",
                    good="higher",
                )
            )
        stated = [pair["target"] for pair in pairs.values()]
        sure = [max(p, 1 - p) for p in stated]
        bins = calibration.reliability(
            sure, [pair["right"] for pair in pairs.values()], num_bins=5, span=(0.5, 1.0)
        )
        curves[f"labels/{source}/{name}"] = calibration.points(bins)
        ece = Estimate(calibration.expected_calibration_error(bins), None, None, len(pairs))
        out.append(row("label_ece", source, name, ece, unit="ECE", good="lower"))
    first = [labels.target([record], average_orders=False) for record in records]
    if flips(records).n:
        out.append(
            row("label_flip_rate", "labels", name, flips(records), unit="share", good="lower")
        )
        out.append(
            row(
                "label_first_option",
                "labels",
                name,
                wilson(sum(p > 0.5 for p in first), len(first)),
                unit="share",
            )
        )
    out.append(
        row(
            "label_confidence",
            "labels",
            name,
            bootstrap_mean([max(p, 1 - p) for p in first], seed=seed),
            unit="probability",
        )
    )
    return out
