"""A small OpenAI-compatible server that does what servers should not, on a loopback port of its
own. It logs every request that it answers well, and every one that it gets.

    with FaultyServer(faults={"429": 0.2}) as server: … server.url, server.asked, server.answered
    python -m tests.faulty_server PORT FAULTS LOG          a process of its own, for kills
"""

from __future__ import annotations

import asyncio
import collections
import json
import random
import socket
import sys
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODEL = "m"
FAULTS = (
    "429",
    "429 with Retry-After",
    "500",
    "nothing",
    "half a JSON",
    "a cut stream",
    "the wrong model",
    "another's id",
    "a refusal",
    "10 MB of text",
    "invalid UTF-8",
    "log-probabilities missing",
    "log-probabilities NaN",
)


def answer_to(body: dict) -> str:
    """The answer to a request: the last word of its last message."""
    text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return f"answer to {text.split()[-1] if text.split() else ''}"


class FaultyServer:
    """faults: one of FAULTS, or the number of a status → share of requests. latency: seconds.
    per_answer: (read, written) tokens of its usage. key: what it wants. log: a file of the keys of
    requests that were answered well, line by line. calls_it: the model, in its answers; listed: its
    models, none where it cannot tell."""

    def __init__(
        self, faults=None, latency=0.0, per_answer=(10, 5), key="", log=None, port=0, seed=0
    ):
        self.faults, self.latency, self.per_answer = dict(faults or {}), latency, per_answer
        self.key, self.log, self.seed = key, log, seed
        self.asked: collections.Counter[str] = collections.Counter()
        self.answered: collections.Counter[str] = collections.Counter()
        self.times: list[float] = []
        self.order: list[dict] = []
        self.calls_it, self.listed = MODEL, [MODEL, "another"]
        self.in_flight = self.most_in_flight = 0
        self._random = random.Random(seed)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FaultyServer:
        routes = [
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/models", self._models),
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        sockets = [self._socket]
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": sockets})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()
        self._socket.close()

    async def _models(self, request: Request) -> Response:
        if not self.listed:
            return JSONResponse({"error": {"message": "no"}}, 503)
        return JSONResponse({"data": [{"id": name} for name in self.listed]})

    async def _complete(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            words = f"Incorrect API key: {request.headers.get('authorization')}"
            return JSONResponse({"error": {"message": words}}, 401)
        body = json.loads(await request.body())
        if body["model"] != MODEL:
            return JSONResponse({"error": {"message": f"no model {body['model']}"}}, 404)
        name = request.headers["x-client-request-id"]
        self.asked[name] += 1
        self.times.append(time.monotonic())
        self.order.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.latency)
            draw, fault = self._random.random(), ""
            for fault, share in self.faults.items():
                if draw < share:
                    return self._fault(fault, body, name)
                draw -= share
            self._note(name)
            return JSONResponse(self.right(body))
        finally:
            self.in_flight -= 1

    def _note(self, name: str) -> None:
        self.answered[name] += 1
        if self.log:
            with open(self.log, "a") as file:
                file.write(name + "\n")

    def right(self, body: dict) -> dict:
        """A right response."""
        choices = []
        for index in range(body.get("n", 1)):
            choice = {"index": index, "finish_reason": "stop"}
            if "messages" in body:
                choice["message"] = {"role": "assistant", "content": answer_to(body)}
            else:
                choice["text"] = answer_to(body)
            if body.get("logprobs"):
                choice["logprobs"] = {
                    "content": [
                        {
                            "token": "(A)",
                            "top_logprobs": [
                                {"token": "(A)", "logprob": -0.25},
                                {"token": "(B)", "logprob": -1.75},
                            ],
                        }
                    ]
                }
            choices.append(choice)
        usage = dict(zip(("prompt_tokens", "completion_tokens"), self.per_answer, strict=True))
        return {"id": "x", "model": self.calls_it, "choices": choices, "usage": usage}

    def _fault(self, fault: str, body: dict, name: str) -> Response:
        right = self.right(body)
        if fault.isdigit():
            return JSONResponse({"error": {"message": "no"}}, int(fault))
        if fault == "429 with Retry-After":
            return JSONResponse({"error": {"message": "no"}}, 429, {"retry-after": "0.2"})
        if fault == "nothing":
            return Response(b"")
        data = json.dumps(right).encode()
        if fault == "half a JSON":
            return Response(data[: len(data) // 2])
        if fault == "a cut stream":
            return StreamingResponse(_cut(data), headers={"content-length": str(len(data))})
        if fault == "invalid UTF-8":
            return Response(data.replace(b"answer", b"\xff\xfe"))
        if fault == "another's id":
            return Response(data, headers={"x-client-request-id": "0" * 32})
        if fault == "the wrong model":
            right["model"] = "another"
        elif fault == "10 MB of text":
            right["choices"][0]["message"]["content"] = "x" * 10_000_000
        elif fault == "log-probabilities missing":
            right["choices"][0]["logprobs"] = None
        elif fault == "log-probabilities NaN":
            right["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = float(
                "nan"
            )
            return Response(json.dumps(right))
        elif fault == "a refusal":
            self._note(name)
            right["choices"][0]["finish_reason"] = "content_filter"
        return JSONResponse(right)


async def _cut(data: bytes):
    yield data[: len(data) // 2]
    raise ConnectionResetError


if __name__ == "__main__":
    port, faults, log = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    with FaultyServer(faults, latency=float(sys.argv[4]), port=port, log=log):
        print("ready", flush=True)
        sys.stdin.read()
