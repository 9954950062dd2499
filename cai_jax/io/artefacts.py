"""Stage directories: journals of JSON records, manifests, and the promise that nothing finished is
lost, doubled or silently wrong.

    RUN/STAGE/records.parts/000003.9f2c….jsonl   up to 64 finished rows; the name holds their digest
    RUN/STAGE/records.jsonl                      all rows sorted by id, once the stage is done
    RUN/STAGE/manifest.json                      what made them, the SHA-256 of every file, its own

Every file is written next to its place and renamed into it, so a reader sees all of it or nothing,
on a disk or on an object store. Only process 0 writes. A file whose digest is another one is named
in a warning and not used: its rows are computed again, or the command stops and says which file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from etils import epath

from cai_jax.errors import UserError, located
from cai_jax.io import progress

FLUSH_SECONDS = 2.0
FLUSH_ROWS = 64
# Without a digest in the manifest: seconds differ between equal runs, and checkpoints have digests
# of their own.
UNCHECKED = ("manifest.json", "timing.jsonl", "checkpoints", "tensorboard", "profile")


class Damaged(Exception):
    """Files of a stage are not what it wrote. The stage is run again: from what is left, or
    (`restart`) from the beginning."""

    def __init__(self, stage: str, message: str, restart: bool = False):
        super().__init__(message)
        self.stage, self.restart = stage, restart


def is_writer() -> bool:
    """True in the one process that writes files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for all processes, so that what process 0 wrote is visible to each."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def from_writer(value: dict) -> dict:
    """The JSON object of process 0, in every process."""
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
    """The dotted name of the first NaN or infinity in nested dicts and sequences, else None."""
    if isinstance(value, float) and not math.isfinite(value):
        return path
    if not isinstance(value, (dict, list, tuple)):
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    names = ((f"{path}.{key}".lstrip("."), item) for key, item in items)
    return next(filter(None, (not_finite(item, name) for name, item in names)), None)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


# Files ------------------------------------------------------------------------------------------


def write_text(path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path, data: bytes) -> None:
    """Writes `path` completely or not at all: under another name first, flushed to the disk, then
    renamed. UserError where it cannot be written."""
    path = epath.Path(path)
    temporary = path.parent / f".{path.name}.writing"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            # An object store has no file descriptor to flush.
            with contextlib.suppress(AttributeError, OSError, ValueError):
                os.fsync(file.fileno())
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


def sealed(value: dict) -> dict:
    """A JSON object with its own digest in the field "digest"."""
    value = {key: item for key, item in value.items() if key != "digest"}
    return value | {"digest": digest(json.dumps(value, sort_keys=True).encode())[:16]}


def is_intact(value: dict) -> bool:
    """Whether the digest of a JSON object is that of its contents; objects without one pass."""
    return "digest" not in value or sealed(value) == value


def digests(directory) -> dict[str, str]:
    """Relative path → SHA-256 of every file that a stage leaves to others."""
    directory = epath.Path(directory)
    return {str(path.relative_to(directory)): file_digest(path) for path in _files(directory)}


def _files(path: epath.Path, unchecked: tuple[str, ...] = UNCHECKED) -> Iterator[epath.Path]:
    for child in sorted(path.iterdir()) if path.exists() else ():
        if child.name.startswith(".") or child.name in unchecked or child.name.endswith(".parts"):
            continue
        if child.is_dir():
            yield from _files(child, ())
        else:
            yield child


def file_digest(path) -> str:
    """SHA-256 of a file's contents."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Journals ---------------------------------------------------------------------------------------


def read_parts(folder) -> dict[str, dict]:
    """id → record of a journal in the making, from its intact parts; the others are warned of."""
    rows, folder = {}, epath.Path(folder)
    for part in sorted(folder.glob("[0-9]*.jsonl")) if folder.exists() else ():
        data = part.read_bytes()
        if part.name.split(".")[1] == digest(data)[:16]:
            rows |= {row["id"]: row for row in map(json.loads, data.splitlines())}
        else:
            progress.warn(f"{located(part)}: damaged; its rows are computed again")
    return rows


class Journal:
    """The records of a stage while it runs. `finished` maps id → record for everything that is on
    disk or queued.

    A `light` journal keeps only the ids of what is on disk ({} for the record), so that memory does
    not grow with every record.
    """

    def __init__(self, directory: StageDirectory, name: str, light: bool = False):
        self._directory, self._light = directory, light
        self._parts = directory.path / f"{name}.parts"
        self._target = directory.path / f"{name}.jsonl"
        self._queue: list[tuple[str, str]] = []  # (id, line) of records that are not on disk yet
        self._last_flush = time.monotonic()
        barrier(f"journal {self._parts}")
        self.finished = self._read()
        numbers = (int(part.name.split(".")[0]) for part in self._part_files())
        self._next_part = max(numbers, default=-1) + 1
        barrier(f"journal read {self._parts}")

    def _part_files(self) -> list[epath.Path]:
        return list(self._parts.glob("[0-9]*.jsonl")) if self._parts.exists() else []

    def _read(self) -> dict[str, dict]:
        """The intact records on disk."""
        rows = {}
        if self._target.exists():
            data = self._target.read_bytes()
            if self._directory.files.get(self._target.name) == digest(data):
                rows = {row["id"]: row for row in map(json.loads, data.splitlines())}
            else:
                progress.warn(f"{located(self._target)}: damaged; its rows are computed again")
        return rows | read_parts(self._parts)

    def append(self, row: dict) -> None:
        """Adds a finished record; it reaches the disk within a part of at most FLUSH_ROWS rows or
        FLUSH_SECONDS.

        Raises:
          ValueError: a record of that id is there already.
          UserError: the record has NaN or infinity, which JSON does not have.
        """
        if row["id"] in self.finished:
            raise ValueError(f"record {row['id']} was made twice")
        try:
            line = dump(row)
        except ValueError as error:
            if (field := not_finite(row)) is None:
                raise
            raise UserError(
                f"stage '{self._directory.name}': record '{row['id']}': field '{field}' is NaN or "
                "infinite; the model or function that gave the number is at fault, or "
                "config.model.dtype is too narrow for it"
            ) from error
        self.finished[row["id"]] = row
        self._queue.append((row["id"], line))
        if len(self._queue) >= FLUSH_ROWS or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the queued records, after those of the directory's earlier journals: what a record
        was made from is on disk before it is."""
        self._directory.flush(before=self)
        if self._queue and is_writer():
            self._write_part(line for _, line in self._queue)
        if self._light:
            self.finished.update(dict.fromkeys((name for name, _ in self._queue), {}))
        self._next_part += bool(self._queue)
        self._queue = []
        self._last_flush = time.monotonic()

    def _write_part(self, lines: Iterable[str]) -> None:
        data = "".join(line + "\n" for line in lines).encode()
        write_bytes(self._parts / f"{self._next_part:06d}.{digest(data)[:16]}.jsonl", data)

    def _records(self) -> dict[str, dict]:
        """`finished` with its records: those of a light journal are read from the disk again."""
        self.flush()
        if not self._light:
            return self.finished
        barrier(f"journal flushed {self._parts}")
        rows = self._read()
        barrier(f"journal read again {self._parts}")
        return rows

    def discard(self, keep) -> None:
        """Forgets finished records for which `keep(row)` is false, such as those made after the
        checkpoint that a training resumes from."""
        rows = self._records()
        kept = {key: row for key, row in rows.items() if keep(row)}
        if len(kept) != len(self.finished):
            if is_writer():
                old = self._part_files()
                self._write_part(map(dump, kept.values()))
                for part in old:
                    part.unlink()
                self._target.unlink(missing_ok=True)
            self._next_part += 1
        self.finished = dict.fromkeys(kept, {}) if self._light else kept
        barrier(f"journal discard {self._parts}")

    def finish(self) -> str:
        """Writes NAME.jsonl sorted by id and its SHA-256 into the manifest, removes the parts;
        returns the SHA-256.

        Raises:
          Damaged: records of a light journal are no longer on disk.
        """
        rows = self._records()
        if lost := self.finished.keys() - rows.keys():
            line = f"{self._parts}: {len(lost)} records are lost"
            raise Damaged(self._directory.name, line, restart=True)
        data = "".join(dump(rows[key]) + "\n" for key in sorted(rows)).encode()
        if is_writer():
            # A kill between the two leaves a file that counts as damaged, and all parts.
            files = self._directory.files | {self._target.name: digest(data)}
            self._directory.update_manifest(files=files)
            write_bytes(self._target, data)
        barrier(f"journal finished {self._target}")
        self.remove_parts()
        return digest(data)

    def remove_parts(self) -> None:
        """Deletes the part files; for a journal of intermediate steps whose results are in the
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
        """The manifest, {} where there is none. UserError where it is damaged."""
        path = self.path / "manifest.json"
        value = read_json(path) or {}
        if not is_intact(value):
            raise UserError(
                f"{located(path)}: damaged, its digest is not that of its contents; move "
                f"{self.path} aside to redo the stage"
            )
        return value

    @property
    def files(self) -> dict[str, str]:
        """Relative path → SHA-256, of the files as the stage wrote them."""
        return self.manifest.get("files") or {}

    @property
    def holds_work(self) -> bool:
        """Whether there is anything that a stage computed."""
        patterns = ("*.jsonl", "*.parts/*.jsonl", "checkpoints/*", "*.html")
        return any(next(self.path.glob(pattern), None) for pattern in patterns) or self.done

    @property
    def done(self) -> bool:
        return bool(self.manifest.get("done"))

    def update_manifest(self, **fields) -> None:
        """Merges fields into the manifest (process 0)."""
        if is_writer():
            value = json.loads(json.dumps({**self.manifest, **fields}))
            write_json(self.path / "manifest.json", sealed(value))

    def damage(self) -> Damaged | None:
        """What differs from the manifest, in one line, and whether the stage has to restart; None
        where the files are as the stage wrote them."""
        manifest = self.manifest
        if not manifest and self.holds_work:
            line = f"{self.path}: its manifest is missing, so nobody knows what made it"
            return Damaged(self.name, line, restart=True)
        bad = []
        for name, expected in self.files.items() if manifest.get("done") else ():
            if not (self.path / name).exists():
                bad.append(f"{name} (missing)")
            elif file_digest(self.path / name) != expected:
                bad.append(name)
        if not bad:
            return None
        # Rollouts come from weights that exist no longer: only training again gives them.
        restart = manifest.get("kind") == "rl" and any(
            name.startswith(("rollouts/", "records.")) for name in bad
        )
        line = f"{self.path}: not what the stage wrote: {', '.join(bad)}"
        return Damaged(self.name, line, restart)

    def journal(self, name: str = "records", light: bool = False, first: bool = False) -> Journal:
        """A journal of the stage; `first`: it counts as opened before all others."""
        journal = Journal(self, name, light)
        self._journals.insert(0 if first else len(self._journals), journal)
        return journal

    def flush(self, before: Journal | None = None) -> None:
        """Writes what the journals hold back, up to one of them: however the stage ends, finished
        rows are kept."""
        for journal in self._journals:
            if journal is before:
                break
            journal.flush()

    def records(self, name: str = "records") -> list[dict]:
        """The finished records, sorted by id. UserError where they are missing, damaged or not what
        the manifest says."""
        path = self.path / f"{name}.jsonl"
        if not path.exists():
            raise UserError(f"{path}: no such file; run the stage '{self.name}' first")
        data = path.read_bytes()
        if self.files.get(path.name) not in (None, digest(data)):
            raise UserError(
                f"{path}: contents differ from what the stage wrote (SHA-256); move "
                f"{self.path} aside to redo it"
            )
        return _parse_lines(path, data.decode())


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


def fingerprint(kind: str, fields: dict, inputs: Iterable[str], schema: int) -> str:
    """16 hexadecimal digits that name what a stage computes.

    Args:
      kind: of the stage.
      fields: its own fields of the config.
      inputs: the fingerprints of what it reads.
      schema: the version of its records.
    Returns:
      What the manifest keeps, to be compared.
    """
    value = {"kind": kind, "fields": fields, "inputs": list(inputs), "schema": schema}
    return digest(dump(value).encode())[:16]
