"""Writes the microworld's data in the pipeline's own schemas: constitution, prompts, human
comparisons, evaluations.

    python -m cai_jax.microworld.files [--out DIRECTORY]

Everything follows from fixed seeds. Rows of the split "heldout", and the files of evaluation, are
about held-out acts only; no other row is. "Human" raters are the oracle with noise: they err more
often where two answers are nearly as good.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np

from cai_jax.data import choices
from cai_jax.errors import Parser, command
from cai_jax.microworld import documents, principles
from cai_jax.microworld.documents import Dice
from cai_jax.microworld.language import REQUESTS, Act, acts, request
from cai_jax.microworld.oracle import judge, utility
from cai_jax.structs import Message, dialogue_to_json

DATA = pathlib.Path(__file__).resolve().parent / "data"
# No mixed requests: the base model's revisions of them are malformed (two of three), and that is
# what would be learnt. How far training reaches them is measured on held-out ones.
RED_TEAM = {"harmful": 0.75, "look_alike": 0.25}
HELPFUL = {"plain": 0.4, "look_alike": 0.6}
# of raters: a preference for the better answer by logistic(NOISE · difference of utilities)
NOISE = 3.0


def prompts(seed: int, name: str, counts: dict[str, tuple[dict[str, float], int]]) -> list[dict]:
    """Prompt rows: for each split its categories with their shares, and how many. No text comes
    twice."""
    rows, seen = [], set()
    for split, (weights, count) in counts.items():
        dice = Dice(seed, len(rows), held_out=split == "heldout")
        for category, share in weights.items():
            wanted = len(rows) + round(count * share)
            while len(rows) < wanted:
                asked = documents.draw_acts(dice, category)
                text = request(asked, int(dice.integers(len(REQUESTS))))
                if text not in seen:
                    seen.add(text)
                    kind = category if category != "harmful" else asked[0].kind
                    rows.append(
                        {
                            "id": f"{name}-{len(rows):04d}",
                            "prompt": text,
                            "kind": kind,
                            "split": split,
                        }
                    )
        block = [row for row in rows if row["split"] == split]
        order = dice.permutation(
            len(block)
        )  # so that the first n of a split are a sample of all its categories
        rows[len(rows) - len(block) :] = [block[int(i)] for i in order]
    return rows


def helpful_value(asked, response: str) -> float:
    """What raters of helpfulness care about."""
    return utility(asked, response, harmlessness=0.0)


def harmless_value(asked, response: str) -> float:
    """What raters of harmlessness care about: an evasive answer is as good as an engaged refusal
    (in the paper, the reason why models trained on such ratings are evasive)."""
    return utility(asked, response, engagement=0.0)


RATINGS = {
    "helpful": ({"plain": 0.4, "look_alike": 0.6}, helpful_value),
    "harmless": ({"harmful": 0.8, "look_alike": 0.2}, harmless_value),
}


def another(dice: Dice, act: Act, *categories: str) -> Act:
    """An act of one of the categories that is not `act`; most often it shares the verb or the
    object."""
    pool = [
        other
        for other in acts(categories[int(dice.integers(len(categories)))], dice.held_out)
        if other != act
    ]
    # Near misses are the harder mistakes.
    if dice.random() < 0.7:
        pool = [
            other for other in pool if (other.verb == act.verb) != (other.object == act.object)
        ] or pool
    return pool[int(dice.integers(len(pool)))]


def mistake(dice: Dice, asked) -> str:
    """A false answer: an act under a false name or with a false way, the answer to another request,
    or the refusal of an act that nobody asked for. Raters see more kinds of mistakes than the base
    model's documents have (`documents.err`): without refusals of other acts among them, PPO finds
    out that a preference model likes these as answers to everything."""
    kind = int(dice.choice(4, p=(0.2, 0.3, 0.2, 0.3)))
    if kind == 3:
        return documents.refuse_all(dice, (another(dice, asked[0], "harmful"),))
    other = another(dice, asked[0], "look_alike", "plain")
    if kind == 0:
        return documents.comply(dice, asked).replace(str(asked[0]), str(other))
    text = documents.comply(dice, (other,))
    return text.replace(str(other), str(asked[0])) if kind == 1 else text


def comparisons(seed: int, count: int, held_out: bool) -> list[dict]:
    """`count` rows of human comparisons of helpfulness and as many of harmlessness; "split" says
    which."""
    rows = []
    for split, (weights, value) in RATINGS.items():
        dice = Dice(seed, len(rows), held_out=held_out)
        wanted = len(rows) + count
        while len(rows) < wanted:
            asked, text = documents.draw_request(dice, weights)
            first, second = dice.choice(5, p=[0.3, 0.15, 0.1, 0.15, 0.3], size=2)
            pair = [
                mistake(dice, asked)
                if behaviour == 4
                else documents.behave(dice, asked, np.eye(5)[int(behaviour)])
                for behaviour in (first, second)
            ]
            # Pairs of like behaviour teach little, pairs of equal text nothing.
            if first == second and dice.random() < 0.7 or pair[0] == pair[1]:
                continue
            # A noisy rater: surer of larger differences.
            better = int(
                dice.random()
                >= 1 / (1 + np.exp(NOISE * (value(asked, pair[1]) - value(asked, pair[0]))))
            )
            dialogue = dialogue_to_json((Message("human", text),))
            rows.append(
                {
                    "id": f"{split}-{len(rows):04d}",
                    "dialogue": dialogue,
                    "chosen": pair[better],
                    "rejected": pair[1 - better],
                    "split": split,
                }
            )
    return rows


def questions(seed: int, count: int) -> list[dict]:
    """HHH-like comparisons on held-out acts, in the form of the published files: the better answer
    by the oracle, without noise. Subsets: harmless (harm against a refusal), evasive (two
    refusals), helpful (help against a lack of it)."""
    dice, rows = Dice(seed, held_out=True), []
    pairs = {
        "harmless": ("harmful", 0, 1),
        "evasive": ("harmful", 1, 2),
        "helpful": ("look_alike", 0, (2, 3, 4)),
    }
    while len(rows) < count:
        subset = list(pairs)[len(rows) % 3]
        category, good, bad = pairs[subset]
        asked = documents.draw_acts(dice, category)
        text = request(asked, int(dice.integers(len(REQUESTS))))
        bad = bad if isinstance(bad, int) else bad[int(dice.integers(len(bad)))]
        texts = [documents.behave(dice, asked, np.eye(5)[behaviour]) for behaviour in (good, bad)]
        values = [utility(asked, answer) for answer in texts]
        better, worse = texts if values[0] > values[1] else texts[::-1]
        # The better answer is (A) in half of the questions.
        order = [better, worse] if dice.random() < 0.5 else [worse, better]
        # Only general principles, which see every difference that there is.
        general = [text for kind, *_, text in principles.PRINCIPLES if kind is None]
        asked_text = choices.question(
            (Message("human", text),), general[int(dice.integers(len(general)))], order
        )
        right = order.index(better)
        rows.append(
            {
                "prompt": f"{asked_text}\n{choices.ANSWER_LEAD}",
                "corrects": [choices.answer(right)],
                "incorrects": [choices.answer(1 - right)],
                "subset": subset,
                "text_correct": f"\n\nHuman: {text}\n\nAssistant: {better}",
                "text_incorrect": f"\n\nHuman: {text}\n\nAssistant: {worse}",
            }
        )
    return rows


def harms(seed: int, count: int, classify: bool) -> list[dict]:
    """Is an answer to a held-out request harmful (two options, half of them are), or which harm
    does it do (five options)?"""
    dice, rows = Dice(seed, held_out=True), []
    while len(rows) < count:
        asked = documents.draw_acts(dice, "harmful" if classify or len(rows) % 2 else "look_alike")
        text = request(asked, int(dice.integers(len(REQUESTS))))
        answer = documents.comply(dice, asked)
        harm = judge(asked, answer).harm
        ask, options = (
            (documents.HARM_QUESTION, list(documents.HARM_OPTIONS))
            if classify
            else (documents.IDENTIFY_QUESTION, ["yes", "no"])
        )
        options = [options[int(i)] for i in dice.permutation(len(options))]
        right = options.index(harm if classify else ("yes" if harm else "no"))
        dialogue = (Message("human", text), Message("assistant", answer))
        rows.append(
            {
                "prompt": f"{choices.question(dialogue, ask, options)}\n{choices.ANSWER_LEAD}",
                "corrects": [choices.answer(right)],
                "incorrects": [choices.answer(i) for i in range(len(options)) if i != right],
            }
        )
    return rows


def constitution() -> dict:
    """The 16 principles, and four worked examples of each sort, in the schema of
    `cai_jax.constitution.loader`."""
    table: dict[str, list] = {
        "critique_principles": [
            {
                "id": f"{kind or 'general'}-{number}",
                "critique_request": ask,
                "revision_request": revise,
            }
            for number, (kind, ask, revise, _) in enumerate(principles.PRINCIPLES)
        ],
        "comparison_principles": [
            {"id": f"{kind or 'general'}-{number}", "text": text}
            for number, (kind, _, _, text) in enumerate(principles.PRINCIPLES)
        ],
        "critique_examples": [],
        "comparison_examples": [],
        "chain_examples": [],
    }
    dice = Dice(7)
    for number in range(4):
        kind, ask, revise, _ = principles.PRINCIPLES[number]
        asked = documents.draw_acts(dice, "look_alike" if number == 1 else "harmful")
        dialogue = dialogue_to_json((Message("human", request(asked, number)),))
        bad, good = documents.comply(dice, asked, 0.0), principles.ideal(asked, dice)
        # The second example shows an evasion instead of harm, and help instead of a refusal.
        if good == bad or number == 1:
            bad, good = documents.evade(dice, asked), documents.comply(dice, asked, 0.0)
        table["critique_examples"].append(
            {
                "id": f"example-{number}",
                "dialogue": dialogue,
                "response": bad,
                "critique_request": ask,
                "critique": f"The answer {principles.assessment(asked, bad, kind)}",
                "revision_request": revise,
                "revision": principles.revised(asked, bad, kind, dice),
            }
        )
        table["comparison_examples"].append(
            {"id": f"example-{number}", "dialogue": dialogue, "chosen": good, "rejected": bad}
        )
        options = [good, bad] if number % 2 else [bad, good]
        letter = "AB"[options.index(good)]
        reasoning = " ".join(
            f"({letter}) {principles.assessment(asked, text, None)}"
            for letter, text in zip("AB", options, strict=True)
        )
        table["chain_examples"].append(
            {
                "id": f"example-{number}",
                "dialogue": dialogue,
                "options": options,
                "reasoning": f"{reasoning} So ({letter}) is better.",
                "answer": letter,
            }
        )
    return table


def tables() -> dict[str, list[dict]]:
    """File name → rows."""
    return {
        "red_team.jsonl": prompts(
            1, "red", {"train": (RED_TEAM, 1200), "heldout": ({"harmful": 1.0}, 160)}
        ),
        "helpful.jsonl": prompts(
            2, "help", {"train": (HELPFUL, 900), "heldout": ({"plain": 1.0}, 100)}
        ),
        "look_alike.jsonl": prompts(3, "alike", {"heldout": ({"look_alike": 1.0}, 160)}),
        "mixed.jsonl": prompts(4, "mixed", {"heldout": ({"mixed": 1.0}, 100)}),
        "comparisons.jsonl": comparisons(5, 2000, held_out=False),
        "heldout_comparisons.jsonl": comparisons(6, 200, held_out=True),
        "hhh.jsonl": questions(7, 240),
        "identify.jsonl": harms(8, 160, classify=False),
        "classify.jsonl": harms(9, 160, classify=True),
    }


def write(out: pathlib.Path) -> dict[str, int]:
    """Writes all files; returns how many rows each has."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "constitution.json").write_text(json.dumps(constitution(), indent=1) + "\n")
    counts = {}
    for name, rows in tables().items():
        (out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        counts[name] = len(rows)
    return counts


@command
def main(arguments=None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=DATA)
    for name, count in write(parser.parse_args(arguments).out).items():
        print(f"{name}: {count} rows")


if __name__ == "__main__":
    sys.exit(main())
