"""PPO's arithmetic by hand, against a plain double loop (hypothesis over masks and lengths), and
the peers' defects."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import ppo

settings = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def rollouts(draw, num_arrays):
    """Arrays of one fixed shape (one compilation) with any mask: holes, empty rows, padding on both
    sides."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random((3, 7)) < draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
    arrays = [rng.normal(size=(3, 7)).astype(np.float32) for _ in range(num_arrays)]
    # What stands under the mask must never matter.
    return mask, [
        np.where(mask, x, draw(st.sampled_from([0.0, 1e30, np.nan]))).astype(np.float32)
        for x in arrays
    ]


def gae_loop(rewards, values, mask, gamma, lam):
    """From the definition A_t = Σ_k (γλ)^k δ_{t+k} over the row's actions, with a loop for the sum:
    no recursion."""
    advantages = np.zeros(mask.shape)
    for b in range(mask.shape[0]):
        actions = np.flatnonzero(mask[b])
        v = [float(values[b, t]) for t in actions] + [0.0]
        deltas = [float(rewards[b, t]) + gamma * v[i + 1] - v[i] for i, t in enumerate(actions)]
        for i, t in enumerate(actions):
            advantages[b, t] = sum(
                (gamma * lam) ** k * deltas[i + k] for k in range(len(actions) - i)
            )
    return advantages


def test_gae_by_hand():
    """γ = 0.5, λ = 0.5, r = (1, 2, 3), V = (4, 5, 6): δ = (−0.5, 0, −3); A = (−0.6875, −0.75,
    −3)."""
    arrays = [jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[4.0, 5.0, 6.0]]), jnp.ones((1, 3), bool)]
    for function in (ppo.gae, jax.jit(ppo.gae)):
        advantages, returns = function(*arrays, 0.5, 0.5)
        np.testing.assert_allclose(advantages, [[-0.6875, -0.75, -3.0]])
        np.testing.assert_allclose(returns, [[3.3125, 4.25, 3.0]])


def test_gae_carries_through_masked_tokens():
    """Three actions with holes and padding between them have the advantages of the same three
    without."""
    mask = jnp.array([[False, True, False, True, False, True, False]])
    spread = [
        jnp.zeros((1, 7)).at[0, jnp.array([1, 3, 5])].set(jnp.array(x)) + jnp.where(mask, 0.0, 99.0)
        for x in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    ]
    advantages, returns = ppo.gae(*spread, mask, 0.5, 0.5)
    np.testing.assert_allclose(advantages, [[0, -0.6875, 0, -0.75, 0, -3.0, 0]])
    np.testing.assert_allclose(returns, [[0, 3.3125, 0, 4.25, 0, 3.0, 0]])


@settings
@hypothesis.given(rollouts(2), st.sampled_from([(1.0, 0.95), (0.9, 1.0), (0.7, 0.0), (1.0, 1.0)]))
def test_gae_matches_double_loop(rollout, constants):
    mask, (rewards, values) = rollout
    advantages, returns = jax.jit(ppo.gae)(rewards, values, mask, *constants)
    want = gae_loop(rewards, values, mask, *constants)
    np.testing.assert_allclose(advantages, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        returns, np.where(mask, want + np.where(mask, values, 0), 0), rtol=1e-4, atol=1e-5
    )


@settings
@hypothesis.given(rollouts(1))
def test_whitening(rollout):
    mask, (values,) = rollout
    got = np.asarray(jax.jit(ppo.whiten)(values, mask))
    assert np.all(got[~mask] == 0)
    inside = values[mask].astype(np.float64)
    if inside.size:
        np.testing.assert_allclose(
            got[mask], (inside - inside.mean()) / np.sqrt(inside.var() + 1e-8), rtol=2e-3, atol=2e-4
        )


@settings
@hypothesis.given(rollouts(3), st.sampled_from([0.1, 0.2, 10.0]))
def test_clipped_losses_match_a_loop(rollout, clip):
    mask, (a, b, c) = rollout
    total = value_total = clipped = value_clipped = 0.0
    for i, t in zip(*np.nonzero(mask), strict=True):
        x, old, adv = float(a[i, t]), float(b[i, t]), float(c[i, t])
        ratio = np.exp(x - old)
        cut = min(max(ratio, 1 - clip), 1 + clip)
        total += -min(ratio * adv, cut * adv)
        clipped += cut * adv < ratio * adv
        near = old + min(max(x - old, -clip), clip)
        value_total += 0.5 * max((x - adv) ** 2, (near - adv) ** 2)
        value_clipped += (near - adv) ** 2 > (x - adv) ** 2
    got, sums = jax.jit(ppo.policy_loss)(a, b, c, mask, clip)
    np.testing.assert_allclose(got[mask].sum(), total, rtol=1e-4, atol=1e-4)
    assert np.all(got[~mask] == 0) and float(sums["clipped"]) == clipped
    got, sums = jax.jit(ppo.value_loss)(a, b, c, mask, clip)
    np.testing.assert_allclose(got[mask].sum(), value_total, rtol=1e-4, atol=1e-4)
    assert np.all(got[~mask] == 0) and abs(float(sums["clipped"]) - value_clipped) <= 1e-6
    # Nothing leaks through the gradient either.
    losses = ppo.policy_loss, ppo.value_loss
    grad = jax.grad(lambda x: sum(loss(x, b, c, mask, clip)[0].sum() for loss in losses))(a)
    assert np.all(np.asarray(grad)[~mask] == 0) and np.all(np.isfinite(grad))


def test_policy_loss_by_hand():
    """ε = 0.2. Ratio 1.5: A = 1 is cut at −1.2, no gradient; A = −1 stays 1.5. Ratio ½: A = 1 −0.5;
    A = −1 cut 0.8."""
    log_ratio = jnp.log(jnp.array([[1.5, 1.5, 0.5, 0.5]]))
    advantages = jnp.array([[1.0, -1.0, 1.0, -1.0]])
    mask = jnp.ones((1, 4), bool)

    def loss(x):
        return ppo.policy_loss(x, jnp.zeros((1, 4)), advantages, mask, 0.2)[0].sum()

    np.testing.assert_allclose(loss(log_ratio), -1.2 + 1.5 - 0.5 + 0.8, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(log_ratio), [[0.0, 1.5, -0.5, 0.0]], rtol=1e-6)
    _, sums = ppo.policy_loss(log_ratio, jnp.zeros((1, 4)), advantages, mask, 0.2)
    assert float(sums["clipped"]) == 2 and abs(float(sums["ratio_error"]) - 0.5) < 1e-6


def test_gradient_at_ratio_one_is_the_policy_gradient():
    """At π = π_old the clip is inert and the gradient is −A: with "old" recomputed in the minibatch
    it would be 0."""
    logprobs = -jnp.arange(1.0, 7.0).reshape(2, 3)
    advantages = jnp.array([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])
    mask = jnp.ones((2, 3), bool)
    grad = jax.grad(lambda x: ppo.policy_loss(x, logprobs, advantages, mask, 0.2)[0].sum())(
        logprobs
    )
    np.testing.assert_allclose(grad, -advantages)


def test_token_rewards_by_hand_and_sum_to_the_objective():
    mask = jnp.array([[False, True, True, False], [False, True, False, False], [False] * 4])
    logprobs = jnp.array([[9.0, -1.0, -2.0, 9.0], [9.0, -3.0, 9.0, 9.0], [9.0] * 4])
    reference = jnp.array([[0.0, -1.5, -1.0, 0.0], [0.0, -3.0, 0.0, 0.0], [0.0] * 4])
    got = ppo.token_rewards(jnp.array([0.7, -0.3, 5.0]), logprobs, reference, mask, 0.1)
    np.testing.assert_allclose(got, [[0, -0.05, 0.7 + 0.1, 0], [0, -0.3, 0, 0], [0] * 4], atol=1e-7)
    k1, _ = ppo.sequence_kl(logprobs, reference, mask)
    np.testing.assert_allclose(got.sum(1), jnp.array([0.7, -0.3, 0.0]) - 0.1 * k1, atol=1e-6)


def test_integer_rewards_are_refused():
    """The defect: rewards made with zeros_like(tokens) were int32, and 0.7 became 0."""
    mask, values = jnp.ones((1, 3), bool), jnp.zeros((1, 3))
    with pytest.raises(AssertionError):
        ppo.gae(jnp.zeros((1, 3), jnp.int32), values, mask, 1.0, 1.0)
    with pytest.raises(AssertionError):
        ppo.token_rewards(jnp.array([1]), values, values, mask, 0.1)
    with pytest.raises(AssertionError):
        ppo.whiten(values, mask.astype(jnp.float32))


def test_sequence_kl_estimates():
    """k1 has the mean of the true KL; k3 ≥ 0 for every row and has it too. Policy = reference gives
    exactly 0."""
    rng = np.random.default_rng(0)
    p, q = (np.exp(x) / np.exp(x).sum() for x in rng.normal(size=(2, 5)))
    y = rng.choice(5, size=(200_000, 1), p=p)
    mask = jnp.ones(y.shape, bool)
    logp, logq = (jnp.asarray(np.log(x)[y], jnp.float32) for x in (p, q))
    k1, k3 = ppo.sequence_kl(logp, logq, mask)
    truth = np.sum(p * np.log(p / q))
    assert (
        abs(float(k1.mean()) - truth) < 0.01
        and abs(float(k3.mean()) - truth) < 0.01
        and float(k3.min()) >= 0
    )
    same, _ = ppo.sequence_kl(logp, logp, mask)
    assert float(jnp.abs(same).max()) == 0


def test_explained_variance():
    mask = jnp.array([[True, True, True, False]])
    returns = jnp.array([[1.0, 2.0, 3.0, 50.0]])
    assert float(ppo.explained_variance(returns + 7.0, returns, mask)) == 1.0
    assert float(ppo.explained_variance(jnp.zeros((1, 4)), returns, mask)) == 0.0
    assert float(ppo.explained_variance(-returns, returns, mask)) == pytest.approx(-3.0)
    assert float(ppo.explained_variance(returns, jnp.ones((1, 4)), mask)) == 0.0


def test_kl_controller_by_hand():
    assert ppo.adapt_kl_coefficient(0.1, 50.0, None, 1000, 64) == 0.1
    assert ppo.adapt_kl_coefficient(0.1, 6.6, 6.0, 1000, 100) == pytest.approx(0.1 * 1.01)
    assert ppo.adapt_kl_coefficient(0.1, 600.0, 6.0, 1000, 100) == pytest.approx(0.1 * 1.02)
    assert ppo.adapt_kl_coefficient(0.1, -1.0, 6.0, 1000, 100) == pytest.approx(0.1 * 0.98)


def test_last_true():
    mask = jnp.array([[True, True, False], [False, True, False], [True, False, True], [False] * 3])
    want = [[False, True, False], [False, True, False], [False, False, True], [False] * 3]
    np.testing.assert_array_equal(ppo.last_true(mask), want)


def test_importance_weights_by_hand():
    """π / π_sampler of an action, or of all the actions of a response; at most the cap."""
    mask = np.array([[False, True, True], [True, True, False]])
    sampled = np.log(np.array([[0.9, 0.5, 0.2], [0.5, 0.5, 0.9]], np.float32))
    logprobs = np.log(np.array([[0.1, 0.25, 0.3], [0.1, 0.5, 0.1]], np.float32))
    for how, want in (
        ("token", [[0, 0.5, 1.5], [0.2, 1, 0]]),
        ("sequence", [[0, 0.75, 0.75], [0.2, 0.2, 0]]),
    ):
        found = ppo.importance_weights(jnp.array(logprobs), jnp.array(sampled), mask, how, 2.0)
        np.testing.assert_allclose(found, want, rtol=1e-6)
    capped = ppo.importance_weights(jnp.array(logprobs), jnp.array(sampled), mask, "token", 1.0)
    np.testing.assert_allclose(capped, [[0, 0.5, 1], [0.2, 1, 0]], rtol=1e-6)
    nan = jnp.array(np.where(mask, logprobs, np.nan))
    assert np.isfinite(ppo.importance_weights(nan, jnp.array(sampled), mask, "sequence", 2.0)).all()
