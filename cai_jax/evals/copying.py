"""Words taken over: a weak model repeats the worked examples that it was shown, or gives its own
critique for a revision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cai_jax.data.text_statistics import words

RUN = 5  # words in a row, taken from nowhere else that the model read


def runs(texts: Iterable[str], length: int = RUN) -> set[tuple[str, ...]]:
    """All `length` words that follow one another in one of the texts."""
    out = set()
    for text in texts:
        taken = words(text)
        out.update(tuple(taken[start : start + length]) for start in range(len(taken) - length + 1))
    return out


def repeats(text: str, examples: set[tuple[str, ...]], own: Iterable[str]) -> bool:
    """Whether a run of `text` is in the examples and in none of the texts that are the model's
    own task."""
    return bool((runs([text]) & examples) - runs(own))


def echoes(text: str, source: str) -> bool:
    """Whether at least half of the runs of `text` stand in `source`. A text too short for a run
    does not."""
    taken = runs([text])
    return bool(taken) and 2 * len(taken & runs([source])) >= len(taken)


def of_critiques(records: Sequence[Mapping]) -> list[bool]:
    """Of every revision that followed a critique: whether it echoes the critique, where it should
    have answered the prompt."""
    return [
        echoes(turn["revision"], turn["critique"])
        for record in records
        for turn in record["rounds"]
        if turn.get("critique")
    ]


def of_revisions(
    records: Sequence[Mapping], examples: Mapping[str, Sequence[str]]
) -> tuple[list[bool], list[bool]]:
    """(of every critique, of every revision): whether it repeats a worked example. `examples`: id →
    its texts. A revision is not blamed for what is in the critique that it follows, only for
    what the answer, dialogue and requests do not hold."""
    # Short phrases are common property; five words in a row are taken from somewhere.
    critiques, revisions = [], []
    for record in records:
        by_example = [runs(examples[name]) for name in record["few_shot_ids"]]
        answer, dialogue = record["initial"], [turn["text"] for turn in record["dialogue"]]
        for turn in record["rounds"]:
            own = [*dialogue, answer, turn["revision_request"], turn.get("critique_request") or ""]
            if turn.get("critique"):
                shown = _shown(by_example, turn, "critique")
                critiques.append(repeats(turn["critique"], shown, own))
            shown, own = _shown(by_example, turn, "revision"), [*own, turn.get("critique") or ""]
            revisions.append(repeats(turn["revision"], shown, own))
            answer = turn["revision"]
    return critiques, revisions


def _shown(by_example: Sequence[set], turn: Mapping, role: str) -> set:
    """The runs of the worked examples that stood before a turn: the first ones, all where the
    record does not say."""
    count = turn.get("num_few_shot", {}).get(role, len(by_example))
    return set().union(*by_example[:count])
