"""The words of section 4.1's multiple-choice question.

The text that is judged is inserted as data. Answers are the strings " (A)" and " (B)", parentheses
and all, after "The answer is:".
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
    """Writes the question up to its last option, without the lead to an answer.

    Args:
      dialogue: the conversation that is continued by one of the responses.
      principle: what to choose by.
      responses: the options, lettered in this order.
      options_heading: with a chain of thought the paper's prompt has no "Options:" line.

    Returns: the text of the human turn.
    """
    lettered = [f"({letter}) {text}" for letter, text in zip(LETTERS, responses, strict=False)]
    heading = "\nOptions:\n" if options_heading else "\n"
    asked = "Consider the following conversation between a human and an assistant:\n"
    return asked + conversation(dialogue) + "\n" + principle + heading + "\n".join(lettered)


def without_lead(text: str, lead: str = ANSWER_LEAD) -> str:
    """A question's text without a closing `lead`, which the answering turn begins with."""
    return text.rstrip().removesuffix(lead).strip("\n ")
