"""One real step each of policy and value model: each moves by its own rate, and nothing else
moves."""

import numpy as np

from cai_jax.training import learner as lib
from tests import test_learner_settings as cheap


def test_each_model_moves_by_its_own_rate(monkeypatch):
    """Adam's first step is the rate wherever the gradient is far larger than ε."""
    monkeypatch.setattr(lib.networks, "hidden_states", cheap.embedded)
    found = cheap.learner(learning_rate=0.5, value_learning_rate=0.125, max_grad_norm=0.0)
    value = {"decoder": cheap.decoder(1), "head": cheap.head(2)}
    state = found.init(cheap.decoder(0), value, 0.3)
    batch = cheap.rollouts()
    frozen = found.freeze(state, cheap.decoder(7), batch)
    before = cheap.decoder(0)["embed"], cheap.head(2)["weight"]
    state, history = found.learn(state, batch, frozen, 0)
    moved = np.abs(np.asarray(state["params"]["embed"]) - before[0])
    assert np.median(moved[moved > 0]) > 0.45 and moved.max() < 0.501
    moved = np.abs(np.asarray(state["value"]["head"]["weight"]) - before[1])
    assert 0.12 < moved.max() < 0.1251
    assert float(state["controller"]["kl_coefficient"]) == np.float32(0.3)
    assert len(history) == 1 and history[0]["ratio_error"] < 1e-4
    again = found.freeze(state, cheap.decoder(7), batch)
    np.testing.assert_array_equal(again["ref"], frozen["ref"])
    assert np.abs(again["old"] - frozen["old"]).max() > 1e-3
    assert np.abs(again["old"] - again["ref"])[batch.actions].min() > 0
