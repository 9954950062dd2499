"""Stage directories: journals of JSON records, manifests, and the promise that nothing finished is
lost or doubled.

While a stage runs, its records go to a journal: a folder of small part files, each written whole
and renamed into place, so a reader sees a part completely or not at all, on a disk or on an object
store. When the stage is done the parts become one `records.jsonl`, sorted by id, with its SHA-256
in `manifest.json`. Only process 0 writes.

Disks lie now and then, so every row has a digest: before it in a part, in `records.digests` beside
the finished file. A row that is not what was written is named in a warning and left out, which is
all it takes to have it made again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable

import jax
import numpy as np
from etils import epath

from cai_jax.errors import UserError, located
from cai_jax.io import progress

FLUSH_SECONDS = 2.0
FLUSH_ROWS = 64
_told: set[str] = set()  # manifests whose damage was told, once a process is enough


class Damaged(Exception):
    """A stage's files are not what it wrote. The stage is run again: from what is left, or
    (`restart`) from nothing."""

    def __init__(self, stage: str, message: str, restart: bool = False):
        super().__init__(message)
        self.stage, self.restart = stage, restart


def is_writer() -> bool:
    """True in the one process that writes files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here, so that what process 0 wrote is there for all."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def from_writer(value: dict) -> dict:
    """The JSON object that process 0 has, in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    data = np.frombuffer(dump(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    data = np.resize(data, size) if is_writer() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes())


def processes_where(value: bool) -> list[int]:
    """The processes whose value is true, in every process."""
    if jax.process_count() == 1:
        return [0] * bool(value)
    from jax.experimental import multihost_utils

    return np.flatnonzero(multihost_utils.process_allgather(np.int32(value))).tolist()


def dump(value) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)


def not_finite(value, path: str = "") -> str | None:
    """The dotted name of the first NaN or infinity in nested dicts and sequences, None where there
    is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return path
    if not isinstance(value, (dict, list, tuple)):
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    names = ((f"{path}.{key}".lstrip("."), item) for key, item in items)
    return next(filter(None, (not_finite(item, name) for name, item in names)), None)


def write_text(path, text: str) -> None:
    """Writes `path` whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path, data: bytes) -> None:
    """Writes `path` whole or not at all: to a neighbour first, flushed to the disk, then renamed
    over it."""
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.writing"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if hasattr(file, "fileno"):
                try:
                    os.fsync(file.fileno())
                except (OSError, ValueError):  # an object store has no file descriptor to flush
                    pass
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write ({error.strerror or error}); free space or choose another "
            "--workdir"
        ) from error


def write_json(path, value) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1) + "\n")


def read_json(path) -> dict | None:
    """The JSON object in `path`, None where there is no file; UserError where it cannot be read as
    an object."""
    path = epath.Path(path)
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(
            f"{located(path)}: not readable as JSON ({error}); move the file aside to redo the "
            "stage"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{located(path)}: expected a JSON object")
    return value


def seal(value: dict) -> str:
    """A digest of a JSON object, apart from its own field "digest"."""
    return mark(
        json.dumps(
            {key: item for key, item in value.items() if key != "digest"}, sort_keys=True
        ).encode()
    )


def write_sealed(path, value: dict) -> None:
    """`write_json` of an object with its own digest in it."""
    value = json.loads(json.dumps(value))
    write_json(path, {**value, "digest": seal(value)})


def read_sealed(path) -> dict | None:
    """`read_json` of what `write_sealed` wrote; UserError where its digest is not that of its
    contents."""
    value = read_json(path)
    if value is not None and value.get("digest", seal(value)) != seal(value):
        raise UserError(
            f"{located(path)}: damaged, its digest is not that of its contents; move {path} "
            "aside to redo it"
        )
    return value


def mark(line: bytes) -> str:
    """The digest of a row: 16 hexadecimal digits."""
    return hashlib.sha256(line).hexdigest()[:16]


def _read_part(path) -> dict[str, dict]:
    """id → record of the intact rows of a part, each a line "digest record"."""
    rows = {}
    for number, line in enumerate(epath.Path(path).read_bytes().split(b"\n"), 1):
        digest, _, text = line.partition(b" ")
        if text and digest == mark(text).encode():
            row = json.loads(text)
            rows[row["id"]] = row
        elif line:
            progress.warn(f"{located(path, number)}: damaged; this row is made again")
    return rows


def _read_finished(path) -> dict[str, dict]:
    """id → record of the intact rows of a finished file: those whose digest stands in the file
    beside it."""
    path = epath.Path(path)
    beside = path.with_suffix(".digests")
    known = set(beside.read_bytes().split()) if beside.exists() else set()
    rows = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line and mark(line).encode() in known:
            row = json.loads(line)
            rows[row["id"]] = row
        elif line:
            progress.warn(f"{located(path, number)}: damaged; this row is made again")
    return rows


def _parse_lines(path, text: str) -> list[dict]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{located(path, number)}: not a JSON object ({error}); move the file aside to "
                "redo it"
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise UserError(f"{located(path, number, 'id')}: expected a record with a string id")
        rows.append(row)
    return rows


class Journal:
    """Records of one stage in the making. `finished` maps id → record for everything that is safely
    on disk or queued.

    A `light` journal keeps only the ids of what is on disk ({} for the record): memory does not
    grow with every row.
    """

    def __init__(self, directory: StageDirectory, name: str, light: bool = False):
        self._stage, self._light = directory.name, light
        self._parts = directory.path / f"{name}.parts"
        self._target = directory.path / f"{name}.jsonl"
        self._name = name
        self._queue: list[tuple[str, str]] = []  # (id, line) of records that are not on disk yet
        self._last_flush = time.monotonic()
        barrier(f"journal {self._parts}")
        self.finished, self._next_part = self._read()
        barrier(f"journal read {self._parts}")

    def _read(self) -> tuple[dict[str, dict], int]:
        """What is on disk, and the number of the next part."""
        found = _read_finished(self._target) if self._target.exists() else {}
        parts = sorted(self._parts.glob("[0-9]*.jsonl")) if self._parts.exists() else []
        for part in parts:
            found.update(_read_part(part))
        return found, int(parts[-1].stem) + 1 if parts else 0

    def append(self, row: dict) -> None:
        """Adds a finished record; it reaches the disk within a part of at most FLUSH_ROWS rows or
        FLUSH_SECONDS.

        UserError for a record with NaN or infinity, which JSON does not have.
        """
        if row["id"] in self.finished:
            raise ValueError(f"record {row['id']} was made twice")
        try:
            line = dump(row)
        except ValueError as error:
            if (field := not_finite(row)) is None:
                raise
            raise UserError(
                f"stage '{self._stage}': record '{row['id']}': field '{field}' is NaN or "
                "infinite; the model or function "
                "that gave the number is at fault, or config.model.dtype is too narrow for it"
            ) from error
        self.finished[row["id"]] = row
        self._queue.append((row["id"], line))
        if len(self._queue) >= FLUSH_ROWS or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._queue and is_writer():
            self._write_part(line for _, line in self._queue)
        if self._light:
            self.finished.update(dict.fromkeys((name for name, _ in self._queue), {}))
        self._next_part += bool(self._queue)
        self._queue = []
        self._last_flush = time.monotonic()

    def _write_part(self, lines: Iterable[str]) -> None:
        text = "".join(f"{mark(line.encode())} {line}\n" for line in lines)
        write_text(self._parts / f"{self._next_part:06d}.jsonl", text)

    def discard(self, keep) -> None:
        """Forgets finished records for which `keep(row)` is false: those made after the checkpoint
        a training resumes from."""
        self.flush()
        if self._light:
            barrier(f"journal flushed {self._parts}")
            self.finished, _ = self._read()
            barrier(f"journal read again {self._parts}")
        kept = {key: row for key, row in self.finished.items() if keep(row)}
        if len(kept) != len(self.finished) and is_writer():
            self._write_part(map(dump, kept.values()))
            for part in self._parts.glob("[0-9]*.jsonl"):
                if int(part.stem) < self._next_part:
                    part.unlink()
            if self._target.exists():
                self._target.unlink()
        self._next_part += len(kept) != len(self.finished)
        self.finished = dict.fromkeys(kept, {}) if self._light else kept
        barrier(f"journal discard {self._parts}")

    def finish(self) -> str:
        """Writes NAME.jsonl sorted by id, removes the parts, returns the SHA-256 of the file."""
        self.flush()
        rows = self.finished
        if self._light:
            barrier(f"journal flushed {self._parts}")
            rows, _ = self._read()
            if rows.keys() != self.finished.keys():
                raise Damaged(
                    self._stage,
                    f"{self._parts}: {len(self.finished.keys() - rows.keys())} records are lost",
                    True,
                )
        lines = [dump(rows[key]) for key in sorted(rows)]
        text = "".join(line + "\n" for line in lines)
        if is_writer():
            write_text(
                self._target.with_suffix(".digests"),
                "".join(mark(line.encode()) + "\n" for line in lines),
            )
            write_text(self._target, text)
        barrier(f"journal finished {self._target}")
        self.remove_parts()
        return hashlib.sha256(text.encode()).hexdigest()

    def remove_parts(self) -> None:
        """Deletes the part files; for a journal of intermediate steps whose results stand in the
        final records."""
        if is_writer() and self._parts.exists():
            self._parts.rmtree()
        barrier(f"journal parts {self._parts}")


class StageDirectory:
    """`RUN/<stage>`: manifest, records, and whatever else the stage keeps there. Creating the
    object touches nothing."""

    def __init__(self, path):
        self.path = epath.Path(path)
        self.name = self.path.name
        self._journals: list[Journal] = []

    @property
    def manifest(self) -> dict:
        """The manifest, {} where there is none; where it is missing or damaged, the copy that is
        kept of it."""
        path, copy = self.path / "manifest.json", self.path / "manifest.backup.json"
        try:
            value, error = read_sealed(path), f"{path}: missing"
        except UserError as damage:
            value, error = None, damage
        if value is None and (copy.exists() or isinstance(error, UserError)):
            try:
                value = read_sealed(copy)
            except UserError:
                value = None
            if value is None and isinstance(error, UserError):
                raise error
            if value is not None and str(path) not in _told:
                _told.add(str(path))
                progress.warn(f"{error}; its copy {copy.name} is used")
        return value or {}

    @property
    def holds_work(self) -> bool:
        """Whether there is anything that a stage computed."""
        found = any(
            next(self.path.glob(pattern), None)
            for pattern in ("*.jsonl", "*.parts/*.jsonl", "checkpoints/*", "*.html")
        )
        return found or self.done

    @property
    def done(self) -> bool:
        return bool(self.manifest.get("done"))

    def update_manifest(self, **fields) -> None:
        """Merges fields into the manifest (process 0)."""
        if is_writer():
            value = {**self.manifest, **fields}
            write_sealed(self.path / "manifest.json", value)
            write_sealed(self.path / "manifest.backup.json", value)

    def mirror_manifest(self) -> None:
        """Makes manifest and copy the same again, where a kill came between the two or one of them
        is damaged."""
        value = self.manifest
        for path in (self.path / "manifest.json", self.path / "manifest.backup.json"):
            try:
                found = read_sealed(path)
            except UserError:
                found = None
            if is_writer() and found != value:
                write_sealed(path, value)

    def journal(self, name: str = "records", light: bool = False) -> Journal:
        self._journals.append(Journal(self, name, light))
        return self._journals[-1]

    def flush(self) -> None:
        """Writes what the journals hold back: whatever ends the stage, finished rows are kept."""
        for journal in self._journals:
            journal.flush()

    def records(self, name: str = "records") -> list[dict]:
        """The finished records, sorted by id. Raises UserError where they are missing, damaged or
        not what the manifest says."""
        path = self.path / f"{name}.jsonl"
        if not path.exists():
            raise UserError(f"{path}: no such file; run the stage '{self.name}' first")
        text = path.read_text()
        expected = self.manifest.get("sha256", {}).get(name)
        if expected and hashlib.sha256(text.encode()).hexdigest() != expected:
            raise UserError(
                f"{path}: contents differ from what the stage wrote (SHA-256); move "
                f"{self.path} aside to redo it"
            )
        return _parse_lines(path, text)


def fingerprint(kind: str, fields: dict, inputs: Iterable[str], schema: int) -> str:
    """Hex digest that names what a stage computes: kind, its own fields, its inputs' fingerprints,
    record schema version."""
    value = {"kind": kind, "fields": fields, "inputs": list(inputs), "schema": schema}
    return hashlib.sha256(dump(value).encode()).hexdigest()[:16]
