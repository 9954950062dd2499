r"""The one place where a dialogue becomes tokens.

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
from cai_jax.structs import ANSWERING_ROLES, ROLES, Dialogue, Message

HEADINGS = {
    "human": "\n\nHuman:",
    "assistant": "\n\nAssistant:",
    "critique_request": "\n\nCritiqueRequest:",
    "critique": "\n\nCritique:",
    "revision_request": "\n\nRevisionRequest:",
    "revision": "\n\nRevision:",
}
# one more whenever the code here makes other tokens of a dialogue: what was kept of them is then
# made again
RULES = 3
_ROLE_OF = {heading.strip("\n:"): role for role, heading in HEADINGS.items()}
_MARKS = re.compile(f"[{templates.BEGIN}{templates.END}]")
_HEADING = re.compile(rf"(?:\A\n{{0,2}}|\n\n)({'|'.join(_ROLE_OF)}):")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A whole dialogue. tokens int32 [T]; roles int8 [T], whose turn a token stands in (index into
    structs.ROLES); target_mask bool [T], True on what is learned: the answers' tokens and the token
    that ends each. An answer that was cut did not end: no end token is learned there, and none
    follows the last one."""

    tokens: np.ndarray
    roles: np.ndarray
    target_mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Part:
    text: str
    role: str
    is_answer: bool
    cut: bool = False  # an answer that did not end


class DialogueFormat:
    """kind: "text" or "chat". eos_ids: the tokens that end an answer. See `load_format`."""

    def __init__(self, tokenizer: Tokenizer, kind: str, settings: templates.Settings | None = None):
        self.tokenizer, self.kind, self.directory = tokenizer, kind, tokenizer.directory
        self.eos_ids, self.template = tokenizer.eos_ids, None
        tags = getattr(tokenizer, "reasoning_tags", ())
        self._tags, self._tag_ids = tags, frozenset()
        if tags:
            ids = {tokenizer.token_id(tag) for pair in tags for tag in pair}
            self._tag_ids = frozenset(ids - {None})
        if kind == "chat":
            self.template = templates.ChatTemplate(tokenizer, settings or templates.Settings())
            # What the template writes after an answer begins with the token that ends it.
            after = self._encode(self.template.after)
            ends = [token for token in after if token in tokenizer.control_ids]
            self.eos_ids = tuple(dict.fromkeys(tokenizer.eos_ids + tuple(ends[:1])))

    def prompt(
        self,
        messages: Sequence[Message],
        reply: str = "assistant",
        start: str = "",
        shared: int = 0,
    ) -> tuple[tuple[int, ...], ...]:
        """The dialogue, ready for a turn of role `reply` that begins with `start`, as token
        segments.

        The first `shared` messages form a segment of their own, up to the first token that crosses
        its end: the tokens do not depend on `shared`. BOS comes once, if the model wants one.
        """
        return self.question(messages, (), reply, start, shared)[0]

    def question(
        self,
        messages: Sequence[Message],
        options: Sequence[str],
        reply: str = "assistant",
        start: str = "",
        shared: int = 0,
    ) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
        """The segments of `prompt`, and the tokens of every option where it goes on from `start`.

        Options are never encoded alone: a tokenizer may write a space before them, or merge their
        first letters with the end of `start`. In that case the prompt ends before the first token
        that differs, for all options alike.
        """
        messages, shared = self._arranged(messages, shared)
        header = self._render(messages[:shared]) if shared else ""
        options = [self.template.mark(text) if self.template else text for text in options]
        return self._continued(self._render(messages, reply, start), header, options)

    def running_text(
        self, text: str, options: Sequence[str] = (), header: str = ""
    ) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
        """As `question`, of a text without turns, which begins with `header`; for the text format
        only."""
        return self._continued(text, header, options)

    def _continued(self, text: str, header: str, options: Sequence[str]):
        ids, first, *joined = self._encode_all(
            [text, header, *(text + option for option in options)]
        )
        count = min((_num_equal(ids, other) for other in joined), default=len(ids))
        shared = min(_num_equal(first, ids), count)
        segments = (self._bos() + ids[:shared], ids[shared:count])
        if not 0 < shared < count:
            segments = (self._bos() + ids[:count],)
        return segments, tuple(other[count:] for other in joined)

    def example(self, messages: Sequence[Message], targets: str = "last") -> Encoded:
        """The whole dialogue, which ends in an answering role, and its end token unless that turn
        was cut. targets: "last" answer or "all"."""
        return self.examples([messages], targets)[0]

    def examples(
        self, dialogues: Sequence[Sequence[Message]], targets: str = "last"
    ) -> list[Encoded]:
        """`example` of each, tokenised on all cores."""
        for messages in dialogues:
            if not messages or messages[-1].role not in ANSWERING_ROLES:
                raise UserError(
                    "dialogue: expected the last turn to be an answer (assistant, critique or "
                    "revision)"
                )
        dialogues = [self._arranged(messages)[0] for messages in dialogues]
        by_dialogue = [self._parts(messages) for messages in dialogues]
        ids = iter(self._encode_all([text for parts in by_dialogue for text in _beginnings(parts)]))
        return [
            self._example(messages, parts, list(itertools.islice(ids, len(parts))), targets)
            for messages, parts in zip(dialogues, by_dialogue, strict=True)
        ]

    def _example(
        self, messages, parts: Sequence[_Part], encoded: Sequence[tuple[int, ...]], targets: str
    ) -> Encoded:
        bos = self._bos()
        tokens, roles, mask = [*bos], [ROLES.index(messages[0].role)] * len(bos), [False] * len(bos)
        last = len(parts) - 1
        for number, (part, ids) in enumerate(
            zip(parts, self._by_part(parts, encoded), strict=True)
        ):
            length = 0  # how many of the part's tokens are an answer with its end token
            if part.is_answer:
                ends = [place for place, token in enumerate(ids) if token in self.eos_ids]
                text = ids[: ends[0]] if ends else ids
                if number == last:  # what the template writes after the end token is left out
                    end = ids[len(text) : len(text) + 1] or (self.tokenizer.eos,)
                    ids = text if part.cut else (*text, *end)
                length = len(text) + (not part.cut and len(ids) > len(text))
            target = targets == "all" or number == last
            thought = self._thought(ids[:length])
            tokens += ids
            roles += [ROLES.index(part.role)] * len(ids)
            mask += [False] * thought + [target] * (length - thought)
            mask += [False] * (len(ids) - length)
        return Encoded(np.array(tokens, np.int32), np.array(roles, np.int8), np.array(mask, bool))

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

    def score_input(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What a preference model reads: the dialogue up to the token that ends its last answer, or
        up to the last token of an answer that was cut."""
        return tuple(int(token) for token in self.example(messages).tokens)

    def identity(self) -> str:
        """A digest of all that decides which tokens a dialogue becomes."""
        tokenizer = self.tokenizer
        parts = [
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
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def notes(self, asked: str = "auto") -> list[str]:
        """What a reader of the log is told of the format; `asked` is the kind that the config asks
        for."""
        if self.kind == "text" and asked == "auto":
            return [
                "no chat template: dialogues are written as Human/Assistant text (format = auto)"
            ]
        if self.template and self.template.merges_system:
            return [
                (
                    "the chat template takes no system turns: their text comes before the first "
                    "human turn's"
                )
            ]
        return []

    def stop_strings(self, reply: str = "assistant") -> tuple[str, ...]:
        """Where the model begins to speak for somebody else. A chat template's turns end in a token
        instead."""
        if self.kind == "chat":
            return ()
        stops = ("human", "assistant")
        if reply != "assistant":
            stops += ("critique_request", "revision_request")
        return tuple(HEADINGS[role] for role in stops)

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

    def _arranged(
        self, messages: Sequence[Message], shared: int = 0
    ) -> tuple[tuple[Message, ...], int]:
        """The messages with one system turn at most, which comes first: the dialogue's own, else
        that of the `shared` worked examples before it; and how many messages are shared then. A
        template without system turns gets its text at the beginning of the first human turn."""
        systems = [
            [m.text for m in part if m.role == "system"]
            for part in (messages[:shared], messages[shared:])
        ]
        if not any(systems):
            return tuple(messages), shared
        text = "\n\n".join(dict.fromkeys(systems[1] or systems[0]))
        rest = [m for m in messages if m.role != "system"]
        shared -= len(systems[0])
        if self.template is None or not self.template.merges_system:
            return (Message("system", text), *rest), shared + bool(shared)
        first = next((n for n, m in enumerate(rest) if _chat_role(m.role) == "user"), None)
        if first is None:
            return (Message("human", text), *rest), shared + bool(shared)
        rest[first] = dataclasses.replace(rest[first], text=f"{text}\n\n{rest[first].text}")
        return tuple(rest), shared

    def _bos(self) -> tuple[int, ...]:
        """A chat template writes its own."""
        return () if self.kind == "chat" or self.tokenizer.bos is None else (self.tokenizer.bos,)

    def _render(self, messages: Sequence[Message], reply: str = "", start: str = "") -> str:
        """The dialogue as text; with `reply`, up to where that turn's text begins, and `start`."""
        if self.kind == "text":
            return render_text(messages, reply, start)
        text = self.template.render(self._turns(messages), bool(reply))
        return text + (self.template.gap + self.template.mark(start) if start else "")

    def _turns(self, messages: Sequence[Message]) -> list[dict]:
        return [
            {"role": _chat_role(message.role), "content": self.template.mark(message.text)}
            for message in messages
        ]

    def _parts(self, messages: Sequence[Message]) -> list[_Part]:
        """The rendered dialogue in pieces: what precedes an answer stands apart from it."""
        whole = self._render(messages)
        parts = self._parts_by_prefix(messages, whole) or self._parts_by_search(messages, whole)
        if parts is None:
            raise UserError(
                f"{self.directory}: the chat template rewrites turns of the dialogue that begins "
                f"{messages[0].text[:40]!r}; use format = 'text'"
            )
        return parts

    def _parts_by_prefix(self, messages: Sequence[Message], whole: str) -> list[_Part] | None:
        """From the renderings of the dialogue's first turns, where each begins the next one."""
        parts, done = [], ""
        for number, message in enumerate(messages):
            if message.role == "system":  # some templates refuse to render it alone
                continue
            pieces = [(self._render(messages[: number + 1]), message.role in ANSWERING_ROLES)]
            if message.role in ANSWERING_ROLES:
                pieces.insert(0, (self._render(messages[:number], message.role), False))
            for upto, is_answer in pieces:
                if whole.startswith(upto) and len(upto) > len(done):
                    cut = is_answer and message.cut
                    parts.append(_Part(upto[len(done) :], message.role, is_answer, cut))
                    done = upto
                elif message.role in ANSWERING_ROLES and upto != done:
                    return None
        return parts

    def _parts_by_search(self, messages: Sequence[Message], whole: str) -> list[_Part] | None:
        """From the turns' own text, for templates that write earlier answers in another way than
        the last one."""
        if self.template is None:
            return None
        *earlier, last = messages
        prompt = self._render(earlier, last.role)
        spans = self.template.spans(self._turns(earlier), prompt)
        if spans is None or not whole.startswith(prompt):
            return None
        ends = [self.tokenizer.hf.convert_ids_to_tokens(token) for token in self.eos_ids]
        parts, done = [], 0
        for message, (begin, end), following in zip(
            earlier, spans, [*(span[0] for span in spans[1:]), len(prompt)], strict=True
        ):
            is_answer = message.role in ANSWERING_ROLES
            if is_answer:
                parts.append(_Part(prompt[done:begin], message.role, False))
                done, after = begin, prompt[end:following]
                end += min((after.find(e) + len(e) for e in ends if e in after), default=0)
            parts.append(_Part(prompt[done:end], message.role, is_answer))
            done = end
        return [
            *parts,
            _Part(prompt[done:], last.role, False),
            _Part(whole[len(prompt) :], last.role, True),
        ]

    def _encode(self, text: str) -> tuple[int, ...]:
        return self._encode_all([text])[0]

    def _encode_all(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Control tokens count where the template wrote them, and are letters in the text format
        and between marks."""
        if self.kind == "text":
            return self.tokenizer.encode_all(texts)
        pieces = [
            (row, number, piece)
            for row, text in enumerate(texts)
            for number, piece in enumerate(_MARKS.split(text.replace(templates.HIDE, "")))
            if piece
        ]
        first = iter(
            self.tokenizer.encode_all([piece for _, number, piece in pieces if not number], True)
        )
        ids: list[list[int]] = [[] for _ in texts]
        for row, number, piece in pieces:
            ids[row] += (
                self.tokenizer.encode_continuation(piece, special=number % 2 == 0)
                if number
                else next(first)
            )
        return [tuple(row) for row in ids]

    def _encode_continuation(self, text: str) -> tuple[int, ...]:
        """`_encode` of a text that goes on from another one."""
        if self.kind == "text":
            return self.tokenizer.encode_continuation(text)
        return self._encode(templates.BEGIN + templates.END + text)

    def _by_part(
        self, parts: Sequence[_Part], ids: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        """Token ids by part, from those of the dialogue's `_beginnings`. The tokens before the last
        part, an answer, are those of the prompt; a token that crosses from one earlier part into
        the next counts to the next."""
        *earlier, prompt, whole = ((), *ids)
        cuts = [0]
        for beginning in earlier[1:]:
            cuts.append(max(cuts[-1], _num_equal(beginning, prompt)))
        cuts.append(len(prompt))
        answer = (
            whole[len(prompt) :]
            if whole[: len(prompt)] == prompt
            else self._encode_continuation(parts[-1].text)
        )
        return [
            *(prompt[begin:end] for begin, end in zip(cuts[:-1], cuts[1:], strict=True)),
            answer,
        ]


def _beginnings(parts: Sequence[_Part]) -> list[str]:
    """The dialogue's text up to the end of every part."""
    return list(itertools.accumulate(part.text for part in parts))


def cut_after(
    segments: Sequence[tuple[int, ...]], earlier: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    """The same tokens with the boundaries of `earlier`, an earlier prompt, if they continue it: the
    sampler keeps what it has of that one. Otherwise `segments` as they are."""
    whole, begin = sum(segments, ()), sum(earlier, ())
    return (
        (*earlier, whole[len(begin) :])
        if len(whole) > len(begin) and whole[: len(begin)] == begin
        else tuple(segments)
    )


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
        raise UserError(f"format: expected auto, text or chat, found {kind!r}")
    tokenizer = Tokenizer(directory)
    if kind == "chat" and not tokenizer.template:
        raise UserError(f"{directory}: the tokenizer has no chat template; use format = 'text'")
    kind = "text" if kind == "text" or not tokenizer.template else "chat"
    return DialogueFormat(tokenizer, kind, settings)


def _chat_role(role: str) -> str:
    return "system" if role == "system" else "assistant" if role in ANSWERING_ROLES else "user"


def render_text(messages: Sequence[Message], reply: str = "", start: str = "") -> str:
    r"""The paper's text form. A prompt ends in "\n\nAssistant:" without a space: the space belongs
    to the answer."""
    turns = [m.text if m.role == "system" else f"{HEADINGS[m.role]} {m.text}" for m in messages]
    if reply:
        turns.append(HEADINGS[reply] + (f" {start}" if start else ""))
    return "".join(turns)


def parse_dialogue(text: str, where: str = "dialogue") -> Dialogue:
    r"""The inverse of `render_text`; what stands before the first heading is a system message.

    One space after a heading belongs to it; everything else is kept as it is. UserError where no
    heading is found.
    """
    found = list(_HEADING.finditer(text))
    if not found:
        raise UserError(
            f"{where}: expected a dialogue of the form '\\n\\nHuman: …\\n\\nAssistant: …', "
            f"found {text[:40]!r}"
        )
    messages = [Message("system", text[: found[0].start()])] if found[0].start() else []
    for heading, following in zip(found, [*found[1:], None], strict=True):
        turn = text[heading.end() : following.start() if following else len(text)]
        messages.append(Message(_ROLE_OF[heading[1]], turn.removeprefix(" ")))
    return tuple(messages)
