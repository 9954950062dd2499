"""What respond and compare ask of their models, word by word, what they record, and which answer
best_of keeps."""

import json

import numpy as np
import pytest

from cai_jax.seeds import row_key
from cai_jax.stages import best_of, compare, respond
from cai_jax.textmodels import loader
from configs import default
from tests.recording import NORMALISATION, human, stage

FIELDS = {"num_samples": 3, "max_new_tokens": 11, "temperature": 0.6, "top_p": 0.9}


def prompts(path, count=2):
    source = path / "prompts.jsonl"
    rows = [{"id": f"q{i}", "prompt": f"Question {i}", "kind": f"k{i}"} for i in range(count)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(source)


def answer(asked):
    number = int(asked.id[-1])
    return f" text of {asked.id}", "length" if number == 1 else "eos"


def run(path, module, make, **fields):
    config = make(source=prompts(path), split="", **{**FIELDS, **fields})
    config["top_k"] = 7
    ctx, asked = stage(path, module.__name__.rpartition(".")[2], config, answer=answer)
    return module.run(ctx), ctx, asked


@pytest.mark.parametrize("module,make", [(respond, default.respond), (compare, default.compare)])
def test_every_sample_of_a_prompt_is_asked_with_a_key_of_its_own(tmp_path, module, make):
    _, ctx, asked = run(tmp_path, module, make, model="base")
    assert [request.id for request in asked] == [f"q{i}/0{n}" for i in (0, 1) for n in (0, 1, 2)]
    for request in asked:
        prompt, sample = request.id.split("/")
        assert request.prompt == f"\n\nHuman: Question {prompt[1]}\n\nAssistant:"
        assert request.key == tuple(row_key(5, ctx.name, 0, prompt, int(sample)))
        how = request.sampling
        assert (how.max_new_tokens, how.temperature, how.top_k, how.top_p) == (11, 0.6, 7, 0.9)
        assert how.stop_strings == ("\n\nHuman:", "\n\nAssistant:")


def test_response_records(tmp_path):
    summary, ctx, asked = run(tmp_path, respond, default.respond)
    rows = {row["id"]: row for row in ctx.directory.records()}
    assert set(rows) == {request.id for request in asked}
    row, tokens = rows["q1/01"], rows["q1/01"]["num_tokens"]
    assert row["response"] == "text of q1/01", "without the space that belongs to the heading"
    assert (row["prompt_id"], row["kind"], row["sample"], row["stop"]) == ("q1", "k1", 1, "length")
    assert row["dialogue"] == human("Question 1") and row["seed"] == 5
    assert tokens > 1 and row["logprob"] == -0.5 * tokens
    assert rows["q1/02"]["stop"] == "eos"
    assert summary["cut"] == {"answers": {"cut": 2, "of": 6}} and summary["rows"] == 6
    assert summary["mean_tokens"] == np.mean([row["num_tokens"] for row in rows.values()])


def test_comparison_records_keep_samples_in_order(tmp_path):
    """The engine finishes the last sample first."""
    summary, ctx, _ = run(tmp_path, compare, default.compare)
    rows = ctx.directory.records()
    assert [row["id"] for row in rows] == ["q0", "q1"] and summary["rows"] == 2
    for row in rows:
        name = row["id"]
        assert row["responses"] == [f"text of {name}/0{n}" for n in range(3)]
        assert row["stops"] == ["eos", "length", "eos"]
        assert row["prompt_id"] == name and row["kind"] == f"k{name[1]}" and row["source"] == "ai"
        assert row["dialogue"] == human(f"Question {name[1]}")
    assert summary["with_equal_responses"] == 0


@pytest.mark.parametrize("module,make", [(respond, default.respond), (compare, default.compare)])
def test_what_is_finished_is_not_asked_again(tmp_path, module, make):
    first, ctx, _ = run(tmp_path, module, make)
    again, asked = stage(tmp_path, ctx.name, ctx.config)
    assert module.run(again) == first and not asked


def test_a_prompt_that_does_not_fit_is_counted_once(tmp_path):
    """Not once for each of its samples."""
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Q?", "Q " * 300)))
    fields = default.compare(source=str(source), split="", num_samples=3, max_new_tokens=8)
    ctx, _ = stage(tmp_path, "compare", fields, limit=200)
    compare.run(ctx)
    assert ctx.dropped == {"longer than the context": 1} and len(ctx.directory.records()) == 1


def test_best_of_keeps_the_highest_score(tmp_path, monkeypatch):
    rows = [
        {
            "id": f"q{i}/0{n}",
            "prompt_id": f"q{i}",
            "dialogue": human(f"Question {i}"),
            "sample": n,
            "response": "x" * length,
        }
        for i, lengths in enumerate([(1, 5, 2), (4, 4, 0)])
        for n, length in enumerate(lengths)
    ]

    class Lengths:
        def __init__(
            self, params, config, format, mesh, normalisation=None, name="", reads_cut=False
        ):
            assert normalisation == NORMALISATION

        def score_each(self, dialogues):
            return reversed([(i, float(len(d[-1].text))) for i, d in enumerate(dialogues)])

    monkeypatch.setattr(loader, "RewardModel", Lengths)
    ctx, _ = stage(tmp_path, "best", default.best_of("respond"), inputs={"responses": rows})
    summary = best_of.run(ctx)
    first, second = ctx.directory.records()
    assert (first["id"], first["drawn_as"], first["response"]) == ("q0/00", "q0/01", "x" * 5)
    assert (first["score"], first["of"], first["mean_score"]) == (5.0, 3, pytest.approx(8 / 3))
    assert second["drawn_as"] == "q1/00", "of equal ones the first sample"
    assert summary["mean_gain"] == pytest.approx((5 - 8 / 3 + 4 - 8 / 3) / 2)
