"""A reward is a sum of weighted terms, from the short form or composed in the config."""

import sys
import types

import ml_collections
import numpy as np
import pytest

from cai_jax.errors import UserError
from cai_jax.pipeline import graph as pipeline
from cai_jax.rewards import reward as lib
from cai_jax.rewards.functions import Answer
from cai_jax.structs import Message
from cai_jax.textmodels import questions
from cai_jax.textmodels.protocol import Choice
from configs import default

ANSWERS = [
    Answer((Message("human", "q"), Message("assistant", text)), tokens, cut)
    for text, tokens, cut in (("abc", 4, False), ("abcdef", 9, True))
]


class Judge:
    def score(self, dialogues):
        return np.array([len(dialogue[-1].text) for dialogue in dialogues], np.float32)


MODELS = types.SimpleNamespace(load=lambda *given: given, scorer=lambda model: Judge())


def reward(**fields):
    return lib.Reward(ml_collections.ConfigDict(default.rl(**fields)), MODELS)


def test_the_short_form_is_one_term_and_a_penalty():
    made = reward(reward="@other", missing_eos_penalty=1.5)
    scores = made.score(ANSWERS)
    assert made.preference_models == [("@other", "reward")] and set(scores.terms) == {
        "reward",
        "missing_end",
    }
    np.testing.assert_array_equal(scores.reward, np.float32([3, 6]))
    np.testing.assert_array_equal(scores.total, np.float32([3, 4.5]))
    assert set(reward().score(ANSWERS).terms) == {"reward"}


def test_terms_are_weighted_and_added():
    terms = {
        "pm": {"kind": "preference_model", "model": "@pm"},
        "length": {"kind": "length", "weight": -0.01},
        "end": {"kind": "missing_end", "weight": -2.0},
    }
    made = reward(rewards=terms)
    scores = made.score(ANSWERS)
    assert made.preference_models == [("@pm", "reward")] and set(scores.terms) == set(terms)
    np.testing.assert_allclose(scores.terms["length"], [-0.04, -0.09], rtol=1e-6)
    np.testing.assert_allclose(scores.reward, [2.96, 5.91], rtol=1e-6)
    np.testing.assert_allclose(scores.total, [2.96, 3.91], rtol=1e-6)
    assert scores.total.dtype == np.float32


def test_functions_of_ones_own_need_no_preference_model(monkeypatch):
    module = types.ModuleType("my_terms")
    module.ones = lambda dialogues: [1.0] * len(dialogues)
    monkeypatch.setitem(sys.modules, "my_terms", module)
    made = reward(reward="python:my_terms.ones")
    assert not made.preference_models and made.score(ANSWERS).total.tolist() == [1.0, 1.0]
    terms = {"own": {"kind": "python", "function": "python:my_terms.ones", "weight": 3.0}}
    assert reward(rewards=terms).score(ANSWERS).total.tolist() == [3.0, 3.0]
    lib.check(default.rl(rewards=terms))
    with pytest.raises(UserError, match="python:package.module.function"):
        lib.check(default.rl(reward="python:my_terms.none"))


def test_the_penalty_is_a_term_whatever_others_are_called():
    """The defect: a term that was called missing_end took its place."""
    for kind in ("length", "missing_end"):
        made = reward(missing_eos_penalty=1.5, rewards={"missing_end": {"kind": kind}})
        scores = made.score(ANSWERS)
        assert [term.tolist() for term in scores.terms.values()][1:] == [[0, -1.5]]
        assert scores.total.tolist() == [[4, 7.5], [0, -0.5]][kind == "missing_end"]


def test_every_preference_model_of_the_terms_is_loaded():
    terms = {name: {"kind": "preference_model", "model": f"@{name}"} for name in ("a", "b")}
    made = reward(rewards=terms)
    assert made.preference_models == [("@a", "reward"), ("@b", "reward")]


def test_with_rewards_the_reward_is_no_parent_and_no_model():
    """The defect: rl waited for a preference model that it does not read."""
    config = default.get_config()
    with config.unlocked():
        config.stages = ("rl",)
        config.graph.rl.rewards = {"short": {"kind": "length", "weight": -0.01}}
        assert pipeline.build_graph(config)["rl"].parents == ("sl",)
        config.graph.other = config.graph.pm.copy_and_resolve_references()
        config.graph.rl.rewards.pm = {"kind": "preference_model", "model": "@other"}
    nodes = pipeline.build_graph(config)
    assert nodes["rl"].parents == ("sl", "other") and "pm" not in nodes


# The judge itself


def answer(prompt, text, name):
    return Answer((Message("human", prompt), Message("assistant", text)), 1, False, name)


GROUPS = [answer(f"q{i % 2}", f"text {i}", f"r{i}") for i in range(6)]  # two prompts, in turns


class Asking:
    """Prefers the answer with the larger number by as many nats as it is larger, and what comes
    first by half a nat; writes down what it is asked."""

    name, seed, asked = "rl", 0, ()

    def choose(self, model, questions, label):
        self.asked = list(questions)
        for question in self.asked[::-1]:
            shown = question.dialogue[0].text.splitlines()
            a, b = (int(line.split("text ")[1]) for line in shown if "text " in line)
            yield Choice(question.id, (a - b + 0.5, 0.0))


class Released:
    """A text model that counts how often it was released."""

    name, count = "feedback", 0

    def release(self):
        self.count += 1


def judge(model, asking, **term):
    models = types.SimpleNamespace(text_model=lambda *given: model)
    term = {"kind": "judge", "constitution": "embedded", "num_few_shot": 1, **term}
    fields = ml_collections.ConfigDict(default.rl(rewards={"judge": term}))
    return lib.Reward(fields, models, asking)


def judged(answers, **term):
    asking = Asking()
    return judge(Released(), asking, **term).score(answers).total, asking.asked


def preferred(difference):
    """Both orders averaged, by hand."""
    return np.mean(1 / (1 + np.exp(-(difference + np.array([0.5, -0.5])))))


def test_a_judge_gives_the_mean_win_probability_over_the_group_in_both_orders():
    scores, asked = judged(GROUPS)
    ahead, far = preferred(2), preferred(4)
    wins = [(2 - ahead - far) / 2, 0.5, (ahead + far) / 2]
    np.testing.assert_allclose(scores, np.repeat(wins, 2), rtol=1e-6)
    assert len(asked) == 2 * 3 * 2  # prompts, pairs, orders
    texts = [question.dialogue[0].text for question in asked if question.id.startswith("r0 ≻ r2")]
    assert [text.index("text 0") < text.index("text 2") for text in texts] == [True, False]
    principles = {question.dialogue[0].text.split("\n")[-4] for question in asked}
    assert 1 < len(principles) <= 6


def test_a_judge_may_compare_with_the_first_of_the_group_only():
    scores, asked = judged(GROUPS, pairs="first")
    ahead, far = preferred(2), preferred(4)
    np.testing.assert_allclose(scores, np.repeat([(2 - ahead - far) / 2, ahead, far], 2), rtol=1e-6)
    assert len(asked) == 2 * 2 * 2
    assert judged(GROUPS[:1])[0].tolist() == [0.5]  # nothing to compare with


@pytest.mark.parametrize("num_headers,draws", [(0, 12), (1, 1)])
def test_a_judge_keeps_neither_its_engine_nor_examples_that_no_other_pair_has(
    monkeypatch, num_headers, draws
):
    """The defect: the sampler stayed on the device while the learner works, and without
    `num_headers` the examples of every pair stayed in memory to the end of the stage."""
    drawn, draw, model = [], questions.draw_examples, Released()
    monkeypatch.setattr(
        questions, "draw_examples", lambda *given: drawn.append(given[-1]) or draw(*given)
    )
    reward = judge(model, Asking(), num_headers=num_headers)
    for _ in range(2):
        reward.score(GROUPS)
    assert (len(drawn), model.count) == (draws, 2)


def test_terms_that_are_given_stay_next_to_a_stage_that_labels():
    """The defect: the judge replaced them."""
    config = default.get_config()
    with config.unlocked():
        config.stages = ("rl",)
        config.graph.rl.reward = "@feedback"
        config.graph.rl.rewards = {"short": {"kind": "length", "weight": -0.01}}
    fields = pipeline.build_graph(config)["rl"].fields
    assert fields["reward"] == "" and set(fields["rewards"]) == {"short"}


def test_a_stage_that_labels_is_short_for_a_judge_that_asks_as_it_does():
    config = default.get_config()
    with config.unlocked():
        config.stages = ("rl",)
        config.graph.rl.reward = "@feedback"
        config.graph.feedback.num_few_shot = 3
    nodes = pipeline.build_graph(config)
    assert nodes["rl"].parents == ("sl",) and "feedback" not in nodes
    term = nodes["rl"].fields["rewards"]["judge"]
    assert (term["kind"], term["model"], term["num_few_shot"]) == ("judge", "feedback", 3)
