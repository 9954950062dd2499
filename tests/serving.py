"""A server in a thread of the test, and bodies that no server should take."""

import contextlib
import json
import random
import socket
import threading

import httpx
import openai
import uvicorn

from cai_jax import serve

VALID = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 2,
    },
    "/v1/completions": {"model": "tiny", "prompt": "Hello", "max_tokens": 2},
}
# field → values of which none is valid
WRONG = {
    "model": ["", "other", 3, [], {}],
    "messages": [
        "Hello",
        [],
        {},
        [1],
        [None],
        [{}],
        [{"role": "user"}],
        [{"role": "nobody", "content": "x"}],
        [{"role": ["user"], "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": "half \ud800 a character"}],
        [{"role": "user", "content": "word " * 20_000}],
        [{"role": "assistant", "content": "x", "tool_calls": [1]}],
    ],
    "prompt": [
        "",
        [],
        {},
        7,
        [[]],
        [""],
        [-1],
        [10**9],
        [1, "a"],
        [[1.5]],
        "x\udfff",
        [None],
        [True],
    ],
    "max_tokens": [-1, 1.5, "2", 10**30, True, [], {}],
    "temperature": [-0.1, 1e9, "hot", [], True and [1], {}],
    "top_p": [0, -1, 1.1, "x", []],
    "top_k": [-2, 1.5, "x", []],
    "n": [0, -1, 10**6, 1.5, "x"],
    "seed": [1.5, "x", [], 10**40],
    "stop": [5, [5], [""], ["x"] * 17, "x" * 1001, {}],
    "stream": ["yes", 1, []],
    "stream_options": [1, [], {"unknown": 1}, {"include_usage": "yes"}],
    "logprobs": ["x", -1, 21, [], {}],
    "top_logprobs": [-1, 21, "x", 3],
    "prompt_logprobs": [-1, 21, "x", 1.5],
    "echo": ["x", 1],
    "return_token_ids": ["x", 1],
    "frequency_penalty": [0.5],
    "presence_penalty": [-0.5, "x"],
    "logit_bias": [{"5": 1}],
    "tools": [[{"type": "function"}]],
    "response_format": [{"type": "json_object"}],
    "best_of": [3],
    "suffix": ["x"],
    "__class__": [1],
    "{field}%s": ["{0.__class__}"],
    "\ud800": [1],
}
RAW = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe{}",
    b'{"model": NaN}',
    b'{"messages": ' + b"[" * 100_000,
    b'{"max_tokens": ' + b"9" * 5000 + b"}",
    b'{"prompt": "\xc3"}',
    b"{'model': 'tiny'}",
]


def malformed(rng: random.Random) -> tuple[str, bytes]:
    """(path, body) of a request that must be refused."""
    path = rng.choice(list(VALID))
    body = json.loads(json.dumps(VALID[path]))
    kind = rng.randrange(10)
    if kind == 0:
        return path, rng.choice(RAW)
    if kind == 1:  # cut in the middle
        data = json.dumps(body).encode()
        return path, data[: rng.randrange(len(data))]
    if kind == 2:  # without its question
        body.pop("messages" if "messages" in body else "prompt")
        return path, json.dumps(body).encode()
    if kind == 3:
        name = "".join(rng.choices("abcdefgh_", k=12))
        return path, json.dumps({**body, name: rng.random()}).encode()
    only_chat, only_plain = ("messages", "top_logprobs"), ("prompt", "echo")
    skipped = only_plain if "chat" in path else only_chat
    field = rng.choice([name for name in WRONG if name not in skipped])
    return path, json.dumps({**body, field: rng.choice(WRONG[field])}).encode()


class Server:
    """url; worker: the thread that owns the model; http and openai: clients."""

    def __init__(self, app, worker, url: str, key: str):
        self.app, self.worker, self.url = app, worker, url
        self.http = httpx.Client(base_url=url, timeout=300)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=key or "none", max_retries=0)

    def post(self, path: str, body: dict) -> httpx.Response:
        return self.http.post(path, json=body)


@contextlib.contextmanager
def running(source: str, what: str = "policy", key: str = "", started: bool = True, **limits):
    """A server of a model in a thread."""
    app, worker, _ = serve.make_app(source, what, key=key, **limits)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        if started:
            worker.start()
        made = Server(app, worker, f"http://127.0.0.1:{listener.getsockname()[1]}", key)
        try:
            yield made
        finally:
            worker.stop()
            made.http.close()
            made.openai.close()
            server.should_exit = True
            thread.join()
