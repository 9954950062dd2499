"""The multiple-choice question of section 4.1: its words, and its tokens in either dialogue format.

The text that is judged is inserted as data. Answers are the whole strings " (A)" and " (B)" after
"The answer is:".
"""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.structs import Dialogue, Message, ScoreRequest

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


def choice_request(
    name: str,
    format,
    header: Sequence[tuple[str, str]],
    asked: str,
    options: Sequence[str],
    lead: str = ANSWER_LEAD,
    verbatim: bool = False,
) -> ScoreRequest:
    """The question with the options that are scored after `lead`, as the tokens that they have
    there.

    Args:
      name: the request's id. format: the model's DialogueFormat. header: worked (question, answer)
      pairs; a segment of its own, so that it is prefilled once. asked: the question. options:
      answer strings such as " (A)". lead: what the answer begins with. verbatim: the questions are
      texts that end in `lead` already, as the published evaluations do. The text format then
        asks them to the byte; a chat template's turn holds them without the lead.
    """
    segments, tokens = _choice(format, header, asked, options, lead, verbatim)
    return ScoreRequest(name, segments, tokens)


def choice_segments(
    format, header: Sequence[tuple[str, str]], asked: str, lead: str = ANSWER_LEAD
) -> tuple[tuple[int, ...], ...]:
    """Token segments up to and including `lead`: those of `choice_request` where no option's tokens
    begin earlier.

    In the text format this is one running text, as for the paper's pretrained feedback model; with
    a chat template every question is a user turn and the assistant's turn begins with `lead`.
    """
    return _choice(format, header, asked, (), lead, False)[0]


def _choice(format, header, asked: str, options, lead: str, verbatim: bool):
    if format.kind == "text":
        texts = [question for question, _ in header] + [asked]
        if not verbatim:
            texts = [f"{text}\n{lead}" for text in texts]
        shown = ""
        for text, (_, answer) in zip(texts, header, strict=False):
            shown += _between(shown, text) + text + answer
        shown += _between(shown, texts[-1])
        return format.running_text(shown + texts[-1], options, header=shown)
    messages = []
    for question, answer in header:
        shown = without_lead(question, lead) if verbatim else question
        messages += [Message("human", shown), Message("assistant", lead + answer)]
    asked = without_lead(asked, lead) if verbatim else asked
    return format.question(
        (*messages, Message("human", asked)), options, start=lead, shared=len(messages)
    )


def _between(before: str, text: str) -> str:
    """The blank line between two questions of a running text, where `text` does not begin with
    it."""
    return "\n\n" if before and not text.startswith("\n\n") else ""


def without_lead(text: str, lead: str = ANSWER_LEAD) -> str:
    """A question's text without a closing `lead`, which the answering turn begins with."""
    return text.rstrip().removesuffix(lead).strip("\n ")


def chain_segments(
    format, header: Sequence[tuple[str, str, str]], asked: str, chain: str | None = None
):
    """Token segments of the chain-of-thought question: up to "Let's think step by step:" where a
    chain is to be sampled (`chain=None`), or with a chain and up to "So the answer is:", after
    which an answer string is scored.

    `header` holds (question, chain, answer). In the text format the answer is elicited in a Human
    turn, as in the paper; a chat template closes the assistant's turn, so there the same turn goes
    on.
    """
    return _chain(format, header, asked, chain, ())[0]


def chain_request(
    name: str,
    format,
    header: Sequence[tuple[str, str, str]],
    asked: str,
    chain: str,
    options: Sequence[str],
) -> ScoreRequest:
    """The question with a chain of thought, and the options that are scored after "So the answer
    is:" (`choice_request`)."""
    segments, tokens = _chain(format, header, asked, chain, options)
    return ScoreRequest(name, segments, tokens)


def _chain(format, header, asked: str, chain: str | None, options):
    messages: list[Message] = []
    text = format.kind == "text"
    for question, reasoning, answer in header:
        messages += [Message("human", question), *_chain_turns(text, reasoning, answer)]
    shared = len(messages)
    messages.append(Message("human", asked))
    if chain is None:
        return format.question(messages, options, start=CHAIN_LEAD, shared=shared)
    if text:
        messages.append(Message("assistant", f"{CHAIN_LEAD} {chain}"))
        return format.question(
            messages, options, reply="human", start=CHAIN_ANSWER_LEAD, shared=shared
        )
    start = f"{CHAIN_LEAD} {chain}\n\n{CHAIN_ANSWER_LEAD}"
    return format.question(messages, options, start=start, shared=shared)


def _chain_turns(text: bool, reasoning: str, answer: str) -> list[Message]:
    if text:
        return [
            Message("assistant", f"{CHAIN_LEAD} {reasoning}"),
            Message("human", CHAIN_ANSWER_LEAD + answer),
        ]
    return [Message("assistant", f"{CHAIN_LEAD} {reasoning}\n\n{CHAIN_ANSWER_LEAD}{answer}")]
