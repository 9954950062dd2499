"""The command line and the graph: one line and exit code 2 for every mistake, before anything is
written."""

import json
import os
import subprocess
import sys

import pytest

from cai_jax import main
from cai_jax.errors import UserError
from cai_jax.io import lock
from cai_jax.pipeline import graph as pipeline

TINY = "--config=configs/tiny.py"


def parse(*arguments):
    return main.parse(["cai_jax", *arguments])


def error_of(capsys, *arguments) -> str:
    assert main.main(["cai_jax", *arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text


def test_the_order_of_flags_does_not_matter():
    for arguments in (
        [TINY, "--config.seed=3", "--workdir=w"],
        ["--workdir=w", "--config.seed=3", TINY],
        ["--config.seed=3", "--config", "configs/tiny.py", "--workdir", "w"],
    ):
        config, workdir = parse(*arguments)
        assert (config.seed, workdir) == (3, "w")


def test_workdir_defaults_to_the_config_name():
    assert parse(TINY)[1] == os.path.join("runs", "tiny")


@pytest.mark.parametrize("value", ["respond,revise", "('respond', 'revise')", "respond, revise"])
def test_stages_can_be_listed_with_commas(value):
    assert parse(TINY, f"--config.stages={value}")[0].stages == ("respond", "revise")


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--config=configs/none.py"], "no such config file"),
        ([], "--config"),
        ([TINY, "--config.sede=1"], "did you mean 'seed'"),
        ([TINY, "--config.graph.sl.num_epoch=1"], "did you mean 'num_epochs'"),
        ([TINY, "--config.seed.x=1"], "no fields below"),
        ([TINY, "--config.seed=abc"], "abc"),
        ([TINY, "--wrokdir=x"], "not a flag"),
        ([TINY, "extra"], "not a flag"),
        ([TINY, "--config.stages=respnod"], "did you mean 'respond'"),
        ([TINY, "--config.graph.sl.kind=sll"], "did you mean 'sl'"),
        ([TINY, "--config.graph.revise.inputs.responses=respnd"], "did you mean 'respond'"),
        ([TINY, "--config.graph.respond.model=@sl"], "wait for each other"),
        ([TINY, "--config.models.base=helpful"], "points at itself"),
    ],
)
def test_a_mistake_is_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    text = error_of(capsys, *arguments, *([f"--workdir={tmp_path / 'run'}"] if arguments else []))
    assert message in text
    assert not (tmp_path / "run").exists()


def test_a_config_that_raises_is_one_line(capsys, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("def get_config():\n  return 1 / 0\n")
    assert "ZeroDivisionError" in error_of(capsys, f"--config={file}")


def test_an_unwritable_workdir_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in error_of(capsys, TINY, f"--workdir={tmp_path / 'file' / 'run'}")


def test_a_stage_needs_what_it_reads(capsys, tmp_path):
    text = error_of(capsys, TINY, "--config.stages=revise", f"--workdir={tmp_path}")
    assert "'respond' is needed" in text


def test_help_names_the_documented_config():
    done = subprocess.run(
        [sys.executable, "-m", "cai_jax.main", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "configs/default.py" in done.stdout
    assert "on_change = 'stop'" in done.stdout


def test_help_of_a_kind_of_stage_has_its_fields(capsys):
    with pytest.raises(SystemExit):
        main.main(["cai_jax", "--help", "rl"])
    text = capsys.readouterr().out
    assert "clip = 0.2 [a number more than 0]: of the ratio of probabilities" in text
    assert "    source = 'topic:prompts+topic:helpful'" in text and "seed" not in text
    assert "did you mean 'rl'" in error_of(capsys, "--help", "rll")


@pytest.mark.parametrize(
    "name", ["default", "tiny", "smollm2_cpu", "rlhf", "rlhf:variant=harmless"]
)
def test_every_config_makes_a_graph(name, smollm2):
    file, _, argument = name.partition(":")
    config, _ = parse(f"--config=configs/{file}.py" + (f":{argument}" if argument else ""))
    nodes = pipeline.build_graph(config)
    assert set(config.stages) <= set(nodes)
    order = list(nodes)
    assert all(
        order.index(parent) < order.index(node.name)
        for node in nodes.values()
        for parent in node.parents
    )


def graph(*overrides):
    return pipeline.build_graph(parse(TINY, *overrides)[0])


def test_parents_come_from_inputs_and_models():
    nodes = graph()
    assert set(nodes["sl"].parents) == {"revise", "respond_helpful"}
    assert nodes["compare"].parents == ("sl",)
    assert set(nodes["rl"].parents) == {"sl", "pm"}
    assert set(nodes["report"].parents) == set(nodes) - {"report"}


def test_a_changed_field_touches_what_rests_on_it_and_no_more():
    before, after = graph(), graph("--config.graph.compare.max_new_tokens=13")
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert changed == {"compare", "feedback", "feedback_chain", "pm", "rl", "evaluate"}
    seeded = graph("--config.seed=1")
    assert all(before[name].fingerprint != seeded[name].fingerprint for name in before)
    meshed = graph("--config.mesh.fsdp=2", "--config.sampling.batch_size=4")
    assert all(before[name].fingerprint == meshed[name].fingerprint for name in before)


def test_an_edited_data_file_is_a_change(tmp_path):
    file = tmp_path / "prompts.jsonl"
    flag = f"--config.graph.respond.prompts.source={file}"
    file.write_text('{"prompt": "a"}\n')
    before = graph(flag)["respond"].fingerprint
    file.write_text('{"prompt": "b"}\n')
    assert graph(flag)["respond"].fingerprint != before


def test_two_runs_on_one_workdir(tmp_path):
    with lock.held(tmp_path):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            with lock.held(tmp_path):
                pass
        assert (tmp_path / "lock.json").exists()
    assert not (tmp_path / "lock.json").exists()
    for text in ("nonsense", f'{{"host": "{lock.socket.gethostname()}", "pid": {os.getppid()}}}'):
        (tmp_path / "lock.json").write_text(text)  # nobody holds it: its owner was killed
        with lock.held(tmp_path):
            assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock.json").exists()


def test_the_closing_table():
    rows = [
        {"stage": "respond", "skipped": False, "seconds": 12.3, "rows": 32, "headline": "ok"},
        {"stage": "sl", "skipped": True, "seconds": 100.0, "steps": 8, "headline": "loss 1.2"},
    ]
    lines = pipeline.table(rows).split("\n")
    assert lines[1].split() == ["respond", "32", "12", "ok"]
    assert "100 (before)" in lines[2]
