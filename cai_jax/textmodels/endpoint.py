"""The carrier to an OpenAI-compatible server, by the `openai` package: asynchronous, with its
retries off and ours on.

A request is tried again after an answer that cannot be used (`attempts` times) and, for as long as
`patience` lasts without any answer, while the server is away or has too much to do. What trying
again cannot mend stops the run with one line: a wrong key, a model that is not there, max_cost.
What is in flight then is waited for, and kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import random
import time
from collections.abc import Iterable, Iterator

from cai_jax.errors import UserError
from cai_jax.io import progress
from cai_jax.io.answers import AnswerFile
from cai_jax.structs import FAILED
from cai_jax.textmodels import chat, failures, questions
from cai_jax.textmodels.answering import Outcome, cost, most
from cai_jax.textmodels.failures import Away, Bad, Cut, Final, Unsupported
from cai_jax.textmodels.protocol import COUNTED, SCORED, TOP

FIRST_DELAY, LONGEST_DELAY = 0.5, 20.0  # seconds between attempts, without the jitter
CONNECTIONS = 16  # of a client
MANY = 20  # requests in a row that failed for good: the server is not what it should be
PROBE = questions.choice("probe", "Which of the two can be eaten?\nOptions:\n(A) bread\n(B) iron")
TIERS = {
    SCORED: "log-probabilities of the options' own tokens",
    TOP: "the options among the likeliest first tokens",
    COUNTED: "samples, parsed strictly",
}


class Endpoint:
    """A `Carrier` to one model of a server.

    Attributes:
      name: the model's reference.
      wire: how requests are written.
      fields: of `configuration.endpoints.OPENAI`.
      file: where answers go.
      max_cost: of the run; None for no limit.
    """

    def __init__(
        self, name: str, wire: chat.Wire, fields, file: AnswerFile, max_cost: float | None = None
    ):
        self.name, self.wire, self.fields = name, wire, fields
        self.file, self.max_cost = file, max_cost
        self._key = key_of(name, fields.key_env)
        self._pace = Pace(fields.requests_per_minute, fields.tokens_per_minute)
        self._served_as: tuple[str, ...] | None = None  # once the server has listed its models
        self._silent_since: float | None = None
        self._num_failed, self._is_probing = 0, False
        self._reserved = 0.0  # what requests may cost whose first attempt is not in the file yet

    # A sliding window of requests -----------------------------------------------------------------

    def answers(self, requests: Iterable[chat.Request]) -> Iterator[tuple[chat.Request, Outcome]]:
        """See `Carrier.answers`; at most `concurrency` requests are taken at a time."""
        requests, tasks = iter(requests), {}
        self._silent_since = None
        with asyncio.Runner() as runner:
            # A client looks at each of its connections for every request: a few have few each.
            number = -(-self.fields.concurrency // CONNECTIONS)
            clients = [_client(self.wire.url, self._key) for _ in range(number)]
            self._stop = asyncio.Event()
            try:
                yield from self._window(runner, clients, requests, tasks)
            finally:
                self._reserved = 0.0
                runner.run(_close(clients, tasks))

    def _window(self, runner: asyncio.Runner, clients: list, requests, tasks: dict):
        """Keeps `tasks` (task → request) filled and yields what is done. An error is raised once
        what was in flight has come to its end."""
        error, request = None, next(requests, None)
        if request and self._served_as is None:
            self._served_as = runner.run(self._names(clients[0]))
        clients = itertools.cycle(clients)
        while tasks or (request and not error):
            while request and not error and len(tasks) < self.fields.concurrency:
                reserved = self._reserved + most(self.fields, request)
                if not self._is_affordable(reserved):
                    if not tasks:
                        error = self._too_expensive()
                    break
                self._reserved = reserved
                tasks[runner.get_loop().create_task(self._ask(next(clients), request))] = request
                request = next(requests, None)
            if not tasks:
                break
            finished = runner.run(_first(tasks))
            done = [(tasks.pop(task), task) for task in finished]
            kept = [(of, task.result()) for of, task in done if not task.exception()]
            self._keep(kept)
            yield from kept
            errors = [task.exception() for _, task in done if task.exception()]
            if errors and not error:
                error = errors[0]
                self._stop.set()
        if error:
            raise error

    def _keep(self, kept: list[tuple[chat.Request, Outcome]]) -> None:
        """Writes answers, and what they cost, before anybody sees them."""
        answers, costs = {}, {}
        for request, answer in kept:
            if isinstance(answer, str):
                continue
            answers[request.key] = answer
            # A server that does not count tokens may have been paid for the most.
            unknown = 0.0 if chat.missing(answer) else most(self.fields, request)
            usage = answer["usage"]
            costs[request.key] = cost(self.fields, usage) if usage else unknown
        if answers:
            self.file.add(answers, self.name, costs)

    # One request ----------------------------------------------------------------------------------

    async def _ask(self, client, request: chat.Request) -> Outcome:
        """What came of a request, after as many attempts as it takes."""
        attempt, num_bad, reserved = 0, 0, most(self.fields, request)
        tokens = len(request.text) // 4 + request.limit
        while True:
            attempt += 1
            await self._pace.wait(tokens)
            if self._stop.is_set():
                return FAILED
            if attempt > 1 and not self._is_affordable(self._reserved + reserved):
                raise self._too_expensive()
            self.file.asked(request.key, attempt, reserved)
            self._reserved -= reserved if attempt == 1 else 0.0
            try:
                answer = await self._send(client, request)
            except (Away, Bad) as error:
                paid = isinstance(error, Bad) and error.paid
                self.file.failed(request.key, str(error), None if paid else 0.0)
                num_bad += isinstance(error, Bad)
                if num_bad >= self._attempts(error):
                    return self._failed(error)
                await self._wait(attempt, error)
            except Final:
                self.file.failed(request.key, "the server does not take it")
                raise
            else:
                self._silent_since, self._num_failed = None, 0
                self._pace.correct(sum(answer["usage"] or (tokens,)) - tokens)
                return answer

    def _attempts(self, error: Away | Bad) -> int:
        """How many answers that cannot be used end a request. A probe's answer without what it asks
        for is what it wants to know."""
        is_answer = type(error) is Bad and error.paid
        return (
            min(2, self.fields.attempts) if self._is_probing and is_answer else self.fields.attempts
        )

    async def _send(self, client, request: chat.Request) -> dict:
        """One attempt: what `chat.read` keeps of the response."""
        import openai

        name = {"x-client-request-id": request.key}
        of = client.chat.completions if "messages" in request.body else client.completions
        empty = {"messages": []} if "messages" in request.body else {"prompt": ""}
        create = of.with_streaming_response.create
        data = bytearray()
        try:
            async with asyncio.timeout(self.fields.timeout):
                # The package sends `extra_body` as it is; what it checks takes it milliseconds.
                async with create(
                    model=request.body["model"],
                    **empty,
                    extra_body=request.body,
                    extra_headers=name,
                ) as response:
                    if response.headers.get("x-client-request-id", request.key) != request.key:
                        raise Bad("an answer to another request")
                    async for block in response.iter_bytes():
                        data += block
                        if len(data) > request.most_bytes:
                            raise Bad(f"an answer of more than {request.most_bytes} bytes")
            served_as = (*(self._served_as or ()), *filter(None, [self.fields.served_as]))
            return chat.read(request, chat.parse(bytes(data)), served_as)
        except chat.Unusable as error:
            raise Bad(str(error)) from None
        except TimeoutError:
            raise Cut(f"no answer within {self.fields.timeout:g} s") from None
        except openai.APIStatusError as error:
            body, fields = error.body or "", error.response.headers
            outcome = failures.of_status(error.status_code, body, fields, self.name)
            if isinstance(outcome, dict):
                return outcome
            raise self._without_key(outcome) from None
        except openai.APITimeoutError:
            raise Cut(f"no answer within {self.fields.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise _unreached(error.__cause__ or error) from None
        except Exception as error:
            if not type(error).__module__.startswith("http"):
                raise
            raise _unreached(error) from None

    def _without_key(self, error: Exception) -> Exception:
        if isinstance(error, Final):
            return type(error)(failures.without_secret(str(error), self._key))
        return error

    async def _names(self, client) -> tuple[str, ...] | None:
        """The name of a server's only model: what it calls the model that was asked for. None where
        it did not list its models."""
        with contextlib.suppress(Exception):  # not every server lists its models
            async with (
                asyncio.timeout(10),
                client.models.with_streaming_response.list() as response,
            ):
                listed = chat.parse(await response.read())["data"]
                return (str(listed[0]["id"]),) if len(listed) == 1 else ()
        return None

    async def _wait(self, attempt: int, error: Away | Bad) -> None:
        """Waits before the next attempt, longer each time, or as long as the server asks for.
        Raises Final where it has been silent for too long."""
        now, patience = time.monotonic(), self.fields.patience
        if type(error) is Bad:  # whatever it says, the server is there
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
            if isinstance(error, Away) and not error.retry_after:
                progress.warn(f"{self.name}: {error}; waiting up to {patience:g} s")
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
        delay = max(delay, error.retry_after)
        silent = now - self._silent_since if self._silent_since is not None else 0.0
        left = patience - silent
        if left <= 0 or error.retry_after > left:
            raise Final(
                f"{self.name}: no answer for {silent:.0f} s ({error}); what was "
                "answered is kept: start the server and run the same command again, or give it "
                "more time (config.endpoints.all.patience)"
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), min(delay, left))

    def _failed(self, error: Bad) -> Outcome:
        self._num_failed += 1
        if self._num_failed >= MANY:
            raise Final(
                f"{self.name}: {MANY} requests in a row have no usable answer after "
                f"{self.fields.attempts} attempts each ({error}); what was answered is kept"
            )
        return FAILED

    # Cost -----------------------------------------------------------------------------------------

    def _is_affordable(self, more: float) -> bool:
        return self.max_cost is None or self.file.spent() + more <= self.max_cost

    def _too_expensive(self) -> Final:
        return Final(
            f"{self.name}: the next request could pass config.max_cost={self.max_cost:g}: the "
            f"run's requests have cost {self.file.spent():.4g} at most; what was answered is kept: "
            "raise it and run the same command again"
        )

    # Tiers ----------------------------------------------------------------------------------------

    def tier(self) -> str:
        """How questions are asked: as the config says, or the first tier that the server can do,
        which is noted in the answer file."""
        if self.fields.tier != "auto":
            return self.fields.tier
        wire = self.wire
        name = f"tier of {wire.url}#{wire.model} {wire.format} {wire.continue_turns}"
        noted = self.file.note(name)
        if noted is None:
            noted = {"tier": next(filter(self._can, (SCORED, TOP)), COUNTED)}
            self.file.add_note(name, noted)
        progress.say(f"{self.name}: options by tier '{noted['tier']}' ({TIERS[noted['tier']]})")
        return noted["tier"]

    def _can(self, tier: str) -> bool:
        self._is_probing = True
        try:
            outcomes = self.answers(chat.ask(PROBE, tier, self.wire))
            return not any([chat.missing(outcome) for _, outcome in outcomes])
        except Unsupported:
            return False
        finally:
            self._is_probing = False


def key_of(name: str, variable: str) -> str:
    """The key in an environment variable; UserError where it is not set. It is never written."""
    if not variable:
        return ""
    if not (key := os.environ.get(variable, "").strip()):
        raise UserError(f"{name}: the environment variable {variable} (key_env) is not set")
    return key


def require_package(name: str) -> None:
    """UserError where the client is not installed."""
    if importlib.util.find_spec("openai") is None:
        raise UserError(
            f"{name}: the package openai is not installed: pip install 'cai_jax[endpoints]'"
        )


def _client(url: str, key: str):
    import openai

    # A server without a key does not read what is sent as one.
    return openai.AsyncOpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=None)


async def _first(tasks: Iterable[asyncio.Task]) -> set[asyncio.Task]:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return done


async def _close(clients: Iterable, tasks: Iterable[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in clients:
        await client.close()


def _unreached(error: BaseException) -> Away | Cut:
    """Nothing came, or not to its end."""
    name = type(error).__name__
    away = name in ("ConnectError", "ConnectTimeout", "PoolTimeout")
    return Away("the server cannot be reached") if away else Cut(f"the answer was cut ({name})")


class Pace:
    """Spreads requests so that a minute has no more of them, and of their tokens, than it may."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None):
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        # When the next request may be sent, by either limit.
        self._next_request = self._next_tokens = 0.0

    async def wait(self, tokens: int) -> None:
        """Until a request of about so many tokens may be sent."""
        start = max(time.monotonic(), self._next_request, self._next_tokens)
        self._next_request = start + self._per_request
        self._next_tokens = start + tokens * self._per_token
        if (delay := start - time.monotonic()) > 0:
            await asyncio.sleep(delay)

    def correct(self, more: int) -> None:
        """The request had so many more tokens than was thought, or fewer."""
        self._next_tokens += more * self._per_token
