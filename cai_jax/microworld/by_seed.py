"""Numbers of runs of the microworld that differ in their seeds, as curves over the seeds."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from cai_jax.evals import elo
from cai_jax.evals.rows import find
from cai_jax.io.artefacts import StageDirectory, read_json
from cai_jax.microworld import measure
from cai_jax.microworld.oracle import asked_acts, utility
from cai_jax.report.plot import Series
from cai_jax.structs import dialogue_from_json

Runs = Sequence[pathlib.Path]


def records(run, stage: str) -> list[dict]:
    return StageDirectory(pathlib.Path(run) / stage).records()


def metrics(run, stage: str) -> dict:
    return read_json(pathlib.Path(run) / stage / "metrics.json")


def spread(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean over seeds with its interval; None for its ends from one seed or seeds that agree
    exactly."""
    return measure.interval([np.array([value]) for value in values])


def curve(
    label: str, x: Sequence[float], by_seed: Sequence[Sequence[float]], tone: int, **fields
) -> Series:
    """A series of means over seeds.

    Args:
        label: its name.
        x: of every point.
        by_seed: values, by_seed[seed][point].
        tone: its colour.
        **fields: of `Series`.

    Returns:
        The series with t-intervals.
    """
    estimates = [spread([float(seed[point]) for seed in by_seed]) for point in range(len(x))]
    mean, low, high = (list(column) for column in zip(*estimates, strict=True))
    return Series(label, list(x), mean, low, high, tone=tone, **{"mark": "path", **fields})


def verdicts(runs: Runs, stage: str, models: Sequence[str], on: str, name: str) -> np.ndarray:
    """The means of one of the oracle's numbers.

    Args:
        runs: a run a seed.
        stage: of kind evaluate.
        models: evaluated ones.
        on: the set of prompts.
        name: of the number.

    Returns:
        [seed, model].
    """
    tables = [measure.of_run(run, stage) for run in runs]
    return np.array([[table[model, on][name].mean() for model in models] for table in tables])


def ratings(run, stage: str, on: str, **care) -> dict[str, float]:
    """Elo by model, won by the oracle's utilities on one set of prompts; SL-CAI is at zero."""
    scores: dict[str, dict[str, float]] = {}
    for row in records(run, stage):
        if row["on"] == on:
            # A game a prompt and sample: the higher utility wins.
            asked = asked_acts(dialogue_from_json(row["dialogue"]))
            name = f"{row['prompt_id']}/{row['sample']}"
            scores.setdefault(row["name"], {})[name] = utility(asked, row["response"], **care)
    wins = elo.outcomes_from_scores(scores)
    return {name: each.value for name, each in elo.elo(wins, "SL-CAI", num_resamples=10).items()}


def snapshots(models) -> dict[int, str]:
    """Update → name of RL-CAI after it; 0 is SL-CAI, where RL begins."""
    steps = sorted(
        int(name.removeprefix("RL-CAI-"))
        for name in set(models)
        if name.startswith("RL-CAI-") and name[-1].isdigit()
    )
    return {0: "SL-CAI", **{step: f"RL-CAI-{step}" for step in steps}}


def accuracy(run, stage: str, name: str, on: str = "hhh") -> float:
    """The value of a metric.

    Args:
        run: its directory.
        stage: of kind evaluate.
        name: of the metric.
        on: the set of items.

    Returns:
        The value, not a difference to another model.
    """
    return find(metrics(run, stage)["rows"], name, on=on)[0]["value"]
