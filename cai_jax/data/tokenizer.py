"""The tokenizer of a model directory, with a strict line between text and control tokens.

Control tokens (<|im_start|>, </s>, …) have a meaning only where our own format writes them. The
same characters inside what a user or a model wrote stay text: they are encoded as the letters that
they are.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Container, Sequence

from cai_jax.data import templates
from cai_jax.errors import UserError


class Tokenizer:
    """Text ↔ token ids.

    vocab_size: the largest id + 1. eos_ids: whatever ends an answer, from generation_config.json,
    config.json and the tokenizer. eos: the one of them that is appended to text. bos: the id that
    every sequence begins with, or None. control_tokens: the strings with a meaning of their own.
    template: the chat template, "" where there is none. reasoning_tags: (begin, end) of thoughts,
    where the tokenizer or the template knows any.
    """

    def __init__(self, directory):
        self.directory = str(directory)
        self.hf = _load(pathlib.Path(directory))
        self._backend = self.hf.backend_tokenizer
        self.has_named_templates = isinstance(self.hf.chat_template, dict)
        self.template = templates.choose(self.hf.chat_template, directory)
        self.hf.chat_template = self.template or None
        self._plain = self._without_control_tokens()
        for tokenizer in (self._backend, self._plain):
            tokenizer.no_padding()  # what a file says of lengths is for other uses of it
            tokenizer.no_truncation()
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self._read_configs(pathlib.Path(directory))
        first = self._backend.encode("a", add_special_tokens=True).ids[:1]
        self.bos = self.hf.bos_token_id if first == [self.hf.bos_token_id] else None
        # SentencePiece's tokenizers write a space before whatever they encode: a text that goes on
        # from another one has other tokens than the same text alone.
        self.adds_space = self._after("\n", "a", special=False) != self.encode("a")

    def _without_control_tokens(self):
        """The same tokenizer, for which control tokens are letters; sets what they are."""
        import tokenizers

        description = json.loads(self._backend.to_str())
        added = description["added_tokens"]
        contents = [token["content"] for token in added]
        self.reasoning_tags = templates.reasoning_tags(self.template, contents)
        tags = [tag for pair in self.reasoning_tags for tag in pair]
        control = [
            token
            for token, text in zip(added, contents, strict=True)
            if token["special"] or text in tags or (text.strip() and text in self.template)
        ]
        self.control_tokens = tuple(token["content"] for token in control)
        self.control_ids = frozenset(token["id"] for token in control)
        description["added_tokens"] = [token for token in added if token not in control]
        description["post_processor"] = None
        return tokenizers.Tokenizer.from_str(json.dumps(description))

    def _read_configs(self, directory: pathlib.Path) -> None:
        """Sets the end tokens, from all files that name some."""
        eos_ids: list[int] = []
        for name in ("generation_config.json", "config.json"):
            path = directory / name
            config = _read_json(path)
            eos_ids += _token_ids(path, config.get("eos_token_id"))
        eos_ids += _token_ids(path, self.hf.eos_token_id)
        size = config.get("vocab_size")
        if isinstance(size, int) and self.vocab_size > size:
            raise UserError(
                f"{directory}: the tokenizer has {self.vocab_size} tokens, the model only {size}: "
                "they do not belong together"
            )
        if not eos_ids:
            raise UserError(
                f"{directory}: no EOS token in generation_config.json, config.json or "
                "tokenizer_config.json"
            )
        self.eos_ids = tuple(dict.fromkeys(eos_ids))
        self.eos = self.eos_ids[0] if self.hf.eos_token_id is None else self.hf.eos_token_id

    def encode(self, text: str, special: bool = False) -> tuple[int, ...]:
        """Never adds BOS or EOS. special: control tokens in `text` count as such; otherwise they
        are letters."""
        tokenizer = self._backend if special else self._plain
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_all(self, texts: Sequence[str], special: bool = False) -> list[tuple[int, ...]]:
        """`encode` of each, on all cores."""
        tokenizer = self._backend if special else self._plain
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [tuple(encoding.ids) for encoding in encodings]

    def encode_continuation(self, text: str, special: bool = False) -> tuple[int, ...]:
        """The tokens of a text that goes on from another one, none of whose tokens crosses the
        edge."""
        for before in ("\n", "a", ".") if self.adds_space else ():
            ids = self._after(before, text, special)
            if ids is not None:
                return ids
        return self.encode(text, special)

    def _after(self, before: str, text: str, special: bool) -> tuple[int, ...] | None:
        """The tokens of `text` in `before + text`; None where a token crosses the edge."""
        first, joined = self.encode(before, special), self.encode(before + text, special)
        return joined[len(first) :] if joined[: len(first)] == first else None

    def decode(self, tokens: Sequence[int], keep: Container[int] = ()) -> str:
        """Control tokens are left out but for those to `keep`; incomplete UTF-8 shows as U+FFFD."""
        shown = [
            int(token) for token in tokens if int(token) not in self.control_ids or token in keep
        ]
        return self._backend.decode(shown, skip_special_tokens=not keep)

    def token_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)


def _load(directory: pathlib.Path):
    # transformers advises to install torch, which we do without. Not AutoTokenizer: this class
    # reads tokenizer.json as it is, and does not import torch where it is installed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import PreTrainedTokenizerFast

    path = directory / "tokenizer.json"
    if not path.exists():
        raise UserError(
            f"{path}: no such file; a model directory holds its tokenizer as tokenizer.json"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(directory))
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise UserError(
            f"{path}: not a readable tokenizer ({error}); fetch or convert the model again"
        ) from error


def _read_json(path: pathlib.Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); fetch or convert the model again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object; fetch or convert the model again")
    return value


def _token_ids(path: pathlib.Path, value) -> list[int]:
    """The end tokens that a file names: one id, several, or none."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) for item in ids):
        raise UserError(
            f"{path}: eos_token_id: expected a token's number or a list of them, got "
            f"{json.dumps(value)[:80]}"
        )
    return ids
