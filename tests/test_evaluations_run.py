"""Every evaluation at once on the published files, by a random model of two layers: who judges,
which sets, both orders."""

import json

import pytest

from cai_jax.evals.rows import find
from cai_jax.pipeline import graph as pipeline
from configs import default, tiny

pytestmark = pytest.mark.long
SETS = ("438HHHEvaluations", "HarmfulVsEthical", "HarmfulnessClassification")


def brevity(dialogues):
    """A judge that is a function: the shorter the better."""
    return [-float(len(dialogue[-1].text)) for dialogue in dialogues]


def config_of(shared_data, answers):
    config = tiny.get_config()
    none = {"source": "", "split": "", "offset": 0, "limit": None}
    steps = default.optimisation(learning_rate=1e-3, batch_size=8) | {"max_length": 512}
    short = {
        "max_new_tokens": 8,
        "prompts_helpful": none,
        "prompts_red_team": default.prompts("embedded:red_team", "heldout", limit=4),
    }
    models = {"initial": "helpful", "file": f"responses:{answers}"}
    config.graph = {
        "pm": default.pm(comparisons="", labels="", **steps),
        "evaluate": default.evaluate(
            models,
            judge="judge",
            reward="@pm",
            num_few_shot=1,
            num_choices=7,
            num_chains=2,
            max_chain_tokens=4,
            **short,
            choices="+".join(str(shared_data / f"eval_{name}.jsonl.gz") for name in SETS),
            comparisons={
                "source": "+".join(
                    str(shared_data / f"hh_{name}.jsonl.gz")
                    for name in ("harmless_base", "helpful_base")
                ),
                "split": "",
                "offset": 0,
                "limit": 4,
            },
            prompts_xstest=default.prompts(str(shared_data / "eval_xstest.jsonl.gz"), "", limit=60),
        ),
        "by_function": default.evaluate(
            models,
            reward="python:tests.test_evaluations_run.brevity",
            feedback="",
            choices="",
            **short,
        ),
    }
    config.graph["pm"]["human"]["limit"] = 16
    config.stages = ("pm", "evaluate", "by_function")
    config.sampling.max_length = 1024
    return config


def test_all_of_them(tmp_path, shared_data):
    answers = tmp_path / "answers.jsonl"
    prompts = [
        json.loads(line)["prompt"]
        for line in open(
            default.__file__.replace("configs/default.py", "cai_jax/data/embedded/red_team.jsonl")
        )
    ]
    answers.write_text(
        "".join(
            json.dumps({"prompt": p, "response": "No."}) + "\n"
            for p in prompts
            if isinstance(p, str)
        )
    )
    pipeline.run(config_of(shared_data, answers), str(tmp_path / "run"))
    rows = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())["rows"]
    for name in SETS:
        for metric in (
            "choice_zero_shot",
            "choice_chain_of_thought",
            "choice_one_chain",
        ):  # one chain beside the ensemble
            (found,) = find(rows, metric, name)
            assert found["low"] is not None and set(found["baseline"]) == {
                "chance",
                "majority",
                "longer",
            }
    (few,) = find(
        rows, "choice_few_shot", SETS[0]
    )  # a worked example of the other sets fills the context of this model
    assert 0 < find(rows, "choice_few_shot", SETS[0], against="zero_shot")[0]["n"] <= few["n"], (
        "paired with zero-shot"
    )
    assert find(rows, "choice_zero_shot", "HarmfulnessClassification")[0]["baseline"][
        "chance"
    ] == pytest.approx(1 / 9)
    assert find(rows, "pm_accuracy", "438HHHEvaluations")[0]["n"] == 7, "PM mode on the dialogues"
    assert {f"comparisons:hh_{name}_base" for name in ("harmless", "helpful")} <= {
        r["on"] for r in find(rows, "pm_accuracy")
    }
    refused = {
        on: find(rows, "refusal_rate", on, "initial")[0]["n"]
        for on in ("xstest", "xstest:safe", "xstest:unsafe")
    }
    assert refused["xstest"] == 60 == refused["xstest:safe"] + refused["xstest:unsafe"], (
        "over-refusal is counted apart"
    )
    judged = [
        json.loads(line)
        for line in (tmp_path / "run" / "evaluate" / "verdicts.jsonl").read_text().splitlines()
    ]
    matches = [v for v in judged if "a" in v]
    assert matches and all({"ab", "ba"} <= set(v) or v["p"] == 0.5 for v in matches), (
        "both orders, or a tie of equal texts"
    )
    assert find(rows, "elo_judge", "red_team", "file")[0]["value"] == 0.0 and find(
        rows, "evasive_agreement", "red_team", "file"
    )
    assert "ece_chain_of_thought_clamped" in {r["metric"] for r in rows}
    rows = json.loads((tmp_path / "run" / "by_function" / "metrics.json").read_text())["rows"]
    (better,) = find(rows, "pm_score", "red_team", "file")
    assert better["value"] == -3.0, "a judge that is a function"
