"""The microworld's constitution: 16 principles for critiques and 16 for comparisons, and what each
of them sees.

Eight principles are general: they see every harm, and evasion, needless refusal and false answers
too. The other eight see one kind of harm only, so that one round of critique does not catch
everything (the paper's reason for several rounds). `constitution()` is the JSON that the pipeline
reads; the pipeline itself knows nothing of what is written here.
"""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.microworld.language import KINDS, REASONS, Act, answer, refusal
from cai_jax.microworld.oracle import Verdict, judge, utility

# (kind of harm that it sees or None for everything, critique request, revision request, comparison)
PRINCIPLES = (
    (
        None,
        "Say how the answer is harmful.",
        "Rewrite the answer without harm.",
        "Which answer is less harmful?",
    ),
    (
        None,
        "Point out what is wrong with the answer.",
        "Rewrite the answer so that it is right.",
        "Which answer would a wise person give?",
    ),
    (
        "hurt",
        "Does the answer help to injure someone?",
        "Rewrite the answer so that nobody is injured.",
        "Which answer does less to injure someone?",
    ),
    (
        None,
        "Is the answer dangerous or unkind?",
        "Make the answer safe and kind.",
        "Which answer is more safe and kind?",
    ),
    (
        "theft",
        "Does the answer help to rob someone?",
        "Rewrite the answer so that nobody is robbed.",
        "Which answer does less to rob someone?",
    ),
    (
        None,
        "Find what a good person would not say.",
        "Say what a good person would say.",
        "Which answer would a good person give?",
    ),
    (
        "privacy",
        "Does the answer help to expose someone?",
        "Rewrite the answer so that nobody is exposed.",
        "Which answer does less to expose someone?",
    ),
    (
        None,
        "Is the answer against the law or unfair?",
        "Make the answer fair.",
        "Which answer is more fair?",
    ),
    (
        "fraud",
        "Does the answer help to cheat someone?",
        "Rewrite the answer so that nobody is cheated.",
        "Which answer does less to cheat someone?",
    ),
    (
        None,
        "Say what a child should not read in the answer.",
        "Make the answer fit for a child.",
        "Which answer is more fit for a child?",
    ),
    (
        "hurt",
        "Look for injury in the answer.",
        "Remove injury from the answer.",
        "Which answer has less injury in it?",
    ),
    (
        None,
        "Name the harm in the answer.",
        "Remove the harm from the answer.",
        "Which answer has less harm in it?",
    ),
    (
        "theft",
        "Look for theft in the answer.",
        "Remove theft from the answer.",
        "Which answer has less theft in it?",
    ),
    (
        None,
        "Is the answer harmful or evasive?",
        "Make the answer harmless but not evasive.",
        "Which answer is harmless but not evasive?",
    ),
    (
        "privacy",
        "Look for spying in the answer.",
        "Remove spying from the answer.",
        "Which answer has less spying in it?",
    ),
    (
        "fraud",
        "Look for fraud in the answer.",
        "Remove fraud from the answer.",
        "Which answer has less fraud in it?",
    ),
)
# Critiques say how bad a response is, so that a judge can compare two harmful ones.
DEGREES = (None, "a little bad", "bad", "very bad", "terrible")  # severity 1 to 4 in words


def seen(judged: Verdict, kind: str | None) -> Verdict:
    """The verdict as a principle of this kind sees it: other kinds of harm look like help, and
    other faults are fine."""
    if kind is not None and judged.name == "harmful" and judged.harm != kind:
        return Verdict("helpful", helpfulness=1.0)
    return judged


def principled_utility(asked: Sequence[Act], response: str, kind: str | None) -> float:
    """How good a response is by a principle of this kind (None: general)."""
    judged = judge(asked, response)
    return 1.0 if seen(judged, kind) is not judged else utility(asked, response)


def assessment(asked: Sequence[Act], response: str, kind: str | None) -> str:
    """What a critique, or a chain of thought, says of a response by a principle of this kind; it
    follows "The answer" or "(A)"."""
    judged = seen(judge(asked, response), kind)
    if judged.name == "harmful":
        # The gravest of several harmful acts is named.
        act = max(
            (act for act in asked if act.kind == judged.harm),
            key=lambda act: act.severity,
            default=None,
        )
        with_whom = (
            f" to {act}, and {REASONS[judged.harm]}" if act else f", and {REASONS[judged.harm]}"
        )
        return f"helps{with_whom}, so it is {DEGREES[judged.severity]}."
    if judged.name == "engaged_refusal" and not judged.over_refusal:
        return "refuses and says why."
    if judged.name == "helpful":
        return "is fine."
    # A principle of one kind of harm does not mind evasion or errors.
    if kind is not None:
        return "is fine."
    return {"evasive": "says nothing.", "malformed": "is false."}.get(
        judged.name, "refuses without need."
    )


def ideal(asked: Sequence[Act], rng) -> str:
    """What a helpful, harmless and engaged assistant says: help, and a refusal with its reason for
    each harmful act."""
    return " ".join(
        answer(act, int(rng.integers(3)))
        if act.kind is None
        else refusal(act, act.kind, int(rng.integers(3)))
        for act in asked
    )


def revised(asked: Sequence[Act], response: str, kind: str | None, rng) -> str:
    """The response after revision by a principle, unchanged where the principle sees no fault.

    Args:
        asked: the acts that the request asks for.
        response: what is revised.
        kind: the kind of harm that the principle sees; None: every kind.
        rng: draws the wording.

    Returns:
        The revised response.
    """
    judged = seen(judge(asked, response), kind)
    if judged.name == "helpful" or (judged.name == "engaged_refusal" and not judged.over_refusal):
        return response
    # A general principle corrects everything.
    if kind is None:
        return ideal(asked, rng)
    if judged.name != "harmful":
        return response
    # Only the sentences about acts of its own kind are rewritten.
    sentences = [part.strip() + "." for part in response.split(".") if part.strip()]
    return " ".join(
        refusal(act, kind, int(rng.integers(3))) if act.kind == kind else sentence
        for act, sentence in zip(asked, sentences, strict=False)
    )


assert {kind for kind, *_ in PRINCIPLES} == {None, *KINDS} and len(PRINCIPLES) == 16
