"""Training a decoder with a scalar head, from examples held out by prompt: what the preference
model (`stages/pm.py`) and the harm regressor (`stages/harm.py`) share. Their losses and batches are
their own."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cai_jax import seeds
from cai_jax.core.sharding import batch_ways
from cai_jax.io.artefacts import dump
from cai_jax.models import lora
from cai_jax.structs import dialogue_to_json
from cai_jax.training import batching, feed, loop
from cai_jax.training import state as state_lib


def group_of(dialogue) -> str:
    """A name of the prompt itself: the same prompt in two sources, or twice in one, is one
    group."""
    return hashlib.blake2b(dump(dialogue_to_json(dialogue)).encode(), digest_size=8).hexdigest()


def split(items: Sequence, fraction: float, seed: int, stage: str) -> tuple[list, list]:
    """(training, held out): `fraction` of the prompts (`item.group`) of every `item.source`, at
    least one where there are two. All items of a prompt, whatever their source, fall on the same
    side."""
    by_source = collections.defaultdict(set)
    for item in items:
        by_source[item.source].add(item.group)
    held = set()
    for source in sorted(by_source):
        groups = sorted(
            by_source[source],
            key=lambda group: seeds.row_rng(seed, stage, "holdout", group).random(),
        )
        if fraction > 0 and len(groups) > 1:
            held.update(groups[: min(max(1, round(fraction * len(groups))), len(groups) - 1)])
    return [item for item in items if item.group not in held], [
        item for item in items if item.group in held
    ]


def fit(
    ctx,
    model,
    examples: Mapping[str, Sequence[int]],
    loss: Callable,
    make_batch: Callable,
    head: dict | None,
    told: Callable[[dict], dict] = dict,
    meter: Callable | None = None,
) -> tuple[dict, int]:
    """(params {"decoder", "head"}, float32 what was trained, number of steps) after `num_epochs`
    over the examples: name → lengths of its dialogues, in tokens.

    `make_batch(indices, shape)` gives a step's batch on the host, `loss` is what
    `optim.sum_gradients` takes, `head` the head to start with (None: `model.params` has one
    already), `told(scalars)` what the metrics are to show of a step, `meter` what `loop.fit` takes.
    Goes on from the stage's newest checkpoint; the model's weights are let go of once the state is
    there.
    """
    config = ctx.config
    names, lengths = list(examples), list(examples.values())
    order = batching.Order(len(names), config.batch_size, ctx.seed, ctx.name)
    num_steps = config.num_epochs * order.steps_per_epoch
    shape = batching.common_shape(
        np.ravel(lengths),
        order,
        num_steps,
        batch_ways(ctx.mesh),
        config.num_microbatches,
        len(lengths[0]),
    )

    rate, tx = state_lib.make_optimiser(config, f"config.graph.{ctx.name}", num_steps)
    adapters = ctx.adapters(model)  # None: all weights are trained
    base = adapters and lora.base_of(model.params)
    params = state_lib.abstract_params(model.config, "reward", ctx.mesh, adapters=adapters)
    abstract = {"params": params, "optimiser": state_lib.abstract_optimiser(tx, params, ctx.mesh)}
    update = state_lib.make_update(
        loss, tx, abstract, ctx.mesh, config.num_microbatches, adapters, base, shape.spare
    )

    def init():
        decoder, key = (
            model.params.get("decoder", model.params),
            seeds.row_key(ctx.seed, ctx.name, "adapters"),
        )
        start = state_lib.start(model.config, decoder, ctx.mesh, key, adapters, model.trained)
        start = state_lib.with_head(
            start, state_lib.fresh(model.params["head"]) if head is None else head, ctx.mesh
        )
        del decoder
        model.release()  # before the optimiser's moments, which are as large
        return {"params": start, "optimiser": state_lib.init_optimiser(tx, start, ctx.mesh)}

    batches = feed.Batches(lambda step: make_batch(order.indices(step), shape), num_steps)

    def advance(state, step):
        state, scalars = update(state, batches[step])
        return state, {**told(scalars), "learning_rate": rate(step)}

    settings = loop.Settings(num_steps, config.save_every_steps, config.log_every_steps)
    state = loop.fit(
        ctx,
        settings,
        abstract,
        init,
        advance,
        lambda step: [names[index] for index in order.indices(step)],
        model.release,
        meter,
    )
    return lora.attach(base, state["params"], adapters), num_steps
