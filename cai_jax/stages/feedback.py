"""AI feedback (section 4.1): a model chooses between two responses by a principle; its
log-probabilities become labels.

What is stored is raw: log P(" (A)") and log P(" (B)") for every order that was asked, and every
chain of thought. Soft, hard, clamped and order-averaged labels are derived by `cai_jax.core.labels`
when a preference model reads them.

The labeller may also be a preference model (mode "preference_model"): then log σ(Δ) and log σ(−Δ)
of its scores stand for the two options, so that a label source better than a weak language model
goes through the same stages.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np

from cai_jax.constitution.loader import load_constitution
from cai_jax.core import labels
from cai_jax.data import choices, fitting
from cai_jax.errors import UserError
from cai_jax.evals import agreement
from cai_jax.rewards.preference_model import RewardModel, collected
from cai_jax.seeds import row_key, row_rng
from cai_jax.stages.context import StageContext
from cai_jax.structs import (
    SampleRequest,
    SamplingParams,
    count_cut,
    dialogue_from_json,
    responses_of,
    sampled_turn,
)

SCHEMA = 2
# Tokens that follow a question when its number of worked examples is chosen; a request is measured
# again when it is made.
ANSWER_ROOM = 8  # " (A)"
CONCLUSION_ROOM = 40  # what ends a chain of thought, "So the answer is:" and an answer
MODES = ("multiple_choice", "chain_of_thought", "preference_model")


def worked_examples(constitution, mode: str, num_few_shot: int) -> tuple:
    """The first `num_few_shot` examples of the mode's kind, fewer where the constitution has
    fewer."""
    chains = mode == "chain_of_thought"
    examples = constitution.chain_examples if chains else constitution.comparison_examples
    return examples[:num_few_shot]


def num_fitting(config, format, examples: list, questions: list[str], engine) -> int:
    """With how many of the worked examples every one of the questions fits: as many for all orders
    and chains of a pair, so that what is averaged was asked in the same way."""
    if config.mode == "multiple_choice":
        build, longest = choices.choice_segments, ANSWER_ROOM
    else:
        build, longest = choices.chain_segments, config.max_chain_tokens + CONCLUSION_ROOM

    def request(asked: str, count: int) -> fitting.Segments:
        return build(format, examples[:count], asked)

    room = engine.max_length - longest
    counts = [
        fitting.with_examples(functools.partial(request, asked), len(examples), room)[0]
        for asked in questions
    ]
    return min(counts)


def draw_header(
    constitution, mode: str, num_few_shot: int, seed: int, *name
) -> tuple[list[str], list[tuple]]:
    """Worked examples, each with an independently drawn principle and (where the example leaves it
    open) a drawn order. Returns their ids and what `choices.choice_segments` or
    `choices.chain_segments` takes as header."""
    rng = row_rng(seed, *name)
    principles = constitution.comparison_principles
    ids, header = [], []
    for example in worked_examples(constitution, mode, num_few_shot):
        principle = principles[int(rng.integers(len(principles)))]
        swapped = bool(rng.integers(2))
        ids.append(f"{example.id}:{principle.id}:{'ba' if swapped else 'ab'}")
        if mode == "multiple_choice":
            responses = (example.chosen, example.rejected)
            asked = choices.question(
                example.dialogue, principle.text, responses[::-1] if swapped else responses
            )
            header.append((asked, choices.answer(int(swapped))))
        else:
            ids[-1] = f"{example.id}:{principle.id}"
            header.append(
                (example.question(principle.text), example.reasoning, f" ({example.answer})")
            )
    return ids, header


def tasks(ctx: StageContext, constitution) -> list[dict]:
    """One task a (comparison, pair of its responses, principle): everything a label record says
    before it is scored."""
    config = ctx.config
    result = []
    for row in ctx.inputs["comparisons"].records():
        for first, second in itertools.combinations(range(len(row["responses"])), 2):
            pair = f"{first}-{second}"
            rng = row_rng(ctx.seed, ctx.name, "principle", row["id"], pair)
            number = min(config.principles_per_pair, len(constitution.comparison_principles))
            for index in rng.choice(
                len(constitution.comparison_principles), size=number, replace=False
            ):
                principle = constitution.comparison_principles[int(index)]
                name = f"{row['id']}/{pair}/{principle.id}"
                header = int(rng.integers(config.num_headers)) if config.num_headers else name
                result.append(
                    {
                        "id": name,
                        "comparison": row,
                        "pair": [first, second],
                        "principle": principle,
                        "header": header,
                        "responses": (row["responses"][first], row["responses"][second]),
                    }
                )
    return result


def run(ctx: StageContext) -> dict:
    """Writes one label record a (comparison, pair, principle)."""
    config = ctx.config
    if config.mode not in MODES:
        raise UserError(
            f"config.graph.{ctx.name}.mode: expected one of {', '.join(MODES)}, not '{config.mode}'"
        )
    if config.mode == "preference_model":
        return _by_preference_model(ctx)
    constitution = load_constitution(config.constitution)
    model = ctx.load_model(config.model, format=config.format)
    engine = ctx.engine(model)
    journal = ctx.directory.journal()
    orders = ("ab", "ba") if config.both_orders else ("ab",)
    num_chains = config.num_chains if config.mode == "chain_of_thought" else 1

    todo = {
        task["id"]: task for task in tasks(ctx, constitution) if task["id"] not in journal.finished
    }
    headers = {}
    for task in todo.values():
        if task["header"] not in headers:
            headers[task["header"]] = draw_header(
                constitution,
                config.mode,
                config.num_few_shot,
                ctx.seed,
                ctx.name,
                "header",
                task["header"],
            )

    def header_of(task) -> list:
        """As many of its worked examples as fit; the first ones, with every order and chain of the
        pair."""
        if "num_few_shot" not in task:
            examples = headers[task["header"]][1]
            task["num_few_shot"] = num_fitting(
                config, model.format, examples, [asked(task, order) for order in orders], engine
            )
        return headers[task["header"]][1][: task["num_few_shot"]]

    def asked(task, order: str) -> str:
        responses = task["responses"] if order == "ab" else task["responses"][::-1]
        dialogue = dialogue_from_json(task["comparison"]["dialogue"])
        return choices.question(
            dialogue, task["principle"].text, responses, config.mode == "multiple_choice"
        )

    chains = None
    if config.mode == "chain_of_thought":
        chains = _sample_chains(ctx, model, engine, todo, header_of, asked, orders, num_chains)

    requests = []
    for task in todo.values():
        header = header_of(task)
        for order, chain in itertools.product(orders, range(num_chains)):
            name = f"{task['id']}#{order}{chain}"
            question = name, model.format, header, asked(task, order)
            if chains is None:
                requests.append(choices.choice_request(*question, choices.ANSWERS))
            elif name in chains.finished:  # else it did not fit the context and was counted there
                thought = chains.finished[name]["text"]
                requests.append(choices.chain_request(*question, thought, choices.ANSWERS))

    scored = {name: {} for name in todo}
    for score in ctx.score(engine, requests, ctx.name, count=False) if requests else ():
        name, _, part = score.id.rpartition("#")
        scored[name][part] = score.logprobs
        if len(scored[name]) == len(orders) * num_chains:
            journal.append(_label(ctx, todo[name], scored.pop(name), headers, chains, model.name))
    ctx.drop(fitting.CONTEXT, sum(name not in journal.finished for name in todo))
    ctx.require_rows(journal.finished, "labels")
    digest = journal.finish()
    if chains is not None:
        chains.remove_parts()
    few_shot = fitting.examples_left_out(
        (
            len(row["few_shot_ids"]),
            len(worked_examples(constitution, config.mode, config.num_few_shot)),
        )
        for row in journal.finished.values()
    )
    return _finished(ctx, journal, digest, few_shot)


def _finished(ctx: StageContext, journal, digest: str, few_shot: dict | None = None) -> dict:
    """The stage's summary, with the agreement with people where it was their pairs that were
    judged."""
    rows = list(journal.finished.values())
    told = {"sha256": {"records": digest}, **summary(rows)}
    if few_shot:
        told["few_shot"] = few_shot
        told["headline"] += fitting.describe_left_out(few_shot)
    if stops := [chain.get("stop") for row in rows for chain in row["chains"]]:
        told["cut"] = {"chains of thought": count_cut(stops)}
    pairs = agreement.of_pairs(rows, ctx.inputs["comparisons"].records()).values()
    if pairs:
        told["agreement"] = sum(pair["right"] for pair in pairs) / len(pairs)
        told["headline"] += f", agrees with people on {told['agreement']:.0%} of {len(pairs)}"
    return told


def _by_preference_model(ctx: StageContext) -> dict:
    """Label records by the scores of a preference model, raw as it was trained: P(first better) =
    σ(Δ). No principle is asked and there is no order of options."""
    model = ctx.load_model(ctx.config.model, "reward", ctx.config.format)
    judge = RewardModel(
        model.params,
        model.config,
        model.format,
        ctx.mesh,
        name=model.name,
        reads_cut=model.reads_cut,
    )
    comparisons = ctx.inputs["comparisons"].records()
    ctx.require_rows(comparisons, "comparisons")
    answers = [
        (*dialogue_from_json(row["dialogue"]), sampled_turn(text, stop))
        for row in comparisons
        for text, stop in responses_of(row)
    ]
    ids = [row["id"] for row in comparisons for _ in row["responses"]]
    scores = iter(collected(ctx.score_each(judge, answers, ctx.name, ids), len(answers)).tolist())
    journal = ctx.directory.journal()
    journal.discard(lambda row: False)
    for row in comparisons:
        found = [next(scores) for _ in row["responses"]]
        for first, second in itertools.combinations(range(len(found)), 2):
            a, b = (
                -float(np.logaddexp(0, sign * (found[first] - found[second]))) for sign in (-1, 1)
            )
            journal.append(
                {
                    "id": f"{row['id']}/{first}-{second}",
                    "prompt_id": row["prompt_id"],
                    "comparison_id": row["id"],
                    "pair": [first, second],
                    "kind": row.get("kind"),
                    "principle_id": None,
                    "principle": None,
                    "few_shot_ids": [],
                    "header_id": None,
                    "model": model.name,
                    "seed": ctx.seed,
                    "chains": [],
                    "logprobs": [{"order": "ab", "chain": 0, "a": a, "b": b}],
                }
            )
    return _finished(ctx, journal, journal.finish())


def _sample_chains(ctx, model, engine, todo, header_of, asked, orders, num_chains):
    """Samples `num_chains` chains of thought a task and order; returns their journal."""
    config, chains = ctx.config, ctx.directory.journal("chains")
    sampling = SamplingParams(
        config.max_chain_tokens, config.temperature, 0, 1.0, model.format.stop_strings("assistant")
    )
    requests = []
    for task in todo.values():
        for order, chain in itertools.product(orders, range(num_chains)):
            name = f"{task['id']}#{order}{chain}"
            if name not in chains.finished:
                segments = choices.chain_segments(model.format, header_of(task), asked(task, order))
                # a header of one task alone is no header: rows of different ones decode together
                if not config.num_headers:
                    segments = (tuple(token for segment in segments for token in segment),)
                requests.append(
                    SampleRequest(
                        name, segments, row_key(ctx.seed, ctx.name, order, task["id"], chain)
                    )
                )
    for completion in (
        ctx.sample(engine, requests, sampling, f"{ctx.name}: chains of thought", count=False)
        if requests
        else ()
    ):
        chains.append({"id": completion.id, "text": completion.text, "stop": completion.stop})
    chains.flush()
    return chains


def _label(ctx, task, scores: dict, headers, chains, model: str) -> dict:
    comparison, few_shot_ids = task["comparison"], headers[task["header"]][0]
    few_shot_ids = few_shot_ids[: task["num_few_shot"]]
    logprobs = [
        {"order": part[:2], "chain": int(part[2:]), "a": a, "b": b}
        for part, (a, b) in sorted(scores.items())
    ]
    thoughts = (
        []
        if chains is None
        else [
            {
                "order": part[:2],
                "chain": int(part[2:]),
                "text": chains.finished[f"{task['id']}#{part}"]["text"],
                "stop": chains.finished[f"{task['id']}#{part}"]["stop"],
            }
            for part in sorted(scores)
        ]
    )
    return {
        "id": task["id"],
        "prompt_id": comparison["prompt_id"],
        "comparison_id": comparison["id"],
        "pair": task["pair"],
        "kind": comparison.get("kind"),
        "principle_id": task["principle"].id,
        "principle": task["principle"].text,
        "few_shot_ids": few_shot_ids,
        "header_id": str(task["header"]),
        "model": model,
        "seed": ctx.seed,
        "chains": thoughts,
        "logprobs": logprobs,
    }


def summary(rows: list[dict]) -> dict:
    """Numbers on a set of label records: mean confidence, share of first-option choices, and the
    flip rate, which is the share of pairs whose choice changes when the options change places (None
    where only one order was asked)."""

    def choice(row, order):
        values = [
            labels.probability_first(entry) for entry in row["logprobs"] if entry["order"] == order
        ]
        return sum(values) / len(values) if values else None

    first = [choice(row, "ab") for row in rows]
    swapped = [choice(row, "ba") for row in rows]
    both = [(p, q) for p, q in zip(first, swapped, strict=True) if q is not None]
    flips = sum((p > 0.5) != (q > 0.5) for p, q in both) / len(both) if both else None
    confidence = sum(max(p, 1 - p) for p in first) / len(first)
    chose_a = sum(p > 0.5 for p in first) / len(first)
    told = f", flip rate {flips:.0%}" if flips is not None else ""
    return {
        "rows": len(rows),
        "mean_confidence": confidence,
        "chose_option_a": chose_a,
        "flip_rate": flips,
        "headline": f"confidence {confidence:.2f}, option (A) chosen {chose_a:.0%}{told}",
    }
