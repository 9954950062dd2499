"""Supervised finetuning on the revisions, with helpful answers mixed in → SL-CAI (section 3.2)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from cai_jax import seeds
from cai_jax.core import losses
from cai_jax.core.sharding import batch_ways
from cai_jax.errors import UserError
from cai_jax.models import heads, lora
from cai_jax.planning import throughput
from cai_jax.stages.context import StageContext, fits_training
from cai_jax.structs import Dialogue, dialogue_from_json, sampled_turn
from cai_jax.training import batching, feed, loop
from cai_jax.training import state as state_lib

SCHEMA = 2
TARGETS = ("all", "final")


@dataclasses.dataclass(frozen=True)
class Example:
    """tokens int32 [T]; target bool [T], True on the answer and its end token. `cut`: the answer
    has no end token."""

    id: str
    tokens: np.ndarray
    target: np.ndarray
    cut: bool = False


def answers(
    revisions, responses, targets: str = "all", max_round: int | None = None
) -> list[tuple[str, Dialogue]]:
    """(id, dialogue that ends in the answer) of everything that is learned from.

    Of a revision record: all its revisions up to `max_round` (SL-CAI-n), or the last of those for
    targets "final"; never the initial response. Of a response record (a helpful sample): the
    response.
    """
    found = []

    def add(name, dialogue, text, stop):
        found.append((name, (*dialogue_from_json(dialogue), sampled_turn(text, stop))))

    for row in revisions:
        rounds = list(enumerate(row["rounds"], 1))[: max_round or None]
        for number, item in rounds if targets == "all" else rounds[-1:]:
            name = f"revision {row['id']}#{number}"
            add(name, row["dialogue"], item["revision"], item.get("revision_stop"))
    for row in responses:
        add(f"response {row['id']}", row["dialogue"], row["response"], row.get("stop"))
    return found


def examples(ctx: StageContext, format, positions: int | None = None) -> list[Example]:
    """The training set in order of id; what is empty or too long, for `max_length` or for the
    model's positions, is counted and left out."""
    config = ctx.config
    if config.targets not in TARGETS:
        raise UserError(
            f"config.graph.{ctx.name}.targets: expected all or final, not '{config.targets}'"
        )
    rows = {
        name: ctx.inputs[name].records() if name in ctx.inputs else []
        for name in ("revisions", "helpful")
    }
    learned = answers(rows["revisions"], rows["helpful"], config.targets, config.max_round)
    full = [item for item in learned if item[1][-1].text.strip()]
    ctx.drop("empty answer", len(learned) - len(full))
    if config.cut_answers == "drop":
        ended = [item for item in full if not item[1][-1].cut]
        ctx.drop("cut at the limit of tokens", len(full) - len(ended))
        full = ended
    encoded = ctx.encode(format, [dialogue for _, dialogue in full])
    kept = fits_training(ctx, [len(item.tokens) for item in encoded], positions)
    found = [
        Example(name, item.tokens, item.target_mask, dialogue[-1].cut)
        for (name, dialogue), item, fits in zip(full, encoded, kept, strict=True)
        if fits
    ]
    helpful = [example for example in found if example.id.startswith("response ")]
    revised = [example for example in found if example.id.startswith("revision ")]
    mixed = feed.mix(helpful, revised, config.helpful_fraction, ctx.seed, ctx.name)
    ctx.drop("beyond helpful_fraction", len(found) - len(mixed))
    ctx.require_rows(mixed, "training examples")
    return sorted(mixed, key=lambda example: example.id)


def make_batch(chosen: list[Example], shape: batching.Shape, count: int = 0) -> dict:
    """tokens, segments, target [rows, T]: several examples a row; places [rows, count] of the
    targets (0: as few as hold them)."""
    packing = batching.pack([len(example.tokens) for example in chosen], shape)
    target = packing.spread([example.target for example in chosen], bool)
    return {
        "tokens": packing.spread([example.tokens for example in chosen]),
        "segments": packing.segments(),
        "target": target,
        "places": batching.places(target, count),
    }


def most_targets(
    data: list[Example], order: batching.Order, num_steps: int, shape: batching.Shape
) -> int:
    """How many targets a row has at most, at any step, rounded up to an eighth of it."""

    def at(step):
        chosen = [data[index] for index in order.indices(step)]
        packing = batching.pack([len(example.tokens) for example in chosen], shape)
        return batching.most_in_a_row(packing, [int(example.target.sum()) for example in chosen])

    return batching.eighths(max(1, *map(at, range(num_steps))), shape.length)


def make_loss(config, dtype, **options):
    """Negative log-likelihood of the target tokens, as (sum, (count, sums)). `options`: scan,
    remat, chunk."""

    def loss(params, batch):
        params = state_lib.cast(params, dtype)
        seen = batch["segments"] > 0
        logprobs = heads.dialogue_logprobs(
            params,
            batch["tokens"],
            seen,
            config,
            segments_BxT=batch["segments"],
            places=batch["places"],
            **options,
        )
        total, count = losses.response_loss(logprobs, batch["target"])
        return total, (count, {"tokens": jnp.sum(seen, dtype=jnp.float32)})

    return loss


def run(ctx: StageContext) -> dict:
    """Trains `init` for `num_epochs` over all examples and publishes the weights as `@stage`."""
    # ---- Data: every answer is one example; a step's batch depends on its number only ------------
    config = ctx.config
    model = ctx.load_model(config.init, format=config.format)
    adapters = ctx.adapters(model)  # None: all weights are trained
    data = examples(ctx, model.format, model.config.max_length)
    order = batching.Order(len(data), config.batch_size, ctx.seed, ctx.name)
    num_steps = config.num_epochs * order.steps_per_epoch
    shape = batching.common_shape(
        [len(example.tokens) for example in data],
        order,
        num_steps,
        batch_ways(ctx.mesh),
        config.num_microbatches,
    )
    count = most_targets(data, order, num_steps, shape)

    # ---- Model and optimiser ---------------------------------------------------------------------
    rate, tx = state_lib.make_optimiser(config, f"config.graph.{ctx.name}", num_steps)
    params = state_lib.abstract_params(model.config, "policy", ctx.mesh, adapters=adapters)
    abstract = {"params": params, "optimiser": state_lib.abstract_optimiser(tx, params, ctx.mesh)}
    chunk = ctx.run_config.model.logprob_chunk
    loss = make_loss(
        model.config, ctx.dtype, chunk=chunk, **state_lib.forward_options(ctx.run_config)
    )
    base = adapters and lora.base_of(model.params)
    update = state_lib.make_update(
        loss, tx, abstract, ctx.mesh, config.num_microbatches, adapters, base, shape.spare
    )

    def init():
        key = seeds.row_key(ctx.seed, ctx.name, "adapters")
        start = state_lib.start(model.config, model.params, ctx.mesh, key, adapters, model.trained)
        model.release()  # before the optimiser's moments, which are as large
        return {"params": start, "optimiser": state_lib.init_optimiser(tx, start, ctx.mesh)}

    # ---- Steps -----------------------------------------------------------------------------------
    batches = feed.Batches(
        lambda step: make_batch([data[index] for index in order.indices(step)], shape, count),
        num_steps,
    )

    def advance(state, step):
        state, scalars = update(state, batches[step])
        return state, {**scalars, "learning_rate": rate(step)}

    settings = loop.Settings(num_steps, config.save_every_steps, config.log_every_steps)
    mean_length = float(np.mean([len(example.tokens) for example in data]))
    loop.fit(
        ctx,
        settings,
        abstract,
        init,
        advance,
        lambda step: [data[index].id for index in order.indices(step)],
        model.release,
        throughput.training(ctx.mesh, model.config, mean_length, adapters),
    )
    ctx.publish(model, "policy")
    cut = {"cut": sum(example.cut for example in data), "of": len(data)}
    return loop.summary(ctx, num_steps, {"examples": len(data), "cut": {"examples": cut}})
