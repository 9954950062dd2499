"""Every number that the learner is given acts, shown on a model whose hidden states are its
embeddings: by hand, and cheap."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import sharding
from cai_jax.core.algorithms import PPO, RLOO
from cai_jax.models.config import ModelConfig
from cai_jax.models.params import abstract_params
from cai_jax.training import batching
from cai_jax.training import learner as lib

CONFIG = ModelConfig(
    family="llama",
    vocab_size=11,
    width=4,
    ffw=4,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=4,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
    tied_embeddings=True,
)
MESH = sharding.make_mesh({"data": 1}, jax.devices()[:1])
SETTINGS = lib.Settings(temperature=0.5, logprob_chunk=0, clip=0.1, value_clip=0.3)
R, T = 4, 6


def embedded(decoder, tokens, mask, config, **options):
    return decoder["embed"][tokens]


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(lib.networks, "hidden_states", embedded)


def decoder(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), abstract_params(CONFIG)
    )


def learner(**fields):
    return lib.Learner(CONFIG, CONFIG, dataclasses.replace(SETTINGS, **fields), MESH)


def loss_of(found, index, params, arrays):
    """(sum, (count, sums)) of one of a learner's networks."""
    return found.networks[index].loss(params, arrays, PPO, found.settings)


def head(seed):
    rng = np.random.default_rng(seed)
    return {"weight": jnp.asarray(rng.normal(size=4), jnp.float32), "bias": jnp.float32(0.5)}


def rollouts():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, (R, T)).astype(np.int32)
    mask, actions = np.ones((R, T), bool), np.zeros((R, T), bool)
    actions[:, 2:] = True
    ids = [f"r{i}" for i in range(R)]
    return lib.Rollouts(
        ids, tokens, mask, actions, np.zeros((R, T), np.float32), np.arange(R).astype(np.float32)
    )


def logprobs(params, tokens, temperature):
    """log P(token t | token t − 1) of the model above, [R, T] with 0 first."""
    embed = np.asarray(params["embed"], np.float64)
    logits = embed[tokens[:, :-1]] @ embed.T / temperature
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = np.take_along_axis(logp, tokens[:, 1:, None], -1)[..., 0]
    entropy = -(np.exp(logp) * logp).sum(-1)
    return (np.pad(x, ((0, 0), (1, 0))) for x in (found, entropy))


def values(value, tokens):
    """The value of the state in which a token was chosen: read at the token before it."""
    hidden = np.asarray(value["decoder"]["embed"], np.float64)[np.roll(tokens, 1, axis=1)]
    return hidden @ np.asarray(value["head"]["weight"]) + 0.5


def minibatch(seed=3):
    """A step's arrays with a row a rollout, and old numbers that are near the present ones."""
    batch, rng = rollouts(), np.random.default_rng(seed)
    old, _ = logprobs(decoder(0), batch.tokens, SETTINGS.temperature)
    value = {"decoder": decoder(1), "head": head(2)}
    near = {
        "old": np.where(batch.actions, old + 0.2 * rng.normal(size=(R, T)), 0),
        "values": values(value, batch.tokens) + 0.4 * rng.normal(size=(R, T)),
        "returns": rng.normal(size=(R, T)),
        "advantages": rng.normal(size=(R, T)),
    }
    arrays = {
        "tokens": batch.tokens,
        "segments": np.ones((R, T), np.int32),
        "positions": batching.positions(batch.actions),
        "actions": batch.actions,
        **{name: array.astype(np.float32) for name, array in near.items()},
    }
    return jax.tree.map(jnp.asarray, arrays), value


def clipped_policy_loss(arrays, clip):
    new, _ = logprobs(decoder(0), np.asarray(arrays["tokens"]), SETTINGS.temperature)
    ratio = np.exp(new - np.asarray(arrays["old"]))
    gain = np.asarray(arrays["advantages"])
    lost = np.maximum(-gain * ratio, -gain * np.clip(ratio, 1 - clip, 1 + clip))
    return lost[np.asarray(arrays["actions"])].sum()


def clipped_value_loss(arrays, value, clip):
    new, old = values(value, np.asarray(arrays["tokens"])), np.asarray(arrays["values"])
    wanted = np.asarray(arrays["returns"])
    near = old + np.clip(new - old, -clip, clip)
    lost = 0.5 * np.maximum((new - wanted) ** 2, (near - wanted) ** 2)
    return lost[np.asarray(arrays["actions"])].sum()


@pytest.mark.parametrize("clip", [0.1, 5.0])
def test_the_policys_loss_by_hand(clip):
    arrays, _ = minibatch()
    total, (count, sums) = loss_of(learner(clip=clip), 0, decoder(0), arrays)
    assert float(total) == pytest.approx(clipped_policy_loss(arrays, clip), rel=1e-4)
    assert float(count) == R * 4 and (float(sums["clipped"]) > 0) == (clip == 0.1)


def test_the_kl_in_rloos_loss_is_that_of_whole_answers():
    """k2, by hand: its sum over every answer, and not its mean over the tokens."""
    arrays, _ = minibatch()
    ref, _ = logprobs(decoder(7), np.asarray(arrays["tokens"]), SETTINGS.temperature)
    arrays["ref"] = jnp.asarray(ref, jnp.float32)
    fields, totals = {"kl_in": "loss", "kl_estimator": "k2"}, []
    for beta in (0.0, 0.3):
        network = learner(kl_coefficient=beta, **fields)
        total, (count, _) = network.networks[0].loss(decoder(0), arrays, RLOO, network.settings)
        totals.append(float(total))
    new, _ = logprobs(decoder(0), np.asarray(arrays["tokens"]), SETTINGS.temperature)
    kl = (0.5 * (new - ref) ** 2)[np.asarray(arrays["actions"])].sum()
    assert totals[1] - totals[0] == pytest.approx(0.3 * kl, rel=1e-3) and float(count) == R


@pytest.mark.parametrize("clip", [0.3, 9.0])
def test_the_values_loss_by_hand(clip):
    arrays, value = minibatch()
    total, (count, sums) = loss_of(learner(value_clip=clip), 1, value, arrays)
    assert float(total) == pytest.approx(clipped_value_loss(arrays, value, clip), rel=1e-4)
    assert float(count) == R * 4 and (float(sums["value_clipped"]) > 0) == (clip == 0.3)


def test_the_shared_loss_is_both_with_the_values_weight():
    arrays, value = minibatch()
    both = {"decoder": decoder(0), "head": value["head"]}
    own = {"decoder": decoder(0), "head": value["head"]}
    total, _ = loss_of(learner(shared=True, value_coefficient=0.25), 0, both, arrays)
    wanted = clipped_policy_loss(arrays, 0.1) + 0.25 * clipped_value_loss(arrays, own, 0.3)
    assert float(total) == pytest.approx(wanted, rel=1e-4)


def test_rates_are_counted_in_steps_of_updates():
    """6 steps an update: warm-up over the first, down to zero over the other three."""
    fields = {"num_epochs": 2, "num_minibatches": 3, "num_updates": 4, "warmup_updates": 1}
    found = learner(learning_rate=1.0, value_learning_rate=2.0, schedule="linear", **fields)
    for peak in (1.0, 2.0):
        rate = found.settings.rate(peak)
        wanted = [peak / 7, peak, peak / 2, 0.0]
        assert [float(rate(step)) for step in (0, 6, 15, 24)] == pytest.approx(wanted)


def first_step(tx, gradient):
    params = {"w": jnp.zeros((2, 2))}
    updates, _ = tx.update({"w": jnp.full((2, 2), gradient)}, tx.init(params), params)
    return float(updates["w"][0, 0])


def test_policy_and_value_model_have_rates_of_their_own():
    """The defect: a value rate that acts on nothing. Where the gradient is as large as ε, a first
    step is half the rate."""
    found = learner(learning_rate=0.5, value_learning_rate=0.25, max_grad_norm=0.0)
    assert first_step(found.networks[0].tx, 1.0) == pytest.approx(-0.5, rel=1e-3)
    assert first_step(found.networks[1].tx, 1.0) == pytest.approx(-0.25, rel=1e-3)
    assert first_step(found.networks[0].tx, 1e-5) == pytest.approx(-0.25, rel=1e-3)


def test_gradients_are_clipped():
    """Of norm 2 · 10⁻⁵, each of the four is as large as ε."""
    found = learner(learning_rate=0.5, value_learning_rate=0.25, max_grad_norm=2e-5)
    assert first_step(found.networks[0].tx, 1.0) == pytest.approx(-0.25, rel=1e-3)
    assert first_step(found.networks[1].tx, 1.0) == pytest.approx(-0.125, rel=1e-3)


@pytest.fixture(scope="module")
def frozen():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lib.networks, "hidden_states", embedded)
        yield freeze()


def freeze():
    found = learner(gamma=0.9, lam=0.8)
    value = {"decoder": decoder(1), "head": head(2)}
    state = found.init(decoder(0), value, 0.3)
    return rollouts(), found.freeze(state, decoder(7), rollouts())


def test_what_is_frozen_by_hand(frozen):
    batch, found = frozen
    old, entropy = logprobs(decoder(0), batch.tokens, 0.5)
    ref, _ = logprobs(decoder(7), batch.tokens, 0.5)
    value = values({"decoder": decoder(1), "head": head(2)}, batch.tokens)
    for name, wanted in {"old": old, "ref": ref, "entropy": entropy, "values": value}.items():
        np.testing.assert_allclose(
            found[name], np.where(batch.actions, wanted, 0), atol=2e-4, err_msg=name
        )


def test_advantages_by_hand(frozen):
    """γ, λ and the coefficient act; the reward stands on the last action, and returns are of what
    was not whitened."""
    batch, found = frozen
    kl = np.where(batch.actions, found["old"] - found["ref"], 0).astype(np.float64)
    rewards = -0.3 * kl
    rewards[:, -1] += batch.scores
    np.testing.assert_allclose(found["rewards"], rewards, atol=1e-4)
    value, advantages = found["values"].astype(np.float64), np.zeros((R, T))
    for t in range(T - 1, 1, -1):
        after = value[:, t + 1] if t + 1 < T else 0.0
        advantages[:, t] = rewards[:, t] + 0.9 * after - value[:, t]
        advantages[:, t] += 0.9 * 0.8 * advantages[:, t + 1] if t + 1 < T else 0.0
    np.testing.assert_allclose(found["returns"], advantages + value * batch.actions, atol=1e-3)
    inside = advantages[batch.actions]
    np.testing.assert_allclose(
        found["advantages"][batch.actions], (inside - inside.mean()) / inside.std(), atol=1e-3
    )


def test_whitened_rewards_keep_their_mean_of_another_scale():
    actions = np.zeros((R, T), bool)
    actions[:, 2:] = True
    zeros, scores = np.zeros((R, T), np.float32), np.arange(R).astype(np.float32) + 1
    settings = dataclasses.replace(SETTINGS, whiten_rewards=True)
    how = {"settings": settings, "algorithm": PPO}
    found = lib.targets(zeros, zeros, zeros, scores, actions, np.arange(R), 0.1, zeros, **how)
    plain = np.where(np.arange(T) == T - 1, scores[:, None], 0)
    spread = plain[actions].std()
    np.testing.assert_allclose(found["rewards"], plain / spread, rtol=1e-4)


def test_a_step_gets_the_rows_of_its_minibatch_and_the_states_trees(monkeypatch):
    """Three epochs of two minibatches: policy and value model take every batch, each with its own
    optimiser."""
    found, seen = learner(num_epochs=3, num_minibatches=2), []
    monkeypatch.setattr(lib, "memory", type("Nothing", (), {"give_back": staticmethod(int)}))

    def step(kind):
        def take(params, optimiser, batch, base):
            assert (params, optimiser) == (f"{kind}{len(seen) // 2}", f"{kind}o{len(seen) // 2}")
            number = len(seen) // 2 + 1
            seen.append((kind, jax.tree.map(np.asarray, batch)))
            prefix = "value_" if kind == "v" else ""
            told = {f"{prefix}loss": 1.0, "grad_norm": 2.0, "count": 3.0, f"{prefix}clipped": 4.0}
            return f"{kind}{number}", f"{kind}o{number}", told

        return take

    found._steps = [step("p"), step("v")]
    state = {"params": "p0", "optimiser": "po0", "value": "v0", "value_optimiser": "vo0"}
    batch = rollouts()
    arrays = {
        name: np.arange(R * T, dtype=np.float32).reshape(R, T) + 100 * index
        for index, name in enumerate(("old", "values", "advantages", "returns"))
    }
    state, history = found.learn(state, batch, arrays, 1)
    assert state == {"params": "p6", "optimiser": "po6", "value": "v6", "value_optimiser": "vo6"}
    assert [kind for kind, _ in seen] == ["p", "v"] * 6 and len(history) == 6
    assert history[0]["value_loss"] == 1.0 and history[0]["value_clipped"] == 4.0
    for rows, (_, got) in zip(found.minibatches(1, R), seen[::2], strict=True):
        for name, array in {**arrays, "tokens": batch.tokens, "actions": batch.actions}.items():
            packed = np.asarray(got[name])[got["segments"] > 0]
            assert sorted(packed.tolist()) == sorted(array[rows].reshape(-1).tolist()), name
        counted = np.asarray(got["actions"]).sum()
        assert (np.asarray(got["positions"]) > 0).sum() == counted == len(rows) * 4
