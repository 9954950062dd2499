"""The two ways in which section 4.1 asks a model to choose: at once, and after a chain of
thought."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cai_jax.constitution.loader import Constitution
from cai_jax.data import choices
from cai_jax.data.choices import ANSWER_LEAD, ANSWERS, CHAIN_ANSWER_LEAD, CHAIN_LEAD
from cai_jax.seeds import row_rng
from cai_jax.structs import Dialogue, Message
from cai_jax.textmodels.protocol import CONCLUSION, RUNNING, VERBATIM, Question, Turn


def choice(
    name: str,
    asked: str,
    options: Sequence[str] = ANSWERS,
    examples: Sequence[Dialogue] = (),
    verbatim: bool = False,
    group: str = "",
) -> Question:
    """The question with the options that may follow "The answer is:".

    Args:
      name: the request's id.
      asked: the question's text, see `data.choices.question`.
      options: answer strings such as " (A)".
      examples: see `worked_choice`.
      verbatim: the texts end in the lead already, as the published evaluations do.
      group: requests of one group have the same number of examples.

    Returns:
      The request.
    """
    form = VERBATIM if verbatim else RUNNING
    return Question(
        name,
        (Message("human", asked),),
        tuple(options),
        tuple(examples),
        ANSWER_LEAD,
        form=form,
        group=group,
    )


def worked_choice(asked: str, answer: str) -> Dialogue:
    return Message("human", asked), Message("assistant", answer)


def chain(
    name: str,
    asked: str,
    key: np.ndarray,
    examples: Sequence[Dialogue] = (),
    **fields,
) -> Turn:
    """The question with a chain of thought to be sampled.

    Args:
      name: the request's id.
      asked: the question's text, without a line of options.
      key: decides what is drawn.
      examples: see `worked_chain`.
      **fields: as in `Turn`.

    Returns:
      The request.
    """
    return Turn(
        name,
        (Message("human", asked),),
        key,
        examples=tuple(examples),
        lead=CHAIN_LEAD,
        **fields,
    )


def after_chain(
    name: str,
    asked: str,
    thought: str,
    options: Sequence[str] = ANSWERS,
    examples: Sequence[Dialogue] = (),
    group: str = "",
) -> Question:
    """The question with a chain of thought, and the options that may follow "So the answer is:".

    Args:
      name: the request's id.
      asked: the question's text, without a line of options.
      thought: the chain.
      options: answer strings such as " (A)".
      examples: see `worked_chain`.
      group: requests of one group have the same number of examples.

    Returns:
      The request.
    """
    return Question(
        name,
        (Message("human", asked), Message("assistant", f"{CHAIN_LEAD} {thought}")),
        tuple(options),
        tuple(examples),
        CHAIN_ANSWER_LEAD,
        role=CONCLUSION,
        group=group,
    )


def worked_chain(asked: str, reasoning: str, answer: str) -> Dialogue:
    return (
        Message("human", asked),
        Message("assistant", f"{CHAIN_LEAD} {reasoning}"),
        Message(CONCLUSION, CHAIN_ANSWER_LEAD + answer),
    )


def draw_examples(
    constitution: Constitution, mode: str, num_few_shot: int, seed: int, *name
) -> tuple[tuple[str, ...], tuple[Dialogue, ...]]:
    """Worked examples, each with a principle and (where the example leaves it open) an order of its
    own draw.

    Args:
      constitution: its first examples of the mode's kind are taken.
      mode: "multiple_choice" or "chain_of_thought".
      num_few_shot: how many are wanted; there are fewer where the constitution has fewer.
      seed: the run's.
      *name: what the draw depends on.

    Returns:
      The ids "example:principle[:order]", and the examples as dialogues.
    """
    rng, principles = row_rng(seed, *name), constitution.comparison_principles
    ids, examples = [], []
    chains = mode == "chain_of_thought"
    source = constitution.chain_examples if chains else constitution.comparison_examples
    for example in source[:num_few_shot]:
        principle = principles[int(rng.integers(len(principles)))]
        swapped = bool(rng.integers(2))
        if chains:
            asked, answer = example.question(principle.text), f" ({example.answer})"
            ids.append(f"{example.id}:{principle.id}")
            examples.append(worked_chain(asked, example.reasoning, answer))
        else:
            responses = (example.chosen, example.rejected)[:: -1 if swapped else 1]
            asked = choices.question(example.dialogue, principle.text, responses)
            ids.append(f"{example.id}:{principle.id}:{'ba' if swapped else 'ab'}")
            examples.append(worked_choice(asked, choices.answer(int(swapped))))
    return tuple(ids), tuple(examples)
