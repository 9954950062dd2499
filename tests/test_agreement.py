"""Agreement of labels with people: numbers worked by hand."""

import math

import pytest

from cai_jax.core import labels
from cai_jax.evals import agreement
from cai_jax.evals.rows import find


def label(comparison, ab, ba=None):
    """A label record with p(first) in either order; the option strings are lettered as they were
    shown."""
    entries = [{"order": "ab", "chain": 0, "a": math.log(ab), "b": math.log(1 - ab)}]
    if ba is not None:
        entries.append({"order": "ba", "chain": 0, "a": math.log(1 - ba), "b": math.log(ba)})
    return {
        "id": f"{comparison}/0-1/p",
        "comparison_id": comparison,
        "pair": [0, 1],
        "logprobs": entries,
    }


def pair(name, preferred, texts=("long answer", "short"), kind="harmless"):
    return {"id": name, "preferred": preferred, "responses": list(texts), "kind": kind}


PAIRS = [
    pair("a", 0),
    pair("b", 1),
    pair("c", 0, kind="helpful"),
    {"id": "d", "responses": ["x", "y"], "kind": "ai"},
]
LABELS = [label("a", 0.9, 0.7), label("b", 0.9, 0.3), label("c", 0.6, 0.4), label("d", 0.8, 0.9)]


def test_pairs_by_hand():
    found = labels.next_to_people(LABELS, PAIRS)
    assert set(found) == {"a", "b", "c"}, "d was judged by nobody"
    assert [round(found[name]["target"], 6) for name in "abc"] == [0.8, 0.6, 0.5]
    assert [found[name]["right"] for name in "abc"] == [1.0, 0.0, 0.5]
    assert [found[name]["right_one_order"] for name in "abc"] == [1.0, 0.0, 1.0]
    assert [found[name]["longer"] for name in "abc"] == [1.0, 0.0, 1.0]


def test_flips_count_labels_of_both_orders():
    found = labels.flips([*LABELS, label("e", 0.9)])
    assert (found.value, found.n) == (0.5, 4)  # b and c change, a and d do not; e was asked once


def test_rows():
    curves = {}
    rows = agreement.rows("feedback", LABELS, PAIRS, curves)
    assert len({r["name"] for r in rows}) == len(rows)
    (both,) = find(rows, "label_agreement", "human", "feedback")
    assert (
        both["value"] == pytest.approx(0.5)
        and both["n"] == 3
        and both["baseline"]["longer"] == pytest.approx(2 / 3)
    )
    (difference,) = find(rows, "label_agreement", "human", "feedback", "longer")
    assert difference["value"] == pytest.approx(-1 / 6) and difference["null"]
    assert find(rows, "label_agreement", "helpful")[0]["n"] == 1
    assert (
        find(rows, "label_flip_rate")[0]["value"] == 0.5
        and find(rows, "label_first_option")[0]["value"] == 1.0
    )
    assert sum(point["n"] for point in curves["labels/human/feedback"]) == 3
    assert [r["metric"] for r in agreement.rows("f", LABELS[3:], PAIRS[3:], {})] == [
        "label_flip_rate",
        "label_first_option",
        "label_confidence",
    ], "nobody judged these"
