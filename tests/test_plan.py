"""The plan: topologies, known architectures, the formulas, a proposal, and one preset compiled for
a slice of 64 chips."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from cai_jax import plan
from cai_jax.core import sharding
from cai_jax.errors import UserError
from cai_jax.planning import arithmetic, chips, estimate, programs, propose, table
from configs import default, tiny
from configs.pods import llama3_8b_1xh100, llama3_8b_v5e_8x8

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRESETS = sorted((ROOT / "configs" / "pods").glob("*_v5*.py")) + [
    ROOT / "configs" / "pods" / "llama3_8b_8xh100.py"
]


def command(*arguments, timeout=280, **env):
    return subprocess.run(
        [sys.executable, "-m", "cai_jax.plan", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=os.environ | env,
    )


def test_topologies():
    slices = chips.parse_topology("V5E:8x8", 2)
    assert (slices.num_chips, slices.name, slices.chip.hbm) == (128, "2 × v5e:8x8", 16 * 2**30)
    assert chips.parse_topology("h100:2x8").num_chips == 16
    for text in ("v5e", "v5e:8", "v5p:4x4", "k80:8", "h100:2x2x2", "v5e:0x8"):
        with pytest.raises(UserError, match="--topology"):
            chips.parse_topology(text)


@pytest.mark.parametrize(
    "name,billions",
    [
        ("meta-llama/Llama-3.1-8B", 8.03),
        ("meta-llama/Llama-3.1-70B-Instruct", 70.55),
        ("Qwen/Qwen2.5-32B", 32.76),
        ("Qwen/Qwen2.5-7B", 7.62),
    ],
)
def test_known_architectures_have_their_published_size(name, billions):
    from cai_jax.models.params import num_params

    config = tiny.get_config()
    config.models.base = name
    assert num_params(programs.model_of(config, "@rl")) / 1e9 == pytest.approx(billions, abs=0.005)


def test_unknown_model_is_one_line():
    config = tiny.get_config()
    config.models.base = "nobody/nothing"
    with pytest.raises(UserError, match="give a directory"):
        programs.model_of(config, "base")


def test_flops_of_llama_8b_are_six_a_parameter_and_token():
    model = programs.model_of(llama3_8b_v5e_8x8.get_config(), "base")
    work = arithmetic.Work("train", model, 2, 512)
    used = 8.03e9 - model.vocab_size * model.width  # the embedding is looked up, not multiplied
    assert work.flops == pytest.approx(6 * used * 1024, rel=0.03)


def test_every_program_of_a_run_lowers_and_is_compiled():
    """On one CPU device, so the counts are those of the whole program."""
    config = tiny.get_config()
    config.stages = ("sl", "pm", "rl")
    config.graph.rl.num_microbatches = 2
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    topology = chips.Topology(chips.CHIPS["h100"], (1,))
    found = {f"{p.stage} {p.name}": p for p in programs.of_run(config, mesh)}
    assert {
        "sl step",
        "pm step",
        "rl decode 8×16",
        "rl policy step",
        "rl value step",
        "rl reward scores",
    } <= set(found)
    rows = [
        estimate.compile_program(found[name], mesh, topology, config, -1.0)
        for name in ("sl step", "rl policy step")
    ]
    for row in rows:
        assert (
            1.0 <= row.flops_counted / row.flops_model < 2.0 and row.moved == 0 and row.fits
        )  # 2: the whole attention square
    assert "sl: one step" in "\n".join(table.lines(rows, topology, mesh.shape, "tiny"))


def test_adapters_keep_one_base():
    """An 8B model and its four roles fit on one GPU of 80 GB by formula; training all weights does
    not."""
    config = llama3_8b_1xh100.get_config()
    mesh, topology = sharding.make_mesh({}, jax.devices()[:1]), chips.parse_topology("h100:1")
    config.graph.harm.num_microbatches = 64
    # Embedding and unembedding are 1.05e9 of the parameters; they are never rounded.
    for rank, base, fits, weights in (
        (16, "", True, 2 * 8.03e9),
        (16, "int8", True, 6.98e9 + 2 * 1.05e9),
        (0, "", False, 0),
    ):
        for name in ("sl", "pm", "rl", "harm"):
            config.graph[name].adapters.update({"rank": rank, "base_dtype": base})
        found = [*programs.of_rl(config, "rl", mesh), *programs.of_sl(config, "sl", mesh)]
        found += (
            [*programs.of_pm(config, "pm", mesh), *programs.of_harm(config, "harm", mesh)]
            if fits
            else []
        )
        rows = [estimate.by_formula(program, mesh, topology, config) for program in found]
        assert all(row.fits for row in rows) == fits
        step = next(row for row in rows if row.program == "policy step")
        assert (step.arguments + step.resident < 1.2 * weights) == fits  # little beside the base
        assert not fits or max(row.total / row.capacity for row in rows) < 0.7
        print({f"{row.stage} {row.program}": f"{row.total / 2**30:.1f} GiB" for row in rows})


@pytest.mark.parametrize("kind", ["harm", "dpo"])
def test_a_stage_that_tiny_does_not_have_is_planned(kind):
    config = tiny.get_config()
    made = {
        "harm": lambda: default.harm(ratings={"source": "x.jsonl", "split": ""}),
        "dpo": default.dpo,
    }
    config.graph[kind] = made[kind]()
    config.graph[kind].update({"batch_size": 4, "max_length": 64, "num_microbatches": 2})
    config.stages = (kind,)
    mesh, topology = (
        sharding.make_mesh({}, jax.devices()[:1]),
        chips.Topology(chips.CHIPS["h100"], (1,)),
    )
    (found,) = programs.of_run(config, mesh)
    row = estimate.compile_program(found, mesh, topology, config, -1.0)
    assert (found.stage, found.name) == (kind, "step") and row.fits
    assert 1.0 <= row.flops_counted / row.flops_model < 2.0  # 2: the whole attention square


def test_proposal_takes_the_least_communication_that_fits():
    assert propose.candidates(64, 2)[0] == {"data": 2, "fsdp": 32, "tensor": 1}
    flags = propose.Proposal({"data": 1, "fsdp": 8, "tensor": 1}, {"sl": 4}).flags()
    assert "--config.graph.sl.num_microbatches=4" in flags and "--config.mesh.fsdp=8" in flags


def test_formulas_for_gpus_need_no_compiler(tmp_path):
    done = command(
        "--config=configs/pods/llama3_8b_8xh100.py",
        "--quick",
        "yes",
        "--json",
        str(tmp_path / "out.json"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert (
        result["fits"]
        and result["num_chips"] == 8
        and {p["method"] for p in result["programs"]} == {"formula"}
    )
    assert result["proposal"]["mesh"]["fsdp"] == 8
    # Parameters and two moments in float32 on eight chips.
    step = next(p for p in result["programs"] if p["stage"] == "sl")
    assert step["arguments"] == pytest.approx(12 * 8.03e9 / 8, rel=0.01)


def test_what_does_not_fit_is_said_and_exits_1():
    done = command(
        "--config=configs/pods/llama3_8b_8xh100.py",
        "--quick=yes",
        "--topology=h100:1",
        "--config.stages=sl",
        "--config.mesh.fsdp=1",
    )
    assert (
        done.returncode == 1
        and "does not fit: sl, step" in done.stdout
        and "take more chips" in done.stdout
    )


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_name_their_topology(path):
    assert plan._preset([f"--config={path}"]) and chips.parse_topology(
        plan._preset([f"--config={path}"])
    )


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            ["--config=configs/tiny.py"],
            "--topology is missing, and the config has no line TOPOLOGY",
        ),
        (["--topology=v9:1", "--config=configs/tiny.py"], "v5e:8x8"),
        (["--config=configs/tiny.py", "--topology=v5e:2x2", "--slices=x"], "invalid int value"),
        (["--config=configs/tiny.py", "--topology"], "expected one argument"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.strip().count("\n") == 0


def has_compiler() -> bool:
    return importlib.util.find_spec("libtpu") is not None or os.path.exists(
        os.environ.get("TPU_LIBRARY_PATH", "")
    )


def test_a_preset_compiles_for_64_chips(tmp_path):
    if not has_compiler():
        pytest.skip("libtpu is absent: pip install 'cai_jax[plan]', or run `make test-plan`")
    done = command(
        "--config=configs/pods/llama3_8b_v5e_8x8.py",
        "--config.stages=sl",
        "--json",
        str(tmp_path / "out.json"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    step = json.loads((tmp_path / "out.json").read_text())["programs"][0]
    assert (
        step["method"] == "compiled"
        and step["fits"]
        and step["arguments"] == pytest.approx(12 * 8.03e9 / 64, rel=0.01)
    )
    assert 1.2 < step["flops_counted"] / step["flops_model"] < 1.4 and step["moved"] > 0


def test_a_single_chip(tmp_path):
    """The compiler takes a host of four for granted."""
    if not has_compiler():
        pytest.skip("libtpu is absent: pip install 'cai_jax[plan]', or run `make test-plan`")
    done = command(
        "--config=configs/tiny.py",
        "--config.stages=sl",
        "--topology=v5e:1x1",
        "--json",
        str(tmp_path / "out.json"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (step,) = json.loads((tmp_path / "out.json").read_text())["programs"]
    assert step["method"] == "compiled" and step["fits"] and step["moved"] == 0


def test_without_the_compiler_there_is_one_clear_line():
    if has_compiler():
        pytest.skip("libtpu is here")
    done = command("--config=configs/pods/llama3_8b_v5e_8x8.py")
    assert (
        done.returncode == 2
        and "pip install 'cai_jax[plan]'" in done.stderr
        and done.stderr.strip().count("\n") == 0
    )
