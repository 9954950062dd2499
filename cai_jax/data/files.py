"""Files of rows: JSON Lines, JSON arrays, CSV and Parquet, gzipped or not; and what a row is.

Every reader yields (number from 1, row or the UserError that says why it cannot be read), so that
whoever takes rows may count such errors.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from cai_jax.data import sources
from cai_jax.errors import UserError, located

Numbered = Iterator[tuple[int, dict | UserError]]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # editors on Windows write one
_GZIP = b"\x1f\x8b"
_TYPE_NAMES = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
}
# How published files call what we call …
_USUAL = {
    "prompt": ("question", "instruction", "query", "input", "request", "problem", "goal", "text"),
    "chosen": ("better", "good", "preferred", "accepted", "response_chosen", "chosen_response"),
    "rejected": ("worse", "bad", "dispreferred", "response_rejected", "rejected_response"),
    "transcript": ("text", "dialogue", "conversation"),
    "rating": ("score", "label", "harm"),
    "response": ("answer", "output", "completion", "generation", "text"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row in our fields, and where it is, for messages. `problem`: why it could not be read."""

    location: str
    line: int
    values: dict
    problem: UserError | None = None

    def at(self, name: str) -> str:
        """`file:line: field 'name'`."""
        return located(self.location, self.line, name)

    def error(self, name: str, reason: str) -> UserError:
        return UserError(f"{self.at(name)}: {reason}")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def first(self, *names: str) -> str | None:
        """The first of the fields that the row has."""
        return next((name for name in names if self.has(name)), None)

    def require(self, name: str, kind: type = object):
        """The field's value, of `kind` (str, int, float, bool, list); an integer passes as a
        number, a boolean only as a boolean. UserError where it is missing, with the column that may
        be named instead, null, or of another type."""
        if not self.has(name):
            raise self.error(name, "is null" if name in self.values else self._missing(name))
        value = self.values[name]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (
            isinstance(value, bool) and kind not in (bool, object)
        ):
            raise self.error(name, f"expected {_TYPE_NAMES[kind]}, got {type(value).__name__}")
        return value

    def text(self, name: str) -> str:
        """`require` of a text that is not blank."""
        value = self.require(name, str)
        if not value.strip():
            raise self.error(name, "is blank; expected text")
        return value

    def label(self, name: str) -> str | None:
        """A text that names something ("id", "kind"); numbers become text, None where it is missing
        or null."""
        value = self.values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        return None if value is None else self.text(name)

    def _missing(self, name: str) -> str:
        fields = f"missing; fields: {', '.join(self.values) or 'none'}"
        if name not in sources.FIELDS:
            return fields
        usual = [column for column in _USUAL.get(name, ()) if column in self.values]
        texts = [column for column, v in self.values.items() if isinstance(v, str | list)]
        others = [column for column in texts if column not in sources.FIELDS]
        column = (usual + others + ["COLUMN"])[0]
        return f"{fields}; name the column that has it: {self.location}#{name}={column}"


def numbered(path: Path, location: str) -> Numbered:
    """The rows of a file, by its ending. `location`: its name in messages."""
    name = path.name.removesuffix(".gz")
    readers = {".jsonl": _json, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    for ending, reader in readers.items():
        if name.endswith(ending):
            return reader(path)
    kind = "a directory" if path.is_dir() else "unknown kind of data"
    raise UserError(
        f"{location}: {kind}; expected .jsonl, .json, .csv (or one with .gz), .parquet, "
        "tfds:NAME, hf:ORG/NAME, hf:DIRECTORY or embedded:NAME"
    )


def read_json(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON Lines or of a JSON array, whatever its name; UserError for the
    first that cannot be read."""
    for number, values in _json(path):
        if isinstance(values, UserError):
            raise values
        yield Row(str(path), number, values)


def _open(path: Path):
    """The file's bytes, unpacked where it is gzipped: downloads do not keep their ending."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected JSON Lines, JSON, CSV or Parquet")
    with open(path, "rb") as file:
        zipped = path.suffix == ".gz" or file.read(2) == _GZIP
    return gzip.open(path, "rb") if zipped else open(path, "rb")


def _json(path: Path) -> Numbered:
    """Of a file of JSON Lines, or of one JSON array: several published files are arrays in spite of
    their name."""
    number = 0
    try:
        with _open(path) as file:
            start = file.read(4096).removeprefix(_BYTE_ORDER_MARK).lstrip()
            file.seek(0)
            if start.startswith(b"["):
                for number, item in enumerate(_array(file.read(), path), start=1):
                    yield number, _checked(item, path, number)
                return
            for number, raw in enumerate(file, start=1):
                raw = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
                if raw.strip():
                    yield number, _json_line(raw, path, number)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        where = located(path, number + 1)
        raise UserError(f"{where}: broken gzip data ({error}); copy the file again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _array(content: bytes, path: Path) -> list:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: neither a JSON array nor JSON Lines ({error})") from error


def _json_line(raw: bytes, path: Path, line: int) -> dict | UserError:
    if b"\0" in raw:
        reason = "contains NUL bytes; expected UTF-8 text with one JSON object a line"
        return UserError(f"{located(path, line)}: {reason}")
    try:
        return _checked(json.loads(raw.decode("utf-8")), path, line, b"\\u" in raw)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 (byte {error.start + 1}); save the file as UTF-8"
    except (ValueError, RecursionError) as error:
        reason = f"not valid JSON ({error}); expected one JSON object a line"
    return UserError(f"{located(path, line)}: {reason}")


def _checked(value, path: Path, line: int, has_escapes: bool = True) -> dict | UserError:
    """An escaped half of a surrogate pair is valid JSON but no text: no tokenizer takes it."""
    where = located(path, line)
    if not isinstance(value, dict):
        return UserError(f"{where}: expected a JSON object {{…}}, got {type(value).__name__}")
    try:
        if has_escapes:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return UserError(f"{where}: contains half of a surrogate pair (\\ud800 to \\udfff)")
    return value


def _csv(path: Path) -> Numbered:
    """Of a CSV file with a line of column names; every value is text."""
    try:
        with _open(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            for number, row in enumerate(csv.DictReader(text), start=1):
                uneven = None in row or None in row.values()
                where = located(path, number)
                yield (
                    number,
                    UserError(f"{where}: not as many values as columns") if uneven else row,
                )
    except (csv.Error, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable CSV file in UTF-8 ({error})") from error


def _parquet(path: Path) -> Numbered:
    """Batch by batch, so that a large file does not have to fit into memory."""
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a Parquet file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from enumerate(rows, start=1)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error
