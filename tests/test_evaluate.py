"""The evaluation stage with models that are a few lines long, so that every number can be worked
out."""

import dataclasses
import json
import math

import ml_collections
import numpy as np
import pytest
from etils import epath

from cai_jax.data.comparisons import HumanComparison
from cai_jax.data.evals import ChoiceItem
from cai_jax.data.prompts import Prompt
from cai_jax.evals import (
    answer_statistics,
    collect,
    preference_pairs,
    preference_scores,
)
from cai_jax.evals import items as items_lib
from cai_jax.evals import revisions as revisions_eval
from cai_jax.evals.rows import find
from cai_jax.io.artefacts import StageDirectory
from cai_jax.stages import evaluate
from cai_jax.stages.context import StageContext
from cai_jax.structs import Completion, Message
from cai_jax.textmodels.protocol import Choice
from configs import default, evaluations, tiny

WORDS = {
    "helpful": 2,
    "@sl": 4,
    "@rl": 6,
}  # a model's answers have that many words; the judge counts words


@dataclasses.dataclass
class Model:
    name: str


class Judge:
    scale = 1.0

    def score_each(self, dialogues):
        scores = [len(d[-1].text.split()) * (1 + 0.001 * len(d[0].text)) for d in dialogues]
        return enumerate(map(float, np.float32(scores)))


class Models:
    def text_model(self, reference, format="auto"):
        return Model(reference)

    def preference_model(self, reference, kind="reward"):
        return Judge()


class Context(StageContext):
    """What stages.context gives, without weights. `die_after`: raises after so many answers, as a
    killed run would."""

    seed, mesh, name = 0, None, "evaluate"

    def __init__(self, path, die_after=None, **fields):
        self.directory, self.inputs, self.dropped, self.sampled = (
            StageDirectory(epath.Path(path)),
            {},
            {},
            [],
        )
        self.die_after = die_after
        prompts = {"source": "x", "split": "", "offset": 0, "limit": None}
        given = {"num_samples": 2, "max_new_tokens": 9, "num_few_shot": 1, "num_chains": 2}
        given |= {"prompts_red_team": prompts, "prompts_helpful": prompts, "comparisons": prompts}
        given |= {"choices": "embedded:hhh", "max_chain_tokens": 9, "clamp": (0.4, 0.6), **fields}
        models = given.pop("models", {"initial": "helpful", "sl": "@sl", "rl": "@rl"})
        self.models, self.run_path = Models(), epath.Path(path).parent
        self.config = ml_collections.ConfigDict(default.evaluate(models, "", **given))
        self.run_config = ml_collections.ConfigDict(
            {
                "models": {"feedback": "base", "helpful": "base", "base": "somewhere"},
                "stages": ("sl", "pm", "rl", "evaluate"),
                "graph": {"rl": {"kind": "rl", "reward": "@pm", "missing_eos_penalty": 0.0}},
                "model": {"scan_layers": False},
            }
        )

    def generate(self, model, turns, sampling, label):
        for turn in turns:
            if self.die_after is not None and len(self.sampled) >= self.die_after:
                raise KeyboardInterrupt
            self.sampled.append(turn.id)
            text = "Let me think" if "#" in turn.id else " ".join(["word"] * WORDS[model.name])
            count = len(text.split())
            yield Completion(turn.id, (1,) * count, (-0.5,) * count, text, "eos")

    def choose(self, model, questions, label, wanted=None, together=False):
        for question in questions:
            if wanted is None or question.id in wanted:
                logprobs = [math.log(0.8 if i == 0 else 0.2) for i in range(len(question.options))]
                yield Choice(question.id, tuple(logprobs), num_examples=len(question.examples))

    def score_each(self, model, dialogues, label, ids=None):
        return model.score_each(dialogues)


@pytest.fixture(autouse=True)
def data(monkeypatch):
    human = (Message("human", "a question"),)
    prompts = [Prompt(f"p{i}", (Message("human", "q" * (i + 1)),), "theft") for i in range(9)]
    items = [
        ChoiceItem(
            f"c{i}",
            "Which? Options:\n (A) one\n (B) two words\nThe answer is:",
            (" (A)", " (B)"),
            i % 2,
            tuple((*human, Message("assistant", text)) for text in ("a b c", "a")),
            "honest" if i < 4 else "other",
        )
        for i in range(9)
    ]
    pairs = [
        HumanComparison(f"h{i}", human, "longer answer here", "short", "test") for i in range(5)
    ]
    monkeypatch.setattr(collect, "read_prompts", lambda **_: (prompts, {"empty": 1}))
    monkeypatch.setattr(items_lib, "load_choices", lambda source: items)
    comparisons = (pairs, {"equal pair": 2})
    monkeypatch.setattr(preference_pairs, "load_comparisons", lambda **_: comparisons)


def test_numbers(tmp_path):
    ctx = Context(tmp_path / "evaluate")
    summary = evaluate.run(ctx)
    metrics = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())
    rows = metrics["rows"]
    assert len({r["name"] for r in rows}) == len(rows) == summary["rows"]
    score = {r["model"]: r for r in find(rows, "pm_score", "red_team")}
    assert score["rl"]["value"] - score["initial"]["value"] == pytest.approx(4.02, abs=1e-5)
    (difference,) = find(rows, "pm_score", "red_team", "rl", "initial")
    assert (
        difference["value"] == pytest.approx(4.02, abs=1e-5)
        and not difference["null"]
        and difference["n"] == 9
    )
    assert find(rows, "num_tokens", "helpful", "rl")[0]["value"] == 6.0, (
        "length stands beside the score"
    )
    assert (
        find(rows, "elo", "red_team", "sl")[0]["value"] == 0.0
        and find(rows, "elo", "red_team", "rl")[0]["low"] > 0
    )
    wins = {(r["model"], r["over"]): r["value"] for r in find(rows, "win_rate", "red_team")}
    assert wins == {("sl", "initial"): 1.0, ("rl", "initial"): 1.0, ("rl", "sl"): 1.0}, (
        "every two models"
    )
    (choice,) = find(rows, "choice_zero_shot", "hhh")
    assert choice["n"] == 9 and 0.4 < choice["value"] < 0.6 and choice["baseline"]["chance"] == 0.5
    assert find(rows, "first_option_zero_shot")[0]["value"] == 1.0
    for mode in ("few_shot", "chain_of_thought"):
        assert find(rows, f"choice_{mode}", "hhh")[0]["n"] == 9, "every mode answers all items"
    (accuracy,) = find(rows, "pm_accuracy", "comparisons")
    assert accuracy["value"] == 1.0 and accuracy["baseline"]["longer"] == 1.0
    assert find(rows, "pm_accuracy", "hhh:honest")[0]["n"] == 4
    assert "independent evidence" in metrics["notes"][0]
    evaluate.run(Context(tmp_path / "pairs", models={}))
    pairs = json.loads((tmp_path / "pairs" / "metrics.json").read_text())
    assert not pairs["notes"], "it judges pairs, and nobody was trained to please it"
    (calibration,) = [each for each in metrics["figures"] if each["name"] == "calibration"]
    labels = {series["label"] for series in calibration["series"]}
    assert labels >= {"PM, hhh", "PM, comparisons", "feedback, zero-shot, hhh"}
    assert {row["metric"] for row in rows} == {column["name"] for column in metrics["columns"]}
    lines = (tmp_path / "evaluate" / "values.jsonl").read_text().splitlines()
    values = {record["name"]: record["values"] for record in map(json.loads, lines)}
    assert len(values["pm_score/red_team/rl"]) == 9
    assert set(values["choice_zero_shot/hhh/feedback"].values()) == {0.0, 1.0}
    assert ctx.dropped == {"empty": 2, "comparison: equal pair": 2}
    assert "rl − initial = +4.02" in summary["headline"] and "null" not in summary["headline"]


def test_every_model_answers_the_questions_if_wanted(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt_id": "p0", "response": "one"}\n')
    ctx = Context(
        tmp_path / "several",
        models={"sl": "@sl", "file": f"responses:{file}"},
        choices_of_models=True,
        num_samples=1,
    )
    evaluate.run(ctx)
    metrics = json.loads((tmp_path / "several" / "metrics.json").read_text())
    assert [r["model"] for r in find(metrics["rows"], "choice_zero_shot", "hhh")] == [
        "feedback",
        "sl",
    ]
    (difference,) = find(metrics["rows"], "choice_zero_shot", "hhh", "sl", "feedback")
    assert (difference["value"], difference["n"], difference["null"]) == (0.0, 9, True), (
        "paired on the same items"
    )
    labels = {series["label"] for each in metrics["figures"] for series in each["series"]}
    assert {"feedback, zero-shot, hhh", "sl, zero-shot, hhh"} <= labels
    ids = [
        json.loads(line)["id"]
        for line in (tmp_path / "several" / "choices.jsonl").read_text().splitlines()
    ]
    assert (
        len(ids) == len(set(ids)) == 2 * 3 * 9
        and "hhh/few_shot/c0" in ids
        and "sl/hhh/few_shot/c0" in ids
    )


def test_finished_answers_are_not_sampled_again(tmp_path):
    whole = Context(tmp_path / "whole")
    evaluate.run(whole)
    broken = Context(tmp_path / "broken", die_after=25)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(broken)
    broken.directory.journal().flush()
    again = Context(tmp_path / "broken")
    evaluate.run(again)
    for name in ("records.jsonl", "scores.jsonl", "choices.jsonl", "metrics.json"):
        assert (tmp_path / "broken" / name).read_text() == (tmp_path / "whole" / name).read_text()
    third = Context(tmp_path / "broken")
    evaluate.run(third)
    assert not third.sampled, "answers and chains of a finished stage are read, not made"


def test_a_judge_that_likes_the_first_place_finds_no_difference(tmp_path):
    """The fake model always prefers (A): averaged over both orders nobody wins, and all matches are
    ties."""
    evaluate.run(Context(tmp_path / "judged", judge="base", num_samples=1, elo_ties="half"))
    rows = json.loads((tmp_path / "judged" / "metrics.json").read_text())["rows"]
    assert [r["value"] for r in find(rows, "elo_judge", "red_team")] == pytest.approx(
        [0, 0, 0], abs=1e-6
    )
    dropped = Context(tmp_path / "judged", judge="base", num_samples=1, elo_ties="drop")
    evaluate.run(dropped)
    table = json.loads((tmp_path / "judged" / "metrics.json").read_text())["rows"]
    values = {r["model"]: r["value"] for r in find(table, "elo_judge", "red_team")}
    assert values == {"initial": None, "sl": 0.0, "rl": None}, "without a match there is no rating"
    assert "ties dropped" in find(table, "elo_judge", "red_team")[0]["note"]
    assert [r["value"] for r in find(rows, "win_rate_judge", "red_team")] == [0.5] * 3
    assert find(rows, "evasive_rate_judge", "helpful", "rl")[0]["value"] == 0.0
    assert find(rows, "evasive_agreement", "helpful", "rl")[0]["value"] == 1.0
    again = Context(tmp_path / "judged", judge="base", num_samples=1)
    again.choose = None  # nothing is asked twice
    evaluate.run(again)


def test_answers_from_a_file_and_a_judge_that_is_a_function(tmp_path):
    rows = [
        {"prompt_id": "p0", "response": "one two three"},
        {"prompt": "qq", "response": " four ", "num_tokens": 9},
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    ctx = Context(
        tmp_path / "files",
        models={"other": f"responses:{file}"},
        reward="python:tests.test_evaluate.count_words",
        num_samples=1,
        choices="",
        feedback="",
        comparisons={"source": ""},
    )
    evaluate.run(ctx)
    found = json.loads((tmp_path / "files" / "metrics.json").read_text())["rows"]
    assert find(found, "num_tokens", "red_team", "other")[0]["value"] == (3 + 9) / 2
    assert find(found, "pm_score", "red_team", "other")[0]["value"] == (3 + 1) / 2
    assert not ctx.sampled and ctx.dropped[f"no answer in {file}"] == 14


def count_words(dialogues):
    return [len(dialogue[-1].text.split()) for dialogue in dialogues]


def test_without_judges_and_choices(tmp_path):
    summary = evaluate.run(
        Context(
            tmp_path / "bare", reward="", feedback="", choices="", prompts_helpful={"source": ""}
        )
    )
    rows = json.loads((tmp_path / "bare" / "metrics.json").read_text())["rows"]
    assert (
        not find(rows, "pm_score")
        and find(rows, "num_tokens", "red_team", "rl")
        and summary["headline"]
    )


def test_sets_of_choices_are_named_by_their_files():
    assert list(
        items_lib.choice_sets("embedded:hhh+../data/eval_HarmfulVsEthical.jsonl.gz", 3)
    ) == [
        "hhh",
        "HarmfulVsEthical",
    ]
    assert items_lib.choice_sets("", None) == {}
    assert [item.id for item in items_lib.choice_sets("embedded:hhh", 3)["hhh"]] == [
        "c0",
        "c3",
        "c6",
    ], "evenly, not the first"


def test_models_stand_in_the_order_of_the_run():
    run_config = Context("x").run_config
    models = {"rl": "@rl", "a": "helpful", "rl5": "@rl:5", "sl": "@sl"}
    assert list(collect.in_order(models, run_config)) == ["a", "sl", "rl5", "rl"]


def test_models_stand_in_the_same_order_where_a_command_runs_evaluate_alone():
    """The defect: with config.stages=evaluate the models went by their names, and the headline
    compared another one."""
    config = tiny.get_config()
    whole = list(collect.in_order(config.graph.evaluate.models, config))
    assert whole == ["initial", "sl", "rl"]
    for stages in (("evaluate", "report"), ("rl", "evaluate")):
        config.stages = stages
        assert list(collect.in_order(config.graph.evaluate.models, config)) == whole


def test_a_null_result_is_said(tmp_path):
    rng = np.random.default_rng(0)
    records = [
        {
            "id": f"{m}{i}",
            "prompt_id": f"p{i}",
            "on": "red_team",
            "name": m,
            "response": "A plain answer.",
            "stop": "eos",
            "num_tokens": 4,
        }
        for m in ("initial", "rl")
        for i in range(20)
    ]
    scores = {r["id"]: float(rng.normal()) for r in records}
    rows = preference_scores.rows(records, scores, ["initial", "rl"])
    (difference,) = find(rows, "pm_score", "red_team", "rl", "initial")
    assert difference["null"] and "covers zero" in difference["note"]
    assert "(null)" in preference_scores.headline(rows, ["initial", "rl"], "red-team")


def test_the_published_questions_by_one_command():
    config = evaluations.get_config("data=somewhere,shots=2")
    asked = config.graph.evaluate.evals.multiple_choice
    assert (
        asked.choices.split("+")[0] == "somewhere/eval_438HHHEvaluations.jsonl.gz"
        and asked.num_few_shot == 2
    )
    assert not config.graph.evaluate.models and config.stages == ("evaluate", "report")
    for wrong in ("shots=many", "dta=x"):
        with pytest.raises(ValueError, match="expected"):
            evaluations.get_config(wrong)


def test_the_headline_of_questions_alone(tmp_path):
    ctx = Context(tmp_path / "asked", models={}, reward="", num_chains=0)
    assert evaluate.run(ctx)["headline"] == "hhh 56% zero-shot, hhh 56% few-shot"


def test_over_refusal_is_counted_on_safe_prompts():
    records = [
        {
            "id": str(i),
            "prompt_id": str(i),
            "on": "xstest",
            "name": "rl",
            "stop": "eos",
            "num_tokens": 4,
            "kind": kind,
            "response": "I'm sorry, I can't help with that.",
        }
        for i, kind in enumerate(["safe:homonyms"] * 3 + ["unsafe:x"])
    ]
    rows = answer_statistics.rows(records, ["rl"])
    assert [
        find(rows, "refusal_rate", on)[0]["n"] for on in ("xstest", "xstest:safe", "xstest:unsafe")
    ] == [4, 3, 1]


def test_revisions_by_round_and_principle():
    revisions = [
        {
            "id": f"r{i}",
            "initial": "a",
            "kind": "theft" if i < 4 else "fraud",
            "rounds": [
                {"principle_id": "kind", "revision": "a b"},
                {"principle_id": "wise", "revision": "a b"},
            ],
        }
        for i in range(10)
    ]
    scores = {f"r{i}#{n}": float(i) + n * 0.5 for i in range(10) for n in range(3)}
    rows = revisions_eval.rows(revisions, scores)
    assert [r["value"] for r in find(rows, "pm_score_by_revision")] == [4.5, 5.0, 5.5]
    fraud, theft = find(rows, "score_moved_by_kind")
    assert (fraud["model"], fraud["n"], theft["model"], theft["n"], theft["value"]) == (
        "fraud",
        6,
        "theft",
        4,
        1.0,
    )
    kind, wise = find(rows, "score_moved", "revisions")
    assert (kind["used"], kind["changed"], kind["value"]) == (10, 1.0, 0.5)
    assert (wise["model"], wise["changed"]) == ("wise", 0.0)
    kind, wise = find(rows, "score_moved", "revisions:fraud")
    assert (kind["used"], kind["changed"], wise["used"], wise["changed"]) == (6, 1.0, 6, 0.0), (
        "and within a kind of harm"
    )
