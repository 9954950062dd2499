"""Critiques and revisions (section 3.1): each round draws a principle, criticises the last response
and rewrites it.

The revision replaces the response, and the next round criticises an ordinary dialogue that ends in
it. Without critique (`critique=False`, the ablation of section 3.5) the revision is asked for
directly. All prompts take a step together, so that the worked examples are prefilled once for a
step; every finished turn is journalled, so a killed run repeats none.

A request that does not fit the context has fewer worked examples; a dialogue that outgrows the
context even without any keeps the rounds that it has finished, and says so.
"""

from __future__ import annotations

import collections
import dataclasses

from cai_jax.constitution.loader import load_constitution
from cai_jax.data import fitting
from cai_jax.errors import UserError
from cai_jax.seeds import row_key, row_rng
from cai_jax.stages.context import StageContext
from cai_jax.structs import Dialogue, Message, count_cut, dialogue_from_json
from cai_jax.textmodels.protocol import Sampling, Turn

SCHEMA = 2


def check(fields, config, where: str) -> None:
    """There are as many principles as are asked for."""
    known = len(load_constitution(fields.constitution).critique_principles)
    if fields.num_principles and fields.num_principles > known:
        raise UserError(
            f"{where}.num_principles: {fields.num_principles} are asked for, "
            f"'{fields.constitution}' has {known} that criticise; leave it empty for all"
        )


def shortest(fields):
    """The shortest requests, as `pipeline.limits` wants them: the shortest principle, empty
    texts."""
    principles = load_constitution(fields.constitution).critique_principles[: fields.num_principles]
    asked = min((item.critique_request for item in principles), key=len)
    rewrite = min((item.revision_request for item in principles), key=len)
    dialogue = (Message("human", ""), Message("assistant", ""))
    if fields.critique:
        dialogue += (Message("critique_request", asked),)
        yield fields.model, "max_critique_tokens", "critique", dialogue
        dialogue += (Message("critique", ""),)
    dialogue += (Message("revision_request", rewrite),)
    yield fields.model, "max_revision_tokens", "revision", dialogue


@dataclasses.dataclass
class Revised:
    """A response on its way through the rounds. critique: the request for the last one, and its
    answer. outgrown: {"round", "turn", "reason"} of the request that no longer fitted, or that has
    no answer for another reason."""

    source: dict
    principles: list
    rounds: list[dict] = dataclasses.field(default_factory=list)
    critique: tuple[Turn, dict] | None = None
    outgrown: dict | None = None

    def next_turn(self, ctx: StageContext, role: str, examples: tuple[Dialogue, ...]) -> Turn:
        """The request of the round for a critique of the last response, or for its revision in
        sight of the critique where there is one."""
        name, number, earlier = self.source["id"], len(self.rounds), None
        last = self.rounds[-1]["revision"] if self.rounds else self.source["response"]
        before = (*dialogue_from_json(self.source["dialogue"]), Message("assistant", last))
        if role == "critique":
            request = Message("critique_request", self.principles[number].critique_request)
        else:
            request = Message("revision_request", self.principles[number].revision_request)
            # The prompt goes on from the critique's, which is prefilled already.
            if self.critique:
                earlier, critique = self.critique
                before = (*earlier.dialogue, Message("critique", critique["text"]))
        key = row_key(ctx.seed, ctx.name, f"{number}/{role}", name, 0)
        dialogue = (*before, request)
        return Turn(f"{name}#{number}/{role}", dialogue, key, role, examples, continues=earlier)

    def take(self, turn: Turn, answer: dict | None, why: str) -> None:
        """Goes on with the answer to `next_turn`; None where there is none, and `why`."""
        if answer is None:
            number = len(self.rounds) + 1
            self.outgrown = {"round": number, "turn": turn.role, "reason": why}
        elif turn.role == "critique":
            self.critique = turn, answer
        else:
            critique = self.critique[1] if self.critique else None
            self.rounds.append(_round(self.principles[len(self.rounds)], critique, answer))
            self.critique = None


def draw_principles(
    principles, num_principles: int, num_rounds: int, seed: int, stage: str, row_id: str
) -> list:
    """One principle a round, independently and with replacement (section 3.5, Figure 6).

    Args:
      principles: those of the constitution.
      num_principles: how many of them, the first ones, are drawn from.
      num_rounds: how many are drawn.
      seed: the run's.
      stage: its name.
      row_id: the response's id.

    Returns:
      The principles, by round.
    """
    rng = row_rng(seed, stage, "principle", row_id)
    return [principles[int(rng.integers(num_principles))] for _ in range(num_rounds)]


def worked_examples(examples, critique: bool) -> tuple[Dialogue, ...]:
    """The turns of each example; without critique its critique turns are left out."""
    unwanted = () if critique else ("critique_request", "critique")
    return tuple(
        tuple(message for message in example.messages if message.role not in unwanted)
        for example in examples
    )


def run(ctx: StageContext) -> dict:
    """Writes one revision record a response record: the initial response and `num_rounds`
    rounds."""
    # --- Responses, each with its principles; worked examples -------------------------------------
    config = ctx.config
    responses = ctx.inputs["responses"].records()
    ctx.require_rows(responses, "responses")
    constitution = load_constitution(config.constitution)
    count = len(constitution.critique_principles)
    num_principles = min(config.num_principles or count, count)
    examples = constitution.critique_examples[: config.num_few_shot]
    shown = worked_examples(examples, config.critique)
    model = ctx.models.text_model(config.model, config.format)
    # Records are complete revisions; turns are kept until all are.
    journal, turns = ctx.directory.journal(), ctx.directory.journal("turns")
    drawn_from = constitution.critique_principles, num_principles, config.num_rounds
    items = [
        Revised(row, draw_principles(*drawn_from, ctx.seed, ctx.name, row["id"]))
        for row in responses
        if row["id"] not in journal.finished
    ]

    # --- Rounds: critique all, then revise all ----------------------------------------------------
    for number in range(1, config.num_rounds + 1):
        label = f"{ctx.name} round {number}"
        if config.critique:
            limit = config.max_critique_tokens
            _take_turns(ctx, model, turns, items, "critique", shown, limit, label)
        limit = config.max_revision_tokens
        _take_turns(ctx, model, turns, items, "revision", shown, limit, label)

    # --- Records and summary ----------------------------------------------------------------------
    for item in items:
        if item.rounds:  # else nothing was revised: counted below
            journal.append(_record(ctx, model.name, item, examples))
    rows = journal.finished.values()
    for item in items:
        if not item.rounds:
            ctx.drop(item.outgrown["reason"])
    for row in rows:
        if outgrown := row.get("outgrown"):
            too_long = outgrown["reason"] == fitting.CONTEXT
            later = f"{outgrown['reason']} in a later round (finished rounds are kept)"
            ctx.drop(fitting.OUTGROWN if too_long else later)
    ctx.require_rows(journal.finished, "revisions")
    journal.finish()
    turns.remove_parts()
    few_shot = fitting.examples_left_out(
        (shown, len(row["few_shot_ids"]))
        for row in rows
        for item in row["rounds"]
        for shown in item["num_few_shot"].values()
    )
    changed = sum(row["rounds"][-1]["revision"] != row["initial"] for row in rows)
    return {
        "rows": len(rows),
        "num_principles": num_principles,
        "changed": changed,
        "cut": cut_turns(rows),
        "few_shot": few_shot,
        "headline": f"{config.num_rounds} rounds, {changed} of {len(rows)} responses changed"
        + fitting.describe_left_out(few_shot),
    }


def _take_turns(
    ctx: StageContext, model, journal, items: list[Revised], role: str, examples, limit: int, label
) -> None:
    """Gives every response that still fits the context its next turn, of at most `limit` tokens.
    What the journal has is not asked again."""
    active = [item for item in items if not item.outgrown]
    asked = [item.next_turn(ctx, role, examples) for item in active]
    config = ctx.config
    sampling = Sampling(limit, config.temperature, config.top_k, config.top_p)
    missing = [turn for turn in asked if turn.id not in journal.finished]
    for done in ctx.generate(model, missing, sampling, f"{label}: {role}", count=False):
        answer = {"text": done.text, "stop": done.stop, "num_few_shot": done.num_examples}
        journal.append({"id": done.id, **answer})
    journal.flush()
    for item, turn in zip(active, asked, strict=True):
        item.take(turn, journal.finished.get(turn.id), ctx.why([turn.id]))


def _round(principle, critique: dict | None, revision: dict) -> dict:
    """A round as the record holds it. `num_few_shot`: how many of the record's few_shot_ids, the
    first ones, preceded each request."""
    shown = {"revision": revision["num_few_shot"]}
    if critique:
        shown["critique"] = critique["num_few_shot"]
    return {
        "principle_id": principle.id,
        "critique_request": principle.critique_request if critique else None,
        "critique": critique and critique["text"],
        "critique_stop": critique and critique["stop"],
        "revision_request": principle.revision_request,
        "revision": revision["text"],
        "revision_stop": revision["stop"],
        "num_few_shot": shown,
    }


def _record(ctx: StageContext, model: str, item: Revised, examples) -> dict:
    source = item.source
    return {
        "id": source["id"],
        "prompt_id": source["prompt_id"],
        "kind": source.get("kind"),
        "model": model,
        "seed": ctx.seed,
        "dialogue": source["dialogue"],
        "initial": source["response"],
        "initial_stop": source.get("stop"),
        "few_shot_ids": [example.id for example in examples],
        "rounds": item.rounds,
        "outgrown": item.outgrown,
    }


def cut_turns(rows) -> dict[str, dict[str, int]]:
    """ "critiques of round 1", "revisions of round 1", … → how many were cut at the limit, of how
    many."""
    stops = collections.defaultdict(list)
    for row in rows:
        for number, item in enumerate(row["rounds"], 1):
            if item["critique"] is not None:
                stops[f"critiques of round {number}"].append(item["critique_stop"])
            stops[f"revisions of round {number}"].append(item["revision_stop"])
    return {name: count_cut(counted) for name, counted in sorted(stops.items())}
