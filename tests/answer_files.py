"""A small program that answers the request files of a batch, as any program might."""

import hashlib
import json
import math

from cai_jax.textmodels import batch_files


def body_of(request: dict) -> dict:
    """The answer to a request in OpenAI's form: a digest of what was asked, as words; to a question
    the log-probabilities of its first tokens."""
    asked = request["body"]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    choice = {"index": 0, "finish_reason": "stop"}
    choice["message"] = {"role": "assistant", "content": f"I think {digest[:8]} is right."}
    if asked.get("logprobs"):
        p = (1 + int(digest[:4], 16)) / 2**17 + 0.2
        tops = [
            {"token": token, "logprob": math.log(share)}
            for token, share in (("A", p), ("B", 0.9 - p), ("C", 0.05))
        ]
        choice["message"]["content"] = "(A"
        likely = [{"token": "(", "logprob": 0.0}]
        choice["logprobs"] = {
            "content": [
                {"token": "(", "logprob": 0.0, "top_logprobs": likely},
                {"token": "A", "logprob": tops[0]["logprob"], "top_logprobs": tops},
            ]
        }
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "x", "choices": [choice], "usage": usage}


def result_of(request: dict) -> dict:
    """The line of a results file."""
    response = {"status_code": 200, "request_id": "r", "body": body_of(request)}
    return {"custom_id": request["custom_id"], "response": response, "error": None}


def requests_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def answer_all(directory, change=lambda lines: lines) -> None:
    """Answers every requests file that has no results; `change` makes of the lines what comes
    back."""
    done = batch_files.numbered(directory, batch_files.RESULTS)
    for number, path in batch_files.numbered(directory, batch_files.REQUESTS).items():
        if number not in done:
            results = [json.dumps(result_of(request)) for request in requests_of(path)]
            target = batch_files.path_of(directory, batch_files.RESULTS, number)
            target.write_text("\n".join(change(results)) + "\n")
