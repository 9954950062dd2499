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


def read_jsonl(path) -> Iterator[tuple[int, dict]]:
    """Yields (line number from 1, object) for every non-blank line of a `.jsonl` or `.jsonl.gz` file.

    Raises UserError `file:line: …` for a missing or unreadable file, a broken gzip stream, text that is not UTF-8, NUL
    bytes, invalid JSON, or a line that is not an object. Rows before the bad line have been yielded by then.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected JSON Lines (.jsonl or .jsonl.gz)")
    number = 0
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
                if raw.strip():
                    yield number, _parse(raw, path, number)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{located(path, number + 1)}: broken gzip data ({error}); copy the file again"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(raw: bytes, path: Path, line: int) -> dict:
    if b"\0" in raw:
        raise UserError(
            f"{located(path, line)}: contains NUL bytes; expected UTF-8 text with one JSON object a line"
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
    """`row[name]`, checked to be of `kind` (str, int, float, bool, list, dict); text must not be blank.

    Raises UserError `file:line: field 'name': …`. An integer passes as a number, a boolean passes only as a boolean.
    """
    where = located(path, line, name)
    if name not in row:
        found = ", ".join(row) or "none"
        raise UserError(f"{where}: missing; expected {_TYPE_NAMES[kind]} (fields found: {found})")
    value = row[name]
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where}: expected {_TYPE_NAMES[kind]}, found {type(value).__name__}")
    if kind is str and not value.strip():
        raise UserError(f"{where}: is blank; expected {_TYPE_NAMES[kind]}")
    return value
