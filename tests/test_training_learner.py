"""The learner against the defects that peers had: what is frozen stays frozen, what is shuffled is
shuffled afresh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import optim, ppo, sharding
from cai_jax.models import heads
from cai_jax.models.decoder import hidden_states
from cai_jax.models.params import init_params
from cai_jax.training import batching
from cai_jax.training import learner as lib
from cai_jax.training import state as state_lib
from tests.small_config import SMALL

CONFIG = dataclasses.replace(
    SMALL, vocab_size=11, width=16, ffw=24, num_layers=1, num_heads=2, num_kv_heads=1
)
MESH = sharding.make_mesh({"data": 1}, jax.devices()[:1])
SETTINGS = lib.Settings(
    num_epochs=2,
    num_minibatches=2,
    num_microbatches=2,
    learning_rate=1e-2,
    temperature=0.7,
    value_learning_rate=1e-2,
    logprob_chunk=0,
)
PARAMS = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))


def rollouts(seed=0, R=8, T=12) -> lib.Rollouts:
    rng = np.random.default_rng(seed)
    starts, ends = rng.integers(1, 5, R), rng.integers(6, T + 1, R)
    tokens, mask = batching.pad_tokens([rng.integers(0, 11, end) for end in ends], R, T)
    actions = mask & (np.arange(T) >= starts[:, None])
    return lib.Rollouts(
        [f"r{i}" for i in range(R)],
        tokens,
        mask,
        actions,
        np.zeros((R, T), np.float32),
        rng.normal(size=R).astype(np.float32),
    )


def start(learner, kl_coefficient=0.1):
    head = heads.init_head(CONFIG, jax.random.key(1))
    value = head if learner.settings.shared else {"decoder": state_lib.copy(PARAMS), "head": head}
    value = sharding.put(value, state_lib.shardings_of(learner.abstract["value"]))
    return learner.init(state_lib.copy(PARAMS), value, kl_coefficient)


@pytest.fixture(scope="module")
def learner():
    return lib.Learner(CONFIG, CONFIG, SETTINGS, MESH)


@pytest.fixture(scope="module")
def update(learner):
    batch = rollouts()
    state = start(learner)
    frozen = learner.freeze(state, PARAMS, batch)
    copies = {name: array.copy() for name, array in frozen.items()}
    state, history = learner.learn(state, batch, frozen, 0)
    return batch, frozen, copies, state, history


def test_policy_equal_to_reference_has_no_kl_at_any_temperature(update):
    """The defect: reference log-probabilities at the rollout temperature and the policy's at 1."""
    _, frozen, *_ = update
    np.testing.assert_array_equal(frozen["old"], frozen["ref"])


def test_the_first_ratio_is_one_and_later_ones_are_not(update):
    """The defect: "old" log-probabilities made again with current weights in every minibatch: ratio
    1 for ever."""
    *_, history = update
    assert len(history) == 4
    assert history[0]["ratio_error"] < 1e-4
    assert all(row["ratio_error"] > 1e-3 for row in history[1:])


def test_what_is_frozen_does_not_change_while_learning(update):
    batch, frozen, copies, *_ = update
    for name, array in frozen.items():
        np.testing.assert_array_equal(array, copies[name])
        assert array.dtype == np.float32 and np.all(array[~batch.actions] == 0), name


def test_advantages_are_whitened_over_the_whole_rollout(update):
    batch, frozen, *_ = update
    inside = frozen["advantages"][batch.actions]
    assert abs(inside.mean()) < 1e-5 and abs(inside.std() - 1) < 1e-4
    halves = [
        frozen["advantages"][rows][batch.actions[rows]].mean()
        for rows in (slice(0, 4), slice(4, 8))
    ]
    assert max(map(abs, halves)) > 1e-3  # not by minibatch


def test_frozen_numbers_follow_from_the_parts(learner, update):
    """Returns are of the raw values; rewards carry the score on the last action and the KL on every
    one."""
    batch, frozen, *_ = update
    shifted = jax.tree.map(lambda x: x * 1.01, PARAMS)
    moved = learner.freeze(start(learner, 0.5), shifted, batch)
    rewards = ppo.token_rewards(batch.scores, moved["old"], moved["ref"], batch.actions, 0.5)
    np.testing.assert_allclose(moved["rewards"], rewards, atol=1e-5)
    advantages, returns = ppo.gae(jnp.asarray(rewards), moved["values"], batch.actions, 1.0, 0.95)
    np.testing.assert_allclose(moved["returns"], returns, atol=1e-4)
    np.testing.assert_allclose(
        moved["advantages"], ppo.whiten(advantages, batch.actions), atol=1e-3
    )


def test_logprobs_do_not_depend_on_padding_or_batch(learner):
    batch = rollouts()
    want, entropy = learner.policy_logprobs(PARAMS, batch)
    wide = dataclasses.replace(
        batch,
        **{
            name: np.pad(getattr(batch, name), ((0, 0), (0, 5)))
            for name in ("tokens", "mask", "actions", "sampled")
        },
    )
    got, _ = learner.policy_logprobs(PARAMS, wide)
    np.testing.assert_allclose(
        np.where(batch.actions, got[:, :12], 0), np.where(batch.actions, want, 0), atol=1e-5
    )
    few = lib.Rollouts(*[x[:3] for x in dataclasses.astuple(batch)])
    np.testing.assert_allclose(
        np.where(few.actions, learner.policy_logprobs(PARAMS, few)[0] - want[:3], 0), 0, atol=1e-5
    )
    assert entropy[batch.actions].min() > 0


def test_every_epoch_and_update_has_its_own_permutation(learner):
    """The defects: the same shuffle for ever, and a number of epochs that nobody read."""
    orders = []
    for number in range(3):
        parts = list(learner.minibatches(number, 8))
        assert len(parts) == SETTINGS.num_epochs * SETTINGS.num_minibatches
        for epoch in (0, 1):
            orders.append(tuple(np.concatenate(parts[2 * epoch : 2 * epoch + 2])))
            assert sorted(orders[-1]) == list(range(8))
    assert len(set(orders)) == 6
    again = [tuple(np.concatenate(list(learner.minibatches(1, 8))[:2]))]
    assert again == [orders[2]]  # named, not drawn from a state


def test_microbatches_are_exact_and_a_step_is_compiled_once(update, caplog):
    batch, _, _, state, history = update
    whole = lib.Learner(CONFIG, CONFIG, dataclasses.replace(SETTINGS, num_microbatches=1), MESH)
    first = start(whole)
    frozen = whole.freeze(first, PARAMS, batch)
    with jax.log_compiles():
        other, more = whole.learn(first, batch, frozen, 0)
    compiled = [
        record for record in caplog.records if record.getMessage().startswith("Compiling jit(step)")
    ]
    assert (
        len(compiled) == 2
    )  # the policy's and the value model's: what comes out goes in again as it is
    np.testing.assert_allclose(
        [row["loss"] / row["count"] for row in more],
        [row["loss"] / row["count"] for row in history],
        rtol=2e-3,
        atol=1e-5,
    )
    for name in ("params", "value"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), state[name], other[name]
        )


def test_a_shared_trunk_is_read_once_for_both():
    learner = lib.Learner(CONFIG, CONFIG, dataclasses.replace(SETTINGS, shared=True), MESH)
    batch, state = rollouts(), start(learner)
    frozen = learner.freeze(state, PARAMS, batch)
    logprobs, entropy = (
        np.where(batch.actions, x, 0) for x in learner.policy_logprobs(state["params"], batch)
    )
    hidden = hidden_states(
        state["params"], jnp.asarray(batch.tokens), jnp.asarray(batch.mask), CONFIG
    )
    values = np.where(batch.actions, heads.token_values(state["value"], hidden), 0)
    assert np.abs(values).max() > 1e-3
    for name, expected in {
        "old": logprobs,
        "ref": logprobs,
        "entropy": entropy,
        "values": values,
    }.items():
        np.testing.assert_allclose(frozen[name], expected, atol=2e-5, err_msg=name)


def test_the_head_on_a_shared_trunk_has_the_value_models_rate():
    """The defect: value_learning_rate acted on nothing there; a zero head at the policy's rate
    learns nothing."""
    moved = {}
    for value_rate in (1e-4, 3e-4):
        fields = {"shared": True, "learning_rate": 1e-3, "value_learning_rate": value_rate}
        learner = lib.Learner(CONFIG, CONFIG, dataclasses.replace(SETTINGS, **fields), MESH)
        state = start(learner)
        both = {"decoder": state["params"], "head": state["value"]}
        grads = jax.tree.map(lambda x: np.ones(x.shape, np.float32), both)
        after, _, _ = optim.apply_gradients(learner.networks[0].tx, grads, state["optimiser"], both)
        moved[value_rate] = jax.tree.map(lambda a, b: np.asarray(a - b), after, both)
    slow, fast = moved[1e-4], moved[3e-4]
    jax.tree.map(np.testing.assert_array_equal, slow["decoder"], fast["decoder"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-2), slow["head"], fast["head"]
    )
    assert np.abs(slow["head"]["weight"]).max() == pytest.approx(1e-4, rel=1e-2)
    assert np.abs(slow["decoder"]["embed"]).max() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.long
def test_a_shared_trunk_learns_both():
    learner = lib.Learner(
        CONFIG, CONFIG, dataclasses.replace(SETTINGS, shared=True, value_coefficient=1.0), MESH
    )
    batch, state = rollouts(), start(learner)
    first = None
    for number in range(6):
        frozen = learner.freeze(state, PARAMS, batch)
        state, history = learner.learn(state, batch, frozen, number)
        first = first or history[0]
        assert history[0]["ratio_error"] < 1e-4
    assert set(state) == set(learner.abstract) == {"params", "value", "optimiser", "controller"}
    assert history[-1]["value_loss"] / history[-1]["count"] < first["value_loss"] / first["count"]
