"""Does RL learn? Reward against sampled answers on SmolLM2 with adapters, for PPO, GRPO, RLOO and
TRL's GRPO, several seeds each.

    python -m benchmarks.learning [--methods ppo,grpo,rloo,trl-grpo] [--rewards question_mark,…]
        [--seeds 3] [--runs runs/learning] [--out results/learning]
    python -m benchmarks.learning --quick --runs /tmp/x --out /tmp/y     # a random model, a minute

A run (reward, method, seed) is a process of its own: for ours the rl stage as any config runs it
(`learning_config.py`), for TRL `learning_trl.py`. Stopped, the same command goes on: our runs from
their last checkpoint, TRL's from the beginning. `--minutes` stops before a run that would begin
later. What is there is written to OUT after every run: curves.json, README.md and the figure.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

from cai_jax.io.metrics import read_rows

METHODS = {"ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO", "trl-grpo": "GRPO, TRL 1.16"}
REWARDS = {
    "question_mark": "the answer has a question mark",
    "single_question": "the answer is one question and ends there",
}
LAST = 4  # updates whose mean is reported
COLOURS = dict(zip(METHODS, ("#1b6ca8", "#c4501b", "#3f8f4f", "#777777"), strict=True))


# ---- Runs ----------------------------------------------------------------------------------------


def _run(reward: str, method: str, seed: int, options) -> None:
    """Runs, or goes on with, one of them; nothing where it is done."""
    directory = options.runs / f"{reward}-{method}-{seed}"
    if method == "trl-grpo":
        path = directory.with_suffix(".jsonl")
        if not path.exists():
            command = [sys.executable, "-m", "benchmarks.learning_trl", reward, str(seed)]
            quick = ["--quick"] * options.quick
            subprocess.run([*command, options.split, str(path), *quick], check=True)
        return
    asked = f"reward={reward},method={method},seed={seed},split={options.split}"
    asked += ",size=quick" * options.quick
    config = pathlib.Path(__file__).with_name("learning_config.py")
    command = [sys.executable, "-m", "cai_jax.main", f"--config={config}:{asked}"]
    subprocess.run([*command, f"--workdir={directory}"], check=True)


def _curve(reward: str, method: str, seed: int, options) -> list[dict]:
    """A row an update with reward, kl, response_tokens and seconds, as far as there are any."""
    directory = options.runs / f"{reward}-{method}-{seed}"
    if method == "trl-grpo":
        return read_rows(directory.with_suffix(".jsonl"))
    seconds = {row["step"]: row["seconds"] for row in read_rows(directory / "rl/timing.jsonl")}
    names = ("reward", "kl", "response_tokens", "explained_variance", "clip_fraction")
    return [
        {"step": row["step"], "seconds": seconds.get(row["step"])}
        | {name: round(row[name], 4) for name in names if name in row}
        for row in read_rows(directory / "rl/metrics.jsonl")
    ]


# ---- What is published ---------------------------------------------------------------------------


def table(curves: dict) -> str:
    """A line for every reward and method: reward at both ends, and seconds an update."""
    lines = [
        "| reward | method | seeds | first update | last 4 (least to most) | KL, nats |"
        " seconds an update |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for reward, by_method in curves.items():
        for method, seeds in by_method.items():
            runs = list(seeds.values())
            first = statistics.mean(rows[0]["reward"] for rows in runs)
            ends = [statistics.mean(row["reward"] for row in rows[-LAST:]) for rows in runs]
            kl = statistics.mean(rows[-1]["kl"] or 0.0 for rows in runs)
            # The first update compiles.
            seconds = statistics.median(row["seconds"] for rows in runs for row in rows[1:])
            lines.append(
                f"| {REWARDS[reward]} | {METHODS[method]} | {len(runs)} | {first:.2f} | "
                f"{statistics.mean(ends):.2f} ({min(ends):.2f} to {max(ends):.2f}) | {kl:.1f} | "
                f"{seconds:.0f} |"
            )
    return "\n".join(lines) + "\n"


def draw(curves: dict, out: pathlib.Path) -> None:
    """learning.svg and learning.png: the mean over seeds of every method, between the lowest and
    the highest of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "learning", "font.size": 8})
    figure, every = pyplot.subplots(1, len(curves), figsize=(3.4 * len(curves), 2.6), squeeze=False)
    for axes, (reward, by_method) in zip(every[0], curves.items(), strict=True):
        for method, seeds in by_method.items():
            count = min(map(len, seeds.values()))
            columns = [[rows[i]["reward"] for rows in seeds.values()] for i in range(count)]
            steps = range(1, count + 1)
            label = f"{METHODS[method]} ({len(seeds)})"
            means = list(map(statistics.mean, columns))
            axes.plot(steps, means, color=COLOURS[method], lw=1.4, label=label)
            bounds = list(map(min, columns)), list(map(max, columns))
            axes.fill_between(steps, *bounds, color=COLOURS[method], alpha=0.15, lw=0)
        axes.set(title=REWARDS[reward], xlabel="update of 32 answers", ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
    every[0][0].set_ylabel("mean reward")
    every[0][0].legend(frameon=False)
    figure.tight_layout()
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        figure.savefig(out / f"learning.{kind}", metadata=metadata, dpi=110)


def publish(options) -> None:
    """Writes what of the runs is there."""
    curves: dict = {}
    for reward in REWARDS:
        for method in METHODS:
            runs = {seed: _curve(reward, method, seed, options) for seed in range(options.seeds)}
            longest = max(map(len, runs.values()), default=0)
            done = {seed: rows for seed, rows in runs.items() if rows and len(rows) == longest}
            if done and longest > 1:
                curves.setdefault(reward, {})[method] = done
    if not curves:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "curves.json").write_text(json.dumps(curves) + "\n")
    (options.out / "README.md").write_text(HEAD + table(curves))
    draw(curves, options.out)


HEAD = """# Reward curves on a real model

SmolLM2-135M-Instruct with adapters of rank 16 on all matrices, learning rate 1e-3, KL coefficient
0.01, 24 updates of 32 answers of up to 32 tokens at temperature 0.7, two epochs of two minibatches;
PPO has a value head on the policy's trunk, GRPO and RLOO groups of 4. Prompts: the helpful ones of
the project, parts 0 to 7 of 10; settings were chosen on parts 8 and 9. TRL has the same prompts,
adapters, groups, batches and numbers of sampled tokens (its loss: dapo). Seconds are of the
machine that ran all of them, and of its load then.

    python -m benchmarks.learning

![mean reward against updates](learning.png)

"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rewards", default=",".join(REWARDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="0-7/10")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/learning"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/learning"))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for seed in range(options.seeds):
        for reward in options.rewards.split(","):
            for method in options.methods.split(","):
                if time.monotonic() - started < 60 * options.minutes:
                    _run(reward, method, seed, options)
                    publish(options)


if __name__ == "__main__":
    main()
