"""The words of section 4.1's multiple-choice question.

The text that is judged is inserted as data. Answers are the whole strings " (A)" and " (B)" after
"The answer is:".
"""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.structs import Dialogue

ANSWER_LEAD = "The answer is:"
CHAIN_LEAD = "Let's think step by step:"
CHAIN_ANSWER_LEAD = "So the answer is:"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPEAKERS = {"system": "System", "human": "Human", "assistant": "Assistant"}


def answer(index: int) -> str:
    """The answer string of option `index`: " (A)" for 0."""
    return f" ({LETTERS[index]})"


ANSWERS = (answer(0), answer(1))


def conversation(dialogue: Dialogue) -> str:
    """The dialogue as the question quotes it: "Human: …", "Assistant: …", with blank lines between
    turns."""
    return "\n\n".join(f"{SPEAKERS[message.role]}: {message.text}" for message in dialogue)


def question(
    dialogue: Dialogue, principle: str, responses: Sequence[str], options_heading: bool = True
) -> str:
    """The question up to its last option, without the lead to an answer. With a chain of thought
    the paper's prompt has no "Options:" line (`options_heading=False`)."""
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


def without_lead(text: str, lead: str = ANSWER_LEAD) -> str:
    """A question's text without a closing `lead`, which the answering turn begins with."""
    return text.rstrip().removesuffix(lead).strip("\n ")
