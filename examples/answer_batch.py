"""Answers the request files of a batch (docs/endpoints.md), by any OpenAI-compatible server or by
hand:

    python examples/answer_batch.py runs/mine/critic http://localhost:8000/v1 Qwen3-32B
    python examples/answer_batch.py runs/mine/critic          # shows each request, reads a line

A key is read from the environment variable OPENAI_API_KEY. Answers are collected in a hidden file,
so that the program may be stopped at any moment; results-NNNN.jsonl appears once all are there.
"""

import json
import os
import pathlib
import sys
import urllib.request


def body_of(request: dict) -> dict:
    """The body for an OpenAI-compatible server; Anthropic's form has its system message apart."""
    if "body" in request:
        return request["body"]
    body = dict(request["params"])
    system = [{"role": "system", "content": body.pop("system")}] if "system" in body else []
    return {**body, "messages": system + body["messages"]}


def by_server(request: dict, url: str, model: str) -> dict:
    """The server's answer to a request."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps({**body_of(request), "model": model}).encode()
    path = request.get("url", "/v1/chat/completions").removeprefix("/v1")
    sent = urllib.request.Request(url + path, data, headers)
    with urllib.request.urlopen(sent, timeout=600) as response:
        return {"response": {"status_code": 200, "body": json.load(response)}}


def by_hand(request: dict) -> dict:
    """A line that a person types."""
    body = body_of(request)
    for message in body.get("messages") or [{"role": "text", "content": body["prompt"]}]:
        print(f"--- {message['role']}\n{message['content']}")
    return {"text": input("--- your answer\n")}


def answer(path: pathlib.Path, how) -> None:
    """Answers every request of a file."""
    results = path.with_name(path.name.replace("requests", "results"))
    if results.exists():
        return
    collected = results.with_name(f".{results.name}.part")
    before = collected.read_text().rpartition("\n")[0] if collected.exists() else ""
    done = {json.loads(line)["custom_id"] for line in before.split("\n") if line}
    collected.write_text(before + "\n" * bool(before))  # without a line that a kill has torn
    with collected.open("a") as file:
        for line in path.read_text().split("\n"):
            if line and (request := json.loads(line))["custom_id"] not in done:
                reply = {"custom_id": request["custom_id"], **how(request)}
                file.write(json.dumps(reply) + "\n")
                file.flush()
    collected.rename(results)


if __name__ == "__main__":
    directory, *server = sys.argv[1:]
    for requests in sorted(pathlib.Path(directory).glob("requests-*.jsonl")):
        answer(requests, (lambda request: by_server(request, *server)) if server else by_hand)
