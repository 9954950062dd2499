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
    assert made.judge == ("@other", "reward") and set(scores.terms) == {"reward", "missing_end"}
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
    assert made.judge == ("@pm", "reward") and set(scores.terms) == set(terms)
    np.testing.assert_allclose(scores.terms["length"], [-0.04, -0.09], rtol=1e-6)
    np.testing.assert_allclose(scores.reward, [2.96, 5.91], rtol=1e-6)
    np.testing.assert_allclose(scores.total, [2.96, 3.91], rtol=1e-6)
    assert scores.total.dtype == np.float32


def test_functions_of_ones_own_have_no_judge(monkeypatch):
    module = types.ModuleType("my_terms")
    module.ones = lambda dialogues: [1.0] * len(dialogues)
    monkeypatch.setitem(sys.modules, "my_terms", module)
    made = reward(reward="python:my_terms.ones")
    assert made.judge is None and made.score(ANSWERS).total.tolist() == [1.0, 1.0]
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


def test_every_preference_model_is_a_judge():
    terms = {name: {"kind": "preference_model", "model": f"@{name}"} for name in ("a", "b")}
    made = reward(rewards=terms)
    assert made.judge == ("@a", "reward") and made.judges == [("@a", "reward"), ("@b", "reward")]


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
