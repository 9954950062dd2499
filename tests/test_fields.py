"""Every field of the training stages acts: another value makes other numbers, or the list below
says where it is read.

The defect that this looks for: a field that is declared, printed and part of the fingerprint, and
that nothing reads.
"""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core.algorithms import GRPO, PPO
from cai_jax.rewards import reward
from cai_jax.stages import dpo, pm, rl, sl
from cai_jax.stages.context import StageContext
from cai_jax.training import examples, pairs, supervised
from cai_jax.training import learner as learner_lib
from cai_jax.training import rollouts as rollouts_lib
from cai_jax.training import state as state_lib
from configs import default
from tests.test_training_learner import CONFIG, MESH, SETTINGS, rollouts, start

# ---- rl: what the learner computes with each setting ---------------------------------------------


def learner(**fields):
    return learner_lib.Learner(
        CONFIG, CONFIG, dataclasses.replace(SETTINGS, scan=False, **fields), MESH
    )


def rates(found):
    """Learning rates of policy and value model over the first steps, and how far one step of each
    goes."""
    peaks = found.settings.learning_rate, found.settings.value_learning_rate
    steps = [[float(found.settings.rate(p)(step)) for step in (0, 1, 5, 30)] for p in peaks]
    return steps, [float(tx_step(network.tx)) for network in found.networks]


def tx_step(tx):
    """The sum of what three steps with small and large gradients move."""
    params = {"decoder": {"w": jnp.ones((2, 2))}, "head": {"w": jnp.ones((2, 2))}}
    state, before = tx.init(params), params
    for size in (1.0, 30.0, 0.2):
        grads = jax.tree.map(lambda x, size=size: size * x, params)
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return sum(jnp.sum(a - b) for a, b in zip(*map(jax.tree.leaves, (params, before)), strict=True))


def advantages(found, algorithm=PPO):
    """Rewards, returns and advantages of three answers with values and a KL, as they are frozen."""
    actions = np.array([[False, True, True, True]] * 3)
    rng = np.random.default_rng(0)
    old, ref, values = (np.where(actions, rng.normal(size=(3, 4)), 0).astype("f4") for _ in "abc")
    scores = np.array([1.0, -2.0, 4.0], np.float32)
    settings, groups = {"settings": found.settings, "algorithm": algorithm}, np.array([0, 0, 1])
    sampled = np.where(actions, old - 1, 0).astype("f4")
    out = learner_lib.targets(old, ref, values, scores, actions, groups, 0.1, sampled, **settings)
    return jax.tree.map(lambda x: np.asarray(x).tolist(), out)


def grouped(found):
    return advantages(found, GRPO)


def losses(found):
    """The losses of a step whose policy and values are far from what was frozen; not compiled,
    which would take longer."""
    batch, rng = rollouts(), np.random.default_rng(1)
    segments = batch.mask.astype(np.int32)
    positions = np.broadcast_to(np.arange(12, dtype=np.int32), batch.tokens.shape)
    frozen = {
        name: np.where(batch.actions, rng.normal(size=batch.tokens.shape), 0).astype(np.float32)
        for name in ("old", "values", "advantages", "returns", "ref")
    }
    given = {
        "tokens": batch.tokens,
        "segments": segments,
        "positions": positions,
        "actions": batch.actions,
        **frozen,
    }
    other = dataclasses.replace(found.settings, shared=True)
    shared = learner_lib.Learner(CONFIG, CONFIG, other, MESH)
    both = {"decoder": start(found)["params"], "head": start(shared)["value"]}
    (policy, value), (learn,) = found.networks, shared.networks
    given_to = {
        "policy": (policy, both["decoder"]),
        "value": (value, both),
        "shared": (learn, both),
    }
    found_losses = {}
    for name, (network, params) in given_to.items():
        total, (count, _) = network.loss(params, given, PPO, found.settings)
        found_losses[name] = float(total / count)
    return found_losses


def minibatches(found):
    return [part.tolist() for part in found.minibatches(0, 8)]


ACTS = {  # field → (what it changes, another value, other fields under which it is tried)
    "learning_rate": (rates, 5e-3, {}),
    "value_learning_rate": (rates, 5e-3, {}),
    "schedule": (rates, "linear", {"num_updates": 20}),
    "num_updates": (rates, 10, {"schedule": "cosine", "num_updates": 20}),
    "warmup_updates": (rates, 4, {}),
    "max_grad_norm": (rates, 0.5, {}),
    "gamma": (advantages, 0.5, {}),
    "lam": (advantages, 0.5, {}),
    "whiten_rewards": (advantages, True, {}),
    "num_epochs": (minibatches, 3, {}),
    "num_minibatches": (minibatches, 4, {}),
    "clip": (losses, 0.01, {}),
    "value_clip": (losses, 0.01, {}),
    "temperature": (losses, 1.5, {}),
    "value_coefficient": (losses, 0.7, {}),
    "correction": (advantages, "token", {"correction_cap": 5.0}),
    "correction_cap": (advantages, 5.0, {"correction": "token"}),
    "kl_in": (advantages, "loss", {}),
    "kl_estimator": (losses, "k2", {"kl_in": "loss", "kl_estimator": "k3", "kl_coefficient": 0.3}),
    "group_normalisation": (grouped, "mean", {}),
    "loss_aggregation": (losses, "sequence_mean", {}),
    "max_new_tokens": (losses, 13, {"loss_aggregation": "fixed_length", "max_new_tokens": 12}),
    "kl_coefficient": (losses, 0.3, {"kl_in": "loss", "kl_estimator": "k3"}),
}


@pytest.mark.parametrize("field", [f for f, (probe, *_) in ACTS.items() if probe is not losses])
def test_a_setting_of_rl_acts(field):
    probe, value, others = ACTS[field]
    assert probe(learner(**others)) != probe(learner(**{**others, field: value}))


def test_settings_of_the_losses_act():
    changed = {
        "clip": {"policy", "shared"},
        "value_clip": {"value", "shared"},
        "temperature": {"policy", "shared"},
        "value_coefficient": {"shared"},
        "loss_aggregation": {"policy", "value", "shared"},
        "max_new_tokens": {"policy", "value", "shared"},
        "kl_estimator": {"policy", "shared"},
        "kl_coefficient": {"policy", "shared"},
    }
    assert set(changed) == {field for field, (probe, *_) in ACTS.items() if probe is losses}
    for field, want in changed.items():
        _, value, others = ACTS[field]
        before, after = losses(learner(**others)), losses(learner(**{**others, field: value}))
        assert {name for name in before if before[name] != after[name]} == want, field


def test_a_schedule_reaches_zero_at_the_last_update():
    found = learner(schedule="linear", num_updates=20, warmup_updates=2)
    per_update = SETTINGS.num_epochs * SETTINGS.num_minibatches
    policy, value = (found.settings.rate(SETTINGS.learning_rate) for _ in "pv")
    assert float(policy(2 * per_update)) == pytest.approx(SETTINGS.learning_rate)
    assert float(policy(20 * per_update)) == float(value(20 * per_update)) == 0.0
    assert float(learner().rate(20 * per_update)) == pytest.approx(SETTINGS.learning_rate)


# ---- sl and pm: the optimiser --------------------------------------------------------------------

OPTIMISER = {
    "learning_rate": 5e-3,
    "schedule": "linear",
    "warmup_steps": 3,
    "weight_decay": 0.5,
    "max_grad_norm": 0.5,
}


@pytest.mark.parametrize("field", OPTIMISER)
def test_a_setting_of_the_optimiser_acts(field):
    def moved(**fields):
        config = {**default.optimisation(1e-3, 4), **fields}
        rate, tx = state_lib.make_optimiser(_Fields(config), "sl", 10)
        return [rate(step) for step in range(10)], float(tx_step(tx))

    assert moved() != moved(**{field: OPTIMISER[field]})


class _Fields(dict):
    __getattr__ = dict.__getitem__


# ---- All fields: each acts above, or is read where this says -------------------------------------

GRAPH = {"kind", "inputs"}  # read by pipeline.py
READ = {  # stage → field → what of the code reads it; the tests that show it are those of that code
    "rl": {
        "policy": (rl.load_models, "config.policy"),
        "algorithm": (rl.load_models, "config.algorithm"),
        "reference": (StageContext.reference, "config.reference"),
        "reward": (reward.terms_of, 'fields["reward"]'),
        "rewards": (reward.terms_of, 'fields.get("rewards")'),
        "value_init": (rl.value_source, "config.value_init"),
        "value_from": (rl.value_source, "config.value_from"),
        "value_model": (rl.settings, 'config["value_model"]'),
        "prompts": (rollouts_lib._prompts, "ctx.config[name]"),
        "helpful_prompts": (rollouts_lib._prompts, '"helpful_prompts"'),
        "helpful_fraction": (rollouts_lib.draw, "config.helpful_fraction"),
        "sampler_weights": (rl.sampler, "ctx.config.sampler_weights"),
        "format": (rl.load_models, "config.format"),
        "rollouts_per_update": (rl.make_session, "config.rollouts_per_update"),
        "group_size": (rollouts_lib.draw, "config.group_size"),
        "num_microbatches": (learner_lib.networks.Network, "settings.num_microbatches"),
        "kl_target": (rl.adapted_controller, "config.kl_target"),
        "kl_horizon": (rl.adapted_controller, "config.kl_horizon"),
        "missing_eos_penalty": (reward.terms_of, 'fields["missing_eos_penalty"]'),
        "max_prompt_tokens": (rollouts_lib.fitting_prompts, "config.max_prompt_tokens"),
        "save_every_updates": (rl.make_session, "config.save_every_updates"),
        "snapshot_every_updates": (rl.make_session, "config.snapshot_every_updates"),
        "adapters": (StageContext.adapters, 'config.get("adapters")'),
    },
    "sl": {
        "init": (sl.run, "config.init"),
        "targets": (sl.examples, "config.targets"),
        "max_round": (sl.examples, "config.max_round"),
        "cut_answers": (sl.examples, "config.cut_answers"),
        "helpful_fraction": (sl.examples, "config.helpful_fraction"),
        "format": (sl.run, "config.format"),
    },
    "pm": {
        "init": (pm.run, "config.init"),
        "human": (pairs.human_pairs, "config.human"),
        "human_fraction": (pairs.load, "config.human_fraction"),
        "label_kind": (pairs.ai_pairs, "config.label_kind"),
        "clamp": (pairs.ai_pairs, "config.clamp"),
        "average_orders": (pairs.ai_pairs, "config.average_orders"),
        "cut_answers": (pairs.load, "config.cut_answers"),
        "holdout_fraction": (pairs.load, "config.holdout_fraction"),
        "normalise": (pm.run, "config.normalise"),
        "format": (pm.run, "config.format"),
    },
}

READ["dpo"] = {
    name: READ["pm"][name]
    for name in ("human", "human_fraction", "label_kind", "clamp", "average_orders", "cut_answers")
} | {
    "init": (dpo.run, "config.init"),
    "reference": (StageContext.reference, "config.reference"),
    "revision_pairs": (pairs.revision_pairs, "config.revision_pairs"),
    "loss": (dpo.make_loss, "fields.loss"),
    "beta": (dpo.make_loss, "fields.beta"),
    "label_smoothing": (dpo.make_loss, "fields.label_smoothing"),
    "nll_coefficient": (dpo.make_loss, "fields.nll_coefficient"),
    "holdout_fraction": READ["pm"]["holdout_fraction"],
    "format": (dpo.run, "config.format"),
}


# Where the fields of `optimisation` are read that are not the optimiser's.
TRAINED = {
    name: (supervised, f"config.{name}")
    for name in (
        "num_epochs",
        "batch_size",
        "num_microbatches",
        "save_every_steps",
        "log_every_steps",
    )
} | {
    "max_length": (examples.short_enough, "config.max_length"),
    "adapters": (StageContext.adapters, 'config.get("adapters")'),
}


@pytest.mark.parametrize(
    "fields,acts,read",
    [
        (default.rl(), set(ACTS), READ["rl"]),
        (default.sl(), set(OPTIMISER), READ["sl"] | TRAINED),
        (default.pm(), set(OPTIMISER), READ["pm"] | TRAINED),
        (default.dpo(), set(OPTIMISER), READ["dpo"] | TRAINED),
    ],
    ids=["rl", "sl", "pm", "dpo"],
)
def test_no_field_is_without_effect(fields, acts, read):
    assert set(fields) == acts | set(read) | GRAPH, "a new field: show above that it acts"
    assert not acts & set(read)
    for field, (code, how) in read.items():
        assert re.search(rf"{re.escape(how)}(?!\w)", inspect.getsource(code)), (
            f"{field}: nothing reads {how}"
        )
