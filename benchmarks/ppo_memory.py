"""Peak memory of one PPO update with its four roles: all weights trained, against adapters over one
base.

    python -m benchmarks.ppo_memory [--model models/smollm2-135m-instruct] [--rank 16] [--rollouts
    8] [--directory DIR]

Each way is the rl stage itself, in a process of its own: it samples, scores, freezes and learns.
Full: policy, its reference, a preference model and a value model of their own. Adapters: all four
on one base. The peak is that of the process (`peak_bytes` of the stage's manifest), Python
and JAX included. The stage runs twice, the second time with programs from the compilation cache:
what compiling takes is listed next to it. Freed memory goes back to the system, as it does where
nothing is set; with --keep the allocator keeps it, as `make` and benchmarks of speed have it, and
what was freed counts too.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

from benchmarks.peer import ALLOCATOR

CONFIG = """
from configs import default

def get_config():
    config = default.base_config()
    config.models.base = {model!r}
    low = default.adapters(rank={rank})
    of_pm = default.optimisation(1e-4, 2) | {{"max_length": 256}}
    config.graph = {{
        "pm": default.pm("", "", **of_pm, adapters=low, holdout_fraction=0.0),
        "rl": default.rl(
            policy="base",
            reward={reward!r},
            prompts=default.prompts("embedded:helpful", limit={rollouts}),
            num_updates=1,
            rollouts_per_update={rollouts},
            num_microbatches=2,
            max_prompt_tokens=64,
            max_new_tokens=32,
            missing_eos_penalty=0.5,
            adapters=low,
        ),
    }}
    config.graph.pm.human.limit = 2
    config.sampling.batch_size = {rollouts}
    config.model.scan_layers = {scan}
    config.stages = {stages!r}
    return config
"""


def run(
    folder: pathlib.Path, name: str, stages: tuple[str, ...], keep: bool, **fields
) -> tuple[int, int]:
    """A run of stages, each in a process of its own.

    Args:
        folder: where the run and its config are written.
        name: of the run.
        stages: before rl.
        keep: whether the allocator keeps freed memory.
        fields: of the stages.

    Returns:
        (peak in bytes of the rl stage, the same with compiling).
    """
    env = {name: value for name, value in os.environ.items() if name not in ALLOCATOR} | (
        ALLOCATOR if keep else {}
    )
    config, peaks = folder / f"{name}.py", []
    for stage in (*stages, "rl"):
        config.write_text(CONFIG.format(stages=(stage,), **fields))
        shutil.rmtree(folder / name / "rl", ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "cai_jax.main",
            f"--config={config}",
            f"--workdir={folder / name}",
        ]
        subprocess.run(command, check=True, stdout=sys.stderr, env=env)
        peaks.append(
            json.loads((folder / name / stage / "manifest.json").read_text())["peak_bytes"]
        )
        print(f"{name}, {stage}: peak {peaks[-1] / 1e9:.2f} GB", flush=True)
    return peaks[-1], peaks[-2]


def classifier(model: str, directory: pathlib.Path) -> None:
    """A preference model with a head of its own: the base's weights once more."""
    import jax

    from cai_jax.data.dialogue import load_format
    from cai_jax.exporting import folder
    from cai_jax.models import heads, hf

    config, params = hf.load_hf(model)
    head = heads.init_head(config, jax.random.key(0))
    folder.export_reward(
        directory, config, {"decoder": params, "head": head}, load_format(model), None
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--scan", action="store_true", help="model.scan_layers: compiles faster")
    parser.add_argument("--keep", action="store_true", help="the allocator keeps what was freed")
    parser.add_argument("--directory", default=None, help="where the two runs lie for a while")
    parser.add_argument("--classifier", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.classifier:
        classifier(arguments.model, pathlib.Path(arguments.classifier))
        return
    folder = pathlib.Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        fields = {"model": arguments.model, "rollouts": arguments.rollouts, "scan": arguments.scan}
        low, low_compiling = run(
            folder,
            "adapters",
            ("pm", "rl"),
            arguments.keep,
            reward="@pm",
            rank=arguments.rank,
            **fields,
        )
        reward = str(folder / "reward")
        command = [
            sys.executable,
            "-m",
            "benchmarks.ppo_memory",
            "--model",
            arguments.model,
            "--classifier",
            reward,
        ]
        subprocess.run(command, check=True)
        full, full_compiling = run(
            folder, "full", ("rl",), arguments.keep, reward=reward, rank=0, **fields
        )
        runtime = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            f"one PPO update, {arguments.rollouts} rollouts of up to 96 tokens: all weights "
            f"{full / 1e9:.2f} GB, adapters of "
            f"rank {arguments.rank} {low / 1e9:.2f} GB: {low / full:.0%} (compiling too: "
            f"{low_compiling / 1e9:.2f} of "
            f"{full_compiling / 1e9:.2f} GB; Python without a model: {runtime / 1e9:.2f} GB)"
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
