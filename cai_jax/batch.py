"""Carries the files of a batch (`textmodels/batch_files.py`) to a service and back:

    python -m cai_jax.batch submit DIR     uploads every requests file that was not submitted
    python -m cai_jax.batch fetch DIR      writes results-NNNN.jsonl for every batch that has ended
    python -m cai_jax.batch status DIR     a line a file

Requests in the form of OpenAI's Batch API go to any server that has it, by the `openai` package;
those in the form of Anthropic's Message Batches over HTTP. The key is read from an environment
variable. What was submitted is in submitted-NNNN.json: it is not submitted again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Container
from typing import Protocol

from etils import epath

from cai_jax import references
from cai_jax.configuration import fields
from cai_jax.errors import EXIT_WAITING, Parser, UserError, command, in_field
from cai_jax.io import artefacts
from cai_jax.textmodels import batch_files, endpoint
from cai_jax.textmodels.batch_files import REQUESTS, RESULTS, SUBMITTED

# form → (the environment variable with the key, the server)
DEFAULTS = {
    batch_files.OPENAI: ("OPENAI_API_KEY", "https://api.openai.com/v1"),
    batch_files.ANTHROPIC: ("ANTHROPIC_API_KEY", "https://api.anthropic.com/v1"),
}
ANTHROPIC_VERSION = "2023-06-01"
SECONDS = 120  # that a server has for an answer


class Service(Protocol):
    """What a batch API can do."""

    def find(self, mark: str, known: Container[str]) -> str | None:
        """The id of a batch that carries `mark` and is none of the known ones, from before a
        kill."""

    def submit(self, data: bytes, name: str, mark: str) -> str:
        """Starts a batch; its id."""

    def state(self, batch: str) -> tuple[str, bool]:
        """(what the service calls its state, whether it has ended)."""

    def results(self, batch: str) -> bytes:
        """The results of a batch that has ended, b"" where there are none."""


class OpenAI:
    """OpenAI's Batch API. A batch has its file's digest in its metadata, so that one whose id was
    lost by a kill is recognised."""

    def __init__(self, key: str, url: str):
        import openai

        self._client = openai.OpenAI(api_key=key, base_url=url, timeout=SECONDS)

    def find(self, mark: str, known: Container[str]) -> str | None:
        """See `Service`."""
        for batch in self._client.batches.list(limit=100):
            ended_badly = batch.status in ("failed", "cancelled", "cancelling")
            is_asked = (batch.metadata or {}).get("requests") == mark and not ended_badly
            if is_asked and batch.id not in known:
                return batch.id
        return None

    def submit(self, data: bytes, name: str, mark: str) -> str:
        """See `Service`."""
        file = self._client.files.create(file=(name, data), purpose="batch")
        url = json.loads(data[: data.index(b"\n")])["url"]
        # Not retried: the first try may have started a batch. `find` knows.
        batch = self._client.with_options(max_retries=0).batches.create(
            input_file_id=file.id,
            endpoint=url,
            completion_window="24h",
            metadata={"requests": mark},
        )
        return batch.id

    def state(self, batch: str) -> tuple[str, bool]:
        """See `Service`."""
        status = self._client.batches.retrieve(batch).status
        return status, status in ("completed", "failed", "expired", "cancelled")

    def results(self, batch: str) -> bytes:
        """See `Service`: answers, then errors."""
        known = self._client.batches.retrieve(batch)
        files = filter(None, [known.output_file_id, known.error_file_id])
        parts = [self._client.files.content(file).content for file in files]
        return b"".join(part.rstrip(b"\n") + b"\n" for part in parts if part)


class Anthropic:
    """Anthropic's Message Batches. They carry no metadata: a batch whose id was lost by a kill in
    the moment after its start is not recognised."""

    def __init__(self, key: str, url: str):
        import httpx

        headers = {"x-api-key": key, "anthropic-version": ANTHROPIC_VERSION}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=SECONDS)

    def _call(self, method: str, path: str, **fields):
        response = self._client.request(method, f"/messages/batches{path}", **fields)
        response.raise_for_status()
        return response

    def _field(self, response, name: str) -> str:
        try:
            return str(response.json()[name])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{response.url}: no '{name}' in the answer") from error

    def find(self, mark: str, known: Container[str]) -> str | None:
        """See `Service`."""
        return None

    def submit(self, data: bytes, name: str, mark: str) -> str:
        """See `Service`."""
        requests = [json.loads(line) for line in data.splitlines()]
        return self._field(self._call("POST", "", json={"requests": requests}), "id")

    def state(self, batch: str) -> tuple[str, bool]:
        """See `Service`."""
        status = self._field(self._call("GET", f"/{batch}"), "processing_status")
        return status, status == "ended"

    def results(self, batch: str) -> bytes:
        """See `Service`."""
        return self._call("GET", f"/{batch}/results").content


def service_of(form: str, url: str = "", key_name: str = "") -> Service:
    """The service for a form of requests.

    Args:
      form: of `batch_files`.
      url: of the server, up to and including /v1; the form's own by default.
      key_name: the environment variable with the key.

    Returns:
      The service.

    Raises:
      UserError: the variable is not set, or the package openai is missing.
    """
    name, default = DEFAULTS[form]
    name, url = key_name or name, url or default
    key = os.environ.get(name)
    if not key:
        raise UserError(f"{name} is not set; put the key for {url} into that environment variable")
    endpoint.require_package(url)  # httpx comes with it
    return (OpenAI if form == batch_files.OPENAI else Anthropic)(key, url)


def form_of(data: bytes, path) -> str:
    """The form of a requests file, by its first line. UserError where that is no request, or one
    without a model."""
    try:
        first = json.loads(data.split(b"\n", 1)[0])
        form = batch_files.ANTHROPIC if "params" in first else batch_files.OPENAI
        has_model = "model" in (first.get("params") or first["body"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}:1: expected a request as a JSON object") from error
    if not has_model:
        raise UserError(
            f"{path}: its requests name no model; call it batch:DIR#MODEL in the config"
        )
    return form


def submit(directory: epath.Path, url: str, key_name: str) -> int:
    """Submits every requests file that has neither results nor been submitted."""
    submitted = batch_files.numbered(directory, SUBMITTED)
    # A file whose requests have all failed is written again with the same bytes.
    known = {artefacts.read_json(path)["batch"] for path in submitted.values()}
    done = {**batch_files.numbered(directory, RESULTS), **submitted}
    for number, path in batch_files.numbered(directory, REQUESTS).items():
        if number in done:
            continue
        data = path.read_bytes()
        form, mark = form_of(data, path), hashlib.sha256(data).hexdigest()
        service = service_of(form, url, key_name)
        batch = service.find(mark, known) or service.submit(data, path.name, mark)
        known.add(batch)
        target = batch_files.path_of(directory, SUBMITTED, number)
        artefacts.write_json(target, {"batch": batch, "form": form, "url": url, "requests": mark})
        print(f"{path.name}: submitted as {batch}")
    return 0


def fetch(directory: epath.Path, url: str, key_name: str) -> int:
    """Writes the results of every batch that has ended; EXIT_WAITING where some have not."""
    waiting = False
    results = batch_files.numbered(directory, RESULTS)
    for number, path in batch_files.numbered(directory, SUBMITTED).items():
        if number in results:
            continue
        known = artefacts.read_json(path)
        service = service_of(known["form"], url or known["url"], key_name)
        state, ended = service.state(known["batch"])
        data = service.results(known["batch"]) if ended else b""
        if ended and not data:
            path.unlink()
            raise UserError(
                f"batch {known['batch']} of requests-{number:04d}.jsonl ended as '{state}' without "
                "results; look at it at the service, then submit again"
            )
        if ended:
            artefacts.write_bytes(batch_files.path_of(directory, RESULTS, number), data)
        print(f"requests-{number:04d}.jsonl: {state}")
        waiting |= not ended
    return EXIT_WAITING if waiting else 0


def status(directory: epath.Path) -> int:
    """Prints what is answered, by file and in all; asks no server."""
    replies = batch_files.read(directory)
    submitted = batch_files.numbered(directory, SUBMITTED)
    for number, path in batch_files.numbered(directory, REQUESTS).items():
        state = "submitted" if number in submitted else "to be answered"
        state = state if str(path) in replies.awaited else "answered"
        count = path.read_bytes().count(b"\n")
        print(f"{path.name}: {count} requests, {state}")
    answered = sum(any(isinstance(r, dict) for r in given) for given in replies.by_key.values())
    print(f"{answered} answers")
    for what, count in sorted(replies.notes.items()):
        print(f"{count} {what}")
    return EXIT_WAITING if replies.awaited else 0


def _reported(act: Callable, directory: epath.Path, url: str, key_name: str) -> int:
    """The exit code of `act`; what goes wrong at the server becomes a UserError, without the
    key."""
    try:
        return act(directory, url, key_name)
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("openai", "httpx"):
            raise
        text = f"{type(error).__name__}: {error}"
        for name in filter(None, {key_name, *(name for name, _ in DEFAULTS.values())}):
            text = text.replace(os.environ.get(name) or "\0", "(key)")
        raise UserError(f"{directory}: the server did not answer as expected: {text}") from None


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input or a server that does not answer, 3 answers are awaited."""
    parser = Parser(prog="cai_jax.batch", description=__doc__)
    parser.add_argument("action", choices=("submit", "fetch", "status"))
    parser.add_argument("directory", metavar="DIR", help="with requests-NNNN.jsonl")
    parser.add_argument("--url", default="", help="of the server, up to and including /v1")
    parser.add_argument("--key", default="", help="NAME of the environment variable with the key")
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="fetch: ask that often")
    arguments = parser.parse_args((sys.argv if argv is None else argv)[1:])
    directory = epath.Path(arguments.directory)
    if not batch_files.numbered(directory, REQUESTS):
        raise UserError(f"{directory}: no requests-NNNN.jsonl there")
    if arguments.action == "status":
        return status(directory)
    if arguments.url:
        with in_field("--url"):
            references.server_url(arguments.url)
    if arguments.key and not fields.is_variable(arguments.key):
        raise UserError(f"--key: expected {fields.Variable()}")
    act = submit if arguments.action == "submit" else fetch
    while (code := _reported(act, directory, arguments.url, arguments.key)) == EXIT_WAITING:
        if not arguments.wait or arguments.wait < 0:
            break
        time.sleep(arguments.wait)
    return code


if __name__ == "__main__":
    sys.exit(main())
