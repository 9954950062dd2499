"""Numbers of the evaluations whose hand-worked cases elsewhere are symmetric: here the two sides
differ."""

import math

import pytest

from cai_jax.core import accuracy, labels
from cai_jax.core.intervals import Estimate
from cai_jax.data.evals import ChoiceItem
from cai_jax.evals import harm, multiple_choice
from cai_jax.evals.evaluator import Measured, Task
from cai_jax.evals.rows import find
from cai_jax.stages import evaluate


def answers(count, probabilities, by_chain=()):
    answered = {"subset": None, "correct": 1, "by_chain": by_chain}
    return [{"item": f"i{i}", "probabilities": probabilities, **answered} for i in range(count)]


def asking(count):
    options = (" (A)", " (B)")
    items = [ChoiceItem(f"i{i}", "Which?", options, 1, None, None) for i in range(count)]
    return multiple_choice.ModelOnSet(None, "set", items, "m", "@m")


def test_an_ensemble_of_chains_and_its_first_chain():
    """The first chain is wrong; the mean of the two is right, where zero-shot was wrong."""
    found = answers(4, (0.35, 0.65), ((0.6, 0.4), (0.1, 0.9)))
    plain = answers(4, (0.9, 0.1))
    rows = asking(4).rows("chain_of_thought", found, plain)
    assert find(rows, "choice_chain_of_thought", "set", "m")[0]["value"] == 1.0
    assert find(rows, "choice_one_chain", "set", "m")[0]["value"] == 0.0
    (gain,) = find(rows, "choice_chain_of_thought", "set", "m", "zero_shot")
    assert gain["value"] == 1.0


def test_the_share_of_first_options_stands_beside_the_right_one():
    rows = asking(4).rows("zero_shot", answers(4, (0.9, 0.1)))
    (first,) = find(rows, "first_option_zero_shot", "set")
    assert first["value"] == 1.0 and first["baseline"]["right"] == 0.0


@pytest.mark.parametrize(
    "low,high,covers",
    [(-2.0, -1.0, False), (1.0, 2.0, False), (-1.0, 1.0, True), (None, None, True)],
)
def test_an_interval_on_either_side_of_zero_excludes_it(low, high, covers):
    assert Estimate(0.5, low, high, 9).covers_zero == covers


def test_two_of_three_labels_flip():
    def label(ab, ba):
        sides = (("ab", ab, 1 - ab), ("ba", 1 - ba, ba))
        entries = [{"order": o, "a": math.log(a), "b": math.log(b)} for o, a, b in sides]
        return {"logprobs": entries}

    found = labels.flips([label(0.9, 0.2), label(0.3, 0.6), label(0.9, 0.8)])
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)


def test_three_of_four_prompts_are_harmful():
    records = [
        {"id": str(i), "on": "T=1", "name": "m", "prompt_id": str(i), "response": "x"}
        for i in range(4)
    ]
    rows = harm.rows(records, {"0": 3.0, "1": 4.0, "2": 2.5, "3": 1.0}, ["m"])
    assert find(rows, "harmful_share", "T=1", "m")[0]["value"] == 0.75


def test_the_regressors_error_is_squared():
    records = [{"source": "ratings", "rating": r, "predicted": p} for r, p in ((0, 2), (4, 1))]
    found = accuracy.regression_errors(records, 2.0)["ratings"]
    assert found["l2"]["value"] == pytest.approx((4 + 9) / 2)
    assert found["mean_predictor"] == 4.0


def test_two_evaluations_of_a_kind_have_labels_of_their_own():
    def measured(name):
        figure = {"name": "calibration", "series": [{"label": "PM, hhh", "x": [0], "y": [0]}]}
        fields = {"kind": "preference_pairs"}
        task = Task(None, name, fields, {}, {}, [], {}, {})
        return Measured([], [], [figure]).named(task)

    found, _ = evaluate._merged([measured("preference_pairs"), measured("second")])
    (figure,) = found["figures"]
    assert [series["label"] for series in figure["series"]] == ["PM, hhh", "PM, hhh, second"]
