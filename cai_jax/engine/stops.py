"""Where a sampled text ends: EOS, a stop string, or the length. Host side, on decoded text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Ending(NamedTuple):
    """count: how many of the tokens belong to the completion; text: without the stop; stop: see
    `structs.Completion`."""

    count: int
    text: str
    stop: str


def find_ending(
    tokens: Sequence[int],
    checked: int,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    stop_strings: Sequence[str],
    decode: Callable[[Sequence[int]], str],
) -> Ending | None:
    """The end of a completion, or None while it goes on. A stop string ends it where it is first
    complete in the decoded text, also across tokens; what comes first counts.

    Args:
      tokens: all tokens sampled so far.
      checked: how many of them, the first ones, were looked at before.
      max_new_tokens: the limit.
      eos_ids: tokens that end a completion.
      stop_strings: texts that end it.
      decode: the text of tokens.

    Returns:
      How many tokens belong to the completion, its text and the stop.
    """
    # The end token has no text of its own.
    ended = bool(tokens) and tokens[-1] in eos_ids
    body = tokens[:-1] if ended else tokens
    text = decode(body)
    if any(stop in text for stop in stop_strings):
        # Token by token from where the last look ended: the first that completes a stop.
        for count in range(min(checked, len(body)), len(body) + 1):
            text = decode(body[:count])
            stops = [(text.index(stop), stop) for stop in stop_strings if stop in text]
            if stops:
                index, stop = min(stops)
                return Ending(count, text[:index], stop)
    if ended:
        return Ending(len(tokens), text, "eos")
    return Ending(len(tokens), text, "length") if len(tokens) >= max_new_tokens else None
