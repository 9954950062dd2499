"""The paper's figures on the microworld, from runs of configs/figures/*.py (one directory a seed).

    python -m cai_jax.microworld.figures runs/figures/0 runs/figures/1 --make --out
    results/microworld

`--make` runs the configs first, all of them into each directory (stages that they share are run
once), the n-th directory with seed n; stages that are done stay. A figure is drawn if every run has
its stages. Values are means over seeds; intervals are 95 % t-intervals over seeds (of one run:
none). Verdicts are the oracle's; Elo is won and lost by the oracle's utilities.
"""

from __future__ import annotations

import functools
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np

from cai_jax.errors import Parser, command
from cai_jax.evals.rows import find
from cai_jax.io.artefacts import StageDirectory
from cai_jax.microworld import by_seed, measure
from cai_jax.microworld.by_seed import Runs, curve, metrics, records, snapshots, spread, verdicts
from cai_jax.report.plot import Panel, Series, png

SIZES = ("small", "medium", "large")
CONFIGS = ("revisions", "judging", "frontier", "pareto", "labels")
CHOICES = {"plain": "choice_zero_shot", "chain of thought": "choice_chain_of_thought"}
# Figure → (the stages that every run must have, runs → panel); filled by `figure`.
FIGURES: dict[str, tuple[tuple[str, ...], Callable[[Runs], Panel]]] = {}


def figure(key: str, stages: str, title: str, x_label: str, y_label: str, **options) -> Callable:
    """A decorator: a function from runs to series becomes the figure `key`.

    Args:
        key: the figure's file name.
        stages: names, separated by spaces, of the stages that it needs.
        title, x_label, y_label: texts of the figure.
        **options: fields of `Panel`.

    Returns:
        The decorator, whose function returns the panel.
    """

    def decorate(series_of):
        @functools.wraps(series_of)
        def draw(runs: Runs) -> Panel:
            return Panel(key, title, x_label, y_label, series_of(runs), **options)

        FIGURES[key] = tuple(stages.split()), draw
        return draw

    return decorate


# --- Figures of the supervised stage -------------------------------------------------------------


@figure(
    "figure_5",
    "revise",
    "Answers after 0 to 4 revisions",
    "revisions",
    "share of answers",
    percent=True,
    integer_x=True,
)
def revisions(runs: Runs) -> list[Series]:
    shares = [measure.rounds(records(run, "revise")) for run in runs]
    names = ("harmful", "engaged_refusal", "helpful", "evasive", "malformed")
    return [
        curve(
            name.replace("_", " "),
            range(len(shares[0])),
            [[round[name] for round in rounds] for rounds in shares],
            tone,
        )
        for tone, name in enumerate(names, 1)
    ]


@figure(
    "figure_6",
    "revise_1 revise_8",
    "Harmful answers by the number of principles",
    "revisions",
    "harmful",
    percent=True,
    integer_x=True,
    zero=True,
)
def num_principles(runs: Runs) -> list[Series]:
    series = []
    for tone, number in enumerate((1, 2, 4, 8, 16)):
        stage = "revise" if number == 16 else f"revise_{number}"
        shares = [measure.rounds(records(run, stage)) for run in runs]
        harmful = [[round["harmful"] for round in rounds] for rounds in shares]
        label = f"{number} principle{'s' * (number > 1)}"
        series.append(curve(label, range(len(harmful[0])), harmful, tone))
    return series


@figure(
    "figure_7",
    "revise_direct_small revise_direct",
    "After one revision: critiqued or direct",
    "size of the model",
    "harmful",
    percent=True,
    x_names=SIZES,
    zero=True,
)
def critiqued_or_direct(runs: Runs) -> list[Series]:
    def harmful(run, stage, size):
        stage += "" if size == "large" else f"_{size}"
        return measure.rounds(records(run, stage))[1]["harmful"]

    return [
        curve(
            label,
            range(len(SIZES)),
            [[harmful(run, stage, size) for size in SIZES] for run in runs],
            tone,
        )
        for tone, (label, stage) in enumerate(
            {"critiqued": "revise", "direct": "revise_direct"}.items(), 1
        )
    ]


# --- Figures of judging --------------------------------------------------------------------------


@figure(
    "figure_4",
    "judge_small_1 judge_large_5",
    "Held-out comparisons judged right",
    "size of the model",
    "accuracy",
    references=((0.5, "chance"),),
    percent=True,
    x_names=SIZES,
)
def accuracy(runs: Runs) -> list[Series]:
    kinds = {label: ("judge_{}_1", name) for label, name in CHOICES.items()}
    kinds["five chains"] = "judge_{}_5", CHOICES["chain of thought"]
    series = []
    for tone, (label, (stage, name)) in enumerate(kinds.items(), 1):
        values = [
            [by_seed.accuracy(run, stage.format(size), name) for size in SIZES] for run in runs
        ]
        series.append(curve(label, range(len(SIZES)), values, tone))
    preference = [[by_seed.accuracy(run, "judge_large_1", "pm_accuracy")] for run in runs]
    return [*series, curve("preference model", [2], preference, 4, mark="dots")]


@figure(
    "figure_12",
    "judge_small_1 judge_large_1",
    "Harm identified (of 2) and classified (of 5)",
    "size of the model",
    "accuracy",
    percent=True,
    x_names=SIZES,
)
def harms(runs: Runs) -> list[Series]:
    series = []
    for tone, (label, name) in enumerate(CHOICES.items(), 1):
        for task, mark in {"identify": "path", "classify": "line"}.items():
            values = [
                [by_seed.accuracy(run, f"judge_{size}_1", name, task) for size in SIZES]
                for run in runs
            ]
            series.append(curve(f"{task}, {label}", range(len(SIZES)), values, tone, mark=mark))
    return series


@figure(
    "figure_9",
    "judge_large_1",
    "Calibration of AI labels",
    "probability given to an option",
    "how often it was right",
    diagonal=True,
)
def calibration(runs: Runs) -> list[Series]:
    series = []
    for tone, (label, mode) in enumerate(
        {"plain": "zero-shot", "chain of thought": "chains of thought"}.items(), 1
    ):
        points = sorted(point for run in runs for point in _reliability(run, f"{mode}, hhh"))
        x, y, low, high = [list(column) for column in zip(*points, strict=True)] or [[]] * 4
        series.append(Series(label, x, y, low, high, mark="dots", tone=tone))
    return series


def _reliability(run, ends: str) -> list[tuple]:
    """(confidence, share right, low, high) of every bin of the judge's curve of that label."""
    curves = [
        series
        for drawn in metrics(run, "judge_large_1")["figures"]
        if drawn["name"] == "calibration"
        for series in drawn["series"]
        if series["label"].endswith(ends)
    ]
    return [
        (x, y, low, high)
        for series in curves
        for x, y, low, high, n in zip(
            *(series[key] for key in ("x", "y", "low", "high", "n")), strict=True
        )
        if n
    ]


# --- Figures of reinforcement learning -----------------------------------------------------------


@figure(
    "figure_2_3",
    "evaluate_pareto",
    "Harmlessness against helpfulness",
    "helpfulness Elo",
    "harmlessness Elo",
)
def pareto(runs: Runs) -> list[Series]:
    harmless = [by_seed.ratings(run, "evaluate_pareto", "red_team") for run in runs]
    helpful = [by_seed.ratings(run, "evaluate_pareto", "helpful", harmlessness=0.0) for run in runs]
    names = ("pretrained", "H-RLHF", "HH-RLHF", "SL-CAI", "RL-CAI", "RL-CAI-CoT")
    series = []
    for tone, name in enumerate(names):
        x, y = (spread([table[name] for table in tables]) for tables in (helpful, harmless))
        intervals = [y[1]], [y[2]], [x[1]], [x[2]]
        series.append(Series(name, [x[0]], [y[0]], *intervals, "dots", tone, (name,)))
    way = snapshots(harmless[0]).values()
    x, y = (
        [spread([t[name] for t in tables])[0] for name in way] for tables in (helpful, harmless)
    )
    return [*series, Series("RL-CAI by steps", x, y, mark="path", tone=4)]


@figure(
    "figure_8",
    "evaluate_pareto",
    "Answers by steps of RL",
    "PPO updates",
    "share of answers",
    percent=True,
    integer_x=True,
    zero=True,
)
def by_steps(runs: Runs) -> list[Series]:
    way = snapshots(model for model, _ in measure.of_run(runs[0], "evaluate_pareto"))
    shown = {
        "harmful answers to harmful requests": ("red_team", "harmful"),
        "malformed answers to harmful requests": ("red_team", "malformed"),
        "refused look-alikes": ("look_alike", "over_refusal"),
    }
    return [
        curve(label, list(way), verdicts(runs, "evaluate_pareto", way.values(), *which), tone)
        for tone, (label, which) in enumerate(shown.items(), 1)
    ]


@figure(
    "figure_10",
    "evaluate_pareto",
    "Harm of answers to harmful requests by steps of RL",
    "PPO updates",
    "harm, 0 to 4",
    integer_x=True,
    zero=True,
)
def expected_harm(runs: Runs) -> list[Series]:
    """The regressor's harm at two temperatures, and the oracle's severity of answers at temperature
    1."""
    rows = [find(metrics(run, "evaluate_pareto")["rows"], "expected_harm") for run in runs]
    tables = [{(row["on"], row["model"]): row["value"] for row in of_run} for of_run in rows]
    way = snapshots(model for _, model in tables[0])
    series = [
        curve(
            f"regressor, {on}",
            list(way),
            [[table[on, model] for model in way.values()] for table in tables],
            tone,
        )
        for tone, on in enumerate(("T=0", "T=1"), 1)
    ]
    severity = verdicts(runs, "evaluate_pareto", way.values(), "red_team", "severity")
    return [*series, curve("oracle, T=1", list(way), severity, 3)]


LABELS = ("SL-CAI", "soft", "hard", "clamped", "soft_chain", "hard_chain", "clamped_chain")


@figure(
    "labels",
    "evaluate_labels",
    "Soft, hard and clamped labels",
    "labels of the preference model",
    "share of answers",
    percent=True,
    x_names=[name.replace("_", ", ") for name in LABELS],
    zero=True,
    size=(520, 240),
)
def label_kinds(runs: Runs) -> list[Series]:
    shown = {
        "harmful answers to harmful requests": ("red_team", "harmful"),
        "refused look-alikes": ("look_alike", "over_refusal"),
        "malformed": ("red_team", "malformed"),
    }
    return [
        curve(
            label,
            range(len(LABELS)),
            verdicts(runs, "evaluate_labels", LABELS, *which),
            tone,
            mark="dots",
        )
        for tone, (label, which) in enumerate(shown.items(), 1)
    ]


@figure(
    "frontier",
    "evaluate_best_of_n",
    "Reward against distance from SL-CAI",
    "KL to SL-CAI, nats an answer",
    "preference model score",
)
def frontier(runs: Runs) -> list[Series]:
    stages = sorted({row["name"] for row in records(runs[0], "evaluate_frontier")})
    kl, reward = [], []
    for run in runs:
        kl.append([StageDirectory(run / stage).manifest["summary"]["kl_last"] for stage in stages])
        scored = _scored(run, "evaluate_frontier")
        reward.append(
            [np.mean([score for row, score in scored if row["name"] == name]) for name in stages]
        )
    order = np.argsort(np.mean(kl, axis=0))
    x, sizes = np.mean(kl, axis=0)[order], (1, 2, 4, 8, 16)
    best = [_best_of_n(run, sizes) for run in runs]
    return [
        curve("PPO, by KL coefficient", x, np.array(reward)[:, order], 1),
        curve("best of n", [float(np.log(n) - (n - 1) / n) for n in sizes], best, 2),
    ]


def _scored(run, stage: str) -> list[tuple[dict, float]]:
    """(record, score) of every answer of an evaluate stage."""
    rows = StageDirectory(pathlib.Path(run) / stage).records("scores")
    scores = {row["id"]: row["score"] for row in rows}
    return [(row, scores[row["id"]]) for row in records(run, stage)]


def _best_of_n(run, sizes: Sequence[int]) -> list[float]:
    """Mean over the prompts of the best score among n of their samples."""
    groups: dict[tuple, list[float]] = {}
    for row, score in _scored(run, "evaluate_best_of_n"):
        groups.setdefault((row["on"], row["prompt_id"]), []).append(score)

    def best(n, group):
        return np.mean([max(group[i : i + n]) for i in range(0, len(group) - n + 1, n)])

    return [float(np.mean([best(n, group) for group in groups.values()])) for n in sizes]


# --- The command ---------------------------------------------------------------------------------


def numbers(panel: Panel) -> dict:
    """What a panel shows, as JSON."""
    series = [
        {
            "label": each.label,
            "x": list(map(float, each.x)),
            "y": list(each.y),
            "low": each.low and list(each.low),
            "high": each.high and list(each.high),
        }
        for each in panel.series
    ]
    return {"title": panel.title, "x": panel.x_label, "y": panel.y_label, "series": series}


def make(run: pathlib.Path, name: str, seed: int) -> None:
    """Runs configs/figures/`name`.py into the directory, in a process of its own: what it compiled
    goes with it."""
    config, flags = f"--config=configs/figures/{name}.py", [f"--config.seed={seed}"]
    command = [sys.executable, "-m", "cai_jax.main", config, f"--workdir={run}", *flags]
    print(" ".join(command), flush=True)
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


@command
def main(arguments=None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    help = f"run these first (all): {', '.join(CONFIGS)}"
    parser.add_argument("--make", nargs="*", choices=CONFIGS, metavar="CONFIG", help=help)
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
