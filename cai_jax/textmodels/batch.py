"""The carrier to a model that answers later: requests are written into files (`batch_files`), and
the run stops (`errors.Waiting`) until they are answered.

What is answered is yielded first, so that the stage keeps it. What is not, and is in no file that
waits for its results, goes into the next one: nothing that was answered is asked twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from cai_jax.errors import UserError, Waiting
from cai_jax.io import progress
from cai_jax.io.answers import AnswerFile
from cai_jax.structs import FAILED, REFUSED, TOO_LONG
from cai_jax.textmodels import batch_files, chat, endpoint
from cai_jax.textmodels.answering import Outcome
from cai_jax.textmodels.options import Unusable
from cai_jax.textmodels.protocol import COUNTED, TOP

# The server in the identity of requests: an answer serves a request of its content in any
# directory.
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
        for what, count in sorted(replies.notes.items()):
            progress.warn(f"{self.directory}: {count} {what}")
        answered: list[tuple[chat.Request, Outcome]] = []
        missing: dict[str, chat.Request] = {}
        for request in requests:
            outcome = _outcome(request, replies.by_key.get(request.key, ()))
            if outcome is None:
                missing[request.key] = request
            else:
                answered.append((request, outcome))
        kept = {of.key: outcome for of, outcome in answered if not isinstance(outcome, str)}
        prices = self.fields
        costs = {key: endpoint.cost(prices, kept[key]["usage"] or (0, 0)) for key in kept}
        self.file.add(kept, self.name, costs)
        yield from answered
        if missing:
            raise self._waiting(missing, replies.awaited)

    def _waiting(self, missing: dict[str, chat.Request], awaited: dict[str, list[str]]) -> Waiting:
        """Writes those that are in no file that waits; says which files wait."""
        files = {path: len(missing.keys() & keys) for path, keys in awaited.items()}
        waiting = {key for keys in awaited.values() for key in keys}
        new = [request for key, request in missing.items() if key not in waiting]
        most = sum(endpoint.most(self.fields, request) for request in missing.values())
        if new and self.max_cost is not None and self.file.spent() + most > self.max_cost:
            raise UserError(
                f"{self.name}: {len(missing)} requests may cost {most:.4g}, and "
                f"{self.file.spent():.4g} is spent, of config.max_cost={self.max_cost:g}: raise it "
                "and run the same command again"
            )
        how = self.fields.form, self.fields.lines_per_file
        files |= batch_files.write_requests(self.directory, new, *how)
        return Waiting({path: count for path, count in files.items() if count})


def _outcome(request: chat.Request, replies: Sequence[dict | str]) -> Outcome | None:
    """What the first reply that can be used comes to; FAILED where too many could not be, None
    where the request is to be asked, or asked again."""
    for reply in replies:
        if reply in (TOO_LONG, REFUSED):
            return chat.without(reply)
        for reads in dict.fromkeys([request.reads, *[chat.TEXT] * (request.reads == TOP)]):
            try:
                if isinstance(reply, dict):
                    return chat.read(dataclasses.replace(request, reads=reads), reply)
            except Unusable:
                pass
    return FAILED if len(replies) >= MOST_TRIES else None
