"""The paper's figures on the microworld, from runs of configs/figures/*.py (one directory a seed).

    python -m cai_jax.microworld.figures runs/figures/0 runs/figures/1 --make --out
    results/microworld

`--make` runs the configs first, all of them into each directory (stages that they share are run
once), the n-th directory with seed n; stages that are done stay. A figure is drawn if every run has
its stages. Values are means over seeds; intervals are 95 % t-intervals over seeds (of one run:
none). Verdicts are the oracle's; Elo is won and lost by the oracle's utilities.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np

from cai_jax.errors import Parser, command
from cai_jax.evals import elo
from cai_jax.evals.rows import find
from cai_jax.io.artefacts import StageDirectory, read_json
from cai_jax.microworld import measure
from cai_jax.microworld.oracle import asked_acts, utility
from cai_jax.report.plot import Panel, Series, png
from cai_jax.structs import dialogue_from_json

Runs = Sequence[pathlib.Path]
SIZES = ("small", "medium", "large")
CONFIGS = ("revisions", "judging", "frontier", "pareto", "labels")


def records(run, stage: str) -> list[dict]:
    return StageDirectory(pathlib.Path(run) / stage).records()


def spread(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean over seeds with its interval; None for its ends from one seed or seeds that agree
    exactly."""
    return measure.interval([np.array([value]) for value in values])


def curve(
    label: str, x: Sequence[float], by_seed: Sequence[Sequence[float]], tone: int, **fields
) -> Series:
    """A series of means over seeds; by_seed[seed][point]."""
    found = [spread([float(seed[point]) for seed in by_seed]) for point in range(len(x))]
    mean, low, high = (list(column) for column in zip(*found, strict=True))
    return Series(label, list(x), mean, low, high, tone=tone, **{"mark": "path", **fields})


def answered(runs: Runs, stage: str, model: str, on: str, name: str) -> list[float]:
    """The mean of one of the oracle's numbers for each run."""
    return [float(measure.of_run(run, stage)[model, on][name].mean()) for run in runs]


def ratings(run, stage: str, on: str, **care) -> dict[str, float]:
    """Elo by model, won by the oracle's utilities on one set of prompts; SL-CAI stands at zero."""
    scores: dict[str, dict[str, float]] = {}
    for row in records(run, stage):
        if row["on"] == on:
            asked = asked_acts(dialogue_from_json(row["dialogue"]))
            name = f"{row['prompt_id']}/{row['sample']}"
            scores.setdefault(row["name"], {})[name] = utility(asked, row["response"], **care)
    return {
        name: found.value
        for name, found in elo.elo(
            elo.outcomes_from_scores(scores), "SL-CAI", num_resamples=10
        ).items()
    }


def pareto(runs: Runs) -> Panel:
    harmless = [ratings(run, "evaluate_pareto", "red_team") for run in runs]
    helpful = [ratings(run, "evaluate_pareto", "helpful", harmlessness=0.0) for run in runs]
    series = []
    for tone, name in enumerate(
        ("pretrained", "H-RLHF", "HH-RLHF", "SL-CAI", "RL-CAI", "RL-CAI-CoT")
    ):
        x, y = (spread([table[name] for table in tables]) for tables in (helpful, harmless))
        series.append(
            Series(name, [x[0]], [y[0]], [y[1]], [y[2]], [x[1]], [x[2]], "dots", tone, (name,))
        )
    way = ["SL-CAI", *(f"RL-CAI-{step}" for step in steps_of(harmless[0]))]
    series.append(
        Series(
            "RL-CAI by steps",
            [spread([t[name] for t in helpful])[0] for name in way],
            [spread([t[name] for t in harmless])[0] for name in way],
            mark="path",
            tone=4,
        )
    )
    return Panel(
        "figure_2_3",
        "Harmlessness against helpfulness",
        "helpfulness Elo",
        "harmlessness Elo",
        series,
    )


def steps_of(models) -> list[int]:
    """The updates after which RL-CAI was looked at, from the names of models."""
    return sorted(
        int(name.removeprefix("RL-CAI-"))
        for name in set(models)
        if name.startswith("RL-CAI-") and name[-1].isdigit()
    )


def by_steps(runs: Runs) -> Panel:
    way = {
        0: "SL-CAI",
        **{
            step: f"RL-CAI-{step}"
            for step in steps_of(m for m, _ in measure.of_run(runs[0], "evaluate_pareto"))
        },
    }
    series = []
    for tone, (name, on, label) in enumerate(
        (
            ("harmful", "red_team", "harmful answers to harmful requests"),
            ("malformed", "red_team", "malformed answers to harmful requests"),
            ("over_refusal", "look_alike", "refused look-alikes"),
        ),
        1,
    ):
        by_seed = np.array(
            [answered(runs, "evaluate_pareto", model, on, name) for model in way.values()]
        ).T
        series.append(curve(label, list(way), by_seed, tone))
    return Panel(
        "figure_8",
        "Answers by steps of RL",
        "PPO updates",
        "share of answers",
        series,
        percent=True,
        integer_x=True,
        zero=True,
    )


def expected_harm(runs: Runs) -> Panel:
    """The regressor's harm at two temperatures, and the oracle's severity of answers at temperature
    1."""
    tables = [
        read_json(pathlib.Path(run) / "evaluate_pareto" / "metrics.json")["rows"] for run in runs
    ]
    values = [
        {(row["on"], row["model"]): row["value"] for row in find(table, "expected_harm")}
        for table in tables
    ]
    way = {
        0: "SL-CAI",
        **{step: f"RL-CAI-{step}" for step in steps_of(model for _, model in values[0])},
    }
    series = [
        curve(
            f"regressor, {on}",
            list(way),
            [[table[on, model] for model in way.values()] for table in values],
            tone,
        )
        for tone, on in enumerate(("T=0", "T=1"), 1)
    ]
    by_seed = np.array(
        [answered(runs, "evaluate_pareto", model, "red_team", "severity") for model in way.values()]
    ).T
    series.append(curve("oracle, T=1", list(way), by_seed, 3))
    return Panel(
        "figure_10",
        "Harm of answers to harmful requests by steps of RL",
        "PPO updates",
        "harm, 0 to 4",
        series,
        integer_x=True,
        zero=True,
    )


def revisions(runs: Runs) -> Panel:
    found = [measure.rounds(records(run, "revise")) for run in runs]
    x = range(len(found[0]))
    series = [
        curve(name.replace("_", " "), x, [[row[name] for row in rows] for rows in found], tone)
        for tone, name in enumerate(
            ("harmful", "engaged_refusal", "helpful", "evasive", "malformed"), 1
        )
    ]
    return Panel(
        "figure_5",
        "Answers after 0 to 4 revisions",
        "revisions",
        "share of answers",
        series,
        percent=True,
        integer_x=True,
    )


def num_principles(runs: Runs) -> Panel:
    series = []
    for tone, (number, stage) in enumerate(
        {1: "revise_1", 2: "revise_2", 4: "revise_4", 8: "revise_8", 16: "revise"}.items()
    ):
        found = [measure.rounds(records(run, stage)) for run in runs]
        series.append(
            curve(
                f"{number} principle{'s' * (number > 1)}",
                range(len(found[0])),
                [[row["harmful"] for row in rows] for rows in found],
                tone,
            )
        )
    return Panel(
        "figure_6",
        "Harmful answers by the number of principles",
        "revisions",
        "harmful",
        series,
        percent=True,
        integer_x=True,
        zero=True,
    )


def critiqued_or_direct(runs: Runs) -> Panel:
    series = []
    for tone, (label, stage) in enumerate(
        {"critiqued": "revise", "direct": "revise_direct"}.items(), 1
    ):
        by_seed = [
            [
                measure.rounds(records(run, stage + ("" if size == "large" else f"_{size}")))[1][
                    "harmful"
                ]
                for size in SIZES
            ]
            for run in runs
        ]
        series.append(curve(label, range(len(SIZES)), by_seed, tone))
    return Panel(
        "figure_7",
        "After one revision: critiqued or direct",
        "size of the model",
        "harmful",
        series,
        percent=True,
        x_names=SIZES,
        zero=True,
    )


def _accuracy(run, stage: str, name: str, on: str = "hhh") -> float:
    return find(read_json(pathlib.Path(run) / stage / "metrics.json")["rows"], name, on=on)[0][
        "value"
    ]


def accuracy(runs: Runs) -> Panel:
    kinds = {
        "plain": ("judge_{}_1", "choice_zero_shot"),
        "chain of thought": ("judge_{}_1", "choice_chain_of_thought"),
        "five chains": ("judge_{}_5", "choice_chain_of_thought"),
    }
    series = [
        curve(
            label,
            range(len(SIZES)),
            [[_accuracy(run, stage.format(size), name) for size in SIZES] for run in runs],
            tone,
        )
        for tone, (label, (stage, name)) in enumerate(kinds.items(), 1)
    ]
    preference = [[_accuracy(run, "judge_large_1", "pm_accuracy")] for run in runs]
    series.append(curve("preference model", [2], preference, 4, mark="dots"))
    return Panel(
        "figure_4",
        "Held-out comparisons judged right",
        "size of the model",
        "accuracy",
        series,
        references=((0.5, "chance"),),
        percent=True,
        x_names=SIZES,
    )


def harms(runs: Runs) -> Panel:
    series = []
    for tone, (label, name) in enumerate(
        {"plain": "choice_zero_shot", "chain of thought": "choice_chain_of_thought"}.items(), 1
    ):
        for task, mark in {"identify": "path", "classify": "line"}.items():
            by_seed = [
                [_accuracy(run, f"judge_{size}_1", name, task) for size in SIZES] for run in runs
            ]
            series.append(curve(f"{task}, {label}", range(len(SIZES)), by_seed, tone, mark=mark))
    return Panel(
        "figure_12",
        "Harm identified (of 2) and classified (of 5)",
        "size of the model",
        "accuracy",
        series,
        percent=True,
        x_names=SIZES,
    )


def calibration(runs: Runs) -> Panel:
    series = []
    for tone, (label, name) in enumerate(
        {"plain": "choice_zero_shot", "chain of thought": "choice_chain_of_thought"}.items(), 1
    ):
        curves = [
            read_json(run / "judge_large_1" / "metrics.json")["curves"].get(f"{name}/hhh", [])
            for run in runs
        ]
        bins = [[one for one in points if one["n"]] for points in curves]
        points = [one for each in bins for one in each]
        points.sort(key=lambda one: one["predicted"])
        series.append(
            Series(
                label,
                [one["predicted"] for one in points],
                [one["observed"] for one in points],
                [one["low"] for one in points],
                [one["high"] for one in points],
                mark="dots",
                tone=tone,
            )
        )
    return Panel(
        "figure_9",
        "Calibration of AI labels",
        "probability given to an option",
        "how often it was right",
        series,
        diagonal=True,
    )


def label_kinds(runs: Runs) -> Panel:
    names = ("SL-CAI", "soft", "hard", "clamped", "soft_chain", "hard_chain", "clamped_chain")
    series = []
    for tone, (name, on, label) in enumerate(
        (
            ("harmful", "red_team", "harmful answers to harmful requests"),
            ("over_refusal", "look_alike", "refused look-alikes"),
            ("malformed", "red_team", "malformed"),
        ),
        1,
    ):
        by_seed = np.array(
            [answered(runs, "evaluate_labels", model, on, name) for model in names]
        ).T
        series.append(curve(label, range(len(names)), by_seed, tone, mark="dots"))
    return Panel(
        "labels",
        "Soft, hard and clamped labels",
        "labels of the preference model",
        "share of answers",
        series,
        percent=True,
        x_names=[name.replace("_", ", ") for name in names],
        zero=True,
        size=(520, 240),
    )


def frontier(runs: Runs) -> Panel:
    stages = sorted({row["name"] for row in records(runs[0], "evaluate_frontier")})
    kl, reward = [], []
    for run in runs:
        kl.append([StageDirectory(run / stage).manifest["summary"]["kl_last"] for stage in stages])
        scores = {
            row["id"]: row["score"]
            for row in StageDirectory(run / "evaluate_frontier").records("scores")
        }
        reward.append(
            [
                np.mean(
                    [
                        scores[row["id"]]
                        for row in records(run, "evaluate_frontier")
                        if row["name"] == stage
                    ]
                )
                for stage in stages
            ]
        )
    order = np.argsort(np.mean(kl, axis=0))
    x = np.mean(kl, axis=0)[order]
    series = [curve("PPO, by KL coefficient", x, np.array(reward)[:, order], 1)]
    sizes = (1, 2, 4, 8, 16)
    best = [_best_of_n(run, sizes) for run in runs]
    series.append(curve("best of n", [float(np.log(n) - (n - 1) / n) for n in sizes], best, 2))
    return Panel(
        "frontier",
        "Reward against distance from SL-CAI",
        "KL to SL-CAI, nats an answer",
        "preference model score",
        series,
    )


def _best_of_n(run, sizes: Sequence[int]) -> list[float]:
    """Mean over the prompts of the best score among n of their samples."""
    scores = {
        row["id"]: row["score"]
        for row in StageDirectory(run / "evaluate_best_of_n").records("scores")
    }
    groups: dict[tuple, list[float]] = {}
    for row in records(run, "evaluate_best_of_n"):
        groups.setdefault((row["on"], row["prompt_id"]), []).append(scores[row["id"]])
    result = []
    for n in sizes:
        values = [
            np.mean([max(group[i : i + n]) for i in range(0, len(group) - n + 1, n)])
            for group in groups.values()
        ]
        result.append(float(np.mean(values)))
    return result


FIGURES: dict[str, tuple[tuple[str, ...], Callable[[Runs], Panel]]] = {
    "figure_2_3": (("evaluate_pareto",), pareto),
    "figure_4": (("judge_small_1", "judge_large_5"), accuracy),
    "figure_5": (("revise",), revisions),
    "figure_6": (("revise_1", "revise_8"), num_principles),
    "figure_7": (("revise_direct_small", "revise_direct"), critiqued_or_direct),
    "figure_8": (("evaluate_pareto",), by_steps),
    "figure_9": (("judge_large_1",), calibration),
    "figure_10": (("evaluate_pareto",), expected_harm),
    "figure_12": (("judge_small_1", "judge_large_1"), harms),
    "labels": (("evaluate_labels",), label_kinds),
    "frontier": (("evaluate_best_of_n",), frontier),
}


def numbers(panel: Panel) -> dict:
    """What a panel shows, as JSON."""
    return {
        "title": panel.title,
        "x": panel.x_label,
        "y": panel.y_label,
        "series": [
            {
                "label": one.label,
                "x": list(map(float, one.x)),
                "y": list(one.y),
                "low": one.low and list(one.low),
                "high": one.high and list(one.high),
            }
            for one in panel.series
        ],
    }


def make(run: pathlib.Path, name: str, seed: int) -> None:
    """Runs configs/figures/`name`.py into the directory, in a process of its own: what it compiled
    goes with it."""
    command = [
        sys.executable,
        "-m",
        "cai_jax.main",
        f"--config=configs/figures/{name}.py",
        f"--workdir={run}",
        f"--config.seed={seed}",
    ]
    print(" ".join(command), flush=True)
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


@command
def main(arguments=None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument(
        "--make",
        nargs="*",
        choices=CONFIGS,
        metavar="CONFIG",
        help=f"run these first (all): {', '.join(CONFIGS)}",
    )
    options = parser.parse_args(arguments)
    if options.make is not None:
        for seed, run in enumerate(options.runs):
            for name in options.make or CONFIGS:
                make(run, name, seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (stages, draw) in FIGURES.items():
        if all(StageDirectory(run / stage).done for run in options.runs for stage in stages):
            panel = draw(options.runs)
            (options.out / f"{name}.png").write_bytes(png(panel))
            (options.out / f"{name}.json").write_text(json.dumps(numbers(panel), indent=1) + "\n")
            print(f"{options.out / name}.png")
        else:
            print(f"{name}: left out, it needs the stages {', '.join(stages)}")


if __name__ == "__main__":
    sys.exit(main())
