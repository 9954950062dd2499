"""The multiple-choice evaluation beside transformers, row by row: the same probabilities over the options.

A small random model reads our HHH items, zero-shot and few-shot. `CAI_JAX_PARITY_ROWS=n` reads n rows of each published
file with SmolLM2 as well, which takes minutes.
"""

import os
import shutil

import numpy as np
import pytest
import torch
import transformers

from cai_jax import sharding
from cai_jax.data.dialogue import load_format
from cai_jax.data.evals import load_choices
from cai_jax.evals import multiple_choice
from cai_jax.models import hf
from cai_jax.sampling.engine import Engine, EngineOptions

FILES = ("eval_438HHHEvaluations", "eval_HarmfulVsEthical", "eval_HarmfulnessClassification")
ROWS = int(os.environ.get("CAI_JAX_PARITY_ROWS", "0"))


def compare(directory, items, shots):
    config, params = hf.load_hf(directory)
    format = load_format(directory)
    engine = Engine(params, config, format, sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}), EngineOptions(batch_size=4))
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = {result.id: result for result in multiple_choice.answer(engine.score, items, format, shots=shots)}
    assert len(ours) == len(items)
    for item, request in zip(items, multiple_choice.score_requests(items, format, shots), strict=True):
        prompt = [token for segment in request.segments for token in segment]
        logprobs = []
        for option in request.options:
            with torch.no_grad():
                rows = torch.log_softmax(model(torch.tensor([[*prompt, *option]])).logits[0, :-1], -1)
            logprobs.append(sum(float(rows[len(prompt) - 1 + i, token]) for i, token in enumerate(option)))
        theirs = np.array(multiple_choice.normalise(logprobs))
        np.testing.assert_allclose(ours[item.id].probabilities, theirs, atol=1e-3)
        second, best = np.sort(theirs)[-2:]
        if best - second > 2e-3:
            assert ours[item.id].picked == int(theirs.argmax())


@pytest.mark.parametrize("num_shots", [0, 1])
def test_probabilities_equal_row_by_row(tiny_model, tmp_path, num_shots):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(0)
    fields = transformers.AutoConfig.from_pretrained(tiny_model)
    fields.initializer_range = 0.3  # far from uniform, so that options differ
    transformers.AutoModelForCausalLM.from_config(fields, dtype=torch.float32).save_pretrained(tmp_path)
    items = sorted(load_choices("embedded:hhh"), key=lambda item: (len(item.prompt), item.id))[:9]
    compare(str(tmp_path), items[num_shots:], items[:num_shots])


@pytest.mark.skipif(ROWS == 0, reason="CAI_JAX_PARITY_ROWS is not set")
@pytest.mark.parametrize("num_shots", [0, 1])
def test_published_files_on_a_real_model(smollm2, shared_data, num_shots):
    items, shots = [], []
    for name in FILES:
        rows = sorted(load_choices(str(shared_data / f"{name}.jsonl.gz")), key=lambda item: (len(item.prompt), item.id))
        shots += rows[:num_shots]
        items += rows[num_shots : num_shots + ROWS]
    compare(smollm2, items, shots)
