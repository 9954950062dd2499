r"""The only code that turns a dialogue into tokens.

Two formats. `text` is the paper's: "\n\nHuman: …\n\nAssistant: …", with further headings for
critiques and revisions. `chat` is the chat template of the model's tokenizer; its token ids equal
those of transformers' apply_chat_template. A prompt's tokens are always the beginning of the tokens
of the same dialogue with its answer, so that what was sampled is what is trained on and scored.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Sequence

import numpy as np

from cai_jax.data import templates
from cai_jax.data.tokenizer import Tokenizer
from cai_jax.errors import UserError
from cai_jax.structs import ANSWERING_ROLES, Message

Tokens = tuple[int, ...]
Segments = tuple[Tokens, ...]

HEADINGS = {
    "human": "\n\nHuman:",
    "assistant": "\n\nAssistant:",
    "critique_request": "\n\nCritiqueRequest:",
    "critique": "\n\nCritique:",
    "revision_request": "\n\nRevisionRequest:",
    "revision": "\n\nRevision:",
}
# One more whenever the code here makes other tokens of a dialogue, so that what was kept of them is
# computed anew.
RULES = 3
_MARKS = re.compile(f"[{templates.BEGIN}{templates.END}]")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A complete dialogue. tokens int32 [T]; target_mask bool [T], True on what is learned: the
    last answer's tokens and the token that ends it. An answer that was cut did not end: no end
    token follows it."""

    tokens: np.ndarray
    target_mask: np.ndarray


class DialogueFormat:
    """How a model's dialogues become tokens and its tokens text. See `load_format`.

    kind: "text" or "chat". eos_ids: the tokens that end an answer. template: the chat template, or
    None.
    """

    def __init__(self, tokenizer: Tokenizer, kind: str, settings: templates.Settings | None = None):
        self.tokenizer, self.kind, self.directory = tokenizer, kind, tokenizer.directory
        self.eos_ids, self.template = tokenizer.eos_ids, None
        self._tags = getattr(tokenizer, "reasoning_tags", ())
        ids = {tokenizer.token_id(tag) for pair in self._tags for tag in pair}
        self._tag_ids = frozenset(ids - {None})
        if kind == "chat":
            self.template = templates.ChatTemplate(tokenizer, settings or templates.Settings())
            # What the template writes after an answer begins with the token that ends it.
            (after,) = self._encode_all([self.template.after])
            ends = [token for token in after if token in tokenizer.control_ids]
            self.eos_ids = tuple(dict.fromkeys(tokenizer.eos_ids + tuple(ends[:1])))

    # --- Prompts ----------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message], reply: str = "assistant", **how) -> Segments:
        """The dialogue, ready for the next turn, as token segments: `question` without options;
        `how` may be its `start` and `shared`."""
        return self.question(messages, (), reply, **how)[0]

    def question(
        self,
        messages: Sequence[Message],
        options: Sequence[str],
        reply: str = "assistant",
        start: str = "",
        shared: int = 0,
    ) -> tuple[Segments, Segments]:
        """The dialogue, ready for the next turn, and the tokens of every option that may continue
        it.

        Args:
          messages: the turns so far.
          options: texts that may follow `start`. They are never encoded alone: a tokenizer may
            write a space before them, or merge their first letters with the end of `start`. In that
            case the prompt ends before the first token that differs, for all options alike.
          reply: the role of the next turn.
          start: what that turn begins with.
          shared: the first so many messages form a segment of their own, up to the first token that
            crosses its end: the tokens do not depend on it.

        Returns: (segments of the prompt, tokens of each option). BOS comes once, if the model wants
          one.
        """
        messages, shared = self._arranged(messages, shared)
        header = self._render(messages[:shared]) if shared else ""
        options = [self.template.mark(text) if self.template else text for text in options]
        return self.running_text(self._render(messages, reply, start), options, header)

    def running_text(
        self, text: str, options: Sequence[str] = (), header: str = ""
    ) -> tuple[Segments, Segments]:
        """As `question`, of a text that is rendered already and begins with `header`, the shared
        segment."""
        ids, first, *joined = self._encode_all(
            [text, header, *(text + option for option in options)]
        )
        count = min((_num_equal(ids, other) for other in joined), default=len(ids))
        shared = min(_num_equal(first, ids), count)
        segments = (self._bos() + ids[:shared], ids[shared:count])
        if not 0 < shared < count:
            segments = (self._bos() + ids[:count],)
        return segments, tuple(other[count:] for other in joined)

    # --- Complete dialogues -----------------------------------------------------------------------

    def example(self, messages: Sequence[Message]) -> Encoded:
        """The complete dialogue, whose last turn is an answer, which is learned with its end token
        unless that turn was cut."""
        return self.examples([messages])[0]

    def examples(self, dialogues: Sequence[Sequence[Message]]) -> list[Encoded]:
        """`example` of each, tokenised on all cores."""
        prompts, complete = [], []
        for messages in dialogues:
            if not messages or messages[-1].role not in ANSWERING_ROLES:
                raise UserError(
                    "dialogue: expected the last turn to be an answer (assistant, critique or "
                    "revision)"
                )
            arranged, _ = self._arranged(messages)
            prompts.append(self._render(arranged[:-1], reply=messages[-1].role))
            complete.append(self._render(arranged))
            if not complete[-1].startswith(prompts[-1]):
                raise UserError(
                    f"{self.directory}: the chat template rewrites turns of the dialogue that "
                    f"begins {messages[0].text[:40]!r}; use format = 'text'"
                )
        ids = self._encode_all(prompts + complete)
        return [
            self._example(ids[n], ids[n + len(prompts)], text[len(prompt) :], messages[-1].cut)
            for n, (messages, prompt, text) in enumerate(
                zip(dialogues, prompts, complete, strict=True)
            )
        ]

    def _example(self, prompt: Tokens, complete: Tokens, answer: str, cut: bool) -> Encoded:
        """The prompt's tokens as they were sampled from, and those of the answer up to its end."""
        if complete[: len(prompt)] == prompt:
            ids = complete[len(prompt) :]
        elif self.kind == "text":
            ids = self.tokenizer.encode_continuation(answer)
        else:
            (ids,) = self._encode_all([templates.BEGIN + templates.END + answer])
        # What the template writes after the end token is left out, of a cut answer that as well.
        length = next((n for n, token in enumerate(ids) if token in self.eos_ids), len(ids))
        end = () if cut else ids[length : length + 1] or (self.tokenizer.eos,)
        ids = (*ids[:length], *end)
        thought = self._thought(ids)
        tokens = (*self._bos(), *prompt, *ids)
        mask = np.arange(len(tokens)) >= len(tokens) - len(ids) + thought
        return Encoded(np.array(tokens, np.int32), mask)

    def _thought(self, ids: Sequence[int]) -> int:
        """How many tokens of an answer are a thought that the template writes before it, which
        nobody learns."""
        gap = self.template.gap if self.template else ""
        closed = [(end, gap.count(end)) for _, end in self._tags if end in gap]
        for number in range(len(ids) if closed else 0):
            shown = self._with_tags(ids[: number + 1])
            if all(shown.count(end) >= count for end, count in closed):
                blank = itertools.takewhile(
                    lambda token: not self._with_tags([token]).strip(), ids[number + 1 :]
                )
                return number + 1 + (len(list(blank)) if gap[-1:].isspace() else 0)
        return 0

    def score_input(self, messages: Sequence[Message]) -> Tokens:
        """What a preference model reads: the dialogue up to the token that ends its last answer, or
        up to the last token of an answer that was cut."""
        return tuple(int(token) for token in self.example(messages).tokens)

    # --- Answers ----------------------------------------------------------------------------------

    def stop_strings(self, reply: str = "assistant") -> tuple[str, ...]:
        """Where the model begins to speak for somebody else. A chat template's turns end in a token
        instead."""
        return () if self.kind == "chat" else stop_strings(reply)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without reasoning."""
        if not self._tags:
            return self.tokenizer.decode(tokens)
        return templates.without_reasoning(self._with_tags(tokens), self._tags)

    def reasoning_tokens(self, tokens: Sequence[int]) -> int:
        """How many of an answer's tokens are spent before it begins, in thoughts: all where the
        last one is not closed."""
        shown = self._with_tags(tokens) if self._tags else ""
        for begin, end in self._tags:
            if shown.rfind(begin) > shown.rfind(end):
                return len(tokens)
            if closed := shown.count(end):
                counts = range(len(tokens) + 1)
                return bisect.bisect_left(
                    counts, closed, key=lambda n: self._with_tags(tokens[:n]).count(end)
                )
        return 0

    def _with_tags(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, self._tag_ids)

    # --- About the format -------------------------------------------------------------------------

    def identity(self) -> str:
        """A digest of all that decides which tokens a dialogue becomes."""
        tokenizer = self.tokenizer
        values = [
            RULES,
            self.kind,
            self.eos_ids,
            tokenizer.eos,
            tokenizer.bos,
            tokenizer.control_tokens,
            tokenizer.template,
            self.template.settings.read_by(tokenizer.template) if self.template else {},
            str(tokenizer.hf.special_tokens_map),
            tokenizer.hf.backend_tokenizer.to_str(),
        ]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def notes(self, asked: str = "auto") -> list[str]:
        """What the log says of the format; `asked` is the kind that the config asks for."""
        if self.kind == "text" and asked == "auto":
            return [
                "no chat template: dialogues are written as Human/Assistant text (format = auto)"
            ]
        if self.template and self.template.merges_system:
            return [
                "the chat template takes no system turns: their text comes before the first human "
                "turn's"
            ]
        return []

    # --- Text and its tokens ----------------------------------------------------------------------

    def _arranged(
        self, messages: Sequence[Message], shared: int = 0
    ) -> tuple[tuple[Message, ...], int]:
        """`system_first`; a template without system turns gets their text at the beginning of the
        first human turn."""
        messages, shared = system_first(messages, shared)
        has_system = bool(messages) and messages[0].role == "system"
        if not has_system or self.template is None or not self.template.merges_system:
            return messages, shared
        text, rest, shared = messages[0].text, list(messages[1:]), shared - bool(shared)
        first = next((n for n, m in enumerate(rest) if chat_role(m.role) == "user"), None)
        if first is None:
            return (Message("human", text), *rest), shared + bool(shared)
        rest[first] = dataclasses.replace(rest[first], text=f"{text}\n\n{rest[first].text}")
        return tuple(rest), shared

    def _bos(self) -> Tokens:
        """A chat template writes its own."""
        return () if self.kind == "chat" or self.tokenizer.bos is None else (self.tokenizer.bos,)

    def _render(self, messages: Sequence[Message], reply: str = "", start: str = "") -> str:
        """The dialogue as text; with `reply`, up to where that turn's text begins, and `start`."""
        if self.template is None:
            return render_text(messages, reply, start)
        turns = [
            {"role": chat_role(message.role), "content": self.template.mark(message.text)}
            for message in messages
        ]
        text = self.template.render(turns, bool(reply))
        return text + (self.template.gap + self.template.mark(start) if start else "")

    def _encode_all(self, texts: Sequence[str]) -> list[Tokens]:
        """Control tokens count where the template wrote them, and are letters in the text format
        and between marks."""
        if self.kind == "text":
            return self.tokenizer.encode_all(texts)
        stretches = [_MARKS.split(text.replace(templates.HIDE, "")) for text in texts]
        # What precedes the first mark, mostly all of a text, is encoded on all cores.
        first = self.tokenizer.encode_all([words for words, *_ in stretches], special=True)
        ids = list(map(list, first))
        for tokens, (_, *rest) in zip(ids, stretches, strict=True):
            for number, words in enumerate(rest):
                if words:
                    is_template = number % 2 == 1
                    tokens += self.tokenizer.encode_continuation(words, special=is_template)
        return list(map(tuple, ids))


def cut_after(segments: Segments, earlier: Segments) -> Segments:
    """The same tokens with the boundaries of `earlier`, an earlier prompt, if they continue it: the
    sampler keeps what it has of that one. Otherwise `segments` as they are."""
    tokens, begin = sum(segments, ()), sum(earlier, ())
    if len(tokens) > len(begin) and tokens[: len(begin)] == begin:
        return (*earlier, tokens[len(begin) :])
    return tuple(segments)


def _num_equal(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading items are the same."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def load_format(
    directory, kind: str = "auto", settings: templates.Settings | None = None
) -> DialogueFormat:
    """The format of a model directory, with its chat template checked.

    Args:
      directory: a Hugging Face directory with tokenizer.json.
      kind: "text", "chat", or "auto": chat if the tokenizer has a chat template.
      settings: the run's template arguments and date.
    """
    if kind not in ("auto", "text", "chat"):
        raise UserError(f"format: expected auto, text or chat, not {kind!r}")
    tokenizer = Tokenizer(directory)
    if kind == "chat" and not tokenizer.template:
        raise UserError(f"{directory}: the tokenizer has no chat template; use format = 'text'")
    kind = "text" if kind == "text" or not tokenizer.template else "chat"
    return DialogueFormat(tokenizer, kind, settings)


def stop_strings(reply: str) -> tuple[str, ...]:
    """Headings of the text format in which a turn ends: those of other speakers."""
    stops = ("human", "assistant")
    if reply in ("critique", "revision"):
        stops += ("critique_request", "revision_request")
    return tuple(HEADINGS[role] for role in stops)


def system_first(messages: Sequence[Message], shared: int = 0) -> tuple[tuple[Message, ...], int]:
    """The messages with one system turn at most, which comes first: the dialogue's own, else that
    of the `shared` worked examples before it; and how many messages are shared then."""
    of_examples = [m.text for m in messages[:shared] if m.role == "system"]
    own = [m.text for m in messages[shared:] if m.role == "system"]
    if not of_examples + own:
        return tuple(messages), shared
    text = "\n\n".join(dict.fromkeys(own or of_examples))
    rest = [m for m in messages if m.role != "system"]
    shared -= len(of_examples)
    return (Message("system", text), *rest), shared + bool(shared)


def chat_role(role: str) -> str:
    """The role of a chat template, or of a server's, that a role of ours is."""
    return "system" if role == "system" else "assistant" if role in ANSWERING_ROLES else "user"


def render_text(messages: Sequence[Message], reply: str = "", start: str = "") -> str:
    r"""The paper's text form. A prompt ends in "\n\nAssistant:" without a space: the space belongs
    to the answer."""
    turns = [m.text if m.role == "system" else f"{HEADINGS[m.role]} {m.text}" for m in messages]
    if reply:
        turns.append(HEADINGS[reply] + (f" {start}" if start else ""))
    return "".join(turns)
