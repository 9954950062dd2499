"""The multiple-choice evaluation beside transformers, row by row: the same probabilities over the
options.

A small random model reads our HHH items, zero-shot and few-shot. `python -m benchmarks.evaluations`
is the same for SmolLM2 on the published files, which takes minutes; benchmarks/README.md has its
numbers.
"""

import pathlib
import shutil

import numpy as np
import pytest
import torch
import transformers

from benchmarks import evaluations as benchmark
from cai_jax import main
from cai_jax.core import labels, sharding
from cai_jax.data.dialogue import load_format
from cai_jax.data.evals import load_choices
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.evals import items as items_lib
from cai_jax.models import hf
from cai_jax.textmodels.local import LocalTextModel

CONFIG = pathlib.Path(__file__).resolve().parent.parent.parent / "configs" / "evaluations.py"


def random_weights(tiny_model, directory):
    shutil.copytree(tiny_model, directory, dirs_exist_ok=True)
    torch.manual_seed(0)
    fields = transformers.AutoConfig.from_pretrained(tiny_model)
    fields.initializer_range = 0.3  # far from uniform, so that options differ
    fields.max_position_embeddings = 4096
    transformers.AutoModelForCausalLM.from_config(fields, dtype=torch.float32).save_pretrained(
        directory
    )


def compare(directory, items, shots):
    config, params = hf.load_hf(directory)
    format = load_format(directory)
    engine = Engine(
        params,
        config,
        format,
        sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}),
        EngineOptions(batch_size=4),
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    shots = {item.id: shots for item in items}
    text_model = LocalTextModel("ours", format, 4096, lambda: engine)
    asked = [items_lib.question(item, shots[item.id]) for item in items]
    ours = {
        choice.id: np.array(labels.normalise(choice.logprobs))
        for choice in text_model.choose(asked)
    }
    assert len(ours) == len(items)
    for item, question in zip(items, asked, strict=True):
        segments, options = text_model.question(question, len(question.examples))
        prompt = [token for segment in segments for token in segment]
        logprobs = []
        for option in options:
            with torch.no_grad():
                rows = torch.log_softmax(
                    model(torch.tensor([[*prompt, *option]])).logits[0, :-1], -1
                )
            logprobs.append(
                sum(float(rows[len(prompt) - 1 + i, token]) for i, token in enumerate(option))
            )
        theirs = np.array(labels.normalise(logprobs))
        np.testing.assert_allclose(ours[item.id], theirs, atol=1e-3)
        second, best = np.sort(theirs)[-2:]
        if best - second > 2e-3:
            assert ours[item.id].argmax() == theirs.argmax()


@pytest.mark.parametrize("num_shots", [0, 1])
def test_probabilities_equal_row_by_row(tiny_model, tmp_path, num_shots):
    random_weights(tiny_model, tmp_path)
    items = sorted(load_choices("embedded:hhh"), key=lambda item: (len(item.prompt), item.id))[:9]
    compare(str(tmp_path), items[num_shots:], items[:num_shots])


def test_a_run_beside_transformers(tiny_model, tmp_path):
    """The published row-by-row comparison on our items: templates, tokens and log-probabilities of
    a whole run."""
    model, run = tmp_path / "model", tmp_path / "run"
    random_weights(tiny_model, model)
    flags = [
        f"--config.models.base={model}",
        "--config.graph.evaluate.evals.multiple_choice.choices=embedded:hhh",
        "--config.stages=evaluate",
        "--config.graph.evaluate.evals.multiple_choice.num_choices=8",
    ]
    assert main.main(["", f"--config={CONFIG}:shots=2", f"--workdir={run}", *flags]) == 0
    for minutes in (60, 60, 0):  # again: nothing is read twice
        assert benchmark.main(["", str(run), f"--minutes={minutes}"]) == 0
    rows = benchmark.read(run / "parity.jsonl")
    found = benchmark.summary(rows)
    assert [row["mode"] for row in rows] == ["zero_shot"] * 8 + ["few_shot"] * 8
    assert (
        found["same_pick"] == found["same_tokens"] == found["rows"] == 16
        and found["rows_read_complete"] == 4
    )
    assert found["largest_difference"] < 1e-3 and found["largest_difference_complete"] < 1e-3
    assert "| all |  | 16 | 16 | 16 (100.0%) |" in benchmark.table(rows)
