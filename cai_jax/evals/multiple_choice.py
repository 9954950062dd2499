"""A language model answers lettered questions: the option with the highest log-probability is its
answer.

Zero-shot, few-shot (items of the same set as worked examples, never of themselves) and chain of
thought with an ensemble of sampled chains whose probabilities are averaged (sections 2 and 4.1 of
the paper). Every mode answers every item. Baselines: chance, the most frequent right letter, and
always the longer option.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from cai_jax import seeds
from cai_jax.data import choices, fitting
from cai_jax.evals import calibration
from cai_jax.evals.intervals import Estimate, mcnemar, paired_difference, wilson
from cai_jax.evals.rows import row
from cai_jax.structs import SampleRequest, SamplingParams, ScoreRequest

CONCLUSION_TOKENS = 32  # room for "So the answer is:" and an option after a chain
CHAIN_BLOCK = 32  # items whose chains are sampled together
OPTION_LINE = re.compile(r"^\s*\(([A-Z])\)\s?(.*?)(?=^\s*\([A-Z]\)|\Z)", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class ChoiceResult:
    """One item: probabilities over its options [number of options], normalised against each other,
    and the log-probabilities that they come from (none after chains, where probabilities are
    means)."""

    id: str
    subset: str | None
    probabilities: tuple[float, ...]
    correct: int
    chains: tuple[str, ...] = ()
    by_chain: tuple[
        tuple[float, ...], ...
    ] = ()  # the probabilities after each of the chains, whose mean `probabilities` is
    logprobs: tuple[float, ...] = ()
    num_few_shot: int | None = None  # worked examples or chains before it; None where zero-shot

    @property
    def right(self) -> float:
        """1 for a right answer, 1/k for a k-way tie at the top that includes it, else 0."""
        top = max(self.probabilities)
        tied = [i for i, p in enumerate(self.probabilities) if p == top]
        return 1.0 / len(tied) if self.correct in tied else 0.0

    @property
    def picked(self) -> int:
        return int(np.argmax(self.probabilities))


def normalise(logprobs: Sequence[float]) -> tuple[float, ...]:
    """softmax of the options' log-probabilities [number of options]."""
    x = np.asarray(logprobs, np.float64)
    if not np.any(np.isfinite(x)):
        raise ValueError("no option has a finite log-probability")
    weights = np.exp(x - x.max())
    return tuple((weights / weights.sum()).tolist())


def score_requests(
    items: Sequence, format, shots: Mapping[str, Sequence] | None = None
) -> list[ScoreRequest]:
    """One request per item: its options after "The answer is:". Its worked examples, `shots` by the
    item's id, are a leading segment, which items with the same ones share."""
    return [_request(item, format, (shots or {}).get(item.id, ())) for item in items]


def _request(item, format, shots: Sequence) -> ScoreRequest:
    header = [(closed(shot.prompt), shot.options[shot.correct]) for shot in shots]
    return choices.choice_request(
        item.id, format, header, closed(item.prompt), item.options, verbatim=True
    )


def shots_that_fit(
    items: Sequence, format, shots: Mapping[str, Sequence], max_length: int
) -> dict[str, Sequence]:
    """`shots` without the last worked examples of those items whose requests are longer than
    `max_length` with them."""

    def length(item, count: int) -> fitting.Segments:
        request = _request(item, format, shots[item.id][:count])
        return (*request.segments, max(request.options, key=len))

    counts = {
        item.id: fitting.with_examples(
            functools.partial(length, item), len(shots[item.id]), max_length
        )[0]
        for item in items
    }
    return {name: shots[name][:count] for name, count in counts.items()}


def closed(prompt: str) -> str:
    """The item's text up to "The answer is:", which is added where a file leaves it out."""
    ends = prompt.rstrip().endswith(choices.ANSWER_LEAD)
    return prompt.rstrip() if ends else f"{prompt}\n{choices.ANSWER_LEAD}"


def num_shots_of(items: Sequence, num_shots: int) -> int:
    """How many worked examples an item of the set has: fewer where not twice as many items are
    there."""
    return min(num_shots, len(items) // 2)


def draw_shots(items: Sequence, num_shots: int, seed: int) -> dict[str, list]:
    """item id → its `num_shots` worked examples (fewer where not twice as many items are there),
    drawn once for all models.

    All items have the same ones, but those that are these worked examples themselves: they have
    another draw. So every item is answered, none is shown its own answer, and there are two headers
    to prefill.
    """
    count = num_shots_of(items, num_shots)
    drawn = (
        seeds.row_rng(seed, "multiple_choice", "shots")
        .permutation(len(items))[: 2 * count]
        .tolist()
    )
    first, second = (sorted(part) for part in (drawn[:count], drawn[count:]))
    return {
        item.id: [items[j] for j in (second if i in first else first)]
        for i, item in enumerate(items)
    }


def answer(
    score: Callable,
    items: Sequence,
    format,
    *,
    shots: Mapping[str, Sequence] | None = None,
    max_length: int | None = None,
) -> Iterator[ChoiceResult]:
    """Results as they are scored. `score(requests)` yields a Score for each request that fits the
    context; items whose request it leaves out are left out here. `max_length`: of the context; the
    last worked examples go where they do not fit."""
    by_id = {item.id: item for item in items}
    if shots and max_length:
        shots = shots_that_fit(items, format, shots, max_length)
    for found in score(score_requests(items, format, shots)) if items else ():
        item = by_id[found.id]
        yield ChoiceResult(
            item.id,
            item.subset,
            normalise(found.logprobs),
            item.correct,
            logprobs=found.logprobs,
            num_few_shot=len(shots[item.id]) if shots else None,
        )


def chain_header(constitution, num_examples: int, seed: int) -> list[tuple[str, str, str]]:
    """The first worked chains of a constitution as (question, reasoning, answer), each by a
    principle of its own draw. All items have the same ones, so that they are prefilled once."""
    rng, principles = (
        seeds.row_rng(seed, "multiple_choice", "chains"),
        constitution.comparison_principles,
    )
    return [
        (
            example.question(principles[int(rng.integers(len(principles)))].text),
            example.reasoning,
            f" ({example.answer})",
        )
        for example in constitution.chain_examples[:num_examples]
    ]


def answer_with_chains(
    sample: Callable,
    score: Callable,
    items: Sequence,
    format,
    *,
    seed: int,
    num_chains: int = 1,
    max_chain_tokens: int = 128,
    temperature: float = 1.0,
    header: Sequence[tuple[str, str, str]] = (),
    max_length: int | None = None,
) -> Iterator[ChoiceResult]:
    """Chain of thought: each of `num_chains` sampled chains answers, and the probabilities are
    averaged. Works in blocks of items, so that a caller who keeps results loses little when it is
    stopped.

    Args:
        sample: (requests, sampling) → Completions of what fits the context. score: requests →
        Scores of what fits the context. items: what is answered. format: of the answering model's
        dialogues. seed: of the chains. num_chains: how many are sampled for an item.
        max_chain_tokens: at most so many tokens each. temperature: of the chains. header: worked
        chains before each question (`chain_header`); the last ones are left out where they do not
        fit. max_length: tokens of the context; None where nothing is left out.
    """
    room = None if max_length is None else max_length - max_chain_tokens - CONCLUSION_TOKENS

    def worked(item) -> Sequence[tuple[str, str, str]]:
        if room is None:
            return header
        count, _ = fitting.with_examples(
            lambda count: choices.chain_segments(
                format, header[:count], choices.without_lead(item.prompt)
            ),
            len(header),
            room,
        )
        return header[:count]

    for start in range(0, len(items), CHAIN_BLOCK):
        block = items[start : start + CHAIN_BLOCK]
        by_id = {item.id: item for item in block}
        shown = {item.id: worked(item) for item in block}
        requests = [
            SampleRequest(
                f"{item.id}#{k}",
                choices.chain_segments(format, shown[item.id], choices.without_lead(item.prompt)),
                seeds.row_key(seed, "multiple_choice", item.id, k),
            )
            for item in block
            for k in range(num_chains)
        ]
        sampling = SamplingParams(
            max_chain_tokens, temperature, stop_strings=tuple(format.stop_strings("assistant"))
        )
        chains = {c.id: c.text.strip() for c in sample(requests, sampling)}
        conclusions = []
        for name, chain in sorted(chains.items()):
            item = by_id[name.rpartition("#")[0]]
            asked = choices.without_lead(item.prompt)
            conclusions.append(
                choices.chain_request(name, format, shown[item.id], asked, chain, item.options)
            )
        answers = collections.defaultdict(list)
        for found in score(conclusions) if conclusions else ():
            item_id, _, k = found.id.rpartition("#")
            answers[item_id].append((int(k), normalise(found.logprobs)))
        for item in block:
            ordered = sorted(answers.get(item.id, ()))
            if ordered:
                mean = np.mean([p for _, p in ordered], axis=0)
                thoughts = tuple(chains[f"{item.id}#{k}"] for k, _ in ordered)
                yield ChoiceResult(
                    item.id,
                    item.subset,
                    tuple(mean.tolist()),
                    item.correct,
                    thoughts,
                    tuple(p for _, p in ordered),
                    num_few_shot=len(shown[item.id]),
                )


def accuracy(results: Sequence[ChoiceResult]) -> Estimate:
    return wilson(sum(r.right for r in results), len(results))


def option_texts(item) -> list[str] | None:
    """The options' texts: the dialogues' last turns where given, else the "(A) …" lines of the
    prompt, else None."""
    if item.dialogues and len(item.options) == 2:
        texts = [item.dialogues[0][-1].text, item.dialogues[1][-1].text]
        return texts if item.correct == 0 else texts[::-1]
    tail = choices.without_lead(item.prompt)
    found = OPTION_LINE.findall(tail[tail.rfind("Options:") :] if "Options:" in tail else tail)
    return [text.strip() for _, text in found] if len(found) == len(item.options) else None


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
            top = max(len(t) for t in texts)
            tied = [i for i, t in enumerate(texts) if len(t) == top]
            longer.append(1.0 / len(tied) if item.correct in tied else 0.0)
    return {
        "chance": float(np.mean([1 / len(item.options) for item in items])),
        "majority": max(letters.values()) / len(items),
        "longer": float(np.mean(longer)) if len(longer) == len(items) else None,
    }


def first_option_share(results: Sequence[ChoiceResult]) -> Estimate:
    """How often the first letter is picked: far from its true share, the model answers by
    position."""
    return wilson(sum(r.picked == 0 for r in results), len(results))


def against(
    model: str,
    other: str,
    on: str,
    mode: str,
    found: Sequence[ChoiceResult],
    before: Sequence[ChoiceResult],
) -> list[dict]:
    """The paired difference of `model` to `other` in one mode on the same items; none of a model to
    itself."""
    if model == other:
        return []
    a, b = ({result.id: result.right for result in results} for results in (before, found))
    return [
        row(
            f"choice_{mode}",
            on,
            model,
            paired_difference(a, b, shares=True),
            against=other,
            unit="accuracy",
            good="higher",
            p_value=mcnemar(a, b),
        )
    ]


def rows(
    model: str,
    on: str,
    mode: str,
    items: Sequence,
    found: Sequence[ChoiceResult],
    curves: dict,
    plain: Sequence[ChoiceResult] = (),
    clamp: Sequence[float] = (),
) -> list[dict]:
    """The rows of one mode on one set: accuracy over all and by subset with its baselines, the
    paired difference to the same items zero-shot, the first of several chains alone, the share of
    first options, and calibration.

    Args:
        model: the answering model's name. on: the set's name. mode: "zero_shot", "few_shot" or
        "chain_of_thought". items: the set. found: the answers to those that fitted the context.
        curves: where reliability curves go. plain: the zero-shot answers, for the difference.
        clamp: (low, high) that probabilities after chains are clamped to in a second curve, being
        what a preference model
            then learns from; empty for none.
    """
    subsets = collections.defaultdict(list)
    for result in found:
        subsets[result.subset].append(result)
    parts = {on: list(found)}
    if len(subsets) > 1:
        parts.update(sorted((f"{on}:{name}", part) for name, part in subsets.items()))
    out = []
    for name, part in parts.items():
        ids = {result.id for result in part}
        base = baselines([item for item in items if item.id in ids])
        out.append(
            row(
                f"choice_{mode}",
                name,
                model,
                accuracy(part),
                unit="accuracy",
                good="higher",
                baseline=base,
            )
        )
        if plain:
            before = {result.id: result.right for result in plain if result.id in ids}
            now = {result.id: result.right for result in part}
            out.append(
                row(
                    f"choice_{mode}",
                    name,
                    model,
                    paired_difference(before, now, shares=True),
                    against="zero_shot",
                    unit="accuracy",
                    good="higher",
                    p_value=mcnemar(before, now),
                )
            )
        if part and all(len(result.by_chain) > 1 for result in part):
            alone = [
                dataclasses.replace(result, probabilities=result.by_chain[0]) for result in part
            ]
            out.append(
                row(
                    "choice_one_chain",
                    name,
                    model,
                    accuracy(alone),
                    unit="accuracy",
                    good="higher",
                    baseline=base,
                )
            )
    right_first = sum(result.correct == 0 for result in found) / len(found)
    out.append(
        row(
            f"first_option_{mode}",
            on,
            model,
            first_option_share(found),
            unit="share",
            baseline={"right": right_first},
        )
    )
    if all(len(result.probabilities) == 2 for result in found):
        right = np.array([result.probabilities[result.correct] for result in found])
        stated = {mode: right} | (
            {f"{mode}_clamped": np.clip(right, *clamp)}
            if mode == "chain_of_thought" and clamp
            else {}
        )
        for name, values in stated.items():
            bins = calibration.reliability(
                *calibration.confidence(values), num_bins=5, span=(0.5, 1.0)
            )
            curves[f"choice_{name}/{on}"] = calibration.points(bins)
            error = Estimate(calibration.expected_calibration_error(bins), None, None, len(right))
            out.append(row(f"ece_{name}", on, model, error, unit="ECE", good="lower"))
    return out
