"""What can be known is checked before the first stage: one line, and nothing is run, moved or
written."""

import json
import os
import shutil
import time

import pytest
from etils import epath

from cai_jax import main
from cai_jax.errors import UserError
from cai_jax.pipeline import graph as pipeline
from cai_jax.pipeline import preflight
from configs import default

TINY = "--config=configs/tiny.py"


def check(path, *flags):
    config, _ = main.parse(["cai_jax", TINY, *flags])
    preflight.check(config, pipeline.build_graph(config), epath.Path(path))


def refused(path, *flags) -> str:
    with pytest.raises(UserError) as caught:
        check(path, *flags)
    return str(caught.value)


def test_a_config_that_is_right_passes_quickly(tmp_path):
    began = time.monotonic()
    check(tmp_path)
    assert time.monotonic() - began < 20  # about a second; tests share a busy machine
    assert list(tmp_path.iterdir()) == []


def test_all_missing_stages_are_named_at_once_in_their_order(tmp_path):
    text = refused(tmp_path, "--config.stages=rl")
    assert all(f"'{name}'" in text for name in ("respond", "respond_helpful", "revise", "sl", "pm"))
    asked = text.rpartition("--config.stages=")[2].split(",")
    check(tmp_path, f"--config.stages={','.join(asked)}")  # what it advises is enough


def rows(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_a_judge_as_a_reward_cannot_be_a_server(tmp_path):
    flags = "--config.graph.rl.reward=@feedback", "--config.graph.rl.group_size=2"
    text = refused(tmp_path, *flags, "--config.graph.feedback.model=openai:http://a/v1#m")
    assert "rl.rewards.judge.model: 'openai:http://a/v1#m' is elsewhere" in text, text
    assert "all models of a stage that trains must be in this process" in text


GOOD_PAIR = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}


@pytest.mark.parametrize(
    "flag,content",
    [
        ("graph.rl.prompts", {"question": "x"}),
        ("graph.compare.prompts", {"prompt": 3}),
        ("graph.evaluate.prompts_helpful", {"prompt": []}),
        ("graph.pm.human", {"chosen": 1, "rejected": 2}),
        ("graph.evaluate.evals.preference_pairs.comparisons", {"chosen": "x"}),
    ],
)
def test_sources_of_late_stages_are_read_at_the_start(tmp_path, flag, content):
    file = rows(tmp_path / "rows.jsonl", content)
    flags = [f"--config.{flag}.source={file}", f"--config.{flag}.split="]
    text = refused(tmp_path / "run", *flags)
    assert f"{file}:1" in text and f"config.{flag}" in text
    os.remove(file)
    text = refused(tmp_path / "run", *flags)
    assert "no such file" in text and f"config.{flag}" in text


def test_an_offset_beyond_the_end_is_known_at_the_start(tmp_path):
    assert "0 rows left" in refused(tmp_path, "--config.graph.rl.prompts.offset=100000")


def test_prompts_without_any_are_refused_at_the_start_and_comparisons_may_be_none(tmp_path):
    """The defect: limit=0 was found when its stage began, after all stages before it."""
    for field in ("rl.prompts", "evaluate.prompts_helpful"):
        text = refused(tmp_path, f"--config.graph.{field}.limit=0")
        assert f"config.graph.{field}" in text and "0 rows left" in text
    check(tmp_path, "--config.graph.pm.human.limit=0")


def test_of_a_large_file_the_first_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "READ_BYTES", 100)
    good = [{"prompt": f"prompt {number}"} for number in range(preflight.ROWS)]
    file = rows(tmp_path / "rows.jsonl", *good, {"prompt": 3})
    flags = [f"--config.graph.rl.prompts.source={file}", "--config.graph.rl.prompts.split="]
    check(tmp_path / "run", *flags, "--config.graph.rl.prompts.offset=5")
    rows(file, {"prompt": 3}, *good)
    assert f"{file}:1" in refused(tmp_path / "run", *flags)


@pytest.mark.parametrize(
    "flag,message",
    [
        ("graph.evaluate.evals.multiple_choice.choices=nowhere.jsonl", "nowhere.jsonl"),
        ("graph.evaluate.models.initial=responses:nowhere.jsonl", "nowhere.jsonl"),
        ("graph.feedback.constitution=nowhere.json", "no such constitution"),
        (
            "models.judge=responses:nowhere.jsonl --config.graph.evaluate.models.rl=judge",
            "nowhere.jsonl",
        ),
        (
            (
                "graph.evaluate.evals.multiple_choice.constitution=nowhere.json "
                "--config.graph.evaluate.evals.multiple_choice.num_few_shot_chains=1"
            ),
            "no such constitution",
        ),
        ("graph.rl.reward=python:nowhere.f", "nowhere"),
        ("graph.rl.reward=python:json.nothing", "nothing"),
        ("graph.evaluate.evals.preference_scores.reward=python:nowhere.f", "nowhere"),
        ("graph.rl.policy=python:json.dumps", "expected a policy"),
        ("graph.rl.rollouts_per_update=9", "not a multiple"),
        ("graph.rl.algorithm=grpo", "config.graph.rl.group_size: grpo compares"),
        ("graph.rl.group_size=3", "not a multiple of group_size 3"),
        ("graph.rl.kl_in=loss", "config.graph.rl.kl_estimator: expected k2 or k3"),
        ("graph.rl.kl_estimator=k3", "config.graph.rl.kl_estimator: expected k1 with"),
        ("graph.rl.prompts.source=", "config.graph.rl.prompts: 0 rows left, none are asked for"),
        (
            "graph.compare.prompts.limit=0",
            "config.graph.compare.prompts (config.topic.prompts): 0 rows left, none are asked for",
        ),
        (
            "graph.sl.inputs.revisions=respond",
            "'respond' is of kind respond, which writes responses",
        ),
        ("graph.feedback.inputs.comparisons=respond", "expected a stage that writes comparisons"),
        (
            "graph.feedback.inputs.comparisons=",
            "config.graph.feedback.inputs.comparisons: is empty",
        ),
        (
            "graph.pm.inputs.labels=compare",
            "'compare' is of kind compare, which writes comparisons",
        ),
        ("graph.pm.inputs.comparisons=", "name the same stage in both"),
        ("graph.evaluate.inputs.revisions=respond", "which writes responses"),
        ("graph.rl.policy=@pm", "'@pm' is a reward, a policy is needed"),
        ("graph.rl.reward=@sl", "'@sl' is a policy, a reward is needed"),
        ("graph.rl.reward=base", "not a preference model"),
        ("graph.evaluate.models.rl=@rl:7", "keep step 2, 3"),
        ("graph.evaluate.models.rl=@rl:last", "keep step 2, 3"),
        ("graph.evaluate.evals.judge.judge=@respond", "'@respond' is a stage of kind respond"),
        ("graph.revise.num_principles=999", "config.graph.revise.num_principles: 999"),
        ("topic.constitution=nowhere.json", "config.topic.constitution: "),
        ("models.judge=nowhere", None),
        ("models.feedback=models/nowhere", "no such model directory"),
    ],
)
def test_mistakes_of_late_stages(tmp_path, flag, message):
    if message is None:  # a role that no stage uses need not be there
        check(tmp_path, f"--config.{flag}")
        return
    assert message in refused(tmp_path, *f"--config.{flag}".split())
    assert list(tmp_path.iterdir()) == []


def test_best_of_takes_the_answers_of_a_stage_that_draws_several(tmp_path):
    config, _ = main.parse(["cai_jax", TINY])
    with config.unlocked():
        config.graph.best = default.best_of("rl")
        config.stages = (*config.stages[:-2], "best")
    with pytest.raises(UserError, match=r"config.graph.best.inputs.responses: 'rl' is of kind rl"):
        preflight.check(config, pipeline.build_graph(config), epath.Path(tmp_path))


@pytest.mark.parametrize("flag", ["graph.rl.num_minibatches=3", "stages=rl", "seed=-1"])
def test_a_refused_start_leaves_no_directory(tmp_path, capsys, flag):
    code = main.main(["cai_jax", TINY, f"--workdir={tmp_path / 'run'}", f"--config.{flag}"])
    assert code == 2 and not (tmp_path / "run").exists(), capsys.readouterr().err
    (tmp_path / "run").mkdir()
    assert main.main(["cai_jax", TINY, f"--workdir={tmp_path / 'run'}", f"--config.{flag}"]) == 2
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"lock.held"}


def test_a_sources_own_limit_asks_for_rows(tmp_path):
    flags = ("compare.prompts.limit=0", "compare.prompts.source=embedded:red_team[:20]")
    check(tmp_path, *(f"--config.graph.{flag}" for flag in flags))


def test_kept_snapshots_can_be_named(tmp_path):
    check(tmp_path, "--config.graph.evaluate.models.rl=@rl:2")


def test_a_half_constitution_is_named_with_its_field(tmp_path):
    file = tmp_path / "half.json"
    principle = {"id": "a", "critique_request": "b", "revision_request": "c"}
    file.write_text(json.dumps({"critique_principles": [principle]}))
    text = refused(tmp_path / "run", f"--config.graph.feedback.constitution={file}")
    assert "comparison_principles" in text and "config.graph.feedback.constitution" in text


@pytest.fixture
def model(tmp_path):
    shutil.copytree("configs/models/tiny", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "breaks,message",
    [
        (lambda path: (path / "config.json").unlink(), "config.json"),
        (lambda path: (path / "config.json").write_text("{"), "config.json"),
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer"),
        (lambda path: None, "safetensors"),  # a directory without weights, not named as random:
    ],
)
def test_model_directories(tmp_path, model, breaks, message):
    breaks(model)
    text = refused(
        tmp_path / "run",
        f"--config.models.judge={model}",
        "--config.graph.evaluate.evals.judge.judge=judge",
    )
    assert message in text and "config.graph.evaluate.evals.judge.judge ('judge')" in text


def test_stages_that_are_done_are_not_checked(tmp_path):
    """A data file may be gone once its stage is done, and a reward need not be installed to make
    the report again."""
    config, _ = main.parse(["cai_jax", TINY, "--config.graph.rl.reward=python:nowhere.f"])
    nodes = pipeline.build_graph(config)
    for node in nodes.values():
        if node.name != "report":
            pipeline.artefacts.StageDirectory(tmp_path / node.name).update_manifest(
                fingerprint=node.fingerprint, kind=node.kind, done=True
            )
    preflight.check(config, nodes, epath.Path(tmp_path))
    with pytest.raises(UserError, match="nowhere"):
        preflight.check(config, nodes, epath.Path(tmp_path), stale=["rl"])


def test_weights_and_biases_without_a_login(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    flag = "--config.logging.wandb=project"
    assert "nobody is logged in" in refused(tmp_path / "run", flag)
    check(
        tmp_path / "run", flag, "--config.stages=respond"
    )  # nothing is trained: nothing is logged
    monkeypatch.setenv("WANDB_MODE", "offline")
    check(tmp_path / "run", flag)


def test_every_check_says_what_it_checks():
    assert all(one.__doc__ for one in preflight.CHECKS)
