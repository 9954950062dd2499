"""The server as an ASGI application: routes, errors, and how an answer's tokens reach a client.

    app = policy_app(Reader(name, format, max_length), worker, key)
    app = pm_app(Preferences(reader, reward_model, worker), name, key)

Handlers submit jobs to the worker's thread and wait for their events; a client that leaves cancels
its jobs.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cai_jax.errors import UserError
from cai_jax.serving import fields
from cai_jax.serving.answer import Answer, receive, require_room, submit
from cai_jax.serving.fields import ApiError
from cai_jax.serving.requests import CompletionRequest, Reader
from cai_jax.serving.texts import Texts
from cai_jax.serving.worker import Event, Job, Worker

MAX_BYTES = 4 * 2**20  # of a body
RETRY_SECONDS = 1  # what a client that comes to a full queue is asked to wait


class Policy:
    """Chats and plain completions by an engine."""

    def __init__(self, reader: Reader, worker: Worker):
        self._reader, self._worker, self._texts = reader, worker, Texts(reader.format)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await read_body(request)
        return await self._answer(request, await run_in_threadpool(self._reader.chat, body))

    async def completion(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await read_body(request)
        return await self._answer(request, await run_in_threadpool(self._reader.completion, body))

    async def _answer(self, request: Request, wanted: CompletionRequest) -> Response:
        answer = Answer(wanted, self._reader, self._texts, self._worker)
        answer.submit()
        try:
            # An error that comes before the first token still has a status of its own.
            await until_gone(request, answer.begin())
            if wanted.stream:
                return _Stream(answer)
            return JSONResponse(await until_gone(request, answer.complete()))
        finally:
            if not (wanted.stream and answer.begun):
                answer.cancel()


class _Stream(StreamingResponse):
    """Server-sent events. However it ends, nothing goes on computing for it."""

    def __init__(self, answer: Answer):
        super().__init__(self._lines(answer), media_type="text/event-stream")
        self._answer = answer

    @staticmethod
    async def _lines(answer: Answer) -> AsyncIterator[str]:
        try:
            async for chunk in answer.chunks():
                yield f"data: {_dumps(chunk)}\n\n"
        except ApiError as error:
            yield f"data: {_dumps(error.body())}\n\n"
        yield "data: [DONE]\n\n"

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


class Preferences:
    """Scores of dialogues by a preference model, in the form of vLLM's /pooling."""

    def __init__(self, reader: Reader, model, worker: Worker):
        self._reader, self._model, self._worker = reader, model, worker

    async def pooling(self, request: Request) -> Response:
        """POST /pooling."""
        body = await read_body(request)
        sequences = await run_in_threadpool(self._sequences, body)
        scores = await until_gone(request, self._scores(sequences))
        if not np.isfinite(scores).all():
            raise ApiError("a score is not a finite number", status=500)
        count = sum(map(len, sequences))
        return JSONResponse(
            {
                "id": f"pool-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": self._reader.name,
                "data": [
                    {"index": index, "object": "pooling", "data": [score]}
                    for index, score in enumerate(scores)
                ],
                "usage": {"prompt_tokens": count, "total_tokens": count},
            }
        )

    async def _scores(self, sequences: list[tuple[int, ...]]) -> list[float]:
        """The scores of sequences, by a job for each batch of them."""
        batches = [indices for _, indices in self._model.batches(sequences)]
        jobs = [
            Job(number, call=self._scorer([sequences[i] for i in indices]), num_texts=len(indices))
            for number, indices in enumerate(batches)
        ]
        inbox: asyncio.Queue[Event] = asyncio.Queue()
        submit(self._worker, jobs, inbox)
        scores = [0.0] * len(sequences)
        try:
            for _ in jobs:
                event = await receive(inbox)
                for index, score in zip(batches[event.index], event.logprobs, strict=True):
                    scores[index] = score
        finally:
            self._worker.cancel(jobs)
        return scores

    def _scorer(self, sequences: list[tuple[int, ...]]) -> Callable[[], list[float]]:
        return lambda: self._model.score_tokens(sequences).tolist()

    def _sequences(self, body: dict) -> list[tuple[int, ...]]:
        texts = self._reader.pooling(body)
        require_room(self._worker, len(texts))
        try:
            sequences = [
                each if isinstance(each[0], int) else self._model.tokens(each) for each in texts
            ]
        except UserError as error:
            raise ApiError(str(error), "messages") from None
        longest = max(map(len, sequences))
        if longest > self._reader.max_length:
            raise ApiError(
                f"this model's context has {self._reader.max_length} tokens, one text has "
                f"{longest}",
                code="context_length_exceeded",
            )
        return sequences


# What all requests have in common -----------------------------------------------------------------


async def read_body(request: Request) -> dict:
    """The JSON object that a client sent. A body of another type is refused: that is what keeps web
    pages from sending one in a browser's name."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ApiError("the content type must be application/json", status=415)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise ApiError(f"the body has more than {MAX_BYTES} bytes", status=413)
    return await run_in_threadpool(fields.parse, bytes(data))


async def until_gone(request: Request, result: Awaitable):
    """The result; ClientDisconnect where the client leaves before it is there."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waits, leaves = asyncio.ensure_future(result), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((waits, leaves), return_when=asyncio.FIRST_COMPLETED)
        if not waits.done():
            raise ClientDisconnect
        return waits.result()
    finally:
        waits.cancel()
        leaves.cancel()


def make_app(name: str, routes: dict[str, Callable], key: str = "") -> Starlette:
    """An application that serves `name`.

    Args:
      name: of the model.
      routes: path → handler of a POST.
      key: what clients must send as a bearer token; "" for none.
    """
    created = int(time.time())

    async def models(_: Request) -> Response:
        model = {"id": name, "object": "model", "created": created, "owned_by": "cai_jax"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(_: Request) -> Response:
        return Response()

    def known(handler: Callable) -> Callable:
        """The handler for those who have the key."""

        async def handle(request: Request) -> Response:
            sent = request.headers.get("authorization", "").removeprefix("Bearer ")
            if key and not hmac.compare_digest(sent.encode(), key.encode()):
                raise ApiError("this server needs its API key", status=401, code="invalid_api_key")
            response = await handler(request)
            if named := request.headers.get("x-client-request-id"):
                response.headers["x-client-request-id"] = named
            return response

        return handle

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", known(models)),
            *(Route(path, known(handler), methods=["POST"]) for path, handler in routes.items()),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
        },
    )


def policy_app(reader: Reader, worker: Worker, key: str = "") -> Starlette:
    policy = Policy(reader, worker)
    routes = {"/v1/chat/completions": policy.chat, "/v1/completions": policy.completion}
    return make_app(reader.name, routes, key)


def pm_app(preferences: Preferences, name: str, key: str = "") -> Starlette:
    routes = {"/pooling": preferences.pooling, "/v1/pooling": preferences.pooling}
    return make_app(name, routes, key)


async def _api_error(_: Request, error: ApiError) -> Response:
    headers = {"Retry-After": str(RETRY_SECONDS)} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers)


async def _http_error(_: Request, error: HTTPException) -> Response:
    refused = ApiError(error.detail, status=error.status_code)
    return JSONResponse(refused.body(), error.status_code, error.headers)


async def _gone(_: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)


def _dumps(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
