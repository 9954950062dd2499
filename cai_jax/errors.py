"""The one exception that a user sees: a single line that says what is wrong and what to do."""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

LONGEST = 2000  # characters of a message: what a file holds may be of any length


def printable(text: str) -> str:
    """The text with bytes of a path that are not UTF-8 (Python keeps them as lone surrogates)
    written as \\udc…, so that any stream takes it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class UserError(Exception):
    """Bad input from outside (a file, a flag, a config field). `main` prints its text on one line
    and exits with code 2."""

    def __init__(self, message: str):
        text = printable(" ".join(str(message).split()))
        super().__init__(
            text if len(text) <= LONGEST else f"{text[: LONGEST - 300]} … {text[-300:]}"
        )


class Waiting(Exception):
    """A run cannot go on before files are answered: path of requests → how many wait there."""

    def __init__(self, files: Mapping[str, int]):
        self.files = dict(files)
        shown = ", ".join(f"{path} ({count})" for path, count in self.files.items())
        super().__init__(
            f"{sum(self.files.values())} requests wait for answers in {shown}: put results-N.jsonl "
            "next to each requests-N.jsonl, by hand, by a program, or by `python -m cai_jax.batch "
            "submit` and `fetch` (see docs/endpoints.md)"
        )


class Waits:
    """Lets what does not depend on each other be asked before the run waits: a block that waits is
    left (`later`), and `check` waits for all of them."""

    def __init__(self):
        self._files: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def later(self) -> Iterator[None]:
        """Leaves the block where it waits."""
        try:
            yield
        except Waiting as wait:
            self._files.update(wait.files)

    def check(self) -> None:
        """Raises Waiting where a block has waited."""
        if self._files:
            raise Waiting(self._files)


def require_utf8(text: str, where: str) -> None:
    """Raises UserError where a path or text from the command line has bytes that are not UTF-8."""
    if printable(text) != text:
        raise UserError(
            f"{where}: '{text}' has bytes that are not UTF-8, which checkpoints and records "
            "cannot keep; rename it"
        )


class Parser(argparse.ArgumentParser):
    """A parser of command lines whose complaints are one line too."""

    def error(self, message: str):
        raise UserError(f"{message}; {self.format_usage()}")


EXIT_BAD_INPUT, EXIT_WAITING, EXIT_PIPE = (
    2,
    3,
    141,
)  # 141: what a shell says of a program whose reader has gone


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """A command's `main`: what a user or a machine gets wrong becomes one line on standard error
    and exit code 2.

    Nothing returned is exit code 0. Where the reader of the output has gone (`… | head`), the
    command ends without a word.
    """

    @functools.wraps(main)
    def run(*arguments, **fields) -> int:
        readable_streams()
        try:
            code = main(*arguments, **fields) or 0
            sys.stdout.flush()
            return code
        except SystemExit:  # --help
            _flush()
            raise
        except UserError as error:
            line = str(error)
        except BrokenPipeError:
            leave(sys.stdout)
            return EXIT_PIPE
        except OSError as error:
            line = (
                f"{system_line(error)}; free space or rights there, then run the same command again"
            )
        except KeyboardInterrupt:
            line, code = "interrupted", 130
            print(line, file=sys.stderr)
            return code
        except (RuntimeError, AssertionError) as error:
            if not _of_devices(error):
                raise
            line = device_line(error)
        print(f"error: {line}", file=sys.stderr)
        return EXIT_BAD_INPUT

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
                f"{what} gave {float(value)} for row '{name}', expected a finite number; what "
                "gave it is at fault, or "
                "config.model.dtype is too narrow for it"
            )


@contextlib.contextmanager
def in_field(where: str) -> Iterator[None]:
    """Puts a field's name before what is wrong with its value."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def readable_streams() -> None:
    """Lets every text be printed: what an ASCII terminal cannot show becomes an escape such as
    \\u2026, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def leave(stream) -> None:
    """Sends what is still written to a stream nowhere: its reader has gone, and the interpreter
    would complain at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        leave(sys.stdout)


def system_line(error: OSError) -> str:
    """What the system says, on one line: file and reason."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{' '.join((error.strerror or str(error)).split())[:400]}"


def _of_devices(error: Exception) -> bool:
    """Whether JAX did not find its devices. It has no exception of its own for that: one that says
    so, or, for a platform that is not installed, a bare assertion."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    inside = trace and str(trace.tb_frame.f_globals.get("__name__")).startswith("jax.")
    bare = isinstance(error, AssertionError) and not str(error)
    return bool(inside) and (bare or "backend" in str(error))


def device_line(error: Exception) -> str:
    """What to do where JAX cannot use the devices that the environment asks for."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    where = f"JAX_PLATFORMS={asked}: " if asked else ""
    reason = " ".join(str(error).split())[:300] or "it has no such device here"
    return (
        f"{where}JAX cannot start there ({reason}); install JAX for that device, or unset "
        "JAX_PLATFORMS to use what is there"
    )


def located(path, line: int | None = None, field: str | None = None) -> str:
    """`file:line: field` as far as they are known, the head of every message about a data file."""
    where = str(path) if line is None else f"{path}:{line}"
    return where if field is None else f"{where}: field '{field}'"
