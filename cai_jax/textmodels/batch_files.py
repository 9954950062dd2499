"""Requests and answers as JSON Lines, for models that answer later: OpenAI's Batch API, Anthropic's
Message Batches, a program, a person.

    requests-0001.jsonl   written here, complete or not at all
    results-0001.jsonl    written by whoever answers; lines in any order

`custom_id` is the request's key, a digest of its content: an answer serves every request of that
content, whichever file it is in. The forms, a request and its result on a line each:

    openai      {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}
                {"custom_id", "response": {"status_code": 200, "body"}, "error": null}
    anthropic   {"custom_id", "params"}
                {"custom_id", "result": {"type": "succeeded", "message"}}
    either      {"custom_id", "text": "…"}, which may have "finish_reason": "length"
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.textmodels import chat, failures
from cai_jax.textmodels.options import Unusable

OPENAI, ANTHROPIC = "openai", "anthropic"
FORMS = (OPENAI, ANTHROPIC)
REQUESTS, RESULTS, SUBMITTED = "requests", "results", "submitted"
NAME = re.compile(r"(requests|results|submitted)-([0-9]{4,9})\.jsonl?")
# What Anthropic calls the ends of an answer, as the chat API does.
STOP_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "refusal": "content_filter",
}
ANTHROPIC_FIELDS = ("model", "max_tokens", "temperature", "top_p", "top_k")


def numbered(directory, kind: str) -> dict[int, epath.Path]:
    """Number → path of the files of a kind: REQUESTS, RESULTS or SUBMITTED."""
    directory = epath.Path(directory)
    paths = sorted(directory.iterdir()) if directory.exists() else ()
    names = ((NAME.fullmatch(path.name), path) for path in paths)
    return {int(name[2]): path for name, path in names if name and name[1] == kind}


def path_of(directory, kind: str, number: int) -> epath.Path:
    """The path of one of them."""
    return epath.Path(directory) / f"{kind}-{number:04d}.json{'' if kind == SUBMITTED else 'l'}"


# Requests -----------------------------------------------------------------------------------------


def write_requests(
    directory, requests: Sequence[chat.Request], form: str, lines_per_file: int
) -> dict[str, int]:
    """Writes requests into the next files of the directory.

    Args:
      directory: it need not exist.
      requests: in the order of the lines.
      form: OPENAI or ANTHROPIC.
      lines_per_file: the most that a file has.

    Returns:
      Path → how many requests it has.
    """
    taken = {**numbered(directory, REQUESTS), **numbered(directory, RESULTS)}
    number, written = max(taken, default=0), {}
    for first in range(0, len(requests), lines_per_file):
        number += 1
        lines = [_line(request, form) for request in requests[first : first + lines_per_file]]
        path = path_of(directory, REQUESTS, number)
        artefacts.write_text(path, "".join(lines))
        written[str(path)] = len(lines)
    return written


def _line(request: chat.Request, form: str) -> str:
    if form == ANTHROPIC:
        value = {"custom_id": request.key, "params": anthropic_params(request.body)}
    else:
        url, body = f"/v1{request.path}", dict(request.body)
        if not body["model"]:  # whoever answers knows
            del body["model"]
        value = {"custom_id": request.key, "method": "POST", "url": url, "body": body}
    return json.dumps(value, ensure_ascii=False) + "\n"


def anthropic_params(body: Mapping) -> dict:
    """The body of a chat completion as Anthropic's Messages API takes it."""
    messages, params = list(body["messages"]), {}
    if messages[0]["role"] == "system":
        params["system"] = messages.pop(0)["content"]
    if messages[-1]["role"] == "assistant":  # refused with space at its end
        messages[-1] = messages[-1] | {"content": messages[-1]["content"].rstrip()}
    if "max_completion_tokens" in body:
        params["max_tokens"] = body["max_completion_tokens"]
    return (
        {name: body[name] for name in ANTHROPIC_FIELDS if body.get(name, "") != ""}
        | params
        | {"messages": messages}
    )


# Results ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Replies:
    """What a directory holds.

    Attributes:
      by_key: key → what came back, in order: the body of a chat completion, or why there is none.
      awaited: path of a requests file without results → its keys.
      notes: what was wrong with lines → how many.
    """

    by_key: dict[str, list[dict | str]] = dataclasses.field(default_factory=dict)
    awaited: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    notes: dict[str, int] = dataclasses.field(default_factory=dict)


def read(directory) -> Replies:
    """What has been asked and answered in a directory."""
    replies, notes, asked = Replies(), collections.Counter(), set()
    results = numbered(directory, RESULTS)
    for number, path in numbered(directory, REQUESTS).items():
        keys = [line["custom_id"] for line in _lines(path, notes)]
        asked.update(keys)
        if number not in results:
            replies.awaited[str(path)] = keys
    for path in results.values():
        for line in _lines(path, notes):
            key = line["custom_id"]
            notes["answers to requests that no file asks"] += key not in asked
            try:
                reply = _body(line)
            except Unusable as error:
                reply = str(error)
                notes["requests that failed"] += 1
            given = replies.by_key.setdefault(key, [])
            first = next((body for body in given if isinstance(body, dict)), reply)
            if isinstance(reply, dict) and _content(first) != _content(reply):
                notes["answers that differ from the first to the same request"] += 1
            given.append(reply)
    replies.notes = {what: count for what, count in notes.items() if count}
    return replies


def _lines(path: epath.Path, notes: collections.Counter) -> Iterator[dict]:
    """The objects of a file that have a custom_id; other lines are noted."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    for line in filter(bytes.strip, data.split(b"\n")):
        try:
            value = chat.parse(line)
            if not isinstance(value.get("custom_id"), str):
                raise Unusable("no custom_id")
        except Unusable:
            notes[f"lines of {path.name} that are no JSON object with a custom_id"] += 1
        else:
            yield value


def _body(line: Mapping) -> dict:
    """The answer of a results line as the body of a chat completion; Unusable where it failed."""
    if "text" in line:
        return completion(line["text"], line.get("finish_reason", "stop"))
    result, response = line.get("result"), line.get("response")
    if isinstance(result, Mapping):
        if result.get("type") == "succeeded" and isinstance(result.get("message"), Mapping):
            return _from_anthropic(result["message"])
        raise Unusable(_reason(result) or str(result.get("type")))
    if isinstance(response, Mapping) and isinstance(response.get("body"), Mapping):
        if response.get("status_code") == 200:
            return dict(response["body"])
        raise Unusable(_reason(response["body"]) or f"status {response.get('status_code')}")
    raise Unusable(_reason(line) or "no answer in the line")


def _from_anthropic(message: Mapping) -> dict:
    content, usage = message.get("content"), message.get("usage")
    blocks = content if isinstance(content, list) else []
    texts = [
        block.get("text")
        for block in blocks
        if isinstance(block, Mapping) and block.get("type") == "text"
    ]
    if not all(isinstance(text, str) for text in texts):
        raise Unusable("a block without text")
    stop = str(message.get("stop_reason"))
    body = completion("".join(texts), STOP_REASONS.get(stop, stop))
    body["model"] = message.get("model")
    if isinstance(usage, Mapping):
        read, written = usage.get("input_tokens"), usage.get("output_tokens")
        body["usage"] = {"prompt_tokens": read, "completion_tokens": written}
    return body


def completion(text, finish_reason: str) -> dict:
    """The body of a chat completion with that text."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


def _reason(value: Mapping) -> str:
    """The message of an error, wherever the two services put it; structs.TOO_LONG or REFUSED where
    asking again would not help."""
    while isinstance(value.get("error"), Mapping):
        value = value["error"]
    message = " ".join(str(value.get("message") or "").split())[:200]
    return failures.without_answer(value) or message


def _content(body: Mapping) -> list:
    """What of an answer another one must equal: an identifier or a time may differ."""
    choices = body.get("choices")
    return [
        (choice.get("message"), choice.get("finish_reason"))
        for choice in (choices if isinstance(choices, list) else ())
        if isinstance(choice, Mapping)
    ]
