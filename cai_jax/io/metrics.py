"""Numbers over time: metrics.jsonl (deterministic), timing.jsonl (seconds, rates), and TensorBoard beside them."""

from __future__ import annotations

import json
import math

from etils import epath

from cai_jax.io import progress
from cai_jax.io.artefacts import is_writer, write_text


class MetricsWriter:
    """Writes scalars and texts by step.

    A checkpoint keeps the text of `metrics.jsonl` up to it (`written`), and who resumes from it gives that text back: a
    killed run leaves no doubles, and a damaged file does no harm. Rates and seconds go through `timing=` to their own
    file: `metrics.jsonl` of two equal runs is equal.
    """

    def __init__(self, directory, resume_step: int = 0, written: str = ""):
        """`resume_step`: the last step that is kept, 0 to start afresh; `written`: the rows up to it."""
        self._directory = epath.Path(directory)
        self._files = {}
        self._board = None
        if not is_writer():
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in ("metrics", "timing"):
            path = self._directory / f"{name}.jsonl"
            if name == "timing":
                kept = [row for row in read_rows(path) if row["step"] <= resume_step]
                written = "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept)
            elif resume_step:
                _compare(path, written, resume_step)
            write_text(path, written)
            self._files[name] = path.open("a")
        if "://" not in str(directory):
            from tensorboardX import SummaryWriter

            purge = resume_step + 1 if resume_step else None
            self._board = SummaryWriter(str(self._directory / "tensorboard"), purge_step=purge)

    def write(self, step: int, values: dict, timing: dict | None = None) -> None:
        """Adds one row a file. Values that are not finite are written as null and left out of TensorBoard."""
        for name, row in (("metrics", values), ("timing", timing or {})):
            row = {key: float(value) for key, value in row.items()}
            if name in self._files and row:
                clean = {key: value if math.isfinite(value) else None for key, value in row.items()}
                self._files[name].write(json.dumps({"step": int(step), **clean}, sort_keys=True) + "\n")
                self._files[name].flush()
                for key, value in row.items():
                    if self._board and math.isfinite(value):
                        self._board.add_scalar(key, value, step)

    def written(self) -> str:
        """All of metrics.jsonl so far; "" in processes that write nothing."""
        return (self._directory / "metrics.jsonl").read_text() if self._files else ""

    def text(self, step: int, name: str, text: str) -> None:
        """Shows a sample in TensorBoard, indented so that its own Markdown or HTML stays text."""
        if self._board:
            self._board.add_text(name, "\n".join("    " + line for line in text.split("\n")), step)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._board:
            self._board.close()


def _compare(path, written: str, step: int) -> None:
    """Tells of a file that is not what the checkpoint says."""
    found = path.read_bytes().decode(errors="replace") if path.exists() else ""
    if not found.startswith(written):
        progress.warn(f"{path}: damaged; its rows up to step {step} are taken from the checkpoint")


def read_rows(path) -> list[dict]:
    """Rows of a metrics file; a last line cut off by a crash is left out. Empty where there is no file."""
    path = epath.Path(path)
    rows = []
    for line in path.read_bytes().decode(errors="replace").split("\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
