"""AI feedback (section 4.1): a model chooses between two responses by a principle; its
log-probabilities become labels.

What is stored is raw: log P(" (A)") and log P(" (B)") for every order that was asked, and every
chain of thought. Soft, hard, clamped and order-averaged labels are derived by `cai_jax.core.labels`
when a preference model reads them.

The labeller may also be a preference model (mode "preference_model"): then log σ(Δ) and log σ(−Δ)
of its scores stand in for the two options, so that a label source better than a weak language model
goes through the same stages.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np

from cai_jax.constitution.loader import ComparisonPrinciple, Constitution, load_constitution
from cai_jax.core import labels
from cai_jax.data import choices, fitting
from cai_jax.rewards.preference_model import collected
from cai_jax.seeds import row_key, row_rng
from cai_jax.stages.context import StageContext
from cai_jax.structs import (
    Dialogue,
    Message,
    count_cut,
    dialogue_from_json,
    responses_of,
    sampled_turn,
)
from cai_jax.textmodels import questions
from cai_jax.textmodels.protocol import SCORED, Choice, Question, Sampling

SCHEMA = 2
# Tokens that worked examples leave free after a chain of thought: what ends it, "So the answer is:"
# and an answer.
CONCLUSION_ROOM = 40


def shortest(fields):
    """The shortest request, as `pipeline.limits` wants it: the shortest principle, empty texts."""
    if fields.mode != "preference_model":
        principles = load_constitution(fields.constitution).comparison_principles
        principle = min((item.text for item in principles), key=len)
        question = choices.question((Message("human", ""),), principle, ("", ""))
        new = "max_chain_tokens" if fields.mode == "chain_of_thought" else ""
        yield fields.model, new, "assistant", (Message("human", question),)


@dataclasses.dataclass(frozen=True)
class Task:
    """One label: a pair of a comparison's responses, judged by a principle behind worked examples
    (a preference model needs neither). `draw` names what the examples were drawn by."""

    id: str
    comparison: dict
    pair: tuple[int, int]
    principle: ComparisonPrinciple | None = None
    draw: int | str | None = None
    few_shot_ids: tuple[str, ...] = ()
    examples: tuple[Dialogue, ...] = ()

    def question(self, order: str, options_heading: bool) -> str:
        """What is asked; in order "ba" the second response is option (A)."""
        # Texts of people and models are data: they are inserted, never formatted.
        responses = [self.comparison["responses"][index] for index in self.pair]
        return choices.question(
            dialogue_from_json(self.comparison["dialogue"]),
            self.principle.text,
            responses if order == "ab" else responses[::-1],
            options_heading,
        )


def _tasks(ctx: StageContext, constitution: Constitution) -> Iterator[Task]:
    """A task for every comparison, pair of its responses and drawn principle."""
    config, principles = ctx.config, constitution.comparison_principles

    @functools.cache
    def examples(draw):
        how = config.mode, config.num_few_shot, ctx.seed
        return questions.draw_examples(constitution, *how, ctx.name, "header", draw)

    for comparison in ctx.inputs["comparisons"].records():
        for pair in itertools.combinations(range(len(comparison["responses"])), 2):
            names = comparison["id"], f"{pair[0]}-{pair[1]}"
            rng = row_rng(ctx.seed, ctx.name, "principle", *names)
            number = min(config.principles_per_pair, len(principles))
            for index in rng.choice(len(principles), size=number, replace=False):
                principle = principles[int(index)]
                name = "/".join((*names, principle.id))
                draw = int(rng.integers(config.num_headers)) if config.num_headers else name
                yield Task(name, comparison, pair, principle, draw, *examples(draw))


def run(ctx: StageContext) -> dict:
    """Writes one label record a (comparison, pair, principle)."""
    config = ctx.config
    if config.mode == "preference_model":
        return _by_preference_model(ctx)

    # --- What is asked: every task in every order, after every chain ------------------------------
    model = ctx.models.text_model(config.model, config.format)
    journal = ctx.directory.journal()
    tasks = {task.id: task for task in _tasks(ctx, load_constitution(config.constitution))}
    todo = [task for task in tasks.values() if task.id not in journal.finished]
    orders = ("ab", "ba") if config.both_orders else ("ab",)
    chains = ctx.directory.journal("chains") if config.mode == "chain_of_thought" else None
    if chains:
        _sample_chains(ctx, model, chains, todo, orders)
        asked = list(_after_chains(config, chains, todo, orders))
    else:
        asked = [
            questions.choice(
                f"{task.id}#{order}0",
                task.question(order, options_heading=True),
                examples=task.examples,
                group=task.id,
            )
            for task in todo
            for order in orders
        ]

    # --- Labels: a task is recorded once all its questions are answered ---------------------------
    number = len(orders) * (config.num_chains if chains else 1)
    answers: dict[str, dict[str, Choice]] = collections.defaultdict(dict)
    for choice in ctx.choose(model, asked, count=False):
        name, _, order_and_chain = choice.id.rpartition("#")
        answers[name][order_and_chain] = choice
        if len(answers[name]) == number:
            complete = answers.pop(name)
            logprobs, thoughts = _logprobs(name, complete, chains)
            num_shown = min(choice.num_examples for choice in complete.values())
            record = _record(ctx, model.name, tasks[name], logprobs, num_shown, thoughts)
            journal.append(record)
    for task in todo:
        if task.id not in journal.finished:
            numbers = range(config.num_chains if chains else 1)
            asked_for = itertools.product(orders, numbers)
            ctx.drop(ctx.why(f"{task.id}#{order}{number}" for order, number in asked_for))
    ctx.require_rows(journal.finished, "labels")
    journal.finish()
    if chains:
        chains.remove_parts()
    few_shot = fitting.examples_left_out(
        (len(row["few_shot_ids"]), len(tasks[name].few_shot_ids))
        for name, row in journal.finished.items()
    )
    return _summary(ctx, list(journal.finished.values()), few_shot)


def _sample_chains(ctx: StageContext, model, chains, todo: list[Task], orders) -> None:
    """Adds to the journal what it lacks of `num_chains` chains of thought a task and order."""
    config = ctx.config
    turns = [
        questions.chain(
            f"{task.id}#{order}{chain}",
            task.question(order, options_heading=False),
            row_key(ctx.seed, ctx.name, order, task.id, chain),
            task.examples,
            group=task.id,
            room=config.max_chain_tokens + CONCLUSION_ROOM,
            # Examples of one task alone are not shared: different tasks decode together.
            shared=bool(config.num_headers),
        )
        for task in todo
        for order, chain in itertools.product(orders, range(config.num_chains))
    ]
    sampling = Sampling(config.max_chain_tokens, config.temperature)
    missing = {turn.id for turn in turns if turn.id not in chains.finished}
    label = f"{ctx.name}: chains of thought"
    for done in ctx.generate(model, turns, sampling, label, missing, count=False):
        answer = {"text": done.text, "stop": done.stop, "num_few_shot": done.num_examples}
        chains.append({"id": done.id, **answer})
    chains.flush()


def _after_chains(config, chains, todo: list[Task], orders) -> Iterator[Question]:
    """The question behind every chain; one that did not fit the context has none."""
    for task in todo:
        for order, chain in itertools.product(orders, range(config.num_chains)):
            thought = chains.finished.get(f"{task.id}#{order}{chain}")
            if thought:
                yield questions.after_chain(
                    thought["id"],
                    task.question(order, options_heading=False),
                    thought["text"],
                    examples=task.examples[: thought["num_few_shot"]],
                    group=task.id,
                )


def _logprobs(task: str, answers: dict[str, Choice], chains) -> tuple[list[dict], list[dict]]:
    """(log-probabilities, chains) of a task as its record holds them; `answers` by order and number
    of the chain, such as "ab0"."""
    logprobs, thoughts = [], []
    for name, choice in sorted(answers.items()):
        asked, (a, b) = {"order": name[:2], "chain": int(name[2:])}, choice.logprobs
        logprobs.append({**asked, "a": a, "b": b, **choice.obtained()})
        if chains:
            thought = chains.finished[f"{task}#{name}"]
            thoughts.append({**asked, "text": thought["text"], "stop": thought["stop"]})
    return logprobs, thoughts


def _record(
    ctx: StageContext, model: str, task: Task, logprobs: list[dict], num_shown=0, chains=()
) -> dict:
    """A label record; `num_shown`: how many of the task's worked examples, the first ones, preceded
    every question."""
    principle = task.principle
    return {
        "id": task.id,
        "prompt_id": task.comparison["prompt_id"],
        "comparison_id": task.comparison["id"],
        "pair": list(task.pair),
        "kind": task.comparison.get("kind"),
        "principle_id": principle and principle.id,
        "principle": principle and principle.text,
        "few_shot_ids": list(task.few_shot_ids[:num_shown]),
        "header_id": None if task.draw is None else str(task.draw),
        "model": model,
        "seed": ctx.seed,
        "chains": list(chains),
        "logprobs": logprobs,
    }


def _by_preference_model(ctx: StageContext) -> dict:
    """Label records by the scores of a preference model, raw as it was trained: P(first better) =
    σ(Δ). No principle is asked and there is no order of options."""
    judge = ctx.models.preference_model(ctx.config.model, format=ctx.config.format, raw=True)
    comparisons = ctx.inputs["comparisons"].records()
    ctx.require_rows(comparisons, "comparisons")
    dialogues = [
        (*dialogue_from_json(row["dialogue"]), sampled_turn(text, stop))
        for row in comparisons
        for text, stop in responses_of(row)
    ]
    ids = [row["id"] for row in comparisons for _ in row["responses"]]
    scored = ctx.score_each(judge, dialogues, ctx.name, ids)
    scores = iter(collected(scored, len(dialogues)).tolist())

    records = []
    for row in comparisons:
        of_row = [next(scores) for _ in row["responses"]]
        for first, second in itertools.combinations(range(len(of_row)), 2):
            # log σ(Δ) and log σ(−Δ) without overflow.
            delta = of_row[first] - of_row[second]
            a, b = -float(np.logaddexp(0, -delta)), -float(np.logaddexp(0, delta))
            logprobs = [{"order": "ab", "chain": 0, "a": a, "b": b}]
            task = Task(f"{row['id']}/{first}-{second}", row, (first, second))
            records.append(_record(ctx, judge.name, task, logprobs))
    return _summary(ctx, ctx.write_records(records))


def _summary(ctx: StageContext, rows: list[dict], few_shot: dict | None = None) -> dict:
    """The stage's summary, with the agreement with people where it was their pairs that were
    judged. few_shot: how many worked examples were left out."""
    result = _statistics(rows)
    tiers = collections.Counter(entry.get("how", SCORED) for r in rows for entry in r["logprobs"])
    if set(tiers) != {SCORED}:
        result["tiers"] = dict(tiers)
        how = ", ".join(f"{count} {tier}" for tier, count in sorted(tiers.items()))
        result["headline"] += f", options {how}"
    if few_shot:
        result["few_shot"] = few_shot
        result["headline"] += fitting.describe_left_out(few_shot)
    if stops := [chain.get("stop") for row in rows for chain in row["chains"]]:
        result["cut"] = {"chains of thought": count_cut(stops)}
    pairs = labels.next_to_people(rows, ctx.inputs["comparisons"].records()).values()
    if pairs:
        result["agreement"] = sum(pair["right"] for pair in pairs) / len(pairs)
        result["headline"] += f", agrees with people on {result['agreement']:.0%} of {len(pairs)}"
    return result


def _statistics(rows: list[dict]) -> dict:
    """Numbers on label records: mean confidence, share of first-option choices, and the flip rate
    (None where only one order was asked)."""
    first = [labels.by_order(row)["ab"] for row in rows]
    flips = labels.flips(rows).value
    confidence = sum(max(p, 1 - p) for p in first) / len(first)
    chose_a = sum(p > 0.5 for p in first) / len(first)
    flip_rate = f", flip rate {flips:.0%}" if flips is not None else ""
    return {
        "rows": len(rows),
        "mean_confidence": confidence,
        "chose_option_a": chose_a,
        "flip_rate": flips,
        "headline": f"confidence {confidence:.2f}, option (A) chosen {chose_a:.0%}{flip_rate}",
    }
