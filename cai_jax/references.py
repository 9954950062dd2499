"""What a model's name in a config means, parsed once.

    @sl  @sl:200                 what a stage of this run has trained, at its end or at a step
    random:DIRECTORY             architecture and tokenizer of a directory, weights from the seed
    python:module.function       a function of dialogues that scores them
    responses:FILE               answers that exist already
    openai:URL#MODEL             a model behind an OpenAI-compatible server; URL ends in /v1
    batch:DIR  batch:DIR#MODEL   a model that answers request files in DIR later
    recorded:DIR[#MODEL]         answers that another run, or a stage of it, has kept
    DIRECTORY  org/name  gs://…  a model directory or a name on the hub (see `models.hf.resolve`)

A role of `config.models` ("base", "helpful", …) points at one of these: `resolve` replaces it.
"""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Mapping

from cai_jax.errors import UserError

STAGE, RANDOM, PYTHON, RESPONSES, MODEL = "@", "random:", "python:", "responses:", ""
OPENAI, BATCH, RECORDED = "openai:", "batch:", "recorded:"
# Kinds that answer from outside this process: they generate and choose, and have no weights here.
ANSWERING = (OPENAI, BATCH, RECORDED)


@dataclasses.dataclass(frozen=True)
class Reference:
    """kind: one of the names above; name: the stage, directory, function, file, URL#MODEL or hub
    name; step: of a stage, as it was written, "" for its end."""

    kind: str
    name: str
    step: str = ""

    @property
    def stage(self) -> str:
        """The stage of this run that is named, else ""."""
        return self.name if self.kind == STAGE else ""

    def __str__(self) -> str:
        return f"{self.kind}{self.name}" + f":{self.step}" * bool(self.step)

    def server(self) -> tuple[str, str]:
        """(URL, model) of an openai: reference.

        Raises:
          UserError: it names none.
        """
        url, _, model = self.name.partition("#")
        url = server_url(url)
        if not model:
            raise UserError(
                f"'{self}': expected openai:URL#MODEL, such as openai:http://localhost:8000/v1#NAME"
            )
        return url, model


def server_url(url: str) -> str:
    """The URL of a server, without a slash at its end.

    Raises:
      UserError: it is none, or has a password or a query, which the message does not repeat.
    """
    if "@" in url or "?" in url:
        raise UserError(
            "a URL with a password or a query; keys come from the environment variable that "
            "key_env of config.endpoints names"
        )
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        parts = urllib.parse.urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"'{url}': expected the URL of a server, such as http://localhost:8000/v1 (in a config "
            "openai:URL#MODEL)"
        )
    return url.rstrip("/")


def parse(text: str) -> Reference:
    """The reference that `text` writes; roles are resolved before."""
    for kind in (STAGE, RANDOM, PYTHON, RESPONSES, *ANSWERING):
        if text.startswith(kind):
            name = text.removeprefix(kind)
            if kind != STAGE:
                return Reference(kind, name)
            stage, _, step = name.partition(":")
            return Reference(kind, stage, step)
    return Reference(MODEL, text)


def target(roles: Mapping[str, str], text: str) -> Reference:
    """The reference that `text`, which may be a role of config.models, comes to."""
    return parse(resolve(roles, text))


def stage_of(text: str) -> str:
    """The stage that `text` names as "@stage" or "@stage:step", else ""."""
    return parse(text).stage


def resolve(roles: Mapping[str, str], text: str) -> str:
    """A role of config.models becomes what it points at; anything else stays as it is.

    Raises:
      UserError: a role that points at itself.
    """
    for _ in range(len(roles) + 1):
        if text not in roles:
            return text
        text = roles[text]
    raise UserError(
        f"config.models: the role '{text}' points at itself; give it a directory, a hub name or "
        "'@stage'"
    )
