"""What is wrong where a server gave no answer, by what has to be done about it."""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Mapping

from cai_jax.errors import UserError
from cai_jax.structs import REFUSED, TOO_LONG
from cai_jax.textmodels import chat

TIRED = (429, 502, 503, 504, 529)  # too much to do, or on its way up
LONGEST = 300  # characters of a server's own words


class Away(Exception):
    """The server cannot be reached or has too much to do: wait. retry_after: seconds, as it asks
    for."""

    def __init__(self, reason: str, retry_after: float = 0.0):
        super().__init__(reason)
        self.retry_after = retry_after


class Bad(Exception):
    """An answer that cannot be used: ask again, a few times. paid: whether it may have cost
    something."""

    retry_after = 0.0

    def __init__(self, reason: str, paid: bool = True):
        super().__init__(reason)
        self.paid = paid


class Cut(Bad):
    """No answer within its time, or not all of it."""


class Final(UserError):
    """Asking again does not help."""


class Unsupported(Final):
    """The server does not take the request as it is."""


def without_secret(text: str, key: str) -> str:
    """A server's words on one line, without the key that it may repeat."""
    text = " ".join(text.split())
    return (text.replace(key, "[key]") if key else text)[:LONGEST]


def of_status(status: int, body, fields: Mapping, where: str) -> Exception | dict:
    """What a response that is no answer means.

    Args:
      status: of HTTP.
      body: its JSON or text, whose words are in the message.
      fields: the header fields of the response.
      where: the model, for messages.

    Returns:
      An exception of this module, or what `chat.without` keeps of a request that never has an
      answer.
    """
    code, words = _code_and_words(body)
    if status == 403 and "logprob" in words.lower():
        return Unsupported(f"{where}: the server gives no log-probabilities (HTTP 403: {words})")
    if status in (401, 403):
        return Final(
            f"{where}: the server refuses the key (HTTP {status}: {words}); name the environment "
            "variable that holds it in config.endpoints.all.key_env"
        )
    if status == 404:
        return Final(
            f"{where}: no such model or path there (HTTP 404: {words}); expected "
            "openai:URL#MODEL with a URL that ends in /v1 and a model that GET URL/models lists"
        )
    if status == 402 or "insufficient_quota" in code:
        return Final(f"{where}: nothing left to pay with (HTTP {status}: {words})")
    if status in TIRED:
        return Away(f"HTTP {status}", retry_after(fields))
    if status >= 500 or status in (408, 409, 425):
        return Bad(f"HTTP {status}", paid=False)
    if reason := TOO_LONG if status == 413 else without_answer(body):
        return chat.without(reason)
    return Unsupported(
        f"{where}: the server does not take the request (HTTP {status}: {words}); see "
        "config.endpoints.all: continue_turns, limit_field, tier, extra_body"
    )


def without_answer(body) -> str:
    """structs.TOO_LONG or REFUSED where the body of an error says that; "" where asking again may
    help."""
    code, words = _code_and_words(body)
    text = f"{code} {words}".lower()
    about_context = "context" in text and re.search("length|size|window|exceed|maximum", text)
    if about_context or "prompt is too long" in text:
        return TOO_LONG
    return REFUSED if "content_filter" in code or "content_policy" in code else ""


def _code_and_words(body) -> tuple[str, str]:
    error = body.get("error", body) if isinstance(body, Mapping) else body
    error = error if isinstance(error, Mapping) else {"message": error}
    words = str(error.get("message") or error.get("detail") or error)
    return str(error.get("code") or error.get("type") or ""), words


def retry_after(fields: Mapping) -> float:
    """Seconds of Retry-After, which gives them or a date; 0 where there is none."""
    value = fields.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        then = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())
