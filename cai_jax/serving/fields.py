"""JSON objects that clients send: each field is taken by name and type, what is left is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.errors import printable

# They name the client or steer a hosted service, and do not change an answer.
IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
}
# What this server does not do may be sent with the values that ask for nothing.
NEUTRAL: dict[str, Sequence] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
}


class ApiError(Exception):
    """What a client gets to know: an HTTP status, a sentence, the field at fault and a code."""

    def __init__(self, message: str, field: str | None = None, status: int = 400, code: str = ""):
        super().__init__(message)
        self.message, self.field, self.status, self.code = message, field, status, code

    def body(self) -> dict:
        """The error in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.field}
        return {"error": error | {"code": self.code or None}}


def parse(data: bytes) -> dict:
    """The JSON object of a body."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    try:
        value = json.loads(data.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ApiError(f"the body is not JSON in UTF-8: {reason}") from None
    if not isinstance(value, dict):
        raise ApiError("the body must be a JSON object")
    return value


class Fields:
    """Takes fields out of an object. null counts as absent."""

    def __init__(self, values: Mapping[str, Any]):
        self._left = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str, default=None):
        return self._left.pop(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ApiError(f"{name}: expected true or false", name)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A field's number.

        Args:
          name: of the field.
          default: where it is absent; it need not be in the range.
          low, high: ends of its range.

        Returns:
          The number.

        Raises:
          ApiError: it is none in the range.
        """
        return float(self._in_range(name, default, low, high, "a number", (int, float)))

    def count(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """As `number`, of an integer.

        Args:
          name, low, high: as in `number`.
          default: as there, or None.

        Returns:
          The integer, or the default.

        Raises:
          ApiError: it is none in the range.
        """
        return self._in_range(name, default, low, high, "an integer", (int,))

    def _in_range(self, name: str, default, low, high, what: str, types: tuple):
        value = self.take(name, default)
        # By type, not isinstance: True is no number.
        if value is not default and (type(value) not in types or not low <= value <= high):
            raise ApiError(f"{name}: expected {what} from {low} to {high}", name)
        return value

    def group(self, name: str) -> Fields:
        """An object of fields."""
        value = self.take(name, {})
        if not isinstance(value, dict):
            raise ApiError(f"{name}: expected an object", name)
        return Fields(value)

    def finish(self) -> None:
        """Refuses what was not taken."""
        for name, value in self._left.items():
            if name in IGNORED or value in NEUTRAL.get(name, ()):
                continue
            known = " other than the default" if name in NEUTRAL else ""
            shown = printable(name[:100])
            raise ApiError(f"{shown}: this server does not know this field{known}", shown)


def text(value, where: str) -> str:
    """A string that UTF-8 can write."""
    if not isinstance(value, str):
        raise ApiError(f"{where}: expected a string", where)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(f"{where}: has half a character (a lone surrogate)", where) from None
    return value


def items(value, where: str, most: int) -> list:
    """A list of 1 to `most` items."""
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise ApiError(f"{where}: expected a list of 1 to {most} items", where)
    return value
