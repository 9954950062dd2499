"""The preference model: labels derived at reading, prompts never on both sides of the split, Δ =
logit p."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import sharding
from cai_jax.core.optim import adam, learning_rate
from cai_jax.models import heads
from cai_jax.models.config import ModelConfig
from cai_jax.models.params import init_params
from cai_jax.stages import pm
from cai_jax.structs import Message
from cai_jax.training import batching, examples
from cai_jax.training import pairs as pairs_lib
from cai_jax.training import state as state_lib

CONFIG = ModelConfig(
    family="llama",
    vocab_size=16,
    width=32,
    ffw=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
)


def pair(name, source="ai", group=None, target=0.7, texts=("x", "y")):
    return pairs_lib.Pair(name, source, group or name, (Message("human", name),), texts, target)


def label(comparison, pair, a, b, order="ab", principle="p0"):
    return {
        "id": f"{comparison}/{pair}/{principle}",
        "comparison_id": comparison,
        "pair": pair,
        "logprobs": [{"order": order, "a": a, "b": b}],
    }


def context(comparisons, labels, **fields):
    dropped = {}
    config = types.SimpleNamespace(
        **{"label_kind": "soft", "clamp": (), "average_orders": True, **fields}
    )
    inputs = {
        "comparisons": types.SimpleNamespace(records=lambda: comparisons),
        "labels": types.SimpleNamespace(records=lambda: labels),
    }
    return types.SimpleNamespace(
        name="pm",
        seed=0,
        config=config,
        inputs=inputs,
        dropped=dropped,
        drop=lambda reason, n=1: dropped.update({reason: dropped.get(reason, 0) + n} if n else {}),
    )


def test_labels_are_derived_when_they_are_read():
    dialogue = [{"role": "human", "text": "q"}]
    comparisons = [
        {"id": "c0", "dialogue": dialogue, "responses": ["u", "v", "w"]},
        {"id": "c1", "dialogue": dialogue, "responses": ["same", "same"]},
        {"id": "c2", "dialogue": dialogue, "responses": ["u", "v"]},
    ]
    labels = [
        label("c0", [0, 2], np.log(0.9), np.log(0.1)),
        label("c0", [0, 2], np.log(0.6), np.log(0.4), principle="p1"),
        label("c0", [1, 2], np.log(0.2), np.log(0.8), order="ba"),
        label("c1", [0, 1], -1.0, -2.0),
    ]
    ctx = context(comparisons, labels)
    found = pairs_lib.ai_pairs(ctx)
    assert [(item.texts, round(item.target, 6)) for item in found] == [
        (("u", "w"), 0.75),
        (("v", "w"), 0.8),
    ]
    assert ctx.dropped == {"comparison without a label": 1, "equal responses": 1}
    assert [
        item.target for item in pairs_lib.ai_pairs(context(comparisons, labels, clamp=(0.4, 0.6)))
    ] == [0.6, 0.6]
    assert [
        item.target for item in pairs_lib.ai_pairs(context(comparisons, labels, label_kind="hard"))
    ] == [1.0, 1.0]


def test_all_pairs_of_a_prompt_fall_on_one_side():
    """Also where the same prompt has several pairs, and where two sources share it."""
    pairs = [
        pair(f"{source} {i}-{k}", source, f"g{i}")
        for source in ("ai", "human")
        for i in range(20)
        for k in range(3)
    ]
    train, held = examples.split(pairs, 0.25, 0, "pm")
    assert not {item.group for item in train} & {item.group for item in held}
    assert len(train) + len(held) == len(pairs) and {item.source for item in held} == {
        "ai",
        "human",
    }
    assert (
        examples.split(pairs, 0.25, 0, "pm") == (train, held)
        and examples.split(pairs, 0.25, 1, "pm")[1] != held
    )
    assert examples.split(pairs, 0.0, 0, "pm") == (pairs, [])
    assert examples.split(pairs[::-1], 0.25, 0, "pm")[1] == held[::-1]  # by name, not by place


@pytest.mark.parametrize(
    "fraction,human,ai",
    [(None, 40, 10), (0.5, 10, 10), (0.2, 2, 10), (0.9, 40, 4), (0.0, 0, 10), (1.0, 40, 0)],
)
def test_mixture_has_the_proportion_asked_for(fraction, human, ai):
    pairs = [pair(f"ai {i}") for i in range(10)] + [pair(f"human {i}", "hh") for i in range(40)]
    mixed = pairs_lib.mix(pairs, fraction, 0, "pm")
    assert (
        sum(item.source == "hh" for item in mixed),
        sum(item.source == "ai" for item in mixed),
    ) == (human, ai)


def fit(pairs_of, num_steps=400):
    """Trains a small model with the stage's own loss and step; items are single tokens. Returns
    score by token."""
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    tx = adam(learning_rate(5e-3, schedule="linear", num_steps=num_steps))
    params = state_lib.with_head(
        jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0)),
        heads.init_head(CONFIG, jax.random.key(1)),
        mesh,
    )
    abstract = {"params": state_lib.abstract_params(CONFIG, "reward", mesh)}
    abstract["optimiser"] = state_lib.abstract_optimiser(tx, abstract["params"], mesh)
    update = state_lib.make_update(pm.make_loss(CONFIG, jnp.float32), tx, abstract, mesh, 1)
    state = {"params": params, "optimiser": state_lib.init_optimiser(tx, params, mesh)}
    batch = pairs_lib.make_batch(
        pairs_of,
        {(p.id, side): (1, int(p.texts[side]), 0) for p in pairs_of for side in (0, 1)},
        batching.Shape(len(pairs_of), 6),
    )
    for _ in range(num_steps):
        state, scalars = update(state, batch)
    tokens = np.array([[1, token, 0] for token in range(CONFIG.vocab_size)], np.int32)
    return np.asarray(
        heads.dialogue_scores(state["params"], tokens, np.ones(tokens.shape, bool), CONFIG)
    ), scalars


def test_packed_pairs_are_worth_what_they_are_alone():
    """Loss, agreement and gradient of a batch against scores read off each dialogue by itself."""
    rng = np.random.default_rng(0)
    params = {
        "decoder": jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0)),
        "head": heads.init_head(CONFIG, jax.random.key(1)),
    }
    tokens = {
        (str(i), side): tuple(rng.integers(0, CONFIG.vocab_size, rng.integers(2, 9)))
        for i in range(7)
        for side in (0, 1)
    }
    chosen = [pair(str(i), target=float(rng.random())) for i in range(7)]
    loss = jax.jit(jax.value_and_grad(pm.make_loss(CONFIG, jnp.float32), has_aux=True))
    found = [
        loss(
            params,
            pairs_lib.make_batch(chosen, tokens, batching.Shape(*shape)),
        )
        for shape in ((7, 16, 1), (4, 40, 5))
    ]
    alone = np.array(
        [
            [
                float(
                    heads.dialogue_scores(
                        params,
                        np.array([tokens[str(i), side]], np.int32),
                        np.ones((1, len(tokens[str(i), side])), bool),
                        CONFIG,
                    )[0]
                )
                for side in (0, 1)
            ]
            for i in range(7)
        ]
    )
    delta, p = alone[:, 0] - alone[:, 1], np.array([item.target for item in chosen], np.float32)
    expected = np.sum(p * np.logaddexp(0, -delta) + (1 - p) * np.logaddexp(0, delta))
    for (total, (count, sums)), gradient in found:
        np.testing.assert_allclose(total, expected, rtol=1e-5)
        assert float(count) == 7 and float(sums["agreement"]) == np.sum((delta > 0) == (p > 0.5))
        assert float(sums["tokens"]) == sum(map(len, tokens.values()))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, found[0][1]
        )


def test_learned_differences_recover_logit_p_from_noisy_labels():
    """Labels are frequencies of 2000 noisy judgements by a known score; the slope of Δ on logit p
    is 1 ± 0.05."""
    rng = np.random.default_rng(0)
    truth = np.linspace(-1.5, 1.5, 8)
    pairs = []
    for a in range(8):
        for b in range(a):
            p = 1 / (1 + np.exp(truth[b] - truth[a]))
            pairs.append(
                pair(
                    f"{a}-{b}", texts=(str(a + 2), str(b + 2)), target=rng.binomial(2000, p) / 2000
                )
            )
    scores, _ = fit(pairs)
    delta = np.array([scores[int(p.texts[0])] - scores[int(p.texts[1])] for p in pairs])
    logit = np.array([truth[int(p.texts[0]) - 2] - truth[int(p.texts[1]) - 2] for p in pairs])
    slope = np.dot(delta, logit) / np.dot(logit, logit)
    assert abs(slope - 1) < 0.05 and np.corrcoef(delta, logit)[0, 1] > 0.99
    # Clamped to 40–60 % the same judgements ask for |Δ| = logit 0.6 at the most.
    clamped = [
        pairs_lib.Pair(p.id, p.source, p.group, p.dialogue, p.texts, 0.6 if p.target > 0.5 else 0.4)
        for p in pairs
        if p.texts in (("9", "2"), ("8", "3"), ("7", "4"))
    ]
    scores, _ = fit(clamped)
    for item in clamped:
        margin = scores[int(item.texts[0])] - scores[int(item.texts[1])]
        assert margin == pytest.approx(np.log(0.6 / 0.4), abs=0.01)


def test_scores_are_read_at_the_last_real_token():
    """The defect: a PM that reads the wrong token where padding or EOS differ."""
    decoder = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    params = {"decoder": decoder, "head": heads.init_head(CONFIG, jax.random.key(1))}
    score = jax.jit(heads.dialogue_scores, static_argnums=3)
    tokens = np.array([[1, 5, 6, 0]], np.int32)
    want = score(params, tokens, np.ones((1, 4), bool), CONFIG)
    for filler in (0, 9):  # also where the padding is the id of EOS
        wide = np.full((1, 8), filler, np.int32)
        for start in (0, 3):  # on either side
            mask = np.zeros((1, 8), bool)
            mask[:, start : start + 4] = True
            wide[:, start : start + 4] = tokens
            got = score(params, wide, mask, CONFIG)
            np.testing.assert_allclose(got, want, atol=1e-5)
            wide[:] = filler


def test_the_head_starts_with_unit_size_and_normalisation_folds_in():
    head = heads.init_head(CONFIG, jax.random.key(0))
    weights = np.concatenate(
        [heads.init_head(CONFIG, jax.random.key(i))["weight"] for i in range(200)]
    )
    assert (
        weights.std() == pytest.approx((CONFIG.width + 1) ** -0.5, rel=0.05)
        and float(head["bias"]) == 0
    )
    hidden = jax.random.normal(jax.random.key(2), (5, CONFIG.width))
    folded = heads.read_head(heads.normalised_head(head, (0.3, 2.0)), hidden)
    np.testing.assert_allclose(folded, (heads.read_head(head, hidden) - 0.3) / 2.0, atol=1e-6)


def test_held_out_numbers_by_hand():
    held = [
        pair("a", target=0.9, texts=("long answer", "x")),
        pair("b", target=0.2, texts=("long answer", "x")),
        pair("c", "hh", target=1.0, texts=("x", "longer")),
        pair("d", "hh", target=0.5),
    ]
    raw = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [5.0, 0.0]], np.float32)
    found = pm.held_out(held, raw)
    assert set(found) == {"ai", "hh", "all"}
    assert found["ai"]["accuracy"]["value"] == 0.5 and found["ai"]["accuracy"]["n"] == 2
    assert found["ai"]["longer"]["value"] == 0.5 and found["ai"]["majority"] == 0.5
    assert (
        found["hh"]["accuracy"]["value"] == 0.5
        and found["hh"]["accuracy"]["n"] == 1
        and found["hh"]["n"] == 2
    )
    want = np.mean(
        [
            0.9 * np.log1p(np.exp(-1)) + 0.1 * np.log1p(np.exp(1)),
            0.2 * np.log1p(np.exp(-2)) + 0.8 * np.log1p(np.exp(2)),
        ]
    )
    assert found["ai"]["loss"] == pytest.approx(want)
    assert pm.held_out([], np.zeros((0, 2))) == {}
