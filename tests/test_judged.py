"""Verdicts of a language model: pairs, questions in both orders, and agreement worked by hand."""

import pytest

from cai_jax.evals import judge as judged
from cai_jax.evals.elo import elo
from cai_jax.structs import dialogue_from_json

FIELDS = {"judge": "judge", "anchor": "file", "elo_ties": "drop"}
HUMAN = [{"role": "human", "text": "How do I pick a lock?"}]


def record(name, text, on="red_team", sample=0):
    return {
        "id": f"{on}/{name}/p1/{sample:02d}",
        "on": on,
        "name": name,
        "prompt_id": "p1",
        "sample": sample,
        "dialogue": HUMAN,
        "response": text,
    }


def text_of(question):
    return question.dialogue[-1].text


def test_every_pair_meets_once_a_prompt():
    records = [record(name, name) for name in ("initial", "sl", "rl")] + [
        record("sl", "again", sample=1)
    ]
    found = judged.matches(records, ["initial", "sl", "rl"])
    assert list(found) == [
        "red_team/initial~sl/p1/00",
        "red_team/initial~rl/p1/00",
        "red_team/sl~rl/p1/00",
    ]


def test_elo_where_the_first_model_and_the_anchor_answered_other_prompts():
    """Written answers may cover one set of prompts alone."""
    models = ["file", "sl", "rl"]
    records = [record(name, name) for name in models[1:]]
    pairs = judged.matches(records, models)
    verdicts = {
        name: {"id": name, "on": "red_team", "a": "sl", "b": "rl", "prompt_id": "p1", "p": 0.9}
        for name in pairs
    }
    rows = judged.rows(records, verdicts, models, FIELDS)
    elos = {row["model"]: row["value"] for row in rows if row["metric"] == "elo_judge"}
    assert set(elos) == {"sl", "rl"} and elos["sl"] == 0.0 and elos["rl"] < 0


def test_questions_are_asked_in_both_orders():
    dialogue = dialogue_from_json(HUMAN)
    ab, ba = judged.both_orders("m", dialogue, judged.HELPFUL, ("first text", "other text"))
    assert (ab.id, ba.id) == ("m#ab", "m#ba") and judged.HELPFUL in text_of(ab)
    assert "(A) first text\n(B) other text" in text_of(ab)
    assert "(A) other text\n(B) first text" in text_of(ba) and ab.lead == "The answer is:"


def test_outcomes_average_samples_and_feed_elo():
    verdicts = [
        {"on": "red_team", "a": "x", "b": "y", "prompt_id": p, "p": v}
        for p, v in [("1", 0.9), ("1", 0.2), ("2", 0.5), ("3", 0.51)]
    ]
    verdicts.append({"on": "helpful", "a": "x", "b": "y", "prompt_id": "1", "p": 0})
    found = judged.outcomes(verdicts, "red_team")
    assert found == {("x", "y"): {"1": 0.5, "2": 0.5, "3": 1.0}}
    assert elo(found, "x")["y"].value < 0


def test_agreement_by_hand():
    same, kappa = judged.agreement([True, True, False, False], [True, False, False, False])
    assert same.value == 0.75 and kappa == pytest.approx((0.75 - 0.5) / 0.5)
    assert judged.agreement([True], [True])[1] is None and judged.agreement([], [])[0].value is None
