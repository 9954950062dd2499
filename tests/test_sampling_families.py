"""Every family through the KV cache: what the engine samples and scores is what the decoder says of
whole sequences.

Beyond the sliding window, after a shared header, in blocks (CPU) and all at once (accelerators).
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import cases
from safetensors.numpy import save_file

from cai_jax.core import sharding
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.models import heads, hf
from cai_jax.structs import SampleRequest, Sampling, ScoreRequest

# The first two have most of the switches between them.
FAMILIES = (
    "gemma3",
    "gpt_neox",
    *(
        pytest.param(name, marks=pytest.mark.long)
        for name in ("gemma2", "olmo2", "smollm3_windows", "gpt_neox_sequential")
    ),
)
HEADER, PROMPT, OPTIONS = tuple(range(1, 12)), (20, 21, 22), ((5, 6, 7), (8,))


class Format:
    eos_ids = (60,)

    @staticmethod
    def decode(tokens):
        return "x" * len(tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_sampler_and_scorer_agree_with_the_decoder(name, tmp_path):
    config = cases.CASES[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(cases.weights(config), tmp_path / "model.safetensors")
    config, params = hf.load_hf(tmp_path)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    options = EngineOptions(batch_size=2, chunk_steps=6, max_length=64)
    engine = Engine(params, config, Format, mesh, options)
    if name in ("gemma2", "gpt_neox"):  # without blocks, as on an accelerator
        engine.runner.block = 0
        engine.update(params)
    request = SampleRequest("a", (HEADER, PROMPT), np.array([3, 5], np.uint32))
    (done,) = engine.generate([request], Sampling(max_new_tokens=6))
    (score,) = engine.score([ScoreRequest("a", (HEADER, PROMPT), OPTIONS)])
    rows = [done.tokens, *OPTIONS]
    tokens, mask = np.zeros((len(rows), 20), np.int32), np.zeros((len(rows), 20), bool)
    for row, answer in enumerate(rows):
        whole = HEADER + PROMPT + tuple(answer)
        tokens[row, : len(whole)], mask[row, : len(whole)] = whole, True
    whole = jax.jit(heads.dialogue_logprobs, static_argnames=("config", "chunk", "scan"))
    logprobs = np.asarray(
        whole(params, jnp.asarray(tokens), jnp.asarray(mask), config, chunk=0, scan=True)
    )
    start = len(HEADER + PROMPT)
    for row, got in enumerate((done.logprobs, *score.token_logprobs)):
        np.testing.assert_allclose(
            got, logprobs[row, start : start + len(got)], rtol=1e-4, atol=1e-4
        )
