"""PPO finds the analytic optimum: π*(y|x) ∝ π_ref(y|x)·exp(r(x, y)/β) on a problem whose answers
can all be listed.

The real engine samples, the real learner learns; only the reward is a table. A prompt is one of two
tokens, an answer up to two tokens of which one may be EOS: 21 answers a prompt, of two lengths,
most of them cut off at the limit.
"""

import collections
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import ppo, sharding
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.models import heads
from cai_jax.models.config import ModelConfig
from cai_jax.models.params import init_params
from cai_jax.structs import Message, Sampling
from cai_jax.training import learner as learner_lib
from cai_jax.training import rollouts as rollouts_lib
from cai_jax.training import state as state_lib

EOS, LENGTH, LONG = 0, 2, 80
CONFIG = ModelConfig(
    family="llama",
    vocab_size=5,
    width=32,
    ffw=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
)
FORMAT = types.SimpleNamespace(eos_ids=(EOS,), decode=lambda tokens: " ".join(map(str, tokens)))
PROMPTS = [
    rollouts_lib.PromptTokens(f"p{token}", (Message("human", str(token)),), None, ((token, 1),))
    for token in (3, 4)
]


MESH = sharding.make_mesh({"data": 1}, jax.devices()[:1])
Result = collections.namedtuple("Result", "divergence reward best_reward first_reward")


def answers():
    """Every answer: up to LENGTH tokens, ended by EOS or by the limit."""
    others = [token for token in range(CONFIG.vocab_size) if token != EOS]
    for count in range(LENGTH):
        yield from ((*body, EOS) for body in itertools.product(others, repeat=count))
    yield from itertools.product(others, repeat=LENGTH)


ANSWERS = list(answers())


def reward_table(seed=0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        (prompt.id, answer): float(value)
        for prompt in PROMPTS
        for answer, value in zip(ANSWERS, rng.random(len(ANSWERS)), strict=True)
    }


@jax.jit
def _row_logprobs(params, tokens, mask, actions):
    logprobs = heads.dialogue_logprobs(params, tokens, mask, CONFIG, chunk=0)
    return jnp.sum(jnp.where(actions, logprobs, 0.0), axis=1)


def distribution(params) -> np.ndarray:
    """π(y|x) for every prompt and answer, float64 [prompts, answers]."""
    rows = [prompt.tokens + answer for prompt in PROMPTS for answer in ANSWERS]
    tokens, mask = rollouts_lib.batching.pad_tokens(rows, len(rows), 2 + LENGTH)
    actions = mask & (np.arange(2 + LENGTH) >= 2)
    return np.exp(np.asarray(_row_logprobs(params, tokens, mask, actions), np.float64)).reshape(
        len(PROMPTS), -1
    )


def optimum(reference, table, beta):
    rewards = np.array([[table[prompt.id, answer] for answer in ANSWERS] for prompt in PROMPTS])
    best = reference * np.exp(rewards / beta)
    return best / best.sum(1, keepdims=True), rewards


def make_learner(num_updates, rate=4e-3, **fields):
    settings = learner_lib.Settings(
        num_epochs=4,
        num_minibatches=2,
        value_clip=None,
        lam=1.0,
        logprob_chunk=0,
        learning_rate=rate,
        value_learning_rate=rate,
        schedule="linear",
        num_updates=num_updates,
        **fields,
    )
    return learner_lib.Learner(CONFIG, CONFIG, settings, MESH)


def train(
    learner, beta, num_updates, *, seed=0, num_rollouts=256, mutate=lambda batch, frozen: None
):
    """(KL(π‖π*), expected reward, the optimum's, the reference's) after `num_updates` updates."""
    mesh, table = MESH, reward_table()
    reference = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(seed))
    value = state_lib.with_head(state_lib.copy(reference), heads.zero_head(CONFIG), mesh)
    state = learner.init(state_lib.copy(reference), value, beta)
    engine = Engine(
        state["params"],
        CONFIG,
        FORMAT,
        mesh,
        EngineOptions(batch_size=num_rollouts, chunk_steps=LENGTH),
    )
    fields = types.SimpleNamespace(
        rollouts_per_update=num_rollouts, group_size=1, helpful_fraction=None
    )
    for update in range(num_updates):
        drawn = rollouts_lib.draw(PROMPTS, update, fields, seed, "test")
        asked = rollouts_lib.requests(drawn, update, seed, "test")
        engine.update(state["params"])
        done = {item.id: item for item in engine.generate(asked, Sampling(LENGTH))}
        batch = rollouts_lib.assemble(drawn, done, 2 + LENGTH)
        batch.scores = np.array(
            [table[prompt.id, done[name].tokens] for name, prompt in drawn], np.float32
        )
        frozen = learner.freeze(state, reference, batch)
        mutate(batch, frozen)
        assert np.abs(np.where(batch.actions, batch.sampled - frozen["old"], 0)).max() < 1e-4
        state, history = learner.learn(state, batch, frozen, update)
        assert history[0]["ratio_error"] < 1e-4
    best, rewards = optimum(distribution(reference), table, beta)
    policy = distribution(state["params"])
    divergence = np.sum(policy * np.log(policy / best), axis=1).mean()
    return Result(
        divergence,
        *(np.sum(p * rewards, axis=1).mean() for p in (policy, best, distribution(reference))),
    )


def found(result: Result) -> bool:
    return result.divergence <= 0.02 and abs(result.reward / result.best_reward - 1) <= 0.01


@pytest.fixture(scope="module")
def learner():
    return make_learner(LONG)


def test_the_optimum_is_found(learner):
    result = train(learner, 0.35, LONG)
    assert result.first_reward < 0.9 * result.best_reward  # there was something to learn
    assert found(result), result


@pytest.mark.long
@pytest.mark.parametrize("beta", [0.2, 0.35, 0.6])
def test_the_optimum_is_found_for_every_weight_of_the_kl(learner, beta):
    result = train(learner, beta, LONG, seed=1)
    assert found(result), result


def advantages_negated(batch, frozen):
    frozen["advantages"] *= -1


def last_action_masked(batch, frozen):
    batch.actions &= ~np.asarray(ppo.last_true(jnp.asarray(batch.actions)))


def kl_left_out(batch, frozen):
    """Advantages of the score alone."""
    rewards = np.where(
        np.asarray(ppo.last_true(jnp.asarray(batch.actions))), batch.scores[:, None], np.float32(0)
    )
    advantages, returns = ppo.gae(rewards, frozen["values"], batch.actions, 1.0, 1.0)
    frozen.update(
        advantages=np.asarray(ppo.whiten(advantages, batch.actions)), returns=np.asarray(returns)
    )


@pytest.mark.long
@pytest.mark.parametrize("mutate", [advantages_negated, last_action_masked, kl_left_out])
def test_a_broken_learner_does_not_find_it(learner, mutate):
    assert not found(train(learner, 0.35, LONG, mutate=mutate))
