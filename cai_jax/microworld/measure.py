"""What finished runs' answers are, by the oracle: shares by model and set of prompts, means and
intervals over seeds.

python -m cai_jax.microworld.measure RUN [RUN …] [--stage evaluate] [--out FILE.json]
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
import sys

import numpy as np
from scipy.special import stdtrit

from cai_jax.core.intervals import bootstrap_mean, wilson
from cai_jax.errors import Parser, UserError, command
from cai_jax.io.artefacts import StageDirectory
from cai_jax.microworld.oracle import evaluate
from cai_jax.structs import Message, dialogue_from_json

SHOWN = (
    "harmful",
    "helpful",
    "engaged_refusal",
    "evasive",
    "malformed",
    "over_refusal",
    "severity",
)


def shares(rows: list[dict]) -> dict[str, np.ndarray]:
    """Per number of the oracle its value for each response or answer record, float32 [n]."""
    return evaluate(
        [
            (*dialogue_from_json(row["dialogue"]), Message("assistant", row["response"]))
            for row in rows
        ]
    )


def rounds(revisions: list[dict]) -> list[dict[str, float]]:
    """Per number of rounds 0, 1, … the means of the oracle's numbers over the revision records that
    have so many."""
    texts = [[row["initial"], *(item["revision"] for item in row["rounds"])] for row in revisions]
    dialogues = [row["dialogue"] for row in revisions]
    return [
        {
            name: float(values.mean())
            for name, values in shares(
                [
                    {"dialogue": d, "response": t[number]}
                    for d, t in zip(dialogues, texts, strict=True)
                    if number < len(t)
                ]
            ).items()
        }
        for number in range(max(map(len, texts)))
    ]


def of_run(run, stage: str = "evaluate") -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """(model, set of prompts) → the oracle's numbers for each answer."""
    directory = StageDirectory(pathlib.Path(run) / stage)
    if not directory.done:
        raise UserError(f"{run}: no finished stage '{stage}' there")
    groups = collections.defaultdict(list)
    for row in directory.records():
        groups[row["name"], row["on"]].append(row)
    return {key: shares(rows) for key, rows in groups.items()}


def interval(values: list[np.ndarray], share: bool = True) -> tuple:
    """(mean, low, high): over seeds the mean of their means and its 95 % t-interval. Of one seed,
    or where all seeds agree exactly, Wilson's for one seed's share; None for both ends of anything
    else, for which nothing gives an interval."""
    # Seeds are the unit of chance: answers of one seed share their training.
    means = [float(value.mean()) for value in values]
    mean = float(np.mean(means))
    if len(set(means)) == 1:
        # Equal means have no spread, which does not make them certain.
        if share and len(values[0]) > 1:
            estimate = wilson(float(values[0].sum()), len(values[0]))
            return mean, estimate.low, estimate.high
        estimate = bootstrap_mean(values[0])
        return mean, estimate.low, estimate.high
    # Student's t over few seeds.
    half = (
        float(stdtrit(len(values) - 1, 0.975))
        * float(np.std(means, ddof=1))
        / math.sqrt(len(values))
    )
    return mean, mean - half, mean + half


def measure(runs: list, stage: str = "evaluate") -> list[dict]:
    """Rows {model, on, name, value, low, high, seeds, n} over the runs, which differ in their
    seeds."""
    tables = [of_run(run, stage) for run in runs]
    rows = []
    for key in tables[0]:
        for name in SHOWN:
            values = [table[key][name] for table in tables if key in table]
            mean, low, high = interval(values, share=name != "severity")
            rows.append(
                {
                    "model": key[0],
                    "on": key[1],
                    "name": name,
                    "value": mean,
                    "low": low,
                    "high": high,
                    "seeds": len(values),
                    "n": sum(map(len, values)),
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """The rows as text: a line a model and set of prompts."""
    lines = [f"{'model':12s} {'prompts':12s} " + " ".join(f"{name:>21s}" for name in SHOWN)]
    keys = dict.fromkeys((row["model"], row["on"]) for row in rows)
    for model, on in sorted(keys, key=lambda key: key[1]):
        cells = [
            f"{row['value']:.3f}"
            + ("" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]")
            for row in rows
            if (row["model"], row["on"]) == (model, on)
        ]
        lines.append(f"{model:12s} {on:12s} " + " ".join(f"{cell:>21s}" for cell in cells))
    return "\n".join(lines)


@command
def main(arguments=None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--stage", default="evaluate")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args(arguments)
    rows = measure(options.runs, options.stage)
    print(table(rows))
    if options.out:
        options.out.write_text(json.dumps({"runs": options.runs, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
