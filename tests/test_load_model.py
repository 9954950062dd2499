"""ModelLoader: preference models from directories, vocabularies that do not match,
weights that are shared."""

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cai_jax.core import sharding
from cai_jax.data.dialogue import load_format
from cai_jax.errors import UserError
from cai_jax.exporting import folder
from cai_jax.models import heads, hf
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.stages.context import StageContext
from cai_jax.structs import Completion, Message, Sampling
from cai_jax.textmodels.protocol import Choice, Question, Turn

MESH = sharding.make_mesh({"data": 1}, jax.devices()[:1])
DIALOGUES = [
    (Message("human", text), Message("assistant", answer))
    for text, answer in (("Hello?", "Hello."), ("What is bread?", "Flour, water and time."))
]


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """(config, params, directory) of a policy whose embedding has more rows than the tokenizer has
    tokens."""
    directory = tmp_path_factory.mktemp("policy")
    config, params = hf.load_params(f"random:{tiny_model}")
    hf.save_hf(directory, config, params, tiny_model)
    return config, params, directory


def context():
    run_config = ml_collections.ConfigDict(
        {
            "models": {},
            "seed": 0,
            "record": False,
            "model": {"dtype": "float32"},
            "sampling": {"batch_size": 2, "chunk_steps": 4, "max_length": 64},
        }
    )
    return StageContext(
        "x", ml_collections.ConfigDict(), run_config, pathlib.Path("."), None, {}, MESH
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_name_stage_model_and_row(bad):
    """Scores of a preference model, and log-probabilities of what an engine samples and scores."""
    judge = types.SimpleNamespace(
        name="@pm", score_each=lambda dialogues: iter([(1, 0.5), (0, bad)])
    )
    with pytest.raises(UserError, match=f"stage 'x': '@pm' gave {bad} for row 'first'"):
        list(context().score_each(judge, DIALOGUES, "scores", ["first", "second"]))
    model = types.SimpleNamespace(
        name="@sl",
        generate=lambda *_: iter([Completion("row", (1, 2), (-1.0, bad), "", "eos")]),
        choose=lambda *_: iter([Choice("row", (-1.0, bad))]),
    )
    for ask in (
        lambda ctx: ctx.generate(model, [Turn("row", (), None)], Sampling(2)),
        lambda ctx: ctx.choose(model, [Question("row", (), ("a", "b"))]),
    ):
        with pytest.raises(
            UserError, match=f"stage 'x': the logits of '@sl' gave {bad} for row 'row'"
        ):
            list(ask(context()))


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_directory_of_a_classifier_is_a_preference_model(kind, model, tiny_model, tmp_path):
    """Scores of the exported directory are those of the model with its normalisation, in the form
    it was trained on."""
    config, decoder, directory = model
    params = {
        "decoder": decoder,
        "head": {**heads.init_head(config, jax.random.key(1)), "bias": jnp.float32(0.4)},
    }
    format = load_format(tiny_model, kind)
    folder.export_reward(tmp_path, config, params, format, (0.7, 1.9))
    found = context().models.load(str(tmp_path), "reward")
    assert found.kind == "reward" and found.normalisation is None
    for dialogue in DIALOGUES:
        assert found.format.score_input(dialogue) == format.score_input(dialogue)
    ours = RewardModel(params, config, format, MESH, (0.7, 1.9)).score(DIALOGUES)
    theirs = RewardModel(found.params, found.config, found.format, MESH).score(DIALOGUES)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    with pytest.raises(UserError, match="is a preference model, a policy is needed here"):
        context().models.load(str(tmp_path))
    with pytest.raises(
        UserError, match="is not a preference model; name a stage of kind pm as '@pm'"
    ):
        context().models.load(str(directory), "reward")


@pytest.fixture(scope="module")
def wide(model, tmp_path_factory):
    """A directory whose embedding has 64 rows more than the tokenizer has tokens."""
    config, params, directory = model
    padded = {
        name: jnp.pad(leaf, ((0, 64), (0, 0)), constant_values=0.5)
        if name in ("embed", "unembed")
        else leaf
        for name, leaf in params.items()
    }
    target = tmp_path_factory.mktemp("wide")
    hf.save_hf(
        target, dataclasses.replace(config, vocab_size=config.vocab_size + 64), padded, directory
    )
    return target


def test_a_padded_vocabulary_is_kept(wide, tmp_path):
    """Rows of the embedding without a token: loaded, decoded as nothing, and written again as they
    were."""
    found = context().models.load(str(wide))
    assert found.config.vocab_size == found.format.tokenizer.vocab_size + 64
    assert found.format.decode([found.config.vocab_size - 1]) == ""
    folder.export_policy(tmp_path, found.config, found.params, found.format)
    np.testing.assert_array_equal(hf.load_hf(tmp_path)[1]["embed"], found.params["embed"])
    assert np.all(found.params["embed"][-64:] == 0.5)


def test_added_tokens_and_a_tokenizer_that_is_too_large(wide, tmp_path):
    """An added token that has a row is used; one that has none is told of with both sizes, before
    weights are read."""
    shutil.copytree(wide, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    fields = json.loads(path.read_text())

    def add(number):
        token = {
            "id": number,
            "content": "<|new|>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        path.write_text(json.dumps(fields | {"added_tokens": [*fields["added_tokens"], token]}))

    size = context().models.load(str(wide)).format.tokenizer.vocab_size
    add(size)
    tokenizer = context().models.load(str(tmp_path / "model")).format.tokenizer
    assert tokenizer.token_id("<|new|>") == size and tokenizer.encode("<|new|>", special=True) == (
        size,
    )
    assert size not in tokenizer.encode("<|new|>")  # inside a text it stays text
    wrong = json.loads((tmp_path / "model" / "config.json").read_text()) | {"vocab_size": size - 5}
    path.write_text(json.dumps(fields))
    (tmp_path / "model" / "config.json").write_text(json.dumps(wrong))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"tokenizer has {size} tokens, the model only {size - 5}"):
        context().models.load(str(tmp_path / "model"))


def test_models_of_a_stage_share_weights_until_they_are_let_go(model):
    ctx = context()
    first, second = (ctx.models.load(str(model[2])) for _ in range(2))
    assert first.params["embed"] is second.params["embed"]
    first.release()
    assert (
        first.params is None
        and ctx.models.load(str(model[2])).params["embed"] is second.params["embed"]
    )
    second.release()
    assert not ctx.models._weights
