"""A small run with adapters in every trained stage: what it keeps, what loads it, and one line for
what does not fit."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from cai_jax import export, main
from cai_jax.io.checkpoints import Checkpoints
from cai_jax.models import hf

CONFIG = """
from configs import default, tiny

def get_config():
    config = default.base_config()
    config.models.base = "MODEL"
    def low():  # of each stage its own: what is shared is changed for all of them by a flag for one
        return default.adapters(rank=4, alpha=8.0, base_dtype="BASE")

    steps = {"max_length": 512, "save_every_steps": 2}
    asked = {"source": "embedded:helpful", "limit": 4}
    of_sl = default.optimisation(learning_rate=1e-2, batch_size=4) | steps
    of_pm = default.optimisation(learning_rate=1e-2, batch_size=8) | steps
    config.graph = {
        "respond": default.respond(max_new_tokens=4, **asked),
        "sl": default.sl("", "respond", **of_sl, adapters=low()),
        "pm": default.pm("", "", **of_pm, adapters=low()),
        "rl": default.rl(
            prompts=default.prompts(**asked),
            num_updates=1,
            rollouts_per_update=4,
            learning_rate=1e-2,
            adapters=low(),
            value_learning_rate=1e-2,
            warmup_updates=0,
            max_new_tokens=4,
            max_prompt_tokens=64,
        ),
        "again": default.respond(model="@rl", max_new_tokens=4, **asked),
    }
    config.graph.pm.human.limit = 8
    config.sampling.update({"batch_size": 4, "max_length": 512})
    config.stages = ("respond", "sl", "pm", "rl", "again")
    return config
"""


def command(tmp_path, *flags):
    return main.main(
        ["cai_jax", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}", *flags]
    )


@pytest.mark.long
@pytest.mark.parametrize("base_dtype", ["", "int8"])
def test_a_run_with_adapters(tmp_path, tiny_model, capsys, base_dtype):
    base = tmp_path / "base"
    config, params = hf.load_params(f"random:{tiny_model}", seed=3)
    hf.save_hf(base, config, params, tiny_model)
    (tmp_path / "config.py").write_text(
        CONFIG.replace("MODEL", str(base)).replace("BASE", base_dtype)
    )
    assert command(tmp_path) == 0
    run = tmp_path / "run"
    for stage in ("sl", "pm", "rl"):
        role = json.loads((run / stage / "model" / "role.json").read_text())
        assert role["adapters"].get("base_dtype", "") == base_dtype
        assert role["adapters"]["base"] == str(base) and role["adapters"][
            "base_fingerprint"
        ] == hf.fingerprint(str(base))
        checkpoints = Checkpoints(run / stage / "checkpoints")
        size = sum(
            file.stat().st_size
            for file in pathlib.Path(checkpoints.path).rglob("*")
            if file.is_file()
        )
        assert size < 0.8 * (base / "model.safetensors").stat().st_size * (
            2 if stage == "rl" else 1
        ), stage

    # Merged and as adapters, the policy is the same; the base is not copied into the second.
    for name, flags in (("merged", ()), ("adapters", ("--adapters",))):
        assert (
            export.main(
                ["export", f"--workdir={run}", "--what=policy", f"--to={tmp_path / name}", *flags]
            )
            == 0
        )
    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged")
    )
    pieces = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    key = "model.layers.1.mlp.down_proj"
    a, b = (pieces[f"base_model.model.{key}.lora_{part}.weight"] for part in "AB")
    assert np.abs(after[f"{key}.weight"] - before[f"{key}.weight"]).max() > 1e-3
    weight = before[f"{key}.weight"]
    if base_dtype:
        step = np.abs(weight).max(axis=1, keepdims=True) / 127
        weight = np.round(weight / step) * step
    np.testing.assert_allclose(after[f"{key}.weight"], weight + 2.0 * b @ a, atol=1e-5)
    assert ("in 8 bits" in (tmp_path / "adapters" / "README.md").read_text()) == bool(base_dtype)
    np.testing.assert_array_equal(
        after["model.embed_tokens.weight"], before["model.embed_tokens.weight"]
    )

    capsys.readouterr()
    assert command(tmp_path, "--config.graph.rl.adapters.rank=2", "--config.on_change=redo") == 2
    assert "rank=4 alpha=8 targets=all" in capsys.readouterr().err
    assert (
        command(tmp_path, "--config.graph.rl.adapters.targets=q,mlp", "--config.on_change=redo")
        == 2
    )
    assert "config.graph.rl.adapters.targets" in capsys.readouterr().err
    assert (
        command(
            tmp_path,
            "--config.graph.rl.adapters.rank=0",
            "--config.graph.rl.adapters.base_dtype=",
            "--config.stages=rl",
            "--config.on_change=redo",
        )
        == 0
    )
    assert "adapters" not in json.loads(
        (run / "rl" / "model" / "role.json").read_text()
    )  # all weights, from the merged policy

    params["embed"] = params["embed"] * 1.01
    hf.save_hf(base, config, params, tiny_model)
    capsys.readouterr()
    assert (
        export.main(["export", f"--workdir={run}", "--what=@sl", f"--to={tmp_path / 'other'}"]) == 2
    )
    told = capsys.readouterr().err
    assert "were trained on other weights" in told and told.count("\n") == 1
