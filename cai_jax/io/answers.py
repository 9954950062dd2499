"""STAGE/answers.jsonl: every answer that a server gave, by the key of its request, and every
attempt to get one. It is the cache by which nothing that was paid for is asked twice.

    {"id": KEY, "asked": 2, "most": 0.01, "model": …}     the second attempt is about to be sent
    {"id": KEY, "failed": "not JSON", "cost": 0.002}      it gave nothing that can be used
    {"id": KEY, "answer": {…}, "model": …, "cost": 0.002} on the disk before anybody sees it
    {"id": NAME, "note": {…}}                             such as what a probe has shown

Every line has its own "digest". Lines are only ever appended. A kill loses at most what was in
flight, and of that the lines of the attempts remain: what they may have cost at most counts. A torn
last line is cut off; a damaged one is warned of, and its request is asked again.

Memory holds where each answer is, not the answer.
"""

from __future__ import annotations

import collections
import errno
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping

from cai_jax.errors import UserError, located
from cai_jax.io import artefacts, progress

NAME = "answers.jsonl"


class AnswerFile:
    """The answers of a stage.

    Attributes:
      counts: attempts ("asked"), answers ("answered"), and by the reason those that gave none. What
        was in flight when the process was killed is only among the first.
      tokens: [read, written], as the servers counted them.
      cost: what that has cost, at the prices of then.
    """

    def __init__(self, directory, others: Iterable[AnswerFile] = ()):
        """`others`: files whose answers serve as well, such as those of other stages."""
        self.path = pathlib.Path(str(directory)) / NAME
        if "://" in str(directory):
            raise UserError(
                f"{directory}: answers of servers are appended to a file, which an object store "
                "cannot do; give a --workdir on a disk"
            )
        self.counts: collections.Counter[str] = collections.Counter()
        self.tokens, self.cost = [0, 0], 0.0
        self._others = tuple(others)
        self._offsets: dict[bytes, int] = {}
        self._notes: dict[str, dict] = {}
        self._most: dict[str, float] = {}  # of attempts whose outcome is not known
        self._lost = 0  # attempts whose outcome will never be known
        self._unknown = 0.0  # what they may have cost, and those that were cut
        self._file = None
        self._read()

    def get(self, key: str) -> dict | None:
        """The answer to the request with that key, None where there is none."""
        offset = self._offsets.get(bytes.fromhex(key))
        if offset is None:
            return next((file.get(key) for file in self._others if key in file), None)
        with self.path.open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())["answer"]

    def __contains__(self, key: str) -> bool:
        own = bytes.fromhex(key) in self._offsets
        return own or any(key in file for file in self._others)

    def is_open(self, key: str) -> bool:
        """Whether an attempt of this stage has no outcome yet."""
        return key in self._most

    def note(self, name: str) -> dict | None:
        """What was noted under that name, here or in one of the others."""
        notes = (file._notes.get(name) for file in (self, *self._others))
        return next(filter(None, notes), None)

    # What it comes to -----------------------------------------------------------------------------

    @property
    def at_most(self) -> float:
        """What the attempts have cost at most: those that were killed or cut may have been paid."""
        return self.cost + self._unknown + sum(self._most.values())

    def spent(self) -> float:
        """`at_most` of this file and the others."""
        return self.at_most + sum(file.at_most for file in self._others)

    def to_json(self) -> dict:
        """For a manifest: requests by outcome, tokens, cost."""
        lost = self._lost + len(self._most)
        requests = dict(self.counts) | ({"killed in flight": lost} if lost else {})
        tokens = dict(zip(("read", "written"), self.tokens, strict=True))
        cost, most = round(self.cost, 6), round(self.at_most, 6)
        return {"requests": requests, "tokens": tokens, "cost": cost, "cost_at_most": most}

    def describe(self) -> str:
        """In a few words: tokens and, where prices are given, cost."""
        cost = f", cost {self.cost:.2f}" if self.cost else ""
        return f"{sum(self.tokens):,} tokens{cost}"

    # Writing --------------------------------------------------------------------------------------

    def asked(self, key: str, attempt: int, most: float = 0.0) -> None:
        """An attempt is about to be sent; it costs at most `most`."""
        self._append({"id": key, "asked": attempt, "most": most})

    def failed(self, key: str, reason: str, cost: float | None = 0.0) -> None:
        """An attempt gave nothing that can be used; cost None: nobody knows whether it was paid."""
        self._append({"id": key, "failed": reason, "cost": cost})

    def add(
        self, answers: Mapping[str, dict], model: str, costs: Mapping[str, float] | None = None
    ) -> None:
        """Writes answers by the keys of their requests; they are on the disk when this returns."""
        for key, answer in answers.items():
            cost = (costs or {}).get(key, 0.0)
            self._append({"id": key, "answer": answer, "model": model, "cost": cost})
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
            # A disk that becomes full takes the beginning of a line.
            if self._file.write(data) != len(data):
                self._file.seek(offset)
                self._file.truncate()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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
        key = row["id"]
        if "note" in row:
            self._notes[key] = row["note"]
        elif "asked" in row:
            self.counts["asked"] += 1
            self._lost += key in self._most  # the process was killed then
            self._unknown += self._most.pop(key, 0.0)
            self._most[key] = row["most"]
        else:
            most, cost = self._most.pop(key, 0.0), row["cost"]
            self.cost += cost or 0.0
            self._unknown += most if cost is None else 0.0
            self.counts[row.get("failed", "answered")] += 1
        if "answer" in row:
            self._offsets[bytes.fromhex(key)] = offset
            usage = row["answer"].get("usage") or (0, 0)
            self.tokens = [a + b for a, b in zip(self.tokens, usage, strict=True)]


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
