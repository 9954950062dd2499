"""Rows of files, TFDS and hub data sets as (number, dict): JSON Lines, Parquet, array_record. TensorFlow is not imported."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cai_jax.data import columns, hub
from cai_jax.data.jsonl import read_jsonl
from cai_jax.errors import UserError

TFDS = "tfds:"
NAMED = (TFDS, hub.HUB)  # of these a split is chosen in reading


def read_rows(source: str, split: str | None = None) -> Iterator[tuple[int, dict]]:
    """Yields (number from 1, row) of a `.jsonl`, `.jsonl.gz` or `.parquet` file, of `tfds:NAME[/CONFIG][@DIRECTORY]`, or of
    `hf:ORG/NAME[/CONFIG][@REVISION]` (see `hub.py`), with columns renamed where "#field=column,…" follows (see `columns.py`).

    Of a TFDS or hub data set without a named split "train" is read, or TFDS's only one. Raises UserError where the source
    cannot be read.
    """
    source, mapping = columns.split_source(str(source))
    if mapping:
        return (
            (number, columns.rename(row, mapping, source, number))
            for number, row in read_rows(source, split)
        )
    if source.startswith(TFDS):
        return read_tfds(source[len(TFDS) :], split)
    if source.startswith(hub.HUB):
        return enumerate(
            (
                row
                for file in hub.files(source[len(hub.HUB) :], split)
                for _, row in read_rows(str(file))
            ),
            start=1,
        )
    if source.endswith(".parquet"):
        return read_parquet(source)
    if source.endswith((".jsonl", ".jsonl.gz", ".json.gz", ".json")):
        return read_jsonl(source)
    raise UserError(
        f"{source}: unknown kind of data; expected .jsonl, .jsonl.gz, .parquet, tfds:NAME, hf:ORG/NAME or "
        "embedded:NAME"
    )


def read_parquet(path) -> Iterator[tuple[int, dict]]:
    """Rows of a Parquet file, batch by batch, so that a large file does not have to fit into memory."""
    import pyarrow
    import pyarrow.parquet

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; expected a Parquet file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            numbers = itertools.count(1)
            for batch in file.iter_batches(batch_size=1024):
                yield from ((next(numbers), row) for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error


def read_tfds(name: str, split: str | None) -> Iterator[tuple[int, dict]]:
    """Rows of a prepared TFDS data set (array_record files), its bytes decoded to text.

    `name` is like "cai_hh_rlhf/helpful_base", with "@DIRECTORY" where that is not $TFDS_DATA_DIR or
    ~/tensorflow_datasets.
    """
    import tensorflow_datasets as tfds

    from cai_jax.data import cai_sets, hh_rlhf  # noqa: F401  registers the builders of this project

    name, _, directory = name.partition("@")
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
    """TFDS gives a sequence of objects as one object of sequences; a row has the list of objects that was stored."""
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
