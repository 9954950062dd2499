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
    """A response on its way through the rounds. outgrown: {"round", "turn", "reason"} of the
    request that no longer fitted the context."""

    source: dict
    principles: list
    rounds: list[dict] = dataclasses.field(default_factory=list)
    outgrown: dict | None = None

    def answered(self) -> Dialogue:
        """The prompt with the last response."""
        last = self.rounds[-1]["revision"] if self.rounds else self.source["response"]
        return (*dialogue_from_json(self.source["dialogue"]), Message("assistant", last))


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
    journal, turns = ctx.directory.journal(), ctx.directory.journal("turns")
    items = {
        row["id"]: Revised(
            row,
            draw_principles(
                constitution.critique_principles,
                num_principles,
                config.num_rounds,
                ctx.seed,
                ctx.name,
                row["id"],
            ),
        )
        for row in responses
        if row["id"] not in journal.finished
    }

    # --- Rounds: critique all, then revise all ----------------------------------------------------
    for number in range(config.num_rounds):
        label, asked, critiques = f"{ctx.name} round {number + 1}", {}, {}
        if config.critique:
            asked = {name: critique_turn(ctx, items[name], number, shown) for name in active(items)}
            limit = config.max_critique_tokens
            critiques = take_turns(ctx, model, turns, items, asked, limit, label)
        requests = {
            name: revision_turn(
                ctx, items[name], number, shown, asked.get(name), critiques.get(name)
            )
            for name in active(items)
        }
        limit = config.max_revision_tokens
        revisions = take_turns(ctx, model, turns, items, requests, limit, label)
        for name, revision in revisions.items():
            principle = items[name].principles[number]
            items[name].rounds.append(round_record(principle, critiques.get(name), revision))

    # --- Records and summary ----------------------------------------------------------------------
    for item in items.values():
        if item.rounds:  # else nothing was revised: counted below
            journal.append(record(ctx, model.name, item, examples))
    rows = journal.finished.values()
    ctx.drop(fitting.CONTEXT, len(responses) - len(rows))
    ctx.drop(fitting.OUTGROWN, sum(bool(row.get("outgrown")) for row in rows))
    ctx.require_rows(journal.finished, "revisions")
    journal.finish()
    turns.remove_parts()
    few_shot = few_shot_counts(rows)
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


def active(items: dict[str, Revised]) -> list[str]:
    """Names of the responses that have not outgrown the context."""
    return [name for name, item in items.items() if not item.outgrown]


def critique_turn(ctx: StageContext, item: Revised, number: int, examples) -> Turn:
    """What is asked first in a round: what the principle criticises."""
    request = Message("critique_request", item.principles[number].critique_request)
    return _turn(ctx, item, number, "critique", (*item.answered(), request), examples)


def revision_turn(
    ctx: StageContext,
    item: Revised,
    number: int,
    examples,
    asked: Turn | None,
    critique: dict | None,
) -> Turn:
    """What is asked last in a round: the response rewritten.

    Args:
      ctx: the stage's.
      item: what is revised.
      number: of the round, from 0.
      examples: worked ones.
      asked: the request for the critique, None where there is none.
      critique: its answer, which the model sees.
    """
    before = item.answered()
    if critique:
        before = (*asked.dialogue, Message("critique", critique["text"]))
    request = Message("revision_request", item.principles[number].revision_request)
    turn = _turn(ctx, item, number, "revision", (*before, request), examples)
    return dataclasses.replace(turn, continues=asked)


def _turn(ctx, item: Revised, number: int, role: str, dialogue: Dialogue, examples) -> Turn:
    name = item.source["id"]
    key = row_key(ctx.seed, ctx.name, f"{number}/{role}", name, 0)
    return Turn(f"{name}#{number}/{role}", dialogue, key, role, examples)


def take_turns(
    ctx: StageContext,
    model,
    journal,
    items: dict[str, Revised],
    turns: dict[str, Turn],
    limit: int,
    label: str,
) -> dict[str, dict]:
    """Response → {text, stop, num_few_shot} of its turn; one that does not fit the context has
    outgrown it.

    Args:
      ctx: the stage's.
      model: who answers.
      journal: of the turns; what it has is not asked again.
      items: the responses.
      turns: what is asked, by response.
      limit: tokens of an answer.
      label: of the progress bar.
    """
    config = ctx.config
    sampling = Sampling(limit, config.temperature, config.top_k, config.top_p)
    missing = [turn for turn in turns.values() if turn.id not in journal.finished]
    label += f": {missing[0].role}" if missing else ""
    for done in ctx.generate(model, missing, sampling, label, count=False):
        journal.append(
            {
                "id": done.id,
                "text": done.text,
                "stop": done.stop,
                "num_few_shot": done.num_examples,
            }
        )
    journal.flush()
    for name, turn in turns.items():
        if turn.id not in journal.finished:
            number = len(items[name].rounds) + 1
            items[name].outgrown = {"round": number, "turn": turn.role, "reason": fitting.CONTEXT}
    return {name: journal.finished[turns[name].id] for name in turns if not items[name].outgrown}


def round_record(principle, critique: dict | None, revision: dict) -> dict:
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


def record(ctx: StageContext, model: str, item: Revised, examples) -> dict:
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


def few_shot_counts(rows) -> dict[str, int]:
    """How many worked examples the requests of these records lacked
    (`fitting.examples_left_out`)."""
    return fitting.examples_left_out(
        (shown, len(row["few_shot_ids"]))
        for row in rows
        for item in row["rounds"]
        for shown in item["num_few_shot"].values()
    )
