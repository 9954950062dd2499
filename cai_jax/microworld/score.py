"""What a model of the microworld can do, mode by mode, on held-out acts: the oracle's table.

python -m cai_jax.microworld.score [--model DIRECTORY] [--count N]
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from cai_jax.data import choices
from cai_jax.data.dialogue import DialogueFormat, load_format
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.errors import Parser, command
from cai_jax.microworld import documents, principles
from cai_jax.microworld.language import REQUESTS, request
from cai_jax.microworld.oracle import VERDICTS, judge
from cai_jax.models import hf
from cai_jax.seeds import row_key
from cai_jax.structs import Dialogue, Message
from cai_jax.textmodels import questions
from cai_jax.textmodels.local import LocalTextModel
from cai_jax.textmodels.protocol import Question, Sampling, Turn

CATEGORIES = ("harmful", "look_alike", "plain", "mixed")


class Subject:
    """A model that is asked things at temperature 1."""

    def __init__(self, params, config, format: DialogueFormat, seed: int = 0):
        options = EngineOptions(batch_size=64, chunk_steps=8)
        self.model = LocalTextModel(
            "subject",
            format,
            config.max_length,
            lambda: Engine(params, config, format, None, options),
        )
        self.seed, self.asked = seed, 0

    def reply(self, dialogues: Sequence[Dialogue], role: str = "assistant") -> list[str]:
        """A turn of `role` after each dialogue, in order."""
        return self._texts(
            [Turn(str(n), dialogue, None, role) for n, dialogue in enumerate(dialogues)]
        )

    def think(self, asked: Sequence[str]) -> list[str]:
        """A chain of thought on each question, in order."""
        return self._texts([questions.chain(str(n), text, None) for n, text in enumerate(asked)])

    def choose(self, asked: Sequence[Question]) -> list[float]:
        """P(A) for each question of two options, named by its number."""
        logprobs = {choice.id: choice.logprobs for choice in self.model.choose(asked)}
        pairs = [logprobs[str(number)] for number in range(len(asked))]
        return [float(1 / (1 + np.exp(b - a))) for a, b in pairs]

    def _texts(self, turns: Sequence[Turn], max_new_tokens: int = 64) -> list[str]:
        self.asked += 1
        turns = [
            dataclasses.replace(turn, key=row_key(self.seed, "score", self.asked, number))
            for number, turn in enumerate(turns)
        ]
        texts = {
            done.id: done.text for done in self.model.generate(turns, Sampling(max_new_tokens))
        }
        return [texts[turn.id] for turn in turns]


def draw(dice: documents.Dice, category: str, count: int) -> list[tuple]:
    """(acts, dialogue) of `count` requests."""
    rows = []
    for _ in range(count):
        asked = documents.draw_acts(dice, category)
        rows.append((asked, (Message("human", request(asked, int(dice.integers(len(REQUESTS))))),)))
    return rows


def shares(asked: Sequence, responses: Sequence[str]) -> dict[str, float]:
    """Share of each verdict, and of over-refusals."""
    verdicts = [judge(acts, text) for acts, text in zip(asked, responses, strict=True)]
    table = {
        name: float(np.mean([verdict.name == name for verdict in verdicts])) for name in VERDICTS
    }
    return {**table, "over_refusal": float(np.mean([verdict.over_refusal for verdict in verdicts]))}


def chat(
    subject: Subject, count: int, seed: int = 1, held_out: bool = True
) -> dict[str, dict[str, float]]:
    """What the chat answers.

    Args:
        subject: the model.
        count: requests of each category.
        seed: of the requests.
        held_out: about acts that no document has.

    Returns:
        Category of request → shares of verdicts.
    """
    dice, table = documents.Dice(seed, held_out=held_out), {}
    for category in CATEGORIES:
        rows = draw(dice, category, count)
        table[category] = shares(
            [asked for asked, _ in rows], subject.reply([dialogue for _, dialogue in rows])
        )
    return table


def revisions(
    subject: Subject, category: str, count: int, num_rounds: int = 4, seed: int = 2
) -> list[dict[str, float]]:
    """Critique and revision of the chat's answers, with a drawn principle in each round.

    Args:
        subject: the model.
        category: of the requests.
        count: requests.
        num_rounds: of critique and revision.
        seed: of requests and principles.

    Returns:
        Shares of verdicts after 0, 1, … rounds.
    """
    dice = documents.Dice(seed, held_out=True)
    rows = draw(dice, category, count)
    asked, dialogues = [asked for asked, _ in rows], [dialogue for _, dialogue in rows]
    responses = subject.reply(dialogues)
    table = [shares(asked, responses)]
    for _ in range(num_rounds):
        drawn = [principles.PRINCIPLES[int(dice.integers(16))] for _ in rows]
        turns = [
            (*dialogue, Message("assistant", text), Message("critique_request", ask))
            for dialogue, text, (_, ask, _, _) in zip(dialogues, responses, drawn, strict=True)
        ]
        critiques = subject.reply(turns, "critique")
        turns = [
            (*turn, Message("critique", text), Message("revision_request", ask))
            for turn, text, (_, _, ask, _) in zip(turns, critiques, drawn, strict=True)
        ]
        responses = subject.reply(turns, "revision")
        table.append(shares(asked, responses))
    return table


def judging(subject: Subject, count: int, general: bool, seed: int = 3) -> dict[str, float]:
    """Accuracy against the oracle of the model as a judge of pairs.

    Args:
        subject: the model.
        count: pairs.
        general: only principles that see every kind of harm.
        seed: of the pairs.

    Returns:
        "plain", the multiple choice; "plain_large", of these the pairs of an answer as good as can
        be and one that is harmful, evasive or false; "chain", after a chain of thought.
    """
    dice, items = documents.Dice(seed, held_out=True), []
    while len(items) < count:
        asked, text, responses = documents.draw_pair(dice)
        kind, *_, principle = principles.PRINCIPLES[int(dice.integers(16))]
        values = [principles.principled_utility(asked, response, kind) for response in responses]
        if values[0] != values[1] and not (general and kind):
            items.append(((Message("human", text),), principle, responses, values))
    right = np.array([values[0] > values[1] for *_, values in items])
    large = np.array([max(values) == 1.0 and min(values) <= -0.5 for *_, values in items])
    asked = [
        choices.question(dialogue, principle, responses)
        for dialogue, principle, responses, _ in items
    ]
    plain = np.array(
        subject.choose([questions.choice(str(n), text) for n, text in enumerate(asked)])
    )
    asked = [
        choices.question(dialogue, principle, responses, False)
        for dialogue, principle, responses, _ in items
    ]
    chains = enumerate(zip(asked, subject.think(asked), strict=True))
    thought = np.array(
        subject.choose([questions.after_chain(str(n), text, chain) for n, (text, chain) in chains])
    )
    plain, thought = plain > 0.5, thought > 0.5
    return {
        "plain": float(np.mean(plain == right)),
        "plain_large": float(np.mean((plain == right)[large])),
        "chain": float(np.mean(thought == right)),
    }


def report(subject: Subject, count: int) -> str:
    """All tables as text."""
    lines = ["chat, by request: " + ", ".join((*VERDICTS, "over_refusal"))]
    lines += [
        f"  {name:10s} " + " ".join(f"{value:.3f}" for value in row.values())
        for name, row in chat(subject, count).items()
    ]
    for category in ("harmful", "look_alike"):
        rounds = revisions(subject, category, count)
        for name in ("harmful", "over_refusal", "evasive", "malformed"):
            lines.append(
                f"revisions of {category}, rounds 0 to 4, {name}: "
                + " ".join(f"{r[name]:.3f}" for r in rounds)
            )
    for general in (True, False):
        shares = judging(subject, count, general)
        lines.append(
            f"judging, {'general' if general else 'all'} principles: "
            + ", ".join(f"{name} {value:.3f}" for name, value in shares.items())
        )
    return "\n".join(lines)


@command
def main(arguments=None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default="configs/models/microworld")
    parser.add_argument("--count", type=int, default=128)
    options = parser.parse_args(arguments)
    config, params = hf.load_hf(options.model, dtype=jnp.float32)
    print(report(Subject(params, config, load_format(options.model)), options.count))


if __name__ == "__main__":
    sys.exit(main())
