"""Progress on the console: one line a stage, with rate and time left; quiet where nobody
watches."""

import sys

import jax
from tqdm import tqdm

from cai_jax.errors import leave


def say(text: str) -> None:
    """Prints one line, from process 0 only, without tearing a progress bar."""
    _write(text, sys.stdout)


def warn(text: str) -> None:
    """Prints one warning line to standard error, from process 0 only."""
    _write(f"warning: {text}", sys.stderr)


def _write(text: str, stream) -> None:
    if jax.process_index() != 0:
        return
    try:
        tqdm.write(text, file=stream)
        stream.flush()
    except BrokenPipeError:  # whoever read it has gone (`… | head`); the run goes on
        leave(stream)


def bar(total: int, label: str, initial: int = 0, unit: str = "row") -> tqdm:
    """A progress bar that is drawn only on a terminal and only by process 0.

    Args:
      total: of the work.
      label: in front of the bar.
      initial: what is done already.
      unit: what is counted.
    Returns:
      A `tqdm`, a context manager.
    """
    quiet = jax.process_index() != 0 or not sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        disable=quiet,
        dynamic_ncols=True,
        leave=False,
    )
