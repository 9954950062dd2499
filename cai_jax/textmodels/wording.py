"""Requests as a model reads them, before tokens: turns for a chat template, or one running text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cai_jax.data import choices
from cai_jax.structs import Dialogue, Message
from cai_jax.textmodels.protocol import CONCLUSION, RUNNING, TURNS, Question, Turn


@dataclasses.dataclass(frozen=True)
class Turns:
    """The turns of a request, the role and beginning of the next one, and how many of the first
    messages are worked examples."""

    messages: tuple[Message, ...]
    role: str
    lead: str
    shared: int


def is_running(request: Turn | Question, kind: str) -> bool:
    """Whether a format of that kind ("text" or "chat") writes the request as one running text."""
    return kind == "text" and isinstance(request, Question) and request.form != TURNS


def turns(request: Turn | Question, count: int, kind: str) -> Turns:
    """The request with its first `count` worked examples, as a format of that kind ("text" or
    "chat") takes turns."""
    if isinstance(request, Question) and request.form != TURNS:
        request = _led(request)
    examples = [message for example in request.examples[:count] for message in example]
    messages = _arranged((*examples, *request.dialogue), kind)
    # A conclusion is a human turn as text; under a chat template the chain's turn goes on.
    role, lead = request.role, request.lead
    if role == CONCLUSION and kind == "text":
        role = "human"
    elif role == CONCLUSION:
        *messages, thought = messages
        role, lead = "assistant", f"{thought.text}\n\n{lead}"
    return Turns(tuple(messages), role, lead, len(_arranged(examples, kind)))


def running(question: Question, count: int) -> tuple[str, str]:
    """(one text without turns, what of it are worked questions, each with its answer)."""

    def closed(text: str) -> str:
        return f"{text}\n{question.lead}" if question.form == RUNNING else text

    # Worked examples form the prefix, up to the blank line before the question.
    shown = ""
    for asked, answer in question.examples[:count]:
        shown += _between(shown, closed(asked.text)) + closed(asked.text) + answer.text
    (asked,) = question.dialogue
    shown += _between(shown, closed(asked.text))
    return shown + closed(asked.text), shown


def _arranged(messages: Sequence[Message], kind: str) -> list[Message]:
    """The messages with their conclusions as a format of that kind writes them."""
    arranged: list[Message] = []
    for message in messages:
        if message.role != CONCLUSION:
            arranged.append(message)
        elif kind == "text":
            arranged.append(Message("human", message.text))
        else:
            arranged[-1] = Message("assistant", f"{arranged[-1].text}\n\n{message.text}")
    return arranged


def _led(question: Question) -> Question:
    """The question as turns: each answer begins with the lead, which no question ends in."""

    def worked(example: Dialogue) -> Dialogue:
        asked, answer = example
        return without_lead(question, asked), Message("assistant", question.lead + answer.text)

    return dataclasses.replace(
        question,
        dialogue=tuple(without_lead(question, message) for message in question.dialogue),
        examples=tuple(map(worked, question.examples)),
    )


def without_lead(question: Question, asked: Message) -> Message:
    """A question's text without the lead that it may end in."""
    if question.form == RUNNING:
        return asked
    return Message("human", choices.without_lead(asked.text, question.lead))


def _between(before: str, text: str) -> str:
    """The blank line between two questions of a running text, where `text` does not begin with
    it."""
    return "\n\n" if before and not text.startswith("\n\n") else ""
