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
    """The end of a row's completion, or None while it goes on.

    `tokens` are all tokens sampled so far, of which the first `checked` were looked at before. A
    stop string is found where it first stands complete in the decoded text, also across tokens;
    what comes first counts.
    """
    ended = bool(tokens) and tokens[-1] in eos_ids
    body = tokens[:-1] if ended else tokens
    text = decode(body)
    if any(stop in text for stop in stop_strings):
        for count in range(min(checked, len(body)), len(body) + 1):
            text = decode(body[:count])
            found = [(text.index(stop), stop) for stop in stop_strings if stop in text]
            if found:
                place, stop = min(found)
                return Ending(count, text[:place], stop)
    if ended:
        return Ending(len(tokens), text, "eos")
    return Ending(len(tokens), text, "length") if len(tokens) >= max_new_tokens else None
