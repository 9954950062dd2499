"""Logits beside reference numbers from transformers (tests/parity): every family, and
SmolLM2-135M-Instruct."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import cases
from safetensors.numpy import save_file

from cai_jax.data.dialogue import load_format
from cai_jax.models import blocks, decoder, hf
from cai_jax.structs import Message

PARITY = pathlib.Path(__file__).parent / "parity"


@functools.partial(jax.jit, static_argnames="config")
def logits_of(params, tokens, mask, config, places):
    """Logits at `places` = (rows, columns)."""
    hidden = decoder.hidden_states(params, tokens, mask, config, scan=True)[places]
    return blocks.softcap(hidden @ decoder.unembedding(params, config).T, config.final_softcap)


def assert_close(ours, theirs, tolerance=1e-4):
    """The largest difference, relative to the largest number."""
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.fixture(params=cases.CASES)
def case(request, tmp_path):
    """(name, a model directory that was not written by our own code)"""
    config = cases.CASES[request.param]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(cases.weights(config), tmp_path / "model.safetensors")
    return request.param, tmp_path


def test_families(case):
    name, directory = case
    theirs = np.load(PARITY / "logits.npz")[name]
    config, params = hf.load_hf(directory)
    for left in (False, True):
        tokens, mask = cases.batch(left)
        ours = logits_of(params, jnp.asarray(tokens), jnp.asarray(mask), config, np.nonzero(mask))
        assert_close(np.asarray(ours), theirs)


def test_smollm2(smollm2):
    answers = [
        json.loads(line)
        for line in (PARITY / "smollm2.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    config, params = hf.load_hf(smollm2)
    format = load_format(smollm2)
    length = max(len(answer["tokens"]) for answer in answers)
    tokens, mask = (
        np.zeros((len(answers), length), np.int32),
        np.zeros((len(answers), length), bool),
    )
    for row, answer in enumerate(answers):
        (prompt,) = format.prompt((Message("human", answer["prompt"]),))
        assert list(prompt) == answer["tokens"]
        tokens[row, : len(prompt)], mask[row, : len(prompt)] = prompt, True
    places = np.arange(len(answers)), mask.sum(axis=1) - 1
    ours = np.asarray(logits_of(params, jnp.asarray(tokens), jnp.asarray(mask), config, places))
    for last, answer in zip(ours, answers, strict=True):
        assert_close(last[::1024], np.array(answer["every_1024th_logit"]))
        assert last.argmax() == answer["answer"][0]
        assert format.decode(answer["answer"]) == answer["text"]
