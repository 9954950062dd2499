"""The carrier to a model that answers later: requests are written into files (`batch_files`), and
the run stops (`errors.Waiting`) until they are answered.

What is answered is yielded first, so that the stage keeps it. What is not, and is in no file that
waits for its results, goes into the next one: nothing that was answered is asked twice.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from etils import epath

from cai_jax.errors import UserError, Waiting
from cai_jax.io import progress
from cai_jax.io.answers import AnswerFile
from cai_jax.structs import FAILED, REFUSED, TOO_LONG
from cai_jax.textmodels import batch_files, chat
from cai_jax.textmodels.answering import Outcome, cost, most
from cai_jax.textmodels.options import Unusable
from cai_jax.textmodels.protocol import COUNTED, TOP

# The server in the keys of requests in files, and in the identity of those to a model with a name:
# its answers serve in any directory. A model without one is identified by its directory.
URL = "batch:"
MOST_TRIES = 3  # times that a request is written whose answers cannot be used


class BatchFiles:
    """A `Carrier` by files in a directory.

    Attributes:
      name: the model's reference.
      directory: need not exist.
      fields: of `configuration.endpoints.OPENAI`.
      file: where answers go.
      max_cost: of the run; None for no limit.
    """

    def __init__(
        self, name: str, directory, fields, file: AnswerFile, max_cost: float | None = None
    ):
        self.name, self.directory = name, epath.Path(directory)
        self.fields, self.file, self.max_cost = fields, file, max_cost

    def tier(self) -> str:
        """How questions are asked. Anthropic's messages have no log-probabilities; elsewhere an
        answer without them counts as one sample."""
        auto = COUNTED if self.fields.form == batch_files.ANTHROPIC else TOP
        tier = auto if self.fields.tier == "auto" else self.fields.tier
        if tier != COUNTED and auto == COUNTED:
            raise UserError(
                f"{self.name}: Anthropic's form gives no log-probabilities; set "
                "config.endpoints.all.tier to counted, or form to openai"
            )
        return tier

    def answers(self, requests: Iterable[chat.Request]) -> Iterator[tuple[chat.Request, Outcome]]:
        """See `Carrier.answers`; Waiting after the last one where some have none yet."""
        replies = batch_files.read(self.directory)
        waiting = {key for keys in replies.awaited.values() for key in keys}
        notes = collections.Counter(replies.notes)
        answered: list[tuple[chat.Request, Outcome]] = []
        missing: dict[str, chat.Request] = {}  # by their keys in files
        for request in requests:
            key = dataclasses.replace(request, url=URL).key
            outcome, unusable = _outcome(request, replies.by_key.get(key, ()))
            notes.update(f"answers that cannot be used: {why}" for why, _ in unusable if why)
            if unusable and not isinstance(outcome, dict) and key not in waiting:
                self._book(request, *unusable[-1])
            if outcome is None:
                missing[key] = request
            else:
                answered.append((request, outcome))
        for what, count in sorted(notes.items()):
            progress.warn(f"{self.directory}: {count} {what}")
        kept = {of.key: outcome for of, outcome in answered if not isinstance(outcome, str)}
        costs = {key: cost(self.fields, kept[key]["usage"] or (0, 0)) for key in kept}
        self.file.add(kept, self.name, costs)
        yield from answered
        if missing:
            files = {path: len(missing.keys() & keys) for path, keys in replies.awaited.items()}
            new = {key: request for key, request in missing.items() if key not in waiting}
            files |= self._write(new, replies)
            raise Waiting({path: count for path, count in files.items() if count})

    def _book(self, request: chat.Request, reason: str, reply: dict | str) -> None:
        """Notes once that a request gave nothing, and what that has cost."""
        if not self.file.is_open(request.key):
            return
        usage = chat.usage_of(reply) if isinstance(reply, dict) else (0, 0)
        paid = cost(self.fields, usage) if usage else None
        self.file.failed(request.key, reason or "failed at the service", paid)

    def _write(
        self, new: Mapping[str, chat.Request], replies: batch_files.Replies
    ) -> dict[str, int]:
        """Writes requests into the next files, and before that what they may cost; path → how
        many."""
        costs = {
            key: most(self.fields, request)
            for key, request in new.items()
            if not self.file.is_open(request.key)  # else noted before a kill
        }
        in_all = sum(costs.values())
        if costs and self.max_cost is not None and self.file.spent() + in_all > self.max_cost:
            raise UserError(
                f"{self.name}: {len(costs)} requests may cost {in_all:.4g}, and "
                f"{self.file.spent():.4g} is spent, of config.max_cost={self.max_cost:g}: raise it "
                "and run the same command again"
            )
        for key, at_most in costs.items():
            self.file.asked(new[key].key, len(replies.by_key.get(key, ())) + 1, at_most)
        in_files = [dataclasses.replace(request, url=URL) for request in new.values()]
        how = self.fields.form, self.fields.lines_per_file
        return batch_files.write_requests(self.directory, in_files, *how)


def _outcome(
    request: chat.Request, replies: Sequence[dict | str]
) -> tuple[Outcome | None, list[tuple[str, dict | str]]]:
    """What the first reply that can be used comes to; FAILED where too many could not be, None
    where the request is to be asked, or asked again. And (reason, reply) of those that could not
    be used; a request that failed at the service has no reason."""
    unusable = []
    for reply in replies:
        if reply in (TOO_LONG, REFUSED):
            return chat.without(reply), unusable
        if isinstance(reply, str):
            unusable.append(("", reply))
            continue
        reply = reply | {"model": None}  # the key says what it answers
        try:
            return _read(request, reply), unusable
        except Unusable as error:
            unusable.append((str(error), reply))
    return FAILED if len(replies) >= MOST_TRIES else None, unusable


def _read(request: chat.Request, reply: dict) -> dict:
    """See `chat.read`; an answer without log-probabilities is read as a sample."""
    try:
        return chat.read(request, reply)
    except Unusable:
        if request.reads != TOP:
            raise
        return chat.read(dataclasses.replace(request, reads=chat.TEXT), reply)
