"""The one exception that a user sees: a single line that says what is wrong and what to do."""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterable

LONGEST = 2000  # characters of a message: what a file holds may be of any length


class UserError(Exception):
    """Bad input from outside (a file, a flag, a config field). `main` prints its text on one line and exits with code 2."""

    def __init__(self, message: str):
        text = " ".join(str(message).split())
        super().__init__(
            text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} … {text[-300:]}"
        )


class Parser(argparse.ArgumentParser):
    """A parser of command lines whose complaints are one line too."""

    def error(self, message: str):
        raise UserError(f"{message}; {self.format_usage()}")


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """A command's `main`: a UserError becomes one line on standard error and exit code 2, nothing returned exit code 0."""

    @functools.wraps(main)
    def run(*arguments, **fields) -> int:
        try:
            return main(*arguments, **fields) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run


def require_finite(values: Iterable[float], ids: Iterable[str], what: str) -> None:
    """UserError for the first row whose number is NaN or infinite.

    Args:
      values: one number a row.
      ids: the rows' ids.
      what: who gave the numbers, such as "stage 'rl': reward '@pm'".
    """
    for value, name in zip(values, ids, strict=True):
        if not math.isfinite(value):
            raise UserError(
                f"{what} gave {float(value)} for row '{name}', expected a finite number; what gave it is at fault, or "
                "config.model.dtype is too narrow for it"
            )


def located(path, line: int | None = None, field: str | None = None) -> str:
    """`file:line: field` as far as they are known, the head of every message about a data file."""
    where = str(path) if line is None else f"{path}:{line}"
    return where if field is None else f"{where}: field '{field}'"
