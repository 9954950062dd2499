"""Beside transformers' own models, run here and now: what we write is loaded there, what is there
is loaded here.

`make test-parity` installs torch and runs this; it is no part of `make test`, and without torch it
fails.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from parity import cases
from parity.make_reference import logits_of, model_of
from safetensors.numpy import load_file

from cai_jax.data.dialogue import load_format
from cai_jax.models import blocks, decoder, hf
from cai_jax.models import params as params_lib
from cai_jax.models.config import ModelConfig
from cai_jax.structs import Message


@functools.partial(jax.jit, static_argnames="config")
def our_logits(params, tokens, mask, config):
    hidden = decoder.hidden_states(params, tokens, mask, config, scan=True)
    logits = jnp.einsum("btd,vd->btv", hidden, decoder.unembedding(params, config))
    return blocks.softcap(logits, config.final_softcap)


@functools.partial(jax.jit, static_argnames="config")
def our_gradient(params, tokens, mask, config):
    """Of the mean next-token loss over real tokens."""

    def loss(params):
        logprobs = jax.nn.log_softmax(our_logits(params, tokens, mask, config)[:, :-1])
        picked = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(picked * mask[:, 1:]) / jnp.sum(mask[:, 1:])

    return jax.grad(loss)(params)


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def ours_of(directory, tokens, mask):
    config, params = hf.load_hf(directory)
    return np.asarray(our_logits(params, jnp.asarray(tokens), jnp.asarray(mask), config))


@pytest.mark.parametrize("name", cases.CASES)
def test_theirs_loaded_here(name, tmp_path):
    """save_pretrained → load_hf: logits with padding on either side, and gradients of the loss."""
    model = model_of(cases.CASES[name])
    model.save_pretrained(tmp_path)
    for left in (False, True):
        tokens, mask = cases.batch(left)
        theirs = logits_of(model, tokens, mask)
        assert_close(ours_of(tmp_path, tokens, mask)[mask], theirs.detach().numpy()[mask])

    tokens, mask = cases.batch(left=False)
    logprobs = torch.log_softmax(logits_of(model, tokens, mask)[:, :-1], dim=-1)
    picked = logprobs.gather(-1, torch.from_numpy(tokens[:, 1:, None]))[..., 0]
    weight = torch.from_numpy(mask[:, 1:].astype(np.float32))
    (-(picked * weight).sum() / weight.sum()).backward()
    theirs = {key: value.grad.numpy() for key, value in model.named_parameters()}
    if "gpt_neox.embed_in.weight" in theirs:  # the name that files have
        theirs["embed_out.weight"] = theirs.pop("lm_head.weight")
    config, params = hf.load_hf(tmp_path)
    gradient = our_gradient(params, jnp.asarray(tokens), jnp.asarray(mask), config)
    hf.save_hf(tmp_path / "gradient", config, gradient)
    written = load_file(tmp_path / "gradient" / "model.safetensors")
    assert set(written) == set(theirs)
    for key, value in theirs.items():
        assert_close(written[key], value, 1e-3)


@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 10_000])
def test_ours_loaded_there(name, shard_bytes, tmp_path):
    """Random weights → save_hf (one file, several files) → AutoModelForCausalLM."""
    config = ModelConfig.from_hf(cases.CASES[name])
    params = params_lib.init_params(config, jax.random.key(3))
    hf.save_hf(tmp_path, config, params, shard_bytes=shard_bytes, fields=cases.NO_IDS)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    tokens, mask = cases.batch(left=False)
    ours = np.asarray(our_logits(params, jnp.asarray(tokens), jnp.asarray(mask), config))
    assert_close(ours[mask], logits_of(model.eval(), tokens, mask).detach().numpy()[mask])


def test_bfloat16(tmp_path):
    """The file's numbers are those of torch's own rounding, in both directions."""
    model = model_of(cases.CASES["llama"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs")
    config, params = hf.load_hf(tmp_path / "theirs", dtype=jnp.bfloat16)
    hf.save_hf(tmp_path / "ours", config, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == torch.bfloat16
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_smollm2(smollm2, tmp_path):
    """All logits of a chat and of the paper's text form; the written directory has model and
    tokenizer."""
    config, params = hf.load_hf(smollm2)
    hf.save_hf(tmp_path, config, params, smollm2, shard_bytes=2 * 10**8)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (
        model.config.eos_token_id
        == json.loads((tmp_path / "config.json").read_text())["eos_token_id"]
        == 2
    )
    dialogue = (
        Message("human", "How do I keep 100 bees?"),
        Message("assistant", "With care, and a good hat."),
    )
    for kind in ("chat", "text"):
        tokens = load_format(tmp_path, kind).example(dialogue).tokens[None].astype(np.int64)
        if kind == "chat":
            turns = [
                {"role": r, "content": m.text}
                for r, m in zip(("user", "assistant"), dialogue, strict=True)
            ]
            theirs = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)[
                "input_ids"
            ]
            assert tokens[0].tolist() == theirs[: tokens.shape[1]]
        mask = np.ones(tokens.shape, bool)
        with torch.no_grad():
            theirs = logits_of(model, tokens, mask).numpy()
        assert_close(
            np.asarray(our_logits(params, jnp.asarray(tokens), jnp.asarray(mask), config)), theirs
        )
