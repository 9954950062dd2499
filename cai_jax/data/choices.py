"""The multiple-choice question of section 4.1: its words, and its tokens in either dialogue format.

The text that is judged is inserted as data. Answers are the whole strings " (A)" and " (B)" after "The answer is:".
"""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.structs import Dialogue, Message

ANSWER_LEAD = "The answer is:"
CHAIN_LEAD = "Let's think step by step:"
CHAIN_ANSWER_LEAD = "So the answer is:"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPEAKERS = {"system": "System", "human": "Human", "assistant": "Assistant"}


def answer(index: int) -> str:
    """The answer string of option `index`: " (A)" for 0."""
    return f" ({LETTERS[index]})"


def conversation(dialogue: Dialogue) -> str:
    """The dialogue as the question quotes it: "Human: …", "Assistant: …", with blank lines between turns."""
    return "\n\n".join(f"{SPEAKERS[message.role]}: {message.text}" for message in dialogue)


def question(
    dialogue: Dialogue, principle: str, responses: Sequence[str], options_heading: bool = True
) -> str:
    """The question up to its last option, without the lead to an answer. With a chain of thought the paper's prompt has no
    "Options:" line (`options_heading=False`)."""
    options = "\n".join(
        f"({LETTERS[index]}) {response}" for index, response in enumerate(responses)
    )
    heading = "\nOptions:\n" if options_heading else "\n"
    return (
        "Consider the following conversation between a human and an assistant:\n"
        + conversation(dialogue)
        + "\n"
        + principle
        + heading
        + options
    )


def choice_segments(
    format, header: Sequence[tuple[str, str]], asked: str, lead: str = ANSWER_LEAD
) -> tuple[tuple[int, ...], ...]:
    """Token segments up to and including `lead`, after which an answer string is scored.

    `header` holds worked (question, answer) pairs; it is a segment of its own, so that it is prefilled once. In the text
    format this is one running text, as for the paper's pretrained feedback model; with a chat template every question is a
    user turn and the assistant's turn begins with `lead`.
    """
    if format.kind == "text":
        tokenizer = format.tokenizer
        start = (tokenizer.bos,) if tokenizer.bos is not None else ()
        shown = "".join(f"{question}\n{lead}{answer}\n\n" for question, answer in header)
        segments = (
            start + tuple(tokenizer.encode(shown)),
            tuple(tokenizer.encode(f"{asked}\n{lead}")),
        )
        return segments if segments[0] else segments[1:]
    messages = []
    for question, answer in header:
        messages += [Message("human", question), Message("assistant", lead + answer)]
    return format.prompt((*messages, Message("human", asked)), start=lead, shared=len(messages))


def chain_segments(
    format, header: Sequence[tuple[str, str, str]], asked: str, chain: str | None = None
):
    """Token segments of the chain-of-thought question: up to "Let's think step by step:" where a chain is to be sampled
    (`chain=None`), or with a chain and up to "So the answer is:", after which an answer string is scored.

    `header` holds (question, chain, answer). In the text format the answer is elicited in a Human turn, as in the paper; a
    chat template closes the assistant's turn, so there the same turn goes on.
    """
    messages: list[Message] = []
    text = format.kind == "text"
    for question, reasoning, answer in header:
        messages += [Message("human", question), *_chain_turns(text, reasoning, answer)]
    shared = len(messages)
    messages.append(Message("human", asked))
    if chain is None:
        return format.prompt(messages, start=CHAIN_LEAD, shared=shared)
    if text:
        messages.append(Message("assistant", f"{CHAIN_LEAD} {chain}"))
        return format.prompt(messages, reply="human", start=CHAIN_ANSWER_LEAD, shared=shared)
    return format.prompt(
        messages, start=f"{CHAIN_LEAD} {chain}\n\n{CHAIN_ANSWER_LEAD}", shared=shared
    )


def _chain_turns(text: bool, reasoning: str, answer: str) -> list[Message]:
    if text:
        return [
            Message("assistant", f"{CHAIN_LEAD} {reasoning}"),
            Message("human", CHAIN_ANSWER_LEAD + answer),
        ]
    return [Message("assistant", f"{CHAIN_LEAD} {reasoning}\n\n{CHAIN_ANSWER_LEAD}{answer}")]
