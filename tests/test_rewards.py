"""Scores of a preference model: of the dialogue that was asked for, normalised, whatever the order
of their computation."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import sharding
from cai_jax.data.dialogue import load_format
from cai_jax.models import heads
from cai_jax.rewards import preference_model as rewards
from cai_jax.structs import Message, sampled_turn
from cai_jax.textmodels import loader
from tests.recording import TINY, stage

MESH = sharding.make_mesh({"data": 1}, jax.devices()[:1])


def dialogues(*lengths):
    return [(Message("human", "Why?"), Message("assistant", "so " * n)) for n in lengths]


@pytest.mark.parametrize("normalisation", [None, (10.0, 4.0)])
def test_each_dialogue_gets_its_own_normalised_score(monkeypatch, normalisation):
    """The model scores how many tokens it sees; long ones are computed last, whatever their
    place."""
    monkeypatch.setattr(rewards, "scores", lambda params, tokens, mask, config: mask.sum(axis=1))
    format = load_format(TINY, "text")
    asked = dialogues(90, 2, 40, 3, 91, 1)
    config = types.SimpleNamespace(max_length=10_000)
    judge = rewards.RewardModel({}, config, format, MESH, normalisation)
    raw = np.array([len(format.score_input(dialogue)) for dialogue in asked], np.float32)
    mean, std = normalisation or (0.0, 1.0)
    np.testing.assert_allclose(judge.score(asked), (raw - mean) / std, rtol=1e-6)
    rows = [format.score_input(dialogue) for dialogue in asked]
    np.testing.assert_array_equal(judge.score_tokens(rows), judge.score(asked))
    assert all(row[-1] in format.eos_ids for row in rows), "read at the end token"


def test_a_head_is_weights_and_a_bias():
    hidden = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    head = {"weight": jnp.asarray([10.0, 1.0]), "bias": jnp.float32(0.5)}
    np.testing.assert_allclose(heads.read_head(head, hidden), [12.5, 34.5])


@pytest.mark.parametrize("options,int8", [({"int8": False}, False), ({}, True)])
def test_a_sampler_may_refuse_weights_in_8_bits(tmp_path, monkeypatch, options, int8):
    """rl must sample with the weights that it trains (tests/test_rl_run.py); other stages may round
    them."""
    monkeypatch.setattr(loader, "Engine", lambda *given: given)
    ctx, _ = stage(tmp_path, "respond", {"kind": "respond"})
    ctx.run_config.sampling.int8 = True
    models = loader.ModelLoader(ctx.run_config, ctx.run_path, MESH)
    model = types.SimpleNamespace(params=1, config=2, format=3, name="m")
    params, config, format, _, made = models.engine(model, **options)
    assert (params, config, format) == (1, 2, 3) and made.int8 == int8


class Rows(rewards.RewardModel):
    """Keeps the tokens that would be scored."""

    def _each(self, rows):
        self.rows = list(rows)
        return iter(())


@pytest.mark.parametrize("reads_cut", [True, False])
@pytest.mark.parametrize("kind", ["text", "chat"])
def test_a_cut_answer_is_read_as_the_model_was_trained_to(kind, reads_cut):
    format = load_format(TINY, kind)
    asked = Message("human", "Why?")
    dialogues = [(asked, sampled_turn("Becau", stop)) for stop in ("length", "eos", None)]
    model = Rows(None, types.SimpleNamespace(max_length=512), format, None, reads_cut=reads_cut)
    list(model.score_each(dialogues))
    cut, ended, unknown = model.rows
    assert ended == unknown and ended[-1] in format.eos_ids
    assert cut == (ended[:-1] if reads_cut else ended)
