"""Critiques and revisions (section 3.1): each round draws a principle, criticises the last response and rewrites it.

The revision replaces the response, and the next round criticises an ordinary dialogue that ends in it. Without critique
(`critique=False`, the ablation of section 3.5) the revision is asked for directly. All prompts take a step together, so
that the few-shot header is prefilled once for a step; every finished turn is journalled, so a killed run redoes none.
"""

from __future__ import annotations

from cai_jax.constitution.loader import load_constitution
from cai_jax.data.dialogue import cut_after
from cai_jax.seeds import row_key, row_rng
from cai_jax.stages.context import StageContext
from cai_jax.structs import (
    Dialogue,
    Message,
    SampleRequest,
    SamplingParams,
    dialogue_from_json,
    dialogue_to_json,
)

SCHEMA = 1


def draw_principles(
    principles, num_principles: int, num_rounds: int, seed: int, stage: str, row_id: str
) -> list:
    """One principle a round, independently and with replacement, among the first `num_principles` (section 3.5, Figure 6)."""
    rng = row_rng(seed, stage, "principle", row_id)
    return [principles[int(rng.integers(num_principles))] for _ in range(num_rounds)]


def few_shot_messages(examples, critique: bool) -> Dialogue:
    """Worked examples as the turns that precede every request; without critique their critique turns are left out."""
    unwanted = () if critique else ("critique_request", "critique")
    return tuple(
        message
        for example in examples
        for message in example.messages
        if message.role not in unwanted
    )


def run(ctx: StageContext) -> dict:
    """Writes one revision record a response record: the initial response and `num_rounds` rounds."""
    config = ctx.config
    responses = {row["id"]: row for row in ctx.inputs["responses"].records()}
    ctx.require_rows(responses, "responses")
    constitution = load_constitution(config.constitution)
    num_principles = min(config.num_principles, len(constitution.critique_principles))
    examples = constitution.critique_examples[: config.num_few_shot]
    header = few_shot_messages(examples, config.critique)
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

    def prompt(role: str, messages: Dialogue):
        return model.format.prompt(header + messages, reply=role, shared=len(header))

    def step(
        role: str, round_number: int, messages_of, max_new_tokens: int, before: dict | None = None
    ) -> dict[str, str]:
        """Samples one turn of every row that is still in the running; returns row id → text. `before`: the messages that
        were asked in the step before, whose prompt this one continues."""
        sampling = SamplingParams(
            max_new_tokens,
            config.temperature,
            config.top_k,
            config.top_p,
            model.format.stop_strings(role),
        )
        names = {f"{row_id}#{round_number}/{role}": row_id for row_id in state}
        requests = []
        for name, row_id in names.items():
            if name not in turns.finished:
                segments = prompt(role, messages_of(row_id))
                if before:
                    segments = cut_after(segments, prompt("critique", before[row_id]))
                key = row_key(ctx.seed, ctx.name, f"{round_number}/{role}", row_id, 0)
                requests.append(SampleRequest(name, segments, key))
        label = f"{ctx.name} round {round_number + 1}: {role}"
        for completion in ctx.sample(engine, requests, sampling, label) if requests else ():
            turns.append({"id": completion.id, "text": completion.text, "stop": completion.stop})
        turns.flush()
        return {
            row_id: turns.finished[name]["text"]
            for name, row_id in names.items()
            if name in turns.finished
        }

    for number in range(config.num_rounds):
        asked = {
            row_id: (*row["dialogue"], Message("assistant", row["response"]))
            for row_id, row in state.items()
        }
        critiques, before = {}, None
        if config.critique:
            for row_id in asked:
                asked[row_id] += (
                    Message("critique_request", principles[row_id][number].critique_request),
                )
            critiques = step("critique", number, asked.__getitem__, config.max_critique_tokens)
            state = {row_id: state[row_id] for row_id in critiques}
            before = asked
            asked = {
                row_id: asked[row_id] + (Message("critique", critiques[row_id]),)
                for row_id in state
            }
        for row_id in asked:
            asked[row_id] += (
                Message("revision_request", principles[row_id][number].revision_request),
            )
        revisions = step("revision", number, asked.__getitem__, config.max_revision_tokens, before)
        state = {row_id: state[row_id] for row_id in revisions}
        for row_id, revision in revisions.items():
            principle = principles[row_id][number]
            state[row_id]["rounds"].append(
                {
                    "principle_id": principle.id,
                    "critique_request": principle.critique_request if config.critique else None,
                    "critique": critiques.get(row_id),
                    "revision_request": principle.revision_request,
                    "revision": revision,
                }
            )
            state[row_id]["response"] = revision

    for row_id, row in state.items():
        source = responses[row_id]
        journal.append(
            {
                "id": row_id,
                "prompt_id": source["prompt_id"],
                "kind": source.get("kind"),
                "model": model.name,
                "seed": ctx.seed,
                "dialogue": dialogue_to_json(row["dialogue"]),
                "initial": source["response"],
                "few_shot_ids": [example.id for example in examples],
                "rounds": row["rounds"],
            }
        )
    ctx.require_rows(journal.finished, "revisions")
    digest = journal.finish()
    turns.remove_parts()
    rows = journal.finished.values()
    changed = sum(row["rounds"][-1]["revision"] != row["initial"] for row in rows if row["rounds"])
    return {
        "rows": len(rows),
        "sha256": {"records": digest},
        "changed": changed,
        "headline": f"{config.num_rounds} rounds, {changed} of {len(rows)} responses changed",
    }
