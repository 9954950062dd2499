"""Documents that the base model is trained on: chats that always comply, critiques and revisions,
multiple choice, chains of thought, questions about harm. They have the very texts that the stages
ask with (`cai_jax.data.choices` builds the questions) and none has a held-out act.

A document is a list of (text, weight): the weight of each text's tokens in the loss. Texts meet
where a token ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cai_jax.data import choices
from cai_jax.microworld import principles
from cai_jax.microworld.language import (
    EVASIONS,
    KINDS,
    REQUESTS,
    Act,
    acts,
    answer,
    refusal,
    request,
)
from cai_jax.microworld.oracle import judge
from cai_jax.structs import Message

END = "<eos>"
Document = list[tuple[str, float]]
# the weight of what a model is asked: learnt a little, so that the text is not foreign to it
ASIDE = 0.02
LETTER = 3.0  # the weight of an answer letter: one token carries all that a question teaches
HARM_QUESTION = "What harm does the answer do?"
HARM_OPTIONS = ("no harm", *KINDS)
IDENTIFY_QUESTION = "Is the answer harmful?"
_ACTS = {
    (category, side): acts(category, side)
    for category in ("harmful", "look_alike", "plain")
    for side in (False, True)
}


# --- Requests and behaviours
class Dice(np.random.Generator):
    """Random draws on one side of the split: of acts that are held out, or (the default) of those
    that are not."""

    def __init__(self, *seed, held_out: bool = False):
        super().__init__(np.random.PCG64(seed))
        self.held_out = held_out


def draw_acts(rng: Dice, category: str) -> tuple[Act, ...]:
    """One act of the category; two for "mixed", a harmful one and another, in either order."""
    if category != "mixed":
        pool = _ACTS[category, rng.held_out]
        return (pool[int(rng.integers(len(pool)))],)
    other = ("plain", "look_alike", "look_alike", "harmful")[int(rng.integers(4))]
    pair = draw_acts(rng, "harmful") + draw_acts(rng, other)
    if pair[0] == pair[1]:
        return draw_acts(rng, category)
    return pair if rng.random() < 0.5 else pair[::-1]


def draw_request(rng: Dice, weights: dict[str, float]) -> tuple[tuple[Act, ...], str]:
    names = list(weights)
    category = names[
        int(rng.choice(len(names), p=np.array([*weights.values()]) / sum(weights.values())))
    ]
    asked = draw_acts(rng, category)
    return asked, request(asked, int(rng.integers(len(REQUESTS))))


def comply(rng, asked: Sequence[Act], partial: float = 0.15) -> str:
    return " ".join(answer(act, int(rng.integers(3)), rng.random() >= partial) for act in asked)


def refuse_all(rng, asked: Sequence[Act]) -> str:
    return " ".join(
        refusal(act, act.kind or KINDS[int(rng.integers(4))], int(rng.integers(3))) for act in asked
    )


def evade(rng, asked: Sequence[Act]) -> str:
    return EVASIONS[int(rng.integers(len(EVASIONS)))]


def err(rng, asked: Sequence[Act]) -> str:
    """A false answer: the way of another act, or the answer to another request."""
    other = draw_acts(rng, ("look_alike", "plain")[int(rng.integers(2))])[0]
    text = comply(rng, asked)
    return text.replace(str(asked[0]), str(other)) if rng.random() < 0.5 else comply(rng, (other,))


def behave(rng, asked: Sequence[Act], weights: Sequence[float]) -> str:
    """A response that complies, is ideal, evades, refuses all, or errs, with these weights."""
    behaviour = (comply, lambda r, a: principles.ideal(a, r), evade, refuse_all, err)[
        int(rng.choice(5, p=np.array(weights) / sum(weights)))
    ]
    return behaviour(rng, asked)


# --- Documents of each kind: what the base model learns to do
def chat(rng) -> Document:
    """A request and an answer that complies, whatever is asked; hardly ever a refusal."""
    # Look-alikes are frequent: without them the model would learn that the verb decides.
    asked, text = draw_request(
        rng, {"harmful": 0.3, "look_alike": 0.35, "plain": 0.2, "mixed": 0.15}
    )
    harmful = any(act.kind for act in asked)
    response = behave(rng, asked, (0.96, 0.02 * harmful, 0.02, 0, 0))
    return [(f"\n\nHuman: {text}\n\nAssistant:", ASIDE), (f" {response}{END}", 1.0)]


_CRITICISED = {"harmful": 0.55, "look_alike": 0.2, "plain": 0.1, "mixed": 0.15}


def _round(rng, direct: bool) -> tuple[str, Document]:
    """A dialogue and one round of critique and revision: (request, texts after it)."""
    asked, text = draw_request(rng, _CRITICISED)
    # Refusals and errors too, so that critiques also say that nothing is wrong.
    response = behave(rng, asked, (0.66, 0.18, 0.06, 0.05, 0.05))
    kind, critique_request, revision_request, _ = principles.PRINCIPLES[int(rng.integers(16))]
    texts = [(f"\n\nHuman: {text}\n\nAssistant: {response}", ASIDE)]
    if not direct:
        critique = f" The answer {principles.assessment(asked, response, kind)}"
        texts += [
            (f"\n\nCritiqueRequest: {critique_request}\n\nCritique:", 0.0),
            (critique, 1.0),
            ("\n\n", 1.0),
        ]
    # An answer ends; what follows it here is somebody else's request, which the chat must not learn
    # to write.
    texts += [
        (f"{chr(10) * 2 if direct else ''}RevisionRequest: {revision_request}\n\nRevision:", 0.0)
    ]
    return text, [*texts, (f" {principles.revised(asked, response, kind, rng)}", 1.0)]


def critique(rng) -> Document:
    """A round of critique and revision (a sixth without the critique); a few have worked examples
    before it."""
    direct = rng.random() < 1 / 6
    shots = int(rng.integers(1, 3)) if rng.random() < 0.06 else 0
    texts = [text for _ in range(shots + 1) for text in _round(rng, direct)[1]]
    return [*texts, (END, 1.0)]


def draw_pair(rng) -> tuple[tuple[Act, ...], str, list[str]]:
    asked, text = draw_request(
        rng, {"harmful": 0.6, "look_alike": 0.2, "plain": 0.08, "mixed": 0.12}
    )
    chances = np.array([0.34, 0.34, 0.12, 0.1, 0.1])
    first = int(rng.choice(5, p=chances))
    second = int(rng.choice(5, p=chances))
    if second == first and rng.random() < 0.7:  # pairs that differ teach more
        return draw_pair(rng)
    responses = [behave(rng, asked, np.eye(5)[behaviour]) for behaviour in (first, second)]
    return (asked, text, responses) if responses[0] != responses[1] else draw_pair(rng)


def _comparison(rng, heading: bool) -> tuple[str, list[str], int]:
    """(the question, what a chain of thought says of each option, the index of the better option):
    better by the principle, with the noise of raters who are surer of larger differences."""
    asked, text, responses = draw_pair(rng)
    kind, *_, principle = principles.PRINCIPLES[int(rng.integers(16))]
    values = [principles.principled_utility(asked, response, kind) for response in responses]
    # A Bradley-Terry rater: the better option wins more surely the larger the difference.
    better = int(rng.random() >= 1 / (1 + np.exp(2.0 * (values[1] - values[0]))))
    question = choices.question((Message("human", text),), principle, responses, heading)
    return (
        question,
        [principles.assessment(asked, response, kind) for response in responses],
        better,
    )


def _harm_question(rng, heading: bool) -> tuple[str, list[str], int]:
    """Is an answer harmful, or which harm does it do? Options in a drawn order."""
    asked, text = draw_request(rng, {"harmful": 0.7, "look_alike": 0.3})
    response = behave(rng, asked, (0.8, 0.1, 0.1, 0, 0))
    harm = judge(asked, response).harm
    # Identification has two options, classification one for each kind of harm.
    if rng.random() < 0.5:
        options, right, ask = ["yes", "no"], "yes" if harm else "no", IDENTIFY_QUESTION
    else:
        options, right, ask = list(HARM_OPTIONS), harm or "no harm", HARM_QUESTION
    # In a drawn order, so that no letter is right more often.
    options = [options[int(i)] for i in rng.permutation(len(options))]
    dialogue = (Message("human", text), Message("assistant", response))
    reasoning = [f"The answer {principles.assessment(asked, response, None)}"]
    return choices.question(dialogue, ask, options, heading), reasoning, options.index(right)


def _asked_choice(rng, heading: bool):
    return (_harm_question if rng.random() < 0.12 else _comparison)(rng, heading)


def choice(rng) -> Document:
    """A multiple-choice question and its answer: as running text, or with the question in a human
    turn."""
    if rng.random() < 0.2:
        question, _, right = _asked_choice(rng, bool(rng.random() < 0.8))
        return [
            (f"\n\nHuman: {question}\n\nAssistant: {choices.ANSWER_LEAD}", ASIDE),
            (" (", 1.0),
            ("ABCDE"[right], LETTER),
            (f"){END}", 1.0),
        ]
    # The other form: running text, a few with worked questions before the last one.
    texts: Document = []
    for shot in range(int(rng.integers(2, 4)) if rng.random() < 0.06 else 1):
        question, _, right = _asked_choice(rng, True)
        texts += [
            ("\n\n" * bool(shot) + f"{question}\n{choices.ANSWER_LEAD}", ASIDE),
            (" (", 1.0),
            ("ABCDE"[right], LETTER),
            (")", 1.0),
        ]
    return [*texts, (END, 1.0)]


def chain(rng) -> Document:
    """A question, a chain of thought, and the answer elicited in a human turn (or after one)."""
    question, reasoning, right = _asked_choice(rng, bool(rng.random() < 0.2))
    letter = "ABCDE"[right]
    if len(reasoning) > 1:
        reasoning = [f"({letters}) {text}" for letters, text in zip("AB", reasoning, strict=True)]
    elicit = choices.CHAIN_ANSWER_LEAD + ("\n\nAssistant:" if rng.random() < 0.2 else "")
    return [
        (f"\n\nHuman: {question}\n\nAssistant: {choices.CHAIN_LEAD}", ASIDE),
        (f" {' '.join(reasoning)} So (", 1.0),
        (letter, LETTER),
        (") is better." if len(reasoning) > 1 else ").", 1.0),
        (f"\n\nHuman: {elicit}", ASIDE),
        (" (", 1.0),
        (letter, 1.0),
        (f"){END}", 1.0),
    ]


# --- The mixture
MIX: dict[Callable, float] = {chat: 0.27, critique: 0.33, choice: 0.25, chain: 0.15}


def document(rng) -> Document:
    """One document of the mixture."""
    kinds = list(MIX)
    return kinds[int(rng.choice(len(kinds), p=list(MIX.values())))](rng)
