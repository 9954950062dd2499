"""The one reader of rows: JSON Lines, JSON arrays, CSV and Parquet files, TFDS and hub data sets.

Every reader yields (number from 1, row or the UserError that says why it cannot be read); `scan`
makes a `Row` of each, in our fields. Such an error stops (`read`) or is counted (`records.load`).
TensorFlow is not imported.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cai_jax.data import hub, sources
from cai_jax.data.sources import Source, Split
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


def read(source: str | Source | Path, split: str | None = None) -> Iterator[Row]:
    """The rows of one source; UserError for the first that cannot be read, and where the source
    cannot."""
    for row in scan(source, split):
        if row.problem:
            raise row.problem
        yield row


def scan(source: str | Source | Path, split: str | None = None) -> Iterator[Row]:
    """The rows of one source, with a `problem` where a row is no JSON object or lacks a column.

    Args:
        source: any source string (`sources.py`), or the path of a file of JSON rows, whatever its
            name: downloads do not keep theirs.
        split: of a TFDS or hub data set; without one, "train" is read, or TFDS's only one.

    Yields: the rows, with the columns that the source names as our fields.
    Raises: UserError where the source cannot be read.
    """
    if isinstance(source, Path):
        source, numbered = Source(sources.FILE, str(source)), _json(source)
    else:
        source = sources.single(source) if isinstance(source, str) else source
        numbered = _rows(source, Split.parse(split).name)
    for number, values in numbered:
        row = Row(source.location, number, values if isinstance(values, dict) else {})
        try:
            if isinstance(values, UserError):
                raise values
            yield _renamed(row, source) if source.columns else row
        except UserError as error:
            yield dataclasses.replace(row, problem=error)


def _renamed(row: Row, source: Source) -> Row:
    """The row in our fields; what is not named is left out, but "split" stays."""
    values = {name: _lookup(row, column) for name, column in source.columns}
    if "split" in row.values:
        values.setdefault("split", row.values["split"])
    return dataclasses.replace(row, values=values)


def _lookup(row: Row, column: str):
    """A dot goes into an object or, with a number, into a list: "messages.0.content"."""
    value = row.values
    for key in [column] if column in row.values else column.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else dict(value)[key]
        except (KeyError, IndexError, ValueError, TypeError):
            columns = ", ".join(row.values) or "none"
            raise row.error(column, f"missing; columns: {columns}") from None
    return value


def _rows(source: Source, split: str) -> Numbered:
    """The rows of a source in its own columns."""
    if source.kind == sources.TFDS:
        return _tfds(source.name, source.at, split)
    if source.kind == sources.HUB:
        paths = hub.files(source.name, source.at, split)
        return enumerate((row for path in paths for _, row in _file(path, str(path))), start=1)
    if source.kind == sources.EMBEDDED:
        return _json(source.path)
    path = Path(source.name)
    return _file(path if path.exists() else Path(os.path.expanduser(path)), source.location)


def _file(path: Path, location: str) -> Numbered:
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


# --- Files ----------------------------------------------------------------------------------------


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


# --- TFDS -----------------------------------------------------------------------------------------


def _tfds(name: str, directory: str, split: str) -> Numbered:
    """Of a prepared TFDS data set (array_record files), like "cai_hh_rlhf/helpful_base".
    `directory` "" is $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    import tensorflow_datasets as tfds

    from cai_jax.data import tfds_sets  # noqa: F401  registers the builders of this project

    where = f"tfds:{name}"
    try:
        builder = tfds.builder(name, data_dir=directory or None, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: no such TFDS data set or configuration ({reason})") from error
    if not Path(builder.data_dir).is_dir():
        ours = f"run `python -m cai_jax.data.prepare {name}` first"
        how = ours if name.startswith("cai_") else "prepare it as array_record first"
        raise UserError(f"{where}: not prepared in {builder.data_dir}; {how}")
    splits = list(builder.info.splits)
    split = split or (splits[0] if len(splits) == 1 else "train")
    if split.partition("[")[0] not in splits:
        raise UserError(f"{where}: no split '{split}'; there are {', '.join(splits)}")
    try:
        rows = builder.as_data_source(split=split)
    except (NotImplementedError, ValueError) as error:
        how = "prepare it as array_record"
        raise UserError(f"{where}: cannot be read without TensorFlow ({error}); {how}") from error
    features = builder.info.features
    return (
        (number, {key: _plain(value, features[key]) for key, value in row.items()})
        for number, row in enumerate(rows, start=1)
    )


def _plain(value, feature=None):
    """Bytes and numpy values as text, numbers and lists, as JSON has them. TFDS gives a sequence of
    objects as one object of sequences; here it is the list of objects that was stored."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        values = {key: _plain(item) for key, item in value.items()}
        if hasattr(getattr(feature, "feature", None), "items"):
            columns = zip(*values.values(), strict=True)
            return [dict(zip(values, items, strict=True)) for items in columns]
        return values
    return value.decode("utf-8") if isinstance(value, bytes) else value
