"""The one reader of rows, of whatever a source string names: files, TFDS and hub data sets.

`scan` yields every row in our fields; one that cannot be read has a `problem`, which stops (`read`)
or is counted (`records.load`). TensorFlow is not imported.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cai_jax.data import files, hub, sources
from cai_jax.data.files import Numbered, Row
from cai_jax.data.sources import Source, Split
from cai_jax.errors import UserError


def read(source: str | Source, split: str | None = None) -> Iterator[Row]:
    """The rows of one source; UserError for the first that cannot be read, and where the source
    cannot."""
    for row in scan(source, split):
        if row.problem:
            raise row.problem
        yield row


def scan(source: str | Source, split: str | None = None) -> Iterator[Row]:
    """The rows of one source, with a `problem` where a row is no JSON object or lacks a column.

    Args:
        source: any source string (`sources.py`).
        split: of a TFDS or hub data set; without one, "train" is read, or TFDS's only one.

    Yields: the rows, with the columns that the source names as our fields.
    Raises: UserError where the source cannot be read.
    """
    source = sources.single(source) if isinstance(source, str) else source
    for number, values in _numbered(source, Split.parse(split).name):
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


def _numbered(source: Source, split: str) -> Numbered:
    """The rows of a source in its own columns."""
    if source.kind == sources.TFDS:
        return _tfds(source.name, source.at, split)
    if source.kind == sources.HUB:
        paths = hub.files(source.name, source.at, split)
        rows = (row for path in paths for _, row in files.numbered(path, str(path)))
        return enumerate(rows, start=1)
    path = source.path if source.kind == sources.EMBEDDED else Path(source.name)
    if not path.exists():
        path = Path(os.path.expanduser(path))
    return files.numbered(path, source.location)


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
