"""The stages best_of and human, and feedback by a preference model, with a judge that is a few
lines long."""

import json
import math
import types

import ml_collections
import numpy as np
import pytest
from etils import epath

from cai_jax.core import labels
from cai_jax.evals import collect
from cai_jax.io.artefacts import StageDirectory
from cai_jax.stages import best_of, feedback, human
from cai_jax.stages.context import StageContext
from cai_jax.structs import Message
from configs import default

ASKED = [{"role": "human", "text": "A question?"}]


class Judge:
    """Scores a dialogue by the number of words in its answer; counts what it was given."""

    seen: list = []

    name = "@pm"

    def score(self, dialogues):
        Judge.seen += dialogues
        return np.array([len(dialogue[-1].text.split()) for dialogue in dialogues], np.float32)

    def score_each(self, dialogues):
        return enumerate(self.score(dialogues).tolist())


class Context(StageContext):
    name, seed, mesh = "stage", 0, None

    def __init__(self, path, config, **inputs):
        self.config, self.inputs, self.dropped = ml_collections.ConfigDict(config), inputs, {}
        self.directory, self.run_path = StageDirectory(epath.Path(path) / "stage"), epath.Path(path)
        self.run_config, self.asked = ml_collections.ConfigDict(), []
        self.models = self

    def preference_model(self, reference, kind="reward", format="auto", raw=False):
        self.asked.append((reference, kind))
        return Judge()

    def score_each(self, model, dialogues, label, ids=None):
        return model.score_each(dialogues)


@pytest.fixture(autouse=True)
def judge():
    Judge.seen = []


def written(rows):
    return types.SimpleNamespace(records=lambda name="records": rows)


def answer(prompt, sample, text):
    return {
        "id": f"{prompt}/{sample:02d}",
        "prompt_id": prompt,
        "sample": sample,
        "dialogue": ASKED,
        "response": text,
        "num_tokens": 7,
        "stop": "eos",
    }


def test_the_best_answer_of_every_prompt_is_kept(tmp_path):
    rows = [
        answer("p", 0, "one"),
        answer("p", 1, "one two three"),
        answer("p", 2, "four five six"),
        answer("q", 0, "a b"),
    ]
    ctx = Context(tmp_path, default.best_of("respond"), responses=written(rows))
    summary = best_of.run(ctx)
    kept = ctx.directory.records()
    assert [
        (row["id"], row["drawn_as"], row["response"], row["of"], row["sample"]) for row in kept
    ] == [("p/00", "p/01", "one two three", 3, 0), ("q/00", "q/00", "a b", 1, 0)], (
        "of equals the first"
    )
    assert summary["mean_gain"] == pytest.approx((3 - 7 / 3) / 2) and ctx.asked == [
        ("@pm", "reward")
    ]
    assert best_of.run(ctx) == summary, "run again it is the same"


def test_evaluate_takes_it_as_a_policy(tmp_path):
    """Its records stand for a model's answers; the reference of a trained stage does not."""
    ctx = Context(tmp_path, {})
    journal = StageDirectory(ctx.run_path / "best").journal()
    journal.append({**answer("p", 0, "chosen"), "stop": "length"})
    journal.finish()
    ctx.run_config.models = {}
    ctx.run_config.graph = {"best": {"kind": "best_of"}, "sl": {"kind": "sl"}}
    models = {"sl": "@sl", "initial": "helpful", "best-of-8": "@best"}
    written = collect.written(ctx, models)
    assert list(written) == ["best-of-8"]
    prompt = types.SimpleNamespace(id="p", kind=None, dialogue=(Message("human", "q"),))
    taken = ctx.directory.journal()
    draws = collect.Draws({"red_team": [prompt]}, 2, 1.0)
    collect.answers(ctx, {"best-of-8": "@best"}, written, draws, taken)
    (row,) = taken.finished.values()
    assert (row["response"], row["stop"], row["num_tokens"], row["name"]) == (
        "chosen",
        "length",
        7,
        "best-of-8",
    )
    assert ctx.dropped == {"no answer in @best": 1}


def test_peoples_pairs_become_comparisons(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        "".join(
            json.dumps(
                {"dialogue": ASKED, "chosen": f"good {n}", "rejected": "bad", "id": f"{n:02d}"}
            )
            + "\n"
            for n in range(40)
        )
    )
    ctx = Context(tmp_path, default.human(source=str(file), split="", limit=30))
    assert human.run(ctx)["headline"] == "30 of pairs"
    rows = ctx.directory.records()
    assert all(
        row["responses"][row["preferred"]].startswith("good") and row["source"] == "human"
        for row in rows
    )
    assert 5 < sum(row["preferred"] for row in rows) < 25, "the side is drawn"


def test_a_preference_model_labels_and_is_held_against_people(tmp_path):
    pairs = [
        {
            "id": name,
            "prompt_id": name,
            "kind": "harmless",
            "dialogue": ASKED,
            "responses": texts,
            "preferred": preferred,
        }
        for name, texts, preferred in (
            ("a", ["x y z", "x"], 0),
            ("b", ["x", "x y"], 0),
            ("c", ["x", "y", "z z"], None),
        )
    ]
    for pair in pairs[2:]:
        del pair["preferred"]
    ctx = Context(
        tmp_path, default.feedback(mode="preference_model", model="@pm"), comparisons=written(pairs)
    )
    summary = feedback.run(ctx)
    rows = {row["id"]: row for row in ctx.directory.records()}
    assert list(rows) == ["a/0-1", "b/0-1", "c/0-1", "c/0-2", "c/1-2"] and len(Judge.seen) == 7, (
        "every response scored once"
    )
    for name, delta in {"a/0-1": 2, "b/0-1": -1, "c/0-1": 0, "c/1-2": -1}.items():
        assert labels.target([rows[name]]) == pytest.approx(1 / (1 + math.exp(-delta)))
    assert labels.target([rows["b/0-1"]], kind="hard") == 0.0
    assert summary["agreement"] == 0.5 and "agrees with people on 50% of 2" in summary["headline"]
    assert summary["flip_rate"] is None and ctx.asked == [("@pm", "reward")]
