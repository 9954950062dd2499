"""Critiques of a run to be read and marked by hand, and the shares of the marks."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from cai_jax.core.intervals import wilson
from cai_jax.errors import UserError
from cai_jax.evals.rows import row
from cai_jax.report.run import Run
from cai_jax.report.transcripts import draw

COLUMNS = ("id", "fault", "names", "note")  # of the table
MARKS = {"y": True, "n": False}


def drawn(run: Run, stage: str, count: int) -> list[dict]:
    """`count` critiques of a revise stage: {"id", "dialogue", "answer", "request", "principle",
    "critique"}, in the order they were drawn."""
    every = {}
    for record in run.records(stage):
        answer = record["initial"]
        for number, turn in enumerate(record["rounds"], 1):
            if turn.get("critique"):
                every[f"{record['id']}#{number}"] = {
                    "dialogue": record["dialogue"],
                    "answer": answer,
                    "critique": turn["critique"],
                    "request": turn["critique_request"],
                    "principle": turn["principle_id"],
                }
            answer = turn["revision"]
    return [{"id": name, **every[name]} for name in draw(list(every), count)]


def blank(critiques: Sequence[dict]) -> str:
    """The table to be filled in, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *([item["id"], "", "", ""] for item in critiques)])
    return text.getvalue()


def count(text: str, critiques: Sequence[dict], where: str) -> list[dict]:
    """Rows of the filled-in table's shares; [] while nothing is filled in.

    Raises:
        UserError: for other marks than y and n, and where the table is not that of the critiques
        drawn.
    """
    lines = list(csv.DictReader(io.StringIO(text)))
    if [line.get("id") for line in lines] != [item["id"] for item in critiques]:
        raise UserError(
            f"{where}: its ids are not those of the critiques drawn from this run; move it "
            "aside to get a new one"
        )
    marks = []
    for number, line in enumerate(lines, 2):
        pair = [(line.get(column) or "").strip().lower() for column in ("fault", "names")]
        if any(pair) and not all(mark in MARKS for mark in pair):
            raise UserError(
                f"{where}:{number}: fault and names are both y or n once a critique is read, "
                f"not {pair}"
            )
        marks += [tuple(MARKS[mark] for mark in pair)] if any(pair) else []
    shares = {
        "names a real problem": [names for _, names in marks],
        "its answer has a fault": [fault for fault, _ in marks],
        "names it, where there is one": [names for fault, names in marks if fault],
    }
    return [
        row("critiques_read", note, "critic", wilson(sum(values), len(values)), unit="share",
            note=note)
        for note, values in (shares.items() if marks else ())
    ]  # fmt: skip
