"""What rollouts of a rounded sampler do to the optimum of RL, by exact expectations: a policy that
is a table, answers that can all be listed, and the gradient of the mean over all of them.

The sampler q draws from logits rounded to integers. Without a baseline the gradient
Σ q(y)·A(y)·∇log π(y) is 0 where q·A = π·E_q[A], which is not π* = π_ref·exp(r/β)/Z, where A is the
same for all answers. Weights π/q, of the answer or of every token, make π* the point where it is 0;
so does a baseline of the mean of A under q, as A less its mean is 0 at π* for any q.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cai_jax.core import ppo

V, BETA, CAP = 5, 0.35, 8.0
# Token 0 ends an answer; one that does not end is cut after the second token.
ANSWERS = np.array([(0, 0), *itertools.product(range(1, V), range(V))])
MASK = np.stack([np.ones(len(ANSWERS), bool), ANSWERS[:, 0] > 0], axis=1)
RNG = np.random.default_rng(0)
REWARDS = RNG.random(len(ANSWERS)).astype(np.float32)
REFERENCE = {
    "first": RNG.normal(size=V).astype(np.float32),
    "second": RNG.normal(size=(V, V)).astype(np.float32),
}


def logprobs(params):
    """Of the tokens of every answer, [answers, 2]; 0 off the mask."""
    first = jax.nn.log_softmax(params["first"])[ANSWERS[:, 0]]
    second = jax.nn.log_softmax(params["second"])[ANSWERS[:, 0], ANSWERS[:, 1]]
    return jnp.where(MASK, jnp.stack([first, second], axis=1), 0.0)


def sampler(params):
    return logprobs(jax.tree.map(jnp.round, params))


def divergence(correction: str, baseline: bool = False) -> float:
    """KL(π ‖ π*) in nats where descent ends."""
    reference = logprobs(REFERENCE)

    def loss(params):
        new, drawn = logprobs(params), sampler(params)
        old, q = jax.lax.stop_gradient((new, jnp.exp(drawn.sum(axis=1))))
        rewards = ppo.token_rewards(REWARDS, old, reference, MASK, BETA)
        returns = rewards.sum(axis=1)
        returns -= jnp.sum(q * returns) * baseline
        advantages = jnp.broadcast_to(returns[:, None], MASK.shape)
        losses, _ = ppo.policy_loss(new, old, advantages, MASK, 0.2)
        if correction != "none":
            drawn = jax.lax.stop_gradient(drawn)
            losses *= ppo.importance_weights(old, drawn, MASK, correction, CAP)
        return jnp.sum(q[:, None] * losses)

    tx = optax.adam(optax.linear_schedule(0.02, 0.0, 2000))

    def step(state, _):
        params, moments = state
        updates, moments = tx.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    start = jax.tree.map(jnp.asarray, REFERENCE)
    (params, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, length=2000))((start, tx.init(start)))
    policy = np.asarray(logprobs(params).sum(axis=1), np.float64)
    best = np.asarray(reference.sum(axis=1)) + REWARDS / BETA
    best -= np.log(np.exp(best).sum())
    return float(np.sum(np.exp(policy) * (policy - best)))


def test_without_a_correction_another_policy_is_learned():
    assert divergence("none") > 0.05


@pytest.mark.parametrize("correction", ["token", "sequence"])
def test_with_a_correction_the_optimum_is_that_of_the_policy(correction):
    assert divergence(correction) < 0.001


def test_a_mean_baseline_keeps_the_optimum_with_any_sampler():
    assert divergence("none", baseline=True) < 0.001
