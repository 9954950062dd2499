"""Where RLOO, GRPO and DPO end, on tables: π*(y|x) ∝ π_ref(y|x)·exp(r(x, y)/β), or GRPO's own.

A policy is a table of logits; an answer is up to two tokens of which one may be EOS, 21 a prompt.
The arithmetic is that of the stages: advantages, losses, pairs. tests/test_ppo_optimum.py has the
engine and the learner too.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cai_jax.core import dpo, ppo
from cai_jax.core.algorithms import ALGORITHMS
from cai_jax.training.networks import Settings

NUM_PROMPTS, VOCABULARY, EOS = 2, 5, 0
GROUP, UPDATES = 256, 400
# (first token, second), the second -1 where EOS was the first.
ANSWERS = np.array([(0, -1), *itertools.product(range(1, VOCABULARY), range(VOCABULARY))])
ACTIONS = np.stack([np.ones(len(ANSWERS), bool), ANSWERS[:, 0] != EOS], axis=1)
RNG = np.random.default_rng(0)
REFERENCE = jnp.asarray(RNG.normal(size=(NUM_PROMPTS, VOCABULARY, VOCABULARY)), jnp.float32)
REWARDS = RNG.random((NUM_PROMPTS, len(ANSWERS)))


def token_logprobs(logits):
    """[prompts, answers, 2]: log-probabilities of both tokens; the state of the first is 0, that
    of the second the first token."""
    logp = jax.nn.log_softmax(logits)
    first, second = ANSWERS[:, 0], np.maximum(ANSWERS[:, 1], 0)
    both = jnp.stack([logp[:, 0, first], logp[:, first, second]], axis=-1)
    return jnp.where(ACTIONS, both, 0.0)


def distribution(logits):
    return np.exp(np.asarray(token_logprobs(logits).sum(-1), np.float64))


def optimum(beta):
    best = distribution(REFERENCE) * np.exp(REWARDS / beta)
    return best / best.sum(1, keepdims=True)


def divergence(policy, best):
    return float(np.sum(policy * np.log(policy / best), axis=1).mean())


def sampled(algorithm, beta, **fields):
    """The policy after `UPDATES` updates of groups of `GROUP` answers, sampled from it."""
    settings = Settings(kl_coefficient=beta, **fields)
    how = ALGORITHMS[algorithm].aggregation or settings.loss_aggregation
    groups = jnp.repeat(jnp.arange(NUM_PROMPTS), GROUP)
    optimiser = optax.adam(optax.linear_schedule(0.05, 0.0, UPDATES))
    penalty = beta if settings.kl_in == "reward" else 0.0

    def update(state, key):
        logits, moments = state
        logp = token_logprobs(logits)
        drawn = jax.random.categorical(key, logp.sum(-1)[:, None], shape=(NUM_PROMPTS, GROUP))
        drawn, mask = drawn.reshape(-1), jnp.asarray(ACTIONS)[drawn.reshape(-1)]
        old, ref = logp[groups, drawn], token_logprobs(REFERENCE)[groups, drawn]
        scores = jnp.asarray(REWARDS, jnp.float32)[groups, drawn]
        rewards = ppo.token_rewards(scores, old, ref, mask, penalty, settings.kl_estimator)
        batch = ALGORITHMS[algorithm].advantages(rewards, None, mask, groups, settings)
        batch |= {"old": old, "actions": mask, "segments": mask.astype(jnp.int32)}

        def loss(logits):
            now = token_logprobs(logits)[groups, drawn]
            losses, _ = ALGORITHMS[algorithm].policy_loss(now, batch, settings)
            if settings.kl_in == "loss":
                losses += beta * ppo.kl_estimate(now, ref, mask, settings.kl_estimator)
            total, count = ppo.aggregate(losses, mask, batch["segments"], how, 2)
            return total / count

        changes, moments = optimiser.update(jax.grad(loss)(logits), moments)
        return (optax.apply_updates(logits, changes), moments), None

    keys = jax.random.split(jax.random.key(1), UPDATES)
    run = jax.jit(lambda state: jax.lax.scan(update, state, keys)[0])
    return distribution(run((REFERENCE, optimiser.init(REFERENCE)))[0])


def group_optimum(beta):
    """Where GRPO ends with its KL in the loss (k3) and A = (r − mean) / std.

    In a state with actions a the step vanishes where π(a)·(Q(a) − V) = β·(π(a) − π_ref(a)): k3 has
    the gradient of KL(π_ref ‖ π) over the tokens of a state. Q is the expected advantage of what
    follows, without the KL of later tokens, which is no part of the reward. So π = β·π_ref/(c − Q)
    with the c that makes it a distribution, and mean and std are those under π itself.
    """
    reference = np.asarray(jax.nn.softmax(REFERENCE), np.float64)
    tables = reference.copy()

    def settle(ref, q):
        low, high = q.max() + 1e-9, q.max() + beta + 1e-6
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if np.sum(beta * ref / (middle - q)) > 1 else (low, middle)
        policy = beta * ref / (high - q)
        return policy / policy.sum()

    for _ in range(100):
        after = tables[:, 1:] * tables[:, 0, 1:, None]
        answers = np.concatenate([tables[:, 0, :1], after.reshape(NUM_PROMPTS, -1)], axis=1)
        mean = np.sum(answers * REWARDS, axis=1, keepdims=True)
        std = np.sqrt(np.sum(answers * (REWARDS - mean) ** 2, axis=1, keepdims=True))
        advantages, new = (REWARDS - mean) / std, tables.copy()
        for prompt in range(NUM_PROMPTS):
            later = advantages[prompt, 1:].reshape(VOCABULARY - 1, VOCABULARY)
            for state in range(1, VOCABULARY):
                new[prompt, state] = settle(reference[prompt, state], later[state - 1])
            after = np.sum(new[prompt, 1:] * later, axis=1)
            first = np.concatenate([advantages[prompt, :1], after])
            new[prompt, 0] = settle(reference[prompt, 0], first)
        tables = 0.7 * tables + 0.3 * new
    return answers


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_with_the_kl_in_the_reward_both_end_at_the_optimum(algorithm):
    """GRPO's division by the standard deviation scales a step and moves no zero of it."""
    found = sampled(algorithm, 0.35)
    assert divergence(found, optimum(0.35)) <= 0.02
    assert divergence(distribution(REFERENCE), optimum(0.35)) > 0.2  # there was something to learn


def test_grpo_with_the_kl_in_the_loss_ends_at_its_own_optimum():
    """The defect would be to call it the other: they are far apart, at β and at β times the
    standard deviation of the reward."""
    found, own = sampled("grpo", 1.0, kl_in="loss", kl_estimator="k3"), group_optimum(1.0)
    assert divergence(found, own) <= 0.02
    std = np.sqrt(np.mean(np.sum(own * (REWARDS - np.sum(own * REWARDS, 1)[:, None]) ** 2, 1)))
    assert min(divergence(found, optimum(beta)) for beta in (1.0, float(std))) > 0.02


def descended(loss, start):
    """Where the parameters end that start there."""
    optimiser = optax.adam(optax.linear_schedule(0.05, 0.0, UPDATES))

    def step(state, _):
        changes, moments = optimiser.update(jax.grad(loss)(state[0]), state[1])
        return (optax.apply_updates(state[0], changes), moments), None

    run = jax.jit(lambda state: jax.lax.scan(step, state, length=UPDATES)[0])
    return run((start, optimiser.init(start)))[0]


def test_dpo_on_all_pairs_ends_at_the_optimum():
    """Labels are σ(r_A − r_B)."""
    first, second = np.triu_indices(len(ANSWERS), 1)
    target = jnp.asarray(1 / (1 + np.exp(REWARDS[:, second] - REWARDS[:, first])), jnp.float32)
    lengths = jnp.asarray(ACTIONS.sum(1), jnp.float32)
    mask = jnp.ones(len(first), bool)

    def of_pairs(values):  # [answers] → [pairs, 2]
        return jnp.stack([values[first], values[second]], axis=1)

    def loss(logits):
        logprobs, reference = (token_logprobs(x).sum(-1) for x in (logits, REFERENCE))
        return sum(
            dpo.pair_loss(
                of_pairs(logprobs[prompt]),
                of_pairs(reference[prompt]),
                of_pairs(lengths),
                target[prompt],
                mask,
                beta=0.35,
            )[0]
            for prompt in range(NUM_PROMPTS)
        )

    assert divergence(distribution(descended(loss, REFERENCE)), optimum(0.35)) <= 0.02


@pytest.mark.parametrize("p", [0.5, 0.8, 1.0])
def test_ipo_on_two_answers_ends_at_its_own_optimum(p):
    """h̄ = (2p − 1)/(2β), log-ratios by the token: finite at p = 1, where DPO's logit p is not."""
    reference, lengths = jax.nn.log_softmax(jnp.array([0.3, -0.5])), jnp.array([1.0, 3.0])

    def loss(logits):
        given = jax.nn.log_softmax(logits)[None], reference[None], lengths[None]
        target, mask = jnp.array([p]), jnp.ones(1, bool)
        return dpo.pair_loss(*given, target, mask, kind="ipo", beta=0.35)[0]

    ratios = (jax.nn.log_softmax(descended(loss, reference)) - reference) / lengths
    assert float(ratios[0] - ratios[1]) == pytest.approx((2 * p - 1) / 0.7, abs=1e-3)
