"""What can never fit is refused before anything runs, by one line that names the fields; what
decides which rows exist is part of a stage's fingerprint."""

import json
import pathlib

import pytest

from cai_jax.configuration import auto, topic
from cai_jax.errors import UserError
from cai_jax.pipeline import graph as pipeline
from cai_jax.pipeline import limits
from configs import default, tiny


def model(path, tiny_model, positions: int) -> str:
    """The tiny model with so many positions."""
    path.mkdir()
    for source in pathlib.Path(tiny_model).iterdir():
        (path / source.name).write_bytes(source.read_bytes())
    config = json.loads((path / "config.json").read_text()) | {"max_position_embeddings": positions}
    (path / "config.json").write_text(json.dumps(config))
    return f"random:{path}"


@pytest.mark.parametrize(
    "stage,fields,limit,told",
    [
        ("respond", {"max_new_tokens": 1000}, 1000, "max_new_tokens=1000"),
        ("respond", {"max_new_tokens": 1020}, 0, "positions: 1024"),
        ("revise", {"max_critique_tokens": 200}, 210, "max_critique_tokens=200"),
        ("revise", {"max_revision_tokens": 300}, 380, "max_revision_tokens=300"),
        ("feedback", {}, 40, "a prompt of at least"),
        ("feedback", {"mode": "chain_of_thought"}, 290, "max_chain_tokens=256"),
        ("rl", {"max_new_tokens": 300}, 310, "max_new_tokens=300"),
        ("evaluate", {"max_new_tokens": 300}, 310, "max_new_tokens=300"),
        ("evaluate", {"num_chains": 1, "max_chain_tokens": 300}, 310, "max_chain_tokens=300"),
    ],
)
def test_what_can_never_fit_is_refused(stage, fields, limit, told):
    config = tiny.get_config()
    config.graph[stage] = getattr(default, stage)(
        **({"models": {"initial": "helpful"}} if stage == "evaluate" else {}), **fields
    )
    config.sampling.max_length = limit
    config = auto.resolve(topic.resolve(config))
    with pytest.raises(UserError, match=told) as error:
        limits.check(config, stage)
    line = str(error.value)
    assert f"config.graph.{stage}" in line and "sampling.max_length" in line and "\n" not in line
    if limit:
        config.sampling.max_length = 0
        limits.check(config, stage)


def test_a_model_is_asked_only_for_what_it_writes(tmp_path, tiny_model):
    """The judge scores and the feedback model answers questions: neither needs room for
    `max_new_tokens`."""
    config = tiny.get_config()
    config.models.judge = model(tmp_path / "model", tiny_model, 128)
    config.graph.evaluate = default.evaluate(
        {"initial": "helpful"}, judge="judge", feedback="judge"
    )
    config = topic.resolve(config)
    limits.check(config, "evaluate")
    chains = {"evals": {"multiple_choice": {"num_chains": 1}}}
    for fields in (chains, {"models": {"initial": "judge"}}):
        config.graph.evaluate.update(fields)
        with pytest.raises(UserError, match="max_chain_tokens|max_new_tokens"):
            limits.check(config, "evaluate")
        config.graph.evaluate.evals.multiple_choice.num_chains = 0


def test_answers_that_a_role_names_need_no_context():
    config = tiny.get_config()
    config.models.judge = "@respond"
    config.graph.evaluate.models = {"initial": "judge"}
    assert "judge" not in limits.models_of(config, "evaluate")


def test_the_shortest_request_is_measured_with_the_runs_template_arguments(tmp_path, tiny_model):
    """A template that thinks unless the config says otherwise, by an argument that the defaults do
    not know."""
    config = tiny.get_config()
    reference = model(tmp_path / "model", tiny_model, 300)
    path = tmp_path / "model" / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    end = "<|im_start|>assistant\\n' }}{% endif %}"
    assert end in fields["chat_template"]
    thinks = (
        "<|im_start|>assistant\\n' }}{% if think is not defined %}{{ '<think>' }}{% endif "
        "%}{% endif %}"
    )
    fields["chat_template"] = fields["chat_template"].replace(end, thinks) + "{# </think> #}"
    path.write_text(json.dumps(fields))
    config.models.base = reference
    config.graph.respond = default.respond()
    with config.unlocked():
        config.model.template_args = {"think": False}
    limits.check(config, "respond")


def test_a_model_of_few_positions_refuses_what_is_longer_than_they_are(tmp_path, tiny_model):
    config = tiny.get_config()
    config.graph.respond = default.respond()  # 256 new tokens
    config.models.base = model(tmp_path / "model", tiny_model, 256)
    with pytest.raises(UserError, match="cannot fit the 256 tokens of 'helpful'"):
        limits.check(config, "respond")


def test_a_judge_in_8_bits_is_in_the_fingerprint_of_rl():
    """The defect: its answers changed and the stage did not."""

    def mark(int8, reward):
        config = tiny.get_config()
        config.sampling.int8, config.graph.rl.reward = int8, reward
        config.stages = ("rl",)
        return pipeline.build_graph(config)["rl"].fields.get("int8")

    assert mark(True, "@feedback") and not mark(False, "@feedback")
    assert not mark(True, "python:builtins.len")


def test_nothing_is_sampled_before(tmp_path):
    config = tiny.get_config()
    config.graph.rl.max_new_tokens = 1020  # the last stage but two
    with pytest.raises(UserError, match="config.graph.rl: .*max_new_tokens=1020 new ones"):
        pipeline.run(config, str(tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("*.jsonl"))


def test_the_limit_that_decides_which_rows_exist_is_in_the_fingerprint():
    """Of sampling stages and of what reads them; beyond the model's positions it decides
    nothing."""

    def marks(max_length):
        config = tiny.get_config()
        config.sampling.max_length = max_length
        return {name: node.fingerprint for name, node in pipeline.build_graph(config).items()}

    whole = marks(1024)
    assert marks(4096) == whole == marks(0)
    short = marks(512)
    assert {name for name in whole if short[name] == whole[name]} == {"report"}
    node = pipeline.build_graph(tiny.get_config())["rl"]
    assert node.fields["sampling.max_length"] == 1024
