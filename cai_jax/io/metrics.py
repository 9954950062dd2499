"""Numbers over time: metrics.jsonl (deterministic), timing.jsonl (seconds, rates), TensorBoard and,
if asked for, Weights & Biases."""

from __future__ import annotations

import hashlib
import html
import json
import math
import os

from etils import epath

from cai_jax.errors import UserError
from cai_jax.io import progress
from cai_jax.io.artefacts import is_writer, write_text

TIMING_BYTES = 16 * 2**20  # a longer timing.jsonl becomes timing.old.jsonl; the one before it goes
BOARD_BYTES, BOARD_FILES = (
    64 * 2**20,
    4,
)  # TensorBoard's file is followed by a new one when it is longer; so many stay


class MetricsWriter:
    """Writes scalars, texts, histograms and figures by step; the files have scalars only.

    A checkpoint keeps the text of `metrics.jsonl` up to it (`written`), and who resumes from it
    gives that text back: a killed run leaves no doubles, and a damaged file does no harm. Rates and
    seconds go through `timing=` to their own file: `metrics.jsonl` of two equal runs is equal.
    """

    def __init__(
        self,
        directory,
        resume_step: int = 0,
        written: str = "",
        *,
        wandb: str = "",
        about: dict | None = None,
    ):
        """
        Args:
          directory: the stage's.
          resume_step: the last step that is kept, 0 to begin.
          written: the rows up to it.
          wandb: a project, "" for none.
          about: what a reader should know of the run (config, versions, git revision).
        Raises:
          UserError: wandb is not installed, or refuses.
        """
        self._directory = epath.Path(directory)
        self._files = {}
        self._board = self._wandb = None
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
            self._board = self._open_board(purge_step=resume_step + 1 if resume_step else None)
            if about and not resume_step:
                self.text(0, "run", json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False))
        if wandb:
            self._wandb = start_wandb(wandb, self._directory, about or {})

    def _open_board(self, **options):
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._directory / "tensorboard"), **options)

    def _rotate(self, step: int) -> None:
        """Begins new files where the old ones have become long. metrics.jsonl is a result, and is
        never cut."""
        if "timing" in self._files and self._files["timing"].tell() > TIMING_BYTES:
            self._files["timing"].close()
            path = self._directory / "timing.jsonl"
            path.replace(self._directory / "timing.old.jsonl")
            self._files["timing"] = path.open("a")
        if self._board and step % 100 == 0:
            self._board.flush()
            files = sorted(
                (self._directory / "tensorboard").glob("events.*")
            )  # their names begin with the time
            if files and files[-1].stat().length > BOARD_BYTES:
                self._board.close()
                for path in files[: 1 - BOARD_FILES]:
                    path.unlink()
                self._board = self._open_board(filename_suffix=f".{step:012d}")

    def write(self, step: int, values: dict, timing: dict | None = None) -> None:
        """Adds one row a file. Values that are not finite are written as null and left out of
        TensorBoard."""
        for name, row in (("metrics", values), ("timing", timing or {})):
            row = {key: float(value) for key, value in row.items()}
            if name in self._files and row:
                clean = {key: value if math.isfinite(value) else None for key, value in row.items()}
                self._files[name].write(
                    json.dumps({"step": int(step), **clean}, sort_keys=True) + "\n"
                )
                self._files[name].flush()
                finite = {key: value for key, value in row.items() if math.isfinite(value)}
                for key, value in finite.items() if self._board else ():
                    self._board.add_scalar(key, value, step)
                if self._wandb:
                    self._wandb.log(finite, step=step)
        self._rotate(step)

    def written(self) -> str:
        """All of metrics.jsonl so far; "" in processes that write nothing."""
        return (self._directory / "metrics.jsonl").read_text() if self._files else ""

    def text(self, step: int, name: str, text: str) -> None:
        """Shows a sample, indented or escaped so that its own Markdown or HTML stays text."""
        if self._board:
            self._board.add_text(name, "\n".join("    " + line for line in text.split("\n")), step)
        if self._wandb:
            import wandb

            self._wandb.log(
                {name: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)}, step=step
            )

    def histogram(self, step: int, name: str, values) -> None:
        """Shows how numbers [n] are distributed; those that are not finite are left out."""
        values = [float(value) for value in values if math.isfinite(value)]
        if self._board and values:
            import numpy as np

            self._board.add_histogram(name, np.asarray(values), step)
        if self._wandb and values:
            import wandb

            self._wandb.log({name: wandb.Histogram(values)}, step=step)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def start_wandb(project: str, directory, about: dict):
    """A Weights & Biases run named RUN/stage. The same directory is the same run, so that a resumed
    stage goes on in it. UserError where the package is missing or the service refuses."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"config.logging.wandb is '{project}', but wandb is not installed: pip install "
            "wandb, or leave it empty"
        ) from error
    where = str(directory) if "://" in str(directory) else os.path.abspath(directory)
    try:
        return wandb.init(
            project=project,
            group=directory.parent.name,
            name=f"{directory.parent.name}/{directory.name}",
            id=hashlib.sha256(where.encode()).hexdigest()[:16],
            resume="allow",
            config=about,
            dir=None if "://" in where else where,
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"config.logging.wandb '{project}': {error}; set WANDB_MODE=offline to log without "
            "the service"
        ) from error


def _compare(path, written: str, step: int) -> None:
    """Warns of a file that is not what the checkpoint says."""
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    if not text.startswith(written):
        progress.warn(f"{path}: damaged; its rows up to step {step} are taken from the checkpoint")


def read_rows(path) -> list[dict]:
    """Rows of a metrics file; a last line cut off by a crash is left out. Empty where there is no
    file."""
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
