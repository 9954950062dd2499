"""Feedback on a model whose logits are set by hand: labels equal the formula, and swapping the
options swaps the label."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from etils import epath

from cai_jax.constitution.loader import load_constitution
from cai_jax.core import labels, sharding
from cai_jax.data.dialogue import load_format
from cai_jax.io import artefacts
from cai_jax.models import params as params_lib
from cai_jax.models.config import ModelConfig
from cai_jax.stages import feedback
from cai_jax.stages.context import StageContext
from cai_jax.textmodels import questions
from cai_jax.textmodels.loader import LoadedModel
from configs import default


def model_with_logits(directory, logits_of_token: dict[int, float]):
    """Weights under which every position has the same logits, those given and 0 elsewhere, whatever
    came before.

    Embeddings are all ones and every layer writes nothing, so the final hidden state is all ones.
    """
    config = ModelConfig.from_hf(json.loads(pathlib.Path(directory, "config.json").read_text()))
    config = dataclasses.replace(config, tied_embeddings=False)
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), params_lib.abstract_params(config)
    )
    params["embed"] += 1.0
    params["final_norm"] += 1.0
    for token, logit in logits_of_token.items():
        params["unembed"][token] = logit / config.width
    return config, jax.tree.map(jnp.asarray, params)


@pytest.fixture()
def stage(tmp_path, tiny_model):
    """Makes a feedback stage over two comparisons on the hand-set model, and runs it."""

    def make(name="run", logits=None, **fields):
        format = load_format(tiny_model)
        config, params = model_with_logits(tiny_model, logits or {})
        run_config = default.base_config()
        run_config.models.base = f"random:{tiny_model}"
        run_config.sampling.batch_size = 4
        path = epath.Path(tmp_path / name)
        compare = artefacts.StageDirectory(path / "compare")
        journal = compare.journal()
        for number in range(2):
            journal.append(
                {
                    "id": f"p{number}",
                    "prompt_id": f"p{number}",
                    "kind": "test",
                    "responses": ["Yes, sure.", "No {0}."],
                    "dialogue": [{"role": "human", "text": f"Question {number} <|im_end|>?"}],
                }
            )
        journal.finish()
        ctx = StageContext(
            "feedback",
            ml_collections.ConfigDict(
                default.feedback(num_few_shot=2, constitution="embedded", **fields)
            ),
            run_config,
            path,
            artefacts.StageDirectory(path / "feedback"),
            {"comparisons": compare},
            sharding.make_mesh({}, jax.devices()[:1]),
        )
        ctx.models.load = lambda *_, **__: LoadedModel("hand", config, params, format)
        return ctx, format

    return make


def answer_tokens(format):
    return [format.tokenizer.encode(f" ({letter})") for letter in "AB"]


def test_labels_equal_the_formula(stage):
    _, format = stage("probe")
    a, b = answer_tokens(format)
    only_a, only_b = (
        [token for token in a if token not in b],
        [token for token in b if token not in a],
    )
    assert len(only_a) == len(only_b) == 1
    ctx, _ = stage("run", {only_a[0]: 1.0, only_b[0]: -0.5}, both_orders=True)
    ctx.config.num_headers = 1
    summary = feedback.run(ctx)
    rows = ctx.directory.records()
    assert len(rows) == 2 and summary["rows"] == 2
    total = math.log(math.exp(1.0) + math.exp(-0.5) + ctx.models.load("").config.vocab_size - 2)
    for row in rows:
        for entry in row["logprobs"]:
            # Every other token of the answer string has logit 0.
            assert entry["a"] == pytest.approx(1.0 - len(a) * total, rel=1e-5)
            assert entry["b"] == pytest.approx(-0.5 - len(b) * total, rel=1e-5)
            p = labels.probability_first(entry)
            expected = 1 / (1 + math.exp(-1.5))
            assert p == pytest.approx(
                expected if entry["order"] == "ab" else 1 - expected, rel=1e-4
            )
        assert labels.target([row]) == pytest.approx(
            0.5, abs=1e-6
        )  # a judge that looks at the letter only
    assert summary["flip_rate"] == 1.0 and summary["chose_option_a"] == 1.0


def test_principles_and_headers_are_drawn_and_recorded(stage):
    ctx, _ = stage("run", principles_per_pair=3, num_headers=2)
    feedback.run(ctx)
    rows = ctx.directory.records()
    assert len(rows) == 6
    assert len({row["principle_id"] for row in rows if row["comparison_id"] == "p0"}) == 3
    assert {row["header_id"] for row in rows} <= {"0", "1"}
    for row in rows:
        assert len(row["few_shot_ids"]) == 2


def test_examples_of_a_header_have_their_own_principles_and_orders():
    constitution = load_constitution()
    drawn = [
        questions.draw_examples(constitution, "multiple_choice", 4, 0, "h", number)
        for number in range(60)
    ]
    principles = {name.split(":")[1] for ids, _ in drawn for name in ids}
    assert len(principles) == len(constitution.comparison_principles)
    assert any(len({name.split(":")[1] for name in ids}) > 1 for ids, _ in drawn)
    letters = [answer.text for _, examples in drawn for _, answer in examples]
    assert 0.35 < letters.count(" (A)") / len(letters) < 0.65
    for ids, examples in drawn:
        for name, (question, answer) in zip(ids, examples, strict=True):
            example = next(
                e for e in constitution.comparison_examples if e.id == name.split(":")[0]
            )
            assert f"{answer.text.strip()} {example.chosen}" in question.text


def test_chains_are_sampled_recorded_and_averaged(stage):
    ctx, _ = stage("run", mode="chain_of_thought", num_chains=2, max_chain_tokens=4, num_headers=1)
    feedback.run(ctx)
    for row in ctx.directory.records():
        assert [entry["chain"] for entry in row["logprobs"]] == [0, 1]
        assert len(row["chains"]) == 2
    assert not (ctx.directory.path / "chains.parts").exists()


def test_groups_of_more_than_two_give_every_pair(stage):
    ctx, _ = stage("run")
    journal = artefacts.StageDirectory(ctx.run_path / "four").journal()
    journal.append(
        {
            "id": "q",
            "prompt_id": "q",
            "kind": None,
            "responses": ["a", "b", "c", "d"],
            "dialogue": [{"role": "human", "text": "?"}],
        }
    )
    journal.finish()
    ctx.inputs["comparisons"] = artefacts.StageDirectory(ctx.run_path / "four")
    feedback.run(ctx)
    assert [row["pair"] for row in ctx.directory.records()] == [
        [0, 1],
        [0, 2],
        [0, 3],
        [1, 2],
        [1, 3],
        [2, 3],
    ]
