"""configs/results/smollm2.py whole, on a random model of two layers: run in parts, published, and
one stage of each kind again."""

import json
import shutil
import subprocess
import sys

import pytest

from cai_jax import results
from cai_jax.evals.rows import find
from configs.results import smollm2
from tests.chaos.harness import ROOT, environment

pytestmark = pytest.mark.long
ONE_OF_EACH_KIND = (
    "respond_helpful",
    "revise_direct",
    "sl_direct",
    "compare",
    "human_pairs",
    "agree_chat",
    "feedback_pm",
    "pm_helpful",
    "rl_relabelled",
    "best_of_human",
    "evaluate_human",
)
COMPARED = ("records.jsonl", "metrics.jsonl", "metrics.json", "scores.jsonl", "pairs.jsonl")


def run(workdir, shared_data, *flags):
    config = f"--config=configs/results/smollm2.py:size=smoke,data={shared_data}"
    done = subprocess.run(
        [sys.executable, "-m", "cai_jax.main", config, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_whole_experiment(tmp_path, shared_data):
    stages = smollm2.get_config("size=smoke").stages
    run(tmp_path / "run", shared_data, f"--config.stages={','.join(stages[:9])}")
    assert run(tmp_path / "run", shared_data).count("done before") == 9

    rows = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())["rows"]
    for on in ("red_team", "helpful"):
        models = [r["model"] for r in find(rows, "pm_score", on)]
        assert set(models) == set(smollm2.POLICIES) and models[0] == "SmolLM2", (
            "differences are to the model as it is"
        )
        for name in models[1:]:
            for metric in (
                "pm_score",
                "pm_score_at_equal_length",
                "net_wins_at_equal_length",
                "num_tokens",
            ):
                assert find(rows, metric, on, name, "SmolLM2"), f"{metric} of {name}"
    parts = ("", ":hh_harmless_base", ":hh_helpful_base")
    assert {r["on"] for r in find(rows, "pm_accuracy")} == {f"comparisons{part}" for part in parts}
    assert results.main(["x", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {r["model"] for r in find(found["rows"], "pm_accuracy", "comparisons")} == {
        f"@pm_{name}" for name in ("judge", "harmless", "helpful", "human", "ai", "relabelled")
    }
    assert {r["model"] for r in find(found["rows"], "label_agreement", "human")} == {
        "agree_chat",
        "agree_text",
        "agree_ours",
    }
    assert {r["model"] for r in find(found["rows"], "revision_moved", against="initial")} == {
        "revise",
        "revise_direct",
        "revise_ours",
        "revise_text",
    }
    assert set(found["cost"]["stages"]) == set(stages) - {"report"}

    # From scratch with the same seed: the same records and metrics.
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    kinds = {smollm2.get_config("size=smoke").graph[name].kind for name in stages} - {"report"}
    assert {smollm2.get_config("size=smoke").graph[name].kind for name in ONE_OF_EACH_KIND} == kinds
    for name in ONE_OF_EACH_KIND:
        shutil.rmtree(tmp_path / "again" / name)
    run(tmp_path / "again", shared_data, f"--config.stages={','.join(ONE_OF_EACH_KIND)}")
    for name in ONE_OF_EACH_KIND:
        for file in COMPARED:
            before, after = (tmp_path / where / name / file for where in ("run", "again"))
            assert before.exists() == after.exists() and (
                not before.exists() or before.read_bytes() == after.read_bytes()
            ), before
