"""Exports beside transformers: a policy's logits, a preference model's scores of padded batches,
chat templates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from parity import cases

from cai_jax.core import sharding
from cai_jax.data.dialogue import load_format
from cai_jax.exporting import folder
from cai_jax.models import decoder, heads
from cai_jax.models import params as params_lib
from cai_jax.models.config import ModelConfig
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.structs import Message

DIALOGUES = [
    (Message("human", text), Message("assistant", answer))
    for text, answer in (
        ("Hello?", "Hello."),
        ("What is bread, and how long does it have to rest?", "Flour, water and a lot of time."),
    )
]


@pytest.mark.parametrize(
    "name",
    ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "smollm3", "gpt_neox"],
)
def test_scores_of_a_padded_batch(name, tiny_model, tmp_path):
    format = load_format(tiny_model)
    config = dataclasses.replace(
        ModelConfig.from_hf(cases.CASES[name]), vocab_size=768, max_length=256
    )
    params = {
        "decoder": params_lib.init_params(config, jax.random.key(0)),
        "head": {**heads.init_head(config, jax.random.key(1)), "bias": jnp.float32(0.4)},
    }
    folder.export_reward(tmp_path, config, params, format, (0.7, 1.9))
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    ours = RewardModel(params, config, format, mesh, (0.7, 1.9)).score(DIALOGUES)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32
    )
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": a.text}, {"role": "assistant", "content": b.text}],
            tokenize=False,
        )
        for a, b in DIALOGUES
    ]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    assert batch["attention_mask"].sum(1).tolist() == [
        len(format.score_input(dialogue)) for dialogue in DIALOGUES
    ]
    with torch.no_grad():
        theirs = (
            model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            .logits[:, 0]
            .numpy()
        )
    assert model.config.score_offset == (0.0 if name == "gpt_neox" else pytest.approx(-0.3 / 1.9))
    np.testing.assert_allclose(theirs + model.config.score_offset, ours, atol=1e-4)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_policy(kind, tiny_model, tmp_path):
    """Logits, and the same prompt and end of generation through the exported tokenizer."""
    format = load_format(tiny_model, kind)
    config = ModelConfig.from_json(tiny_model)
    params = params_lib.init_params(config, jax.random.key(0))
    folder.export_policy(tmp_path, config, params, format, shard_bytes=100_000)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    prompt = [token for segment in format.prompt(DIALOGUES[1][:1]) for token in segment]
    turns = [{"role": "user", "content": DIALOGUES[1][0].text}]
    theirs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    assert theirs == prompt
    tokens = np.array([prompt])
    hidden = decoder.hidden_states(
        params, jnp.asarray(tokens), jnp.ones(tokens.shape, bool), config, scan=True
    )
    ours = np.asarray(hidden @ decoder.unembedding(params, config).T)
    with torch.no_grad():
        np.testing.assert_allclose(ours, model(torch.from_numpy(tokens)).logits.numpy(), atol=1e-4)
    assert model.generation_config.eos_token_id == 2 and model.generation_config.pad_token_id == 0
