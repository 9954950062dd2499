"""Progress on the console: one line a stage, with rate and time left; quiet where nobody watches."""

import sys

import jax
from tqdm import tqdm


def say(text: str) -> None:
    """Prints one line, from process 0 only, without tearing a progress bar."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def warn(text: str) -> None:
    """Prints one warning line to standard error, from process 0 only."""
    if jax.process_index() == 0:
        tqdm.write(f"warning: {text}", file=sys.stderr)


def bar(total: int, label: str, initial: int = 0, unit: str = "row") -> tqdm:
    """A progress bar that is drawn only on a terminal and only by process 0."""
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
