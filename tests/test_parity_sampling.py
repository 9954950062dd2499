"""Greedy sampling from SmolLM2 against transformers' `generate`: the same 64 tokens on 20 prompts
in float32."""

import json
import pathlib

import numpy as np
import pytest

from cai_jax.data.dialogue import load_format
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.models import hf
from cai_jax.structs import SampleRequest, Sampling

REFERENCE = pathlib.Path(__file__).parent / "parity" / "smollm2.jsonl"


@pytest.mark.long
def test_greedy_text_equals_transformers(smollm2):
    rows = [json.loads(line) for line in REFERENCE.read_text(encoding="utf-8").splitlines()]
    config, params = hf.load_hf(smollm2)
    form = load_format(smollm2)
    engine = Engine(params, config, form, options=EngineOptions(batch_size=20))
    key = np.zeros(2, np.uint32)
    requests = [SampleRequest(str(n), (tuple(row["tokens"]),), key) for n, row in enumerate(rows)]
    count = max(len(row["answer"]) for row in rows)
    assert len(rows) >= 20 and count == 64
    sampled = {
        done.id: done for done in engine.generate(requests, Sampling(count, temperature=0.0))
    }
    for number, row in enumerate(rows):
        assert sampled[str(number)].tokens == tuple(row["answer"]), row["prompt"]
        assert sampled[str(number)].text == row["text"]
