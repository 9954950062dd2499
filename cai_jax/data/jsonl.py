"""Reading JSON Lines, plain or gzipped, with errors that say file, line and field."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from cai_jax.errors import UserError, located

_TYPE_NAMES = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


class BadRows:
    """Rows of one source that cannot be read: as many as are allowed are counted, with their lines;
    the next one stops."""

    SHOWN = 20  # line numbers

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self.lines: list[int] = []
        self.first = ""

    def add(self, line: int, error: UserError, others: bool = True) -> None:
        """Counts a row, or raises `error`. `others`: whether rows before it were good, so that it
        may be left out."""
        self.lines.append(line)
        self.first = self.first or str(error)
        if len(self.lines) <= self.allowed:
            return
        if self.allowed:
            raise UserError(
                f"{error}; that is bad row {len(self.lines)}, max_bad_rows allows {self.allowed} "
                f"({self._lines()}); the first: {self.first}"
            ) from error
        if others:
            raise UserError(
                f"{error}; mend the row, or set max_bad_rows to leave such rows out, counted"
            ) from error
        raise error

    def counts(self, place: str) -> dict[str, int]:
        """{reason: count} for the manifest: file, lines, and what is wrong with the first."""
        if not self.lines:
            return {}
        why = self.first.removeprefix(f"{place}:{self.lines[0]}: ")[:160]
        return {
            f"bad row in {Path(place).name} ({self._lines()}; the first: {why})": len(self.lines)
        }

    def _lines(self) -> str:
        shown = ", ".join(map(str, self.lines[: self.SHOWN]))
        more = f" and {len(self.lines) - self.SHOWN} more" if len(self.lines) > self.SHOWN else ""
        return f"line{'s' * (len(self.lines) > 1)} {shown}{more}"


def read_jsonl(path, bad: BadRows | None = None) -> Iterator[tuple[int, dict]]:
    """Yields (line number from 1, object) for every non-blank line of a `.jsonl` or `.jsonl.gz`
    file.

    Raises UserError `file:line: …` for a missing or unreadable file, a broken gzip stream, text
    that is not UTF-8, NUL bytes, invalid JSON, or a line that is not an object; the last four are
    given to `bad` first, where there is one, which may let them pass. Rows before the bad line have
    been yielded by then.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected JSON Lines (.jsonl or .jsonl.gz)")
    number, good = 0, False
    try:
        with open(path, "rb") as file:
            zipped = (
                path.suffix == ".gz" or file.read(2) == b"\x1f\x8b"
            )  # downloads do not keep their suffix
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(
                        b"\xef\xbb\xbf"
                    )  # editors on Windows write a byte order mark
                if not raw.strip():
                    continue
                try:
                    row = _parse(raw, path, number)
                except UserError as error:
                    if bad is None:
                        raise
                    bad.add(number, error, good)
                    continue
                good = True
                yield number, row
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{located(path, number + 1)}: broken gzip data ({error}); copy the file again"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_json(path, bad: BadRows | None = None) -> Iterator[tuple[int, dict]]:
    """Yields (number from 1, object) of a file that is one JSON array of objects, or else of JSON
    Lines; either gzipped or not.

    Several published files are arrays in spite of their name: red-team attempts, many instruction
    sets.
    """
    path = Path(path)
    rows = None
    try:
        if path.is_file() and _begins_with_bracket(path):
            content = path.read_bytes()
            content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
            rows = json.loads(content)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise UserError(f"{path}: neither a JSON array nor JSON Lines ({error})") from error
    if rows is None:
        yield from read_jsonl(path, bad)
        return
    good = False
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            error = UserError(
                f"{located(path, number)}: expected a JSON object {{…}}, found {type(row).__name__}"
            )
            if bad is None:
                raise error
            bad.add(number, error, good)
            continue
        good = True
        yield number, row


def _begins_with_bracket(path: Path) -> bool:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return False  # read_jsonl says what is broken, and at which line


def _parse(raw: bytes, path: Path, line: int) -> dict:
    if b"\0" in raw:
        raise UserError(
            f"{located(path, line)}: contains NUL bytes; expected UTF-8 text with one JSON "
            "object a line"
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{located(path, line)}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8"
        ) from error
    try:
        row = json.loads(text)
        if (
            "\\u" in text
        ):  # an escaped half of a surrogate pair is valid JSON but no text: no tokenizer takes it
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{located(path, line)}: contains half of a surrogate pair (\\ud800 to \\udfff)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{located(path, line)}: not valid JSON ({error}); expected one JSON object a line"
        ) from error
    if not isinstance(row, dict):
        raise UserError(
            f"{located(path, line)}: expected a JSON object {{…}}, found {type(row).__name__}"
        )
    return row


def field(row: dict, name: str, kind: type, path, line: int | None = None):
    """`row[name]`, checked to be of `kind` (str, int, float, bool, list, dict); text must not be
    blank.

    Raises UserError `file:line: field 'name': …`. An integer passes as a number, a boolean passes
    only as a boolean.
    """
    where = located(path, line, name)
    if name not in row:
        found = ", ".join(row) or "none"
        raise UserError(f"{where}: missing; expected {_TYPE_NAMES[kind]} (fields found: {found})")
    value = row[name]
    if value is None:
        raise UserError(f"{where}: is null; expected {_TYPE_NAMES[kind]}")
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where}: expected {_TYPE_NAMES[kind]}, found {type(value).__name__}")
    if kind is str and not value.strip():
        raise UserError(f"{where}: is blank; expected {_TYPE_NAMES[kind]}")
    return value
