"""Dialogues in the forms in which people publish them: hh-rlhf's text, and lists of turns.

A text is "\\n\\nHuman: …\\n\\nAssistant: …", or a request of its own. A turn of a list has its
speaker under "role" or "from" and its words under "content", "text" or "value"; speakers are spelt
as usual (user, human, prompter; assistant, gpt, bot, model; system), words are a text or OpenAI's
list of text parts.
"""

from __future__ import annotations

import re

from cai_jax.errors import UserError
from cai_jax.structs import ROLES, Dialogue, Message

SPEAKERS = {
    **dict.fromkeys(("user", "human", "prompter"), "human"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
# Only these two headings: in hh-rlhf every other heading is something that a person wrote.
_HEADING = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_DIALOGUE = "\n\nHuman:"  # how a text of the published form begins

OPEN = "not ending in the assistant"
ODD = "odd turns"
EMPTY = "empty turn"


def is_dialogue(value) -> bool:
    """Whether a text is a dialogue in the published form, not words of one speaker."""
    return isinstance(value, str) and value.startswith(_DIALOGUE)


def read(value, where: str) -> Dialogue:
    """The turns of `value`: a text of the published form, a request alone (one human turn), a turn
    or a list of turns.

    Raises UserError that begins with `where`, for a value of another kind, an unknown speaker, or
    words that are no text.
    """
    if isinstance(value, str):
        text = value.strip()
        return split_turns(value) if is_dialogue(value) else (Message("human", text),) * bool(text)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else type(value).__name__
        raise UserError(f"{where}: expected text or a list of {{role, content}}, got {kind}")
    return tuple(_turn(item, f"{where}[{number}]") for number, item in enumerate(value))


def before_answer(turns: Dialogue) -> Dialogue:
    """The turns up to the last human one, which is what is answered; none where no human speaks."""
    last = max((i for i, turn in enumerate(turns) if turn.role == "human"), default=-1)
    return turns[: last + 1]


def awaiting(value, where: str) -> Dialogue:
    """`read`, of a dialogue that waits for an answer; an open "Assistant:" at its end is dropped.
    UserError where it ends in another's turn than the human's; () for a blank text."""
    turns = read(value, where)
    if turns[-1:] == (Message("assistant", ""),):  # an open heading says whose turn it is
        turns = turns[:-1]
    if turns and turns[-1].role != "human":
        raise UserError(
            f"{where}: ends in '{turns[-1].role}'; expected a human turn last, which awaits an "
            "answer"
        )
    return turns


def _turn(item, where: str) -> Message:
    if not isinstance(item, dict):
        raise UserError(f"{where}: expected an object {{role, content}}, not {type(item).__name__}")
    speaker = next((item[key] for key in ("role", "from") if key in item), None)
    role = speaker if speaker in ROLES else SPEAKERS.get(str(speaker).strip().lower())
    key = next((key for key in ("text", "content", "value") if key in item), None)
    if key is None:
        fields = ", ".join(map(str, item)) or "none"
        raise UserError(f"{where}: no 'content', 'text' or 'value'; fields: {fields}")
    if role is None:
        raise UserError(
            f"{where}: expected {{role, content}} with a role among {', '.join(SPEAKERS)}, not "
            f"{str(speaker)[:40]!r}"
        )
    words = item[key]
    if isinstance(words, list) and words:  # OpenAI's list of text parts
        texts = [part.get("text") if isinstance(part, dict) else part for part in words]
        words = "".join(texts) if all(isinstance(text, str) for text in texts) else words
    if not isinstance(words, str):
        kind = "null" if words is None else f"{type(words).__name__} (images, tools)"
        raise UserError(f"{where}: '{key}': expected text, not {kind}")
    return Message(role, words)


def split_turns(text: str) -> Dialogue:
    """The turns of an hh-rlhf text, stripped. Text before the first heading becomes a system
    turn."""
    texts = _HEADING.split(text)
    turns = [Message("system", texts[0].strip())] if texts[0].strip() else []
    turns += [
        Message(who.lower(), words.strip())
        for who, words in zip(texts[1::2], texts[2::2], strict=True)
    ]
    return tuple(turns)


def fault(turns: Dialogue) -> str | None:
    """Why this is not a dialogue that alternates from a human's turn to an assistant's answer, or
    None."""
    if not turns or turns[-1].role != "assistant":
        return OPEN
    if any(turn.role != ("human", "assistant")[i % 2] for i, turn in enumerate(turns)):
        return ODD
    return EMPTY if any(not turn.text.strip() for turn in turns) else None


def without_system(turns: Dialogue) -> Dialogue:
    return turns[1:] if turns and turns[0].role == "system" else turns
