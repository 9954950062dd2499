"""Real steps: policy and value model move by rates of their own, and nothing else moves; the losses
of GRPO and RLOO by hand."""

import dataclasses
import types

import numpy as np
import pytest

from cai_jax.core.algorithms import ALGORITHMS
from cai_jax.training import learner as lib
from cai_jax.training import state as state_lib
from tests import test_learner_settings as cheap
from tests import test_training_learner as real


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


def test_the_reference_is_read_with_its_own_config():
    """The defect: its weights were read with the policy's config."""
    other, batch = dataclasses.replace(real.CONFIG, rope_theta=10.0), real.rollouts()
    how = {"algorithm": ALGORITHMS["grpo"], "reference": other}
    policy, reference = (
        lib.Learner(config, None, real.SETTINGS, real.MESH, **how)
        for config in (real.CONFIG, other)
    )
    state = policy.init(state_lib.copy(real.PARAMS), None, 0.1)
    frozen = policy.freeze(state, real.PARAMS, batch)
    wanted, _ = reference.policy_logprobs(real.PARAMS, batch)
    np.testing.assert_allclose(frozen["ref"], np.where(batch.actions, wanted, 0), atol=1e-6)
    assert np.abs(frozen["ref"] - frozen["old"]).max() > 1e-3


# ---- GRPO and RLOO by hand -----------------------------------------------------------------------

# Two prompts with two answers each, of 1 to 4 actions after a prompt of two tokens.
GROUPS, COUNTS, SCORES = np.array([0, 1, 0, 1]), (4, 1, 3, 2), np.array([1.0, 0.5, -1.0, 2.0])
BETA, CLIP, CAP = 0.3, 0.1, 1.2
ESTIMATORS = {"k1": lambda d: d, "k2": lambda d: d**2 / 2, "k3": lambda d: np.exp(-d) - 1 + d}


def grouped_rollouts():
    """The sampler's log-probabilities are those of another policy, near the learner's."""
    rng = np.random.default_rng(0)
    mask = np.arange(cheap.T) < 2 + np.array(COUNTS)[:, None]
    actions = mask & (np.arange(cheap.T) >= 2)
    tokens = np.where(mask, rng.integers(0, 11, mask.shape), 0).astype(np.int32)
    old, _ = cheap.logprobs(cheap.decoder(0), tokens, cheap.SETTINGS.temperature)
    sampled = np.where(actions, old + 0.2 * rng.normal(size=mask.shape), 0).astype(np.float32)
    arrays = tokens, mask, actions, sampled, SCORES.astype(np.float32), GROUPS.astype(np.int32)
    return lib.Rollouts(list("abcd"), *arrays)


def loss_by_hand(params, batch, algorithm: str, settings) -> tuple[float, int]:
    """(sum, count) answer by answer, as docs/methods.md has it."""
    trees = {"new": params, "old": cheap.decoder(0), "ref": cheap.decoder(7)}
    logp = {
        name: next(cheap.logprobs(tree, batch.tokens, settings.temperature))
        for name, tree in trees.items()
    }
    of = [
        types.SimpleNamespace(**{k: x[i][batch.actions[i]] for k, x in logp.items()})
        for i in range(4)
    ]
    in_loss = settings.kl_in == "loss"
    rewards = SCORES - [0 if in_loss else BETA * np.sum(x.old - x.ref) for x in of]
    total, count = 0.0, 0
    for index, x in enumerate(of):
        same = rewards[GROUPS == GROUPS[index]]  # two answers
        advantage = (rewards[index] - same.mean()) / (same.std(ddof=1) + 1e-4)
        if algorithm == "rloo":
            advantage = rewards[index] - (same.sum() - rewards[index])
        ratio, kl = np.exp(x.new - x.old), ESTIMATORS[settings.kl_estimator](x.new - x.ref)
        weight = np.exp(x.old - batch.sampled[index][batch.actions[index]])
        if settings.correction == "sequence":
            weight = np.prod(weight)
        weight = np.minimum(weight, CAP) if settings.correction != "none" else 1.0
        if algorithm == "rloo":
            ratio, kl = np.prod(ratio), np.sum(kl)
        loss = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 1 - CLIP, 1 + CLIP))
        loss = (loss + BETA * kl * in_loss) * weight
        total += float(np.sum(loss))
        count += 1 if algorithm == "rloo" else len(x.new)
    return total, count


@pytest.mark.parametrize(
    "algorithm,kl,correction",
    [
        ("grpo", "reward k1", "none"),
        ("grpo", "reward k1", "token"),
        ("grpo", "reward k1", "sequence"),
        ("grpo", "loss k3", "none"),
        ("grpo", "loss k2", "token"),
        ("grpo", "loss k3", "sequence"),
        ("rloo", "reward k1", "none"),
        ("rloo", "reward k1", "sequence"),
        ("rloo", "loss k2", "none"),
        ("rloo", "loss k3", "sequence"),
    ],
)
def test_losses_without_a_value_model_by_hand(algorithm, kl, correction, monkeypatch):
    """At the first step the ratios are 1; at the second, of the same rollouts, the policy has moved
    and some are cut."""
    monkeypatch.setattr(lib.networks, "hidden_states", cheap.embedded)
    fields = dict(zip(("kl_in", "kl_estimator"), kl.split(), strict=True))
    fields |= {
        "kl_coefficient": BETA,
        "clip": CLIP,
        "correction": correction,
        "correction_cap": CAP,
        "learning_rate": 0.05,
    }
    settings = dataclasses.replace(cheap.SETTINGS, **fields)
    how = {"algorithm": ALGORITHMS[algorithm]}
    learner = lib.Learner(cheap.CONFIG, None, settings, cheap.MESH, **how)
    batch, state = grouped_rollouts(), learner.init(cheap.decoder(0), None, BETA)
    frozen = learner.freeze(state, cheap.decoder(7), batch)
    totals = []
    for update in range(2):
        total, count = loss_by_hand(learner.policy(state), batch, algorithm, settings)
        state, (numbers,) = learner.learn(state, batch, frozen, update)
        assert float(numbers["loss"]) == pytest.approx(total, rel=1e-3, abs=1e-3)
        assert float(numbers["count"]) == pytest.approx(count)
        totals.append(total)
    assert float(numbers["clipped"]) > 0 and abs(totals[0] - totals[1]) > 0.01
