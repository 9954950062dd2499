"""Bad input, as a user gives it: one line on standard error, exit code 2, and nothing
half-written."""

import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cai_jax import main
from cai_jax.io.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY_MODEL = ROOT / "configs" / "models" / "tiny"
RESPOND = "--config.graph.respond."


def command(capsys, workdir, *flags) -> tuple[int, str]:
    code = main.main(["cai_jax", "--config=configs/tiny.py", f"--workdir={workdir}", *flags])
    return code, capsys.readouterr().err


def refused(capsys, workdir, *flags) -> str:
    """The one line of a command that must be refused; what it leaves is whole."""
    code, errors = command(capsys, workdir, *flags)
    lines = [line for line in errors.splitlines() if line.strip()]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), errors
    assert_nothing_half_written(workdir)
    return lines[0]


def assert_nothing_half_written(workdir):
    for path in pathlib.Path(workdir).rglob("*") if os.path.isdir(workdir) else ():
        assert not path.name.endswith((".writing", ".partial")) and path.name != "lock.json", path
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.name == "manifest.json":
            assert not json.loads(path.read_text())["done"]
        assert path.name not in ("records.jsonl", "metrics.json", "role.json"), path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small model directory with weights."""
    import jax
    import jax.numpy as jnp

    from cai_jax.models import hf, params
    from cai_jax.models.config import ModelConfig

    directory = tmp_path_factory.mktemp("models") / "whole"
    config = ModelConfig.from_json(TINY_MODEL)
    hf.save_hf(
        directory, config, params.init_params(config, jax.random.key(0), jnp.float32), TINY_MODEL
    )
    return directory


@pytest.fixture
def model(weights, tmp_path):
    shutil.copytree(weights, tmp_path / "model")
    return tmp_path / "model"


# ---- Models --------------------------------------------------------------------------------------


def break_model(how, model):
    tensors, config = model / "model.safetensors", model / "config.json"
    if how == "no directory":
        shutil.rmtree(model)
    elif how == "no weights":
        tensors.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "no tokenizer":
        (model / "tokenizer.json").unlink()
    elif how == "weights cut":
        os.truncate(tensors, tensors.stat().st_size // 2)
    elif how == "header cut":
        os.truncate(tensors, 100)
    elif how == "empty weights":
        os.truncate(tensors, 0)
    elif how == "config cut":
        config.write_text(config.read_text()[:50])
    elif how == "config is a list":
        config.write_text("[]")
    elif how == "tokenizer cut":
        (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text()[:500])
    elif how == "unknown architecture":
        fields = json.loads(config.read_text()) | {
            "model_type": "hyena",
            "architectures": ["HyenaForCausalLM"],
        }
        config.write_text(json.dumps(fields))
    elif how == "a field is missing":
        fields = json.loads(config.read_text())
        del fields["hidden_size"]
        config.write_text(json.dumps(fields))
    elif how == "other shapes":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 256}))
    elif how == "index names a lost shard":
        tensors.unlink()
        (model / "model.safetensors.index.json").write_text(
            '{"weight_map": {"x": "model-00001-of-00002.safetensors"}}'
        )


@pytest.mark.parametrize(
    "how,message",
    [
        ("no directory", "no such model directory"),
        ("no weights", "no model.safetensors"),
        ("no config", "config.json"),
        ("no tokenizer", "tokenizer.json"),
        ("weights cut", "truncated"),
        ("header cut", "truncated"),
        ("empty weights", "truncated"),
        ("config cut", "config.json"),
        ("config is a list", "config.json"),
        ("tokenizer cut", "tokenizer.json"),
        ("unknown architecture", "hyena"),
        ("a field is missing", "hidden_size"),
        ("other shapes", "has shape"),
        ("index names a lost shard", "weight files are missing"),
    ],
)
def test_model_directories(capsys, tmp_path, model, how, message):
    break_model(how, model)
    text = refused(
        capsys, tmp_path / "run", "--config.stages=respond", f"--config.models.base={model}"
    )
    assert message.lower() in text.lower()


def test_an_unknown_architecture_lists_what_works(capsys, tmp_path, model):
    break_model("unknown architecture", model)
    assert (
        "llama"
        in refused(
            capsys, tmp_path / "run", "--config.stages=respond", f"--config.models.base={model}"
        ).lower()
    )


def test_a_missing_wheel_says_what_to_install():
    done = subprocess.run(
        [sys.executable, "-m", "cai_jax.models.gguf", "--wheel", "no-such-wheel", "--out", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install" in done.stderr and not (ROOT / "x").exists()


def test_the_corrected_command_just_runs_on(capsys, tmp_path):
    """A refused command has computed nothing: mending its flag is no change of a run."""
    workdir = tmp_path / "run"
    refused(
        capsys, workdir, "--config.stages=respond", f"--config.models.base={tmp_path / 'nowhere'}"
    )
    text = refused(
        capsys, workdir, "--config.stages=respond", f"--config.models.base={tmp_path / 'elsewhere'}"
    )
    assert "elsewhere" in text and "changed" not in text


def test_roles_are_not_confused(capsys, tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    flags = ["--config.on_change=redo", "--config.graph.rl.policy=@pm", "--config.stages=rl"]
    code, errors = command(capsys, run, *flags)
    assert code == 2 and "'@pm' is a reward, a policy is needed" in errors
    code, errors = command(
        capsys, run, "--config.on_change=redo", "--config.graph.rl.reward=@sl", "--config.stages=rl"
    )
    assert code == 2 and "'@sl' is a policy, a reward is needed" in errors
    code, errors = command(
        capsys,
        run,
        "--config.on_change=redo",
        "--config.graph.rl.reward=@sl:9",
        "--config.stages=rl",
    )
    assert code == 2 and errors.count("error: ") == 1 and "Traceback" not in errors


@pytest.mark.parametrize(
    "reward,message",
    [
        ("python:no.such.module.f", "no.such"),
        ("python:math.nothing", "nothing"),
        ("python:", "expected python:"),
        ("python:f", "expected python:"),
        ("python:builtins.len", "list of numbers"),
        ("nothing", "no such model directory"),
        ("python:tests.test_bad_input.nan_reward", "finite"),
        ("python:tests.test_bad_input.raising_reward", "ZeroDivisionError"),
    ],
)
def test_rewards(capsys, tmp_path, reward, message):
    text = refused_rl(capsys, tmp_path / "run", reward)
    assert message in text
    assert "nan_reward" not in reward or "for row '000001/" in text  # the stage names the row


def refused_rl(capsys, workdir, reward):
    flags = [
        "--config.stages=rl",
        f"--config.graph.rl.reward={reward}",
        "--config.graph.rl.policy=base",
        "--config.graph.rl.num_updates=1",
        "--config.graph.rl.rollouts_per_update=4",
        "--config.graph.rl.max_new_tokens=4",
        "--config.graph.rl.value_init=policy",
    ]
    code, errors = command(capsys, workdir, *flags)
    assert code == 2 and errors.count("\n") == 1, errors
    return errors


def nan_reward(dialogues):
    return [float("nan")] * len(dialogues)


def raising_reward(dialogues):
    return [1 / 0]


# ---- Rows ----------------------------------------------------------------------------------------

GOOD = {"prompt": "How are you?"}


def prompt_flags(path):
    return [
        "--config.stages=respond",
        f"{RESPOND}prompts.source={path}",
        f"{RESPOND}prompts.split=",
        f"{RESPOND}max_new_tokens=2",
    ]


@pytest.mark.parametrize(
    "line,message",
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ("null", "expected a JSON object"),
        ('"x"', "JSON object"),
        ("{}", "field 'prompt'"),
        ('{"prompt": 3}', "field 'prompt'"),
        ('{"prompt": []}', "field 'prompt'"),
        ('{"prompt": [{"role": "robot", "text": "x"}]}', "role"),
        ('{"prompt": [{"role": "human"}]}', "text"),
        (
            '{"prompt": [{"role": "human", "text": "a"}, {"role": "assistant", "text": "b"}]}',
            "expected a human turn last",
        ),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ('{"prompt": "x", "id": [5]}', "field 'id'"),
        ('{"prompt": "x", "kind": []}', "field 'kind'"),
        ('{"prompt": "x"} trailing', "not valid JSON"),
        ('{"prompt": "x\0y"}', "NUL"),
        ("[" * 100_000, "not valid JSON"),
        ('{"prompt": "x", "prompt": {"a": 1}}', "field 'prompt'"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        ("NaN", "JSON object"),
    ],
)
def test_malformed_prompt_rows(capsys, tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    text = refused(capsys, tmp_path / "run", *prompt_flags(path))
    assert f"{path}:2" in text and message in text and len(text) < 1000


@pytest.mark.parametrize(
    "row,message",
    [
        ({"chosen": "\n\nHuman: a\n\nAssistant: b"}, "field 'rejected'"),
        ({"chosen": 1, "rejected": 2}, "field 'chosen'"),
        ({"dialogue": [{"role": "human", "text": "a"}], "chosen": "b"}, "field 'rejected'"),
        ({"dialogue": 7, "chosen": "b", "rejected": "c"}, "field 'dialogue'"),
        (
            {"dialogue": [{"role": "assistant", "text": "a"}], "chosen": "b", "rejected": "c"},
            "human turn last",
        ),
    ],
)
def test_malformed_comparison_rows(capsys, tmp_path, row, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    text = refused(capsys, tmp_path / "run", *pm_flags(path))
    assert f"{path}:1" in text and message in text


def pm_flags(path, *more):
    return [
        "--config.stages=pm",
        "--config.graph.pm.inputs.comparisons=",
        "--config.graph.pm.inputs.labels=",
        f"--config.graph.pm.human.source={path}",
        "--config.graph.pm.human.split=",
        *more,
    ]


def test_comparisons_that_do_not_end_in_the_assistant_are_counted(capsys, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
        }
    ] * 3
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = refused(capsys, tmp_path / "run", *pm_flags(path))
    assert "0 rows left" in text and "3 not ending in the assistant" in text


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text(""), "0 rows left"),
        (lambda path: path.write_text("\n\n  \n"), "0 rows left"),
        (lambda path: path.mkdir(), "no such file"),
        (lambda path: path.write_text('{"prompt": "  "}\n'), "0 rows left"),
        (lambda path: path.write_bytes(gzip.compress(b'{"prompt": "x"}\n' * 1000)[:30]), "gzip"),
    ],
)
def test_prompt_files(capsys, tmp_path, make, message):
    path = tmp_path / "prompts.jsonl"
    make(path)
    assert message in refused(capsys, tmp_path / "run", *prompt_flags(path))


def test_long_prompts_are_left_out_and_counted(capsys, tmp_path):
    path, run = tmp_path / "prompts.jsonl", tmp_path / "run"
    path.write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in ("Hello there!", "word " * 3000))
    )
    code, errors = command(capsys, run, *prompt_flags(path), "--config.sampling.batch_size=2")
    assert code == 0, errors
    assert json.loads((run / "respond" / "manifest.json").read_text())["dropped"] == {
        "longer than the context": 1
    }
    rows = [
        json.loads(line) for line in (run / "respond" / "records.jsonl").read_text().splitlines()
    ]
    assert [row["dialogue"][0]["text"] for row in rows] == ["Hello there!"]


def test_nothing_left_is_one_line(capsys, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 3000}) + "\n")
    text = refused(capsys, tmp_path / "run", *prompt_flags(path))
    assert "0 responses left (longer than the context: 1)" in text
    text = refused(
        capsys, tmp_path / "run2", "--config.stages=respond", f"{RESPOND}prompts.offset=100000"
    )
    assert "0 rows left" in text


# ---- The command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--config.stages=respnod"], "did you mean 'respond'"),
        (["--config.stages=revise"], "'respond' is needed"),
        (["--config.stages="], "config.stages"),
        (["--config.mesh.data=7"], "mesh"),
        (["--config.stages=respond", f"{RESPOND}constitution=x"], "no field"),
        (["--config.stages=respond", f"{RESPOND}format=markdown"], "format"),
        (["--config.stages=respond", f"{RESPOND}num_samples=0"], "at least 1"),
        (["--config.stages=respond", f"{RESPOND}max_new_tokens=0"], "max_new_tokens"),
        (["--config.stages=respond", "--config.model.dtype=float31"], "dtype"),
        (["--config.stages=respond", "--config.sampling.batch_size=-1"], "batch_size"),
        (
            [
                "--config.stages=pm",
                "--config.graph.pm.inputs.comparisons=",
                "--config.graph.pm.inputs.labels=",
                "--config.graph.pm.schedule=square",
            ],
            "schedule",
        ),
        (
            [
                "--config.stages=pm",
                "--config.graph.pm.inputs.comparisons=",
                "--config.graph.pm.inputs.labels=",
                "--config.graph.pm.batch_size=0",
            ],
            "batch_size",
        ),
        (["--config.on_change=ask"], "on_change"),
        (["--config.graph.rl.gamma=1.5"], "from 0 to 1"),
        (["--config.graph.respond.temperature=-1"], "temperature"),
        (["--config.graph.rl.lam=nan"], "from 0 to 1"),
    ],
)
def test_flags(capsys, tmp_path, flags, message):
    assert message in refused(capsys, tmp_path / "run", *flags)


def test_a_workdir_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(capsys, tmp_path / "file", "--config.stages=respond")
    assert "cannot write" in refused(
        capsys, tmp_path / "file" / "deeper", "--config.stages=respond"
    )
    assert (tmp_path / "file").read_text() == ""


def test_a_refused_change_leaves_the_run_as_it_was(capsys, tmp_path, finished):
    shutil.copytree(finished[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    code, errors = command(capsys, tmp_path / "run", "--config.graph.rl.clip=0.3")
    assert code == 2 and "rl.clip: 0.2 → 0.3" in errors and errors.count("\n") == 1
    assert {
        path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
    } == before


# ---- Numbers -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(capsys, tmp_path):
    flags = [
        *pm_flags("embedded:helpful_comparisons", "--config.graph.pm.human.limit=8"),
        "--config.graph.pm.human.split=train",
        "--config.graph.pm.batch_size=2",
        "--config.graph.pm.save_every_steps=1",
        "--config.graph.pm.num_epochs=4",
    ]
    code, errors = command(capsys, tmp_path / "run", *flags, "--config.graph.pm.learning_rate=1e30")
    assert code == 2 and errors.count("\n") == 1, errors
    assert "not finite" in errors or "nan" in errors or "inf" in errors
    assert "in the batch of human cooking" in errors
    steps = Checkpoints(tmp_path / "run" / "pm" / "checkpoints").steps()
    assert ("the last good checkpoint is step" in errors) == bool(steps)
    rows = [
        json.loads(line)
        for line in (tmp_path / "run" / "pm" / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(
        np.isfinite([value for value in row.values() if value is not None]).all() for row in rows
    )
    assert not (tmp_path / "run" / "pm" / "model").exists()


def test_weights_that_are_not_finite_stop_before_a_checkpoint(capsys, tmp_path, weights):
    model = tmp_path / "model"
    shutil.copytree(weights, model)
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-4:] = np.float32(np.inf).tobytes()
    (model / "model.safetensors").write_bytes(data)
    flags = [
        *pm_flags("embedded:helpful_comparisons", "--config.graph.pm.human.limit=8"),
        "--config.graph.pm.human.split=train",
        f"--config.models.base={model}",
    ]
    code, errors = command(capsys, tmp_path / "run", *flags)
    assert code == 2 and errors.count("\n") == 1 and "learning_rate" not in errors, errors
    assert str(model) in errors and "0 NaN and 1 infinite numbers" in errors
    assert Checkpoints(tmp_path / "run" / "pm" / "checkpoints").steps() == []
