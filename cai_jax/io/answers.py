"""STAGE/answers.jsonl: every answer that a server gave, by the key of its request, and every
attempt to get one. It is the cache by which nothing that was paid for is asked twice.

    {"id": KEY, "asked": 2, "digest": …}                 the second attempt was sent
    {"id": KEY, "failed": "not JSON", "digest": …}       it gave nothing that can be used
    {"id": KEY, "answer": {…}, "model": …, "digest": …}  on the disk before anybody sees it

Lines are only ever appended. A kill loses at most what was in flight; of that, the lines of the
attempts remain. A torn last line is cut off, a damaged one is warned of and its request is asked
again. Memory holds where each answer is, not the answer.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

from cai_jax.errors import UserError, located
from cai_jax.io import artefacts, progress

NAME = "answers.jsonl"


class AnswerFile:
    """`counts`: how many attempts there were ("asked"), how many gave an answer ("answered") or, by
    the reason, none; what a kill interrupted is in none of them but the first. `usage`: tokens
    [read, written] by model, as the servers counted them."""

    def __init__(self, directory):
        self.path = pathlib.Path(str(directory)) / NAME
        if "://" in str(directory):
            raise UserError(
                f"{directory}: answers of servers are appended to a file, which an object store "
                "cannot do; give a --workdir on a disk"
            )
        self.counts: collections.Counter[str] = collections.Counter()
        self.usage: dict[str, list[int]] = {}
        self._offsets: dict[bytes, int] = {}
        self._notes: dict[str, dict] = {}
        self._file = None
        self._read()

    def get(self, key: str) -> dict | None:
        """The answer to the request with that key, None where there is none."""
        offset = self._offsets.get(_index(key))
        if offset is None:
            return None
        with self.path.open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())["answer"]

    def __contains__(self, key: str) -> bool:
        return _index(key) in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def note(self, name: str) -> dict | None:
        """What was noted under that name, such as what a probe has shown."""
        return self._notes.get(name)

    # Writing --------------------------------------------------------------------------------------

    def asked(self, key: str, attempt: int) -> None:
        """An attempt is about to be sent."""
        self._append({"id": key, "asked": attempt})

    def failed(self, key: str, reason: str) -> None:
        """An attempt gave nothing that can be used."""
        self._append({"id": key, "failed": reason})

    def add(self, answers: Mapping[str, dict], model: str) -> None:
        """Writes answers by the keys of their requests; they are on the disk when this returns."""
        for key, answer in answers.items():
            self._append({"id": key, "answer": answer, "model": model})
        self._sync()

    def add_note(self, name: str, note: dict) -> None:
        self._append({"id": name, "note": note})
        self._sync()

    def _append(self, row: dict) -> None:
        data = (json.dumps(artefacts.sealed(row), ensure_ascii=False) + "\n").encode()
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
            offset = self._file.tell()
            self._file.write(data)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot write ({error.strerror or error}); free space and run the "
                "same command again"
            ) from error
        self._take(row, offset)

    def _sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    # Reading --------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Takes what is there, and cuts off a torn last line."""
        if not self.path.exists():
            return
        end = 0
        for number, (offset, line) in enumerate(_lines(self.path), 1):
            if not line.endswith(b"\n"):
                break
            end = offset + len(line)
            if (row := _intact(line)) is None:
                where = located(self.path, number)
                progress.warn(f"{where}: damaged; if it held an answer, that is asked for again")
            else:
                self._take(row, offset)
        if end < self.path.stat().st_size:
            os.truncate(self.path, end)

    def _take(self, row: Mapping, offset: int) -> None:
        if "answer" in row:
            self._offsets[_index(row["id"])] = offset
            self.counts["answered"] += 1
            if usage := row["answer"].get("usage"):
                so_far = self.usage.setdefault(row["model"], [0, 0])
                so_far[:] = [a + b for a, b in zip(so_far, usage, strict=True)]
        elif "note" in row:
            self._notes[row["id"]] = row["note"]
        else:
            self.counts["asked" if "asked" in row else row["failed"]] += 1


def _index(key: str) -> bytes:
    return bytes.fromhex(key)


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of every line."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _intact(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "digest" in row and artefacts.is_intact(row) else None
