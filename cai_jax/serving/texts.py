"""What sampled tokens are as text: how each one is shown, and what of a text may be sent while it
still grows."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from cai_jax.data.dialogue import DialogueFormat

INCOMPLETE = "\ufffd"  # what the bytes of half a character decode to
MOST_TOKENS = 4  # that write one character: its bytes


class Texts:
    """Tokens as text. What is read of a prompt is decoded as it is, an answer as its format says
    (without reasoning)."""

    def __init__(self, format: DialogueFormat):
        self._tokenizer, self.decode = format.tokenizer, format.decode
        self.decode_prompt = format.tokenizer.decode
        self._before = format.tokenizer.encode("a")
        self._start = self.decode_prompt(self._before)
        self.own = functools.lru_cache(maxsize=2**16)(self._own)

    def _own(self, token: int) -> str:
        """The text of a token behind another one: "" of a control token."""
        return self.decode_prompt((*self._before, token))[len(self._start) :]

    def name(self, token: int) -> str:
        """How one token is shown: its text, or where that is none or half a character what the
        tokenizer calls it."""
        text = self.own(token)
        if text and INCOMPLETE not in text:
            return text
        return self._tokenizer.hf.convert_ids_to_tokens(token) or f"<{token}>"


class Offsets:
    """Where each token's text begins, in characters; `end` is where the last one's ends."""

    def __init__(self, texts: Texts, start: int = 0):
        self._texts, self.end = texts, start
        self._is_first, self._pending = True, []

    def add(self, tokens: Sequence[int]) -> list[int]:
        offsets = []
        for token in tokens:
            offsets.append(self.end)
            self._pending.append(token)
            # Some tokenizers write a first token without the space that it begins with.
            alone = len(self._pending) == 1 and not self._is_first
            text = self._texts.own(token) if alone else self._texts.decode_prompt(self._pending)
            # A character may take several tokens: it is there with the last one. None has more
            # than 4 bytes; what is still none then are bytes that write no character.
            if not text.endswith(INCOMPLETE) or len(self._pending) == MOST_TOKENS:
                self.end += len(text)
                self._is_first, self._pending = False, []
        return offsets


class Growing:
    """The text of an answer while its tokens come. strips: blanks around it are the format's, as
    around the turns of the text format."""

    def __init__(self, texts: Texts, stops: Sequence[str], strips: bool):
        self._texts, self._stops, self._strips = texts, stops, strips
        self._tokens: list[int] = []
        self._sent = ""

    def add(self, tokens: Sequence[int], complete: str | None) -> str:
        """What may be sent after these tokens; `complete` is the text once the answer has ended."""
        self._tokens += tokens
        text = complete
        if text is None:
            # Half a character, and what may become a stop, wait.
            text = self._texts.decode(self._tokens).rstrip(INCOMPLETE)
            text = text[: len(text) - self._held_back(text)]
        text = text.strip() if self._strips else text
        new = text[len(self._sent) :] if text.startswith(self._sent) else ""
        self._sent += new
        return new

    def _held_back(self, text: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        counts = (
            count
            for stop in self._stops
            for count in range(min(len(stop) - 1, len(text)), 0, -1)
            if text.endswith(stop[:count])
        )
        return max(counts, default=0)
