"""Rows of files, TFDS and hub data sets as (number, dict): JSON Lines, Parquet, array_record.
TensorFlow is not imported."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cai_jax.data import columns, hub, sources
from cai_jax.data.jsonl import BadRows, read_json, read_jsonl
from cai_jax.data.sources import Source
from cai_jax.errors import UserError


def read_rows(
    source: str | Source, split: str | None = None, bad: BadRows | None = None
) -> Iterator[tuple[int, dict]]:
    """Yields (number from 1, row) of one source (`sources.py`): a `.jsonl`, `.jsonl.gz` or
    `.parquet` file, a TFDS data set, or one of the hub (`hub.py`), with columns renamed where
    "#field=column,…" follows (`columns.py`).

    Of a TFDS or hub data set without a named split "train" is read, or TFDS's only one. Rows that
    are no JSON objects or lack a named column go to `bad`, where it is given. Raises UserError
    where the source cannot be read.
    """
    if isinstance(source, str):
        source = sources.single(source)
    rows = _rows(source, split, bad)
    return _renamed(rows, source, bad) if source.columns else rows


def _rows(source: Source, split: str | None, bad: BadRows | None) -> Iterator[tuple[int, dict]]:
    name = source.name
    if source.kind == sources.FILE and not Path(name).exists():
        name = os.path.expanduser(name)  # a shell leaves "~" behind a "=" as it is
    if source.kind == sources.TFDS:
        return read_tfds(name, source.at, split)
    if source.kind == sources.HUB:
        files = hub.files(name, source.at, split)
        parts = (_rows(Source(sources.FILE, str(file)), None, bad) for file in files)
        return enumerate((row for part in parts for _, row in part), start=1)
    if source.kind == sources.EMBEDDED:
        return read_jsonl(sources.EMBEDDED_FOLDER / f"{name}.jsonl", bad)
    if name.endswith(".parquet"):
        return read_parquet(name)
    if name.endswith((".jsonl", ".jsonl.gz", ".json.gz", ".json")):
        return read_json(name, bad)
    kind = "a directory" if Path(name).is_dir() else "unknown kind of data"
    raise UserError(
        f"{source.place}: {kind}; expected .jsonl, .jsonl.gz, .parquet, tfds:NAME, "
        "hf:ORG/NAME, hf:DIRECTORY or "
        "embedded:NAME"
    )


def _renamed(rows, source: Source, bad: BadRows | None) -> Iterator[tuple[int, dict]]:
    good = False
    for number, row in rows:
        try:
            renamed = columns.rename(row, source.columns, source.place, number)
        except UserError as error:
            if bad is None:
                raise
            bad.add(number, error, good)
            continue
        good = True
        yield number, renamed


def read_parquet(path) -> Iterator[tuple[int, dict]]:
    """Rows of a Parquet file, batch by batch, so that a large file does not have to fit into
    memory."""
    import pyarrow
    import pyarrow.parquet

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; expected a Parquet file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            numbers = itertools.count(1)
            for batch in file.iter_batches(batch_size=1024):
                yield from ((next(numbers), row) for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error


def read_tfds(name: str, directory: str, split: str | None) -> Iterator[tuple[int, dict]]:
    """Rows of a prepared TFDS data set (array_record files), its bytes decoded to text.

    `name` is like "cai_hh_rlhf/helpful_base"; `directory` "" is $TFDS_DATA_DIR or
    ~/tensorflow_datasets.
    """
    import tensorflow_datasets as tfds

    from cai_jax.data import cai_sets, hh_rlhf  # noqa: F401  registers the builders of this project

    where = f"tfds:{name}"
    ours = name.startswith("cai_")
    how = (
        f"run `python -m cai_jax.data.prepare {name}` first"
        if ours
        else "prepare it as array_record first"
    )
    try:
        builder = tfds.builder(name, data_dir=directory or None, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        raise UserError(
            f"{where}: no such TFDS data set or configuration ({str(error).splitlines()[0]})"
        ) from error
    if not Path(builder.data_dir).is_dir():
        raise UserError(f"{where}: not prepared in {builder.data_dir}; {how}")
    split = split or (next(iter(builder.info.splits)) if len(builder.info.splits) == 1 else "train")
    if split.partition("[")[0] not in builder.info.splits:
        raise UserError(f"{where}: no split '{split}'; there are {', '.join(builder.info.splits)}")
    try:
        rows = builder.as_data_source(split=split)
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"{where}: cannot be read without TensorFlow ({error}); prepare it as array_record"
        ) from error
    features = builder.info.features
    return (
        (number, {key: _listed(_plain(value), features[key]) for key, value in row.items()})
        for number, row in enumerate(rows, start=1)
    )


def _listed(value, feature):
    """TFDS gives a sequence of objects as one object of sequences; a row has the list of objects
    that was stored."""
    inner = getattr(feature, "feature", None)
    if isinstance(value, dict) and hasattr(inner, "items"):
        return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    return value


def _plain(value):
    """TFDS gives bytes and numpy values; rows have text, numbers and lists, as JSON has."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.decode("utf-8") if isinstance(value, bytes) else value
