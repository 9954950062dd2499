"""Lettered questions: sets of items, their worked examples and chains, and what an accuracy on them
is compared with."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence

import numpy as np

from cai_jax import seeds
from cai_jax.constitution.loader import load_constitution
from cai_jax.data import choices, sources
from cai_jax.data.evals import load_choices, split_by_big_bench
from cai_jax.structs import Dialogue
from cai_jax.textmodels import questions

OPTION_LINE = re.compile(r"^\s*\(([A-Z])\)\s?(.*?)(?=^\s*\([A-Z]\)|\Z)", re.MULTILINE | re.DOTALL)


def choice_sets(text: str, limit: int | None, big_bench: str = "") -> dict[str, list]:
    """Set name → items, for "a+b": every source is a set of its own, named by its file."""
    sets, parsed = {}, sources.parse(text)
    stems = [source.stem.rpartition("/")[2].partition(".")[0] for source in parsed]
    names = [stem.removeprefix("eval_") for stem in stems]
    for source, name, longer in zip(parsed, names, sources.distinct_names(parsed), strict=True):
        items = load_choices(source)
        items = split_by_big_bench(items, big_bench) if big_bench else items
        count = len(items) if limit is None else min(limit, len(items))
        # Evenly: files are in order of subset.
        sets[name if names.count(name) == 1 else longer] = [
            items[index * len(items) // count] for index in range(count)
        ]
    return sets


def closed(prompt: str) -> str:
    """The item's text up to "The answer is:", which is added where a file leaves it out."""
    ends = prompt.rstrip().endswith(choices.ANSWER_LEAD)
    return prompt.rstrip() if ends else f"{prompt}\n{choices.ANSWER_LEAD}"


def num_shots_of(items: Sequence, num_shots: int) -> int:
    """How many worked examples an item of the set has: fewer where the set does not have twice as
    many items."""
    return min(num_shots, len(items) // 2)


def draw_shots(items: Sequence, num_shots: int, seed: int) -> dict[str, list]:
    """Item id → its worked examples, drawn once for all models.

    All items have the same ones, but those that are these worked examples themselves: they have
    another draw. So every item is answered, none is shown its own answer, and only two shared
    prefixes are prefilled.
    """
    count = num_shots_of(items, num_shots)
    # The draw depends on the seed alone: all models and restarts show the same examples.
    order = seeds.row_rng(seed, "multiple_choice", "shots").permutation(len(items)).tolist()
    first, second = sorted(order[:count]), sorted(order[count : 2 * count])
    return {
        item.id: [items[j] for j in (second if i in first else first)]
        for i, item in enumerate(items)
    }


def question(item, shots: Sequence = ()) -> questions.Question:
    """The item with its options after "The answer is:", after worked examples."""
    examples = [
        questions.worked_choice(closed(shot.prompt), shot.options[shot.correct]) for shot in shots
    ]
    return questions.choice(item.id, closed(item.prompt), item.options, examples, verbatim=True)


def worked_chains(fields: Mapping, seed: int) -> list[Dialogue]:
    """The first worked chains of the constitution, each by a principle of its own draw. All items
    have the same ones, so that they are prefilled once."""
    if not fields["num_few_shot_chains"]:
        return []
    constitution = load_constitution(fields["constitution"])
    rng, principles = (
        seeds.row_rng(seed, "multiple_choice", "chains"),
        constitution.comparison_principles,
    )
    return [
        questions.worked_chain(
            example.question(principles[int(rng.integers(len(principles)))].text),
            example.reasoning,
            f" ({example.answer})",
        )
        for example in constitution.chain_examples[: fields["num_few_shot_chains"]]
    ]


def option_texts(item) -> list[str] | None:
    """The options' texts: the dialogues' last turns where given, else the "(A) …" lines of the
    prompt, else None."""
    if item.dialogues and len(item.options) == 2:
        texts = [item.dialogues[0][-1].text, item.dialogues[1][-1].text]
        return texts if item.correct == 0 else texts[::-1]
    tail = choices.without_lead(item.prompt)
    lines = OPTION_LINE.findall(tail[tail.rfind("Options:") :] if "Options:" in tail else tail)
    return [text.strip() for _, text in lines] if len(lines) == len(item.options) else None


def baselines(items: Sequence) -> dict[str, float | None]:
    """chance: mean of 1/options; majority: the most frequent right letter; longer: the longest
    option, ties split."""
    if not items:
        return {"chance": None, "majority": None, "longer": None}
    letters = collections.Counter(item.options[item.correct] for item in items)
    longer = []
    for item in items:
        texts = option_texts(item)
        if texts is not None:
            top = max(map(len, texts))
            tied = [i for i, text in enumerate(texts) if len(text) == top]
            longer.append(1.0 / len(tied) if item.correct in tied else 0.0)
    return {
        "chance": float(np.mean([1 / len(item.options) for item in items])),
        "majority": max(letters.values()) / len(items),
        "longer": float(np.mean(longer)) if len(longer) == len(items) else None,
    }
