"""Critiques and revisions (section 3.1): each round draws a principle, criticises the last response
and rewrites it.

The revision replaces the response, and the next round criticises an ordinary dialogue that ends in
it. Without critique (`critique=False`, the ablation of section 3.5) the revision is asked for
directly. All prompts take a step together, so that the few-shot header is prefilled once for a
step; every finished turn is journalled, so a killed run redoes none.

A request that does not fit the context has fewer worked examples; a dialogue that outgrows the
context even without any keeps the rounds that it has finished, and says so.
"""

from __future__ import annotations

import collections
import functools

from cai_jax.constitution.loader import load_constitution
from cai_jax.data import fitting
from cai_jax.data.dialogue import cut_after
from cai_jax.seeds import row_key, row_rng
from cai_jax.stages.context import StageContext
from cai_jax.structs import (
    Dialogue,
    Message,
    SampleRequest,
    SamplingParams,
    count_cut,
    dialogue_from_json,
    dialogue_to_json,
)

SCHEMA = 2


def draw_principles(
    principles, num_principles: int, num_rounds: int, seed: int, stage: str, row_id: str
) -> list:
    """One principle a round, independently and with replacement, among the first `num_principles`
    (section 3.5, Figure 6)."""
    rng = row_rng(seed, stage, "principle", row_id)
    return [principles[int(rng.integers(num_principles))] for _ in range(num_rounds)]


def few_shot_messages(examples, critique: bool) -> Dialogue:
    """Worked examples as the turns that precede every request; without critique their critique
    turns are left out."""
    unwanted = () if critique else ("critique_request", "critique")
    return tuple(
        message
        for example in examples
        for message in example.messages
        if message.role not in unwanted
    )


def cut_turns(rows) -> dict[str, dict[str, int]]:
    """ "critiques of round 1", "revisions of round 1", … → how many were cut at the limit, of how
    many."""
    stops = collections.defaultdict(list)
    for row in rows:
        for number, item in enumerate(row["rounds"], 1):
            if item["critique"] is not None:
                stops[f"critiques of round {number}"].append(item["critique_stop"])
            stops[f"revisions of round {number}"].append(item["revision_stop"])
    return {name: count_cut(found) for name, found in sorted(stops.items())}


def run(ctx: StageContext) -> dict:
    """Writes one revision record a response record: the initial response and `num_rounds`
    rounds."""
    config = ctx.config
    responses = {row["id"]: row for row in ctx.inputs["responses"].records()}
    ctx.require_rows(responses, "responses")
    constitution = load_constitution(config.constitution)
    count = len(constitution.critique_principles)
    num_principles = min(config.num_principles or count, count)
    examples = constitution.critique_examples[: config.num_few_shot]
    headers = [
        few_shot_messages(examples[:count], config.critique) for count in range(len(examples) + 1)
    ]
    model = ctx.load_model(config.model, format=config.format)
    engine = ctx.engine(model)
    journal, turns = ctx.directory.journal(), ctx.directory.journal("turns")

    principles = {
        row_id: draw_principles(
            constitution.critique_principles,
            num_principles,
            config.num_rounds,
            ctx.seed,
            ctx.name,
            row_id,
        )
        for row_id in responses
    }
    state = {
        row_id: {
            "dialogue": dialogue_from_json(row["dialogue"]),
            "response": row["response"],
            "rounds": [],
        }
        for row_id, row in responses.items()
        if row_id not in journal.finished
    }
    active = dict.fromkeys(state)  # rows that have not outgrown the context
    outgrown: dict[str, dict] = {}  # row id → in which round, with which request, why

    def prompt(role: str, messages: Dialogue, num_examples: int):
        header = headers[num_examples]
        return model.format.prompt(header + messages, reply=role, shared=len(header))

    def step(
        role: str, round_number: int, messages_of, max_new_tokens: int, before: dict | None = None
    ) -> dict[str, dict]:
        """Samples one turn of every active row; returns row id → {text, stop, num_few_shot}, and
        takes those that do not fit from `active`. `before`: the messages of the step before, whose
        prompt this one continues."""
        sampling = SamplingParams(
            max_new_tokens,
            config.temperature,
            config.top_k,
            config.top_p,
            model.format.stop_strings(role),
        )
        names = {f"{row_id}#{round_number}/{role}": row_id for row_id in active}
        requests, num_shown, room = [], {}, engine.max_length - max_new_tokens
        for name, row_id in names.items():
            if name in turns.finished:
                continue
            num_shown[name], segments = fitting.with_examples(
                functools.partial(prompt, role, messages_of(row_id)), len(examples), room
            )
            if before:
                earlier = prompt("critique", before[row_id], num_shown[name])
                segments = cut_after(segments, earlier)
            key = row_key(ctx.seed, ctx.name, f"{round_number}/{role}", row_id, 0)
            request = SampleRequest(name, segments, key)
            if engine.fits(request, max_new_tokens):
                requests.append(request)
            else:
                del active[row_id]
                outgrown[row_id] = {
                    "round": round_number + 1,
                    "turn": role,
                    "reason": fitting.CONTEXT,
                }
        label = f"{ctx.name} round {round_number + 1}: {role}"
        for completion in ctx.sample(engine, requests, sampling, label) if requests else ():
            turns.append(
                {
                    "id": completion.id,
                    "text": completion.text,
                    "stop": completion.stop,
                    "num_few_shot": num_shown[completion.id],
                }
            )
        turns.flush()
        return {
            row_id: {"num_few_shot": len(examples), **turns.finished[name]}
            for name, row_id in names.items()
            if row_id not in outgrown
        }

    for number in range(config.num_rounds):
        asked = {
            row_id: (*state[row_id]["dialogue"], Message("assistant", state[row_id]["response"]))
            for row_id in active
        }
        critiques, before = {}, None
        if config.critique:
            for row_id in asked:
                asked[row_id] += (
                    Message("critique_request", principles[row_id][number].critique_request),
                )
            critiques = step("critique", number, asked.__getitem__, config.max_critique_tokens)
            before = asked
            asked = {
                row_id: asked[row_id] + (Message("critique", critique["text"]),)
                for row_id, critique in critiques.items()
            }
        for row_id in asked:
            asked[row_id] += (
                Message("revision_request", principles[row_id][number].revision_request),
            )
        revisions = step("revision", number, asked.__getitem__, config.max_revision_tokens, before)
        for row_id, revision in revisions.items():
            principle, critique = principles[row_id][number], critiques.get(row_id)
            num_few_shot = {"revision": revision["num_few_shot"]}
            if critique:
                num_few_shot["critique"] = critique["num_few_shot"]
            state[row_id]["rounds"].append(
                {
                    "principle_id": principle.id,
                    "critique_request": principle.critique_request if config.critique else None,
                    "critique": critique and critique["text"],
                    "critique_stop": critique and critique["stop"],
                    "revision_request": principle.revision_request,
                    "revision": revision["text"],
                    "revision_stop": revision["stop"],
                    # How many of the record's few_shot_ids, the first ones, stood before each
                    # request.
                    "num_few_shot": num_few_shot,
                }
            )
            state[row_id]["response"] = revision["text"]

    for row_id, row in state.items():
        source = responses[row_id]
        if not row["rounds"]:
            continue  # nothing was revised: counted below
        journal.append(
            {
                "id": row_id,
                "prompt_id": source["prompt_id"],
                "kind": source.get("kind"),
                "model": model.name,
                "seed": ctx.seed,
                "dialogue": dialogue_to_json(row["dialogue"]),
                "initial": source["response"],
                "initial_stop": source.get("stop"),
                "few_shot_ids": [example.id for example in examples],
                "rounds": row["rounds"],
                "outgrown": outgrown.get(row_id),
            }
        )
    rows = journal.finished.values()
    ctx.drop(fitting.CONTEXT, len(responses) - len(rows))
    ctx.drop(fitting.OUTGROWN, sum(bool(row.get("outgrown")) for row in rows))
    ctx.require_rows(journal.finished, "revisions")
    digest = journal.finish()
    turns.remove_parts()
    few_shot = few_shot_counts(rows)
    changed = sum(row["rounds"][-1]["revision"] != row["initial"] for row in rows if row["rounds"])
    return {
        "rows": len(rows),
        "sha256": {"records": digest},
        "num_principles": num_principles,
        "changed": changed,
        "cut": cut_turns(rows),
        "few_shot": few_shot,
        "headline": f"{config.num_rounds} rounds, {changed} of {len(rows)} responses changed"
        + fitting.describe_left_out(few_shot),
    }


def few_shot_counts(records) -> dict[str, int]:
    """How many worked examples the requests of these records lacked
    (`fitting.examples_left_out`)."""
    return fitting.examples_left_out(
        (shown, len(row["few_shot_ids"]))
        for row in records
        for item in row["rounds"]
        for shown in item.get("num_few_shot", {}).values()
    )
