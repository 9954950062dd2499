"""Numbers that the rl stage logs, by hand, and the checks that stop it."""

import dataclasses
import json
import types

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cai_jax.data import fitting
from cai_jax.data.prompts import read_prompts
from cai_jax.errors import UserError
from cai_jax.stages import rl
from cai_jax.textmodels.loader import LoadedModel
from cai_jax.training import rl_numbers, rollouts
from cai_jax.training.rollouts import Rollouts
from configs import default
from tests import recording


def test_numbers_of_a_rollout_by_hand():
    actions = np.array([[False, True, True, False], [False, False, True, False]])
    frozen = {
        name: np.zeros((2, 4), np.float32)
        for name in ("old", "ref", "values", "returns", "entropy")
    }
    frozen["old"][actions] = [-1.0, -2.0, -3.0]
    frozen["ref"][actions] = [-1.5, -2.0, -2.0]
    frozen["entropy"][actions] = [1.0, 2.0, 3.0]
    frozen["returns"][actions] = frozen["values"][actions] = [1.0, 2.0, 4.0]
    sampled = np.where(actions, frozen["old"], 7.0).astype(np.float32)
    sampled[1, 2] += 0.25
    raw = np.array([2.0, 4.0], np.float32)
    batch = Rollouts(
        ["a", "b"],
        np.zeros((2, 4), np.int32),
        actions | [True, False, False, False],
        actions,
        sampled,
        raw - 1,
    )
    found = rl_numbers.of_rollouts(batch, frozen, raw, np.array([True, False]), 0.1)
    want = {
        "reward": 3.0,
        "reward_std": 1.0,
        "penalised_reward": 2.0,
        "kl": (0.5 - 1.0) / 2,
        "objective": 2.0 + 0.025,
        "max_token_kl": 1.0,
        "entropy": 2.0,
        "response_tokens": 1.5,
        "truncated": 0.5,
        "sampler_gap": 0.25,
        "explained_variance": 1.0,
        "tokens": 5,
        "kl_coefficient": 0.1,
        "value": 7 / 3,
        "return": 7 / 3,
    }
    for name, value in want.items():
        assert float(found[name]) == pytest.approx(value), name
    assert found["kl_k3"] >= 0


def test_shares_are_over_all_actions_and_the_first_ratio_is_kept():
    history = [
        {
            "loss": 1.0,
            "grad_norm": 2.0,
            "count": 30.0,
            "actions": 30.0,
            "clipped": 3.0,
            "old_kl": 0.3,
            "ratio_error": 1e-7,
            "value_clipped": 0.0,
            "value_loss": 4.0,
            "value_grad_norm": 1.0,
        },
        {
            "loss": 3.0,
            "grad_norm": 4.0,
            "count": 10.0,
            "actions": 10.0,
            "clipped": 5.0,
            "old_kl": 0.1,
            "ratio_error": 0.5,
            "value_clipped": 4.0,
            "value_loss": 2.0,
            "value_grad_norm": 3.0,
        },
    ]
    found = rl_numbers.of_minibatches(history)
    assert (found["clip_fraction"], found["value_clip_fraction"], found["loss"]) == (
        0.2,
        0.1,
        pytest.approx((1 / 30 + 3 / 10) / 2),
    )
    assert (found["first_ratio_error"], found["max_ratio_error"]) == (1e-7, 0.5)
    assert found["old_kl"] == pytest.approx(0.01)


def test_a_policy_that_is_not_its_reference_stops_the_run():
    ctx = types.SimpleNamespace(name="rl", dtype=jnp.float32)
    rl.require_small(ctx, 9e-6, rl.MAX_START_KL, "")
    with pytest.raises(UserError, match="differs"):
        rl.require_small(
            ctx, 2e-5, rl.MAX_START_KL, "the policy differs from its reference before any update"
        )
    rl.require_small(
        types.SimpleNamespace(name="rl", dtype=jnp.bfloat16), 1.0, rl.MAX_START_KL, ""
    )  # rounding is coarser there


def test_every_field_of_the_config_reaches_the_learner():
    """The defect: a number of PPO epochs that was never read."""
    config = types.SimpleNamespace(logprob_chunk=7, scan_layers=True, remat="full")
    fields = default.rl(
        num_epochs=3,
        num_minibatches=5,
        num_microbatches=7,
        clip=0.11,
        value_clip=0.12,
        gamma=0.9,
        lam=0.8,
        temperature=0.7,
        whiten_rewards=True,
        learning_rate=1.0,
        value_learning_rate=2.0,
        warmup_updates=4,
        max_grad_norm=0.5,
        value_coefficient=0.3,
        value_model="shared",
        num_updates=9,
    )
    found = rl.settings(fields, config)
    for name in (
        "num_epochs",
        "num_minibatches",
        "num_microbatches",
        "clip",
        "value_clip",
        "gamma",
        "lam",
        "temperature",
        "whiten_rewards",
        "learning_rate",
        "value_learning_rate",
        "warmup_updates",
        "max_grad_norm",
        "value_coefficient",
        "num_updates",
    ):
        assert getattr(found, name) == fields[name], name
    assert (found.logprob_chunk, found.scan, found.remat, found.shared) == (7, True, "full", True)


def prompts_stage(path, tiny_model, limit, max_new_tokens=20, judge_positions=None):
    """(context, policy, preference model) of an rl stage over three prompts of growing length."""
    source = path / "prompts.jsonl"
    texts = ["Short?", "word " * 40, "word " * 90]
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    fields = default.rl(prompts=default.prompts(str(source), ""), max_new_tokens=max_new_tokens)
    ctx, _ = recording.stage(path, "rl", fields | {"max_prompt_tokens": 200}, format="chat")
    ctx.run_config.sampling.max_length = limit
    policy = ctx.models.load("policy")
    judge = dataclasses.replace(policy)
    if judge_positions:
        judge.config = dataclasses.replace(policy.config, max_length=judge_positions)
    return ctx, policy, judge


@pytest.mark.parametrize(
    "limit,positions,left,dropped",
    [
        (0, None, 3, {}),
        (150, None, 2, {fitting.CONTEXT: 1}),
        (0, 150, 2, {fitting.POSITIONS: 1}),
    ],
)
def test_prompts_whose_answers_might_not_fit_are_left_out_before_any_update(
    tmp_path, tiny_model, limit, positions, left, dropped
):
    """Short enough for max_prompt_tokens, but not for the sampler's context or the preference
    model: a KeyError once."""
    ctx, policy, judge = prompts_stage(tmp_path, tiny_model, limit, judge_positions=positions)
    lengths = [
        fitting.num_tokens(policy.format.prompt(p.dialogue))
        for p in ctx.load(read_prompts, ctx.config.prompts)
    ]
    assert max(lengths) <= ctx.config.max_prompt_tokens
    found = rollouts.fitting_prompts(ctx, policy, [policy, judge])  # not only the first counts
    assert len(found) == left and ctx.dropped == dropped
    most = fitting.smallest(limit, positions, policy.config.max_length)
    assert all(len(item.tokens) + ctx.config.max_new_tokens <= most for item in found)


def test_dialogues_beyond_a_models_positions_are_counted_and_warned_of(tmp_path, capsys):
    ctx, _ = recording.stage(tmp_path, "rl", default.rl())
    judge = types.SimpleNamespace(
        name="judge", num_beyond=2, score_each=lambda dialogues: enumerate([0.0] * len(dialogues))
    )
    assert list(ctx.score_each(judge, [()] * 3, "scores")) == [(0, 0.0), (1, 0.0), (2, 0.0)]
    told = "".join(capsys.readouterr())
    assert "2 of 3 dialogues are longer than the model's positions" in told and "'judge'" in told


def test_a_policy_that_does_not_move_is_named_after_the_warm_up():
    """The numbers of the demo until November: 2e-6 on all weights."""
    rewards = [-0.51, -0.62, -0.70, -0.55, -0.71, -0.80, -0.87, -0.66]
    rows = [{"clip_fraction": 0.0, "kl": 0.01, "reward": reward} for reward in rewards]
    said = rl_numbers.not_learning(rows)
    assert "clip fraction 0.000, KL 0.010 nats, reward -0.595 → -0.760" in said
    assert not rl_numbers.not_learning(rows[:3])  # too few
    for name, value in (("clip_fraction", 0.01), ("kl", 0.5)):
        assert not rl_numbers.not_learning([*rows[:-1], rows[-1] | {name: value * len(rows)}])
    rising = [row | {"reward": -row["reward"]} for row in rows]
    assert not rl_numbers.not_learning(rising)


def test_rollouts_of_rounded_weights_are_refused_without_a_correction():
    fields = default.rl(reward="python:builtins.len", sampler_weights="int8")
    with pytest.raises(UserError, match="rl.sampler_weights: int8 .*correction=token"):
        rl.check(ml_collections.ConfigDict(fields), None, "rl")
    fields["correction"] = "sequence"
    rl.check(ml_collections.ConfigDict(fields), None, "rl")


def test_rloo_refuses_weights_by_the_token():
    fields = default.rl(reward="python:builtins.len", algorithm="rloo", group_size=2)
    with pytest.raises(UserError, match="rl.correction: rloo needs correction=sequence"):
        rl.check(ml_collections.ConfigDict(fields | {"correction": "token"}), None, "rl")
    rl.check(ml_collections.ConfigDict(fields | {"correction": "sequence"}), None, "rl")


@pytest.mark.parametrize("weights", ["", "bfloat16", "int8"])
def test_the_sampler_has_the_weights_that_the_field_names(weights):
    policy = LoadedModel("m", None, {"embed": jnp.ones(2)}, None)
    models = types.SimpleNamespace(engine=lambda model, int8: (model.params["embed"].dtype, int8))
    fields = types.SimpleNamespace(sampler_weights=weights)
    dtype, int8 = rl.sampler(types.SimpleNamespace(config=fields, models=models), policy)
    assert (dtype == jnp.bfloat16, int8) == (weights == "bfloat16", weights == "int8")
    assert policy.params["embed"].dtype == jnp.float32
