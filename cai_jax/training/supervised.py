"""Supervised training: `num_epochs` over examples with a loss of their own. The stages sl, pm and
harm differ in examples, batches and loss, and in nothing of what is here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cai_jax import seeds
from cai_jax.core.sharding import batch_ways
from cai_jax.io.metrics import read_rows
from cai_jax.models import lora
from cai_jax.training import batching, feed, train
from cai_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Steps:
    """Which examples each step trains on, and the one shape of all batches.

    `ids`: a name an example; `lengths`: tokens of its dialogues, [n, dialogues an example].
    """

    ids: Sequence[str]
    lengths: np.ndarray
    order: batching.Order
    num_steps: int
    shape: batching.Shape

    @classmethod
    def of(cls, ctx, ids: Sequence[str], lengths: Sequence[Sequence[int]]) -> Steps:
        """The steps of a stage over all epochs."""
        config, lengths = ctx.config, np.asarray(lengths)
        order = batching.Order(len(ids), config.batch_size, ctx.seed, ctx.name)
        num_steps = config.num_epochs * order.steps_per_epoch
        ways = batch_ways(ctx.mesh)
        shape = batching.common_shape(lengths, order, num_steps, ways, config.num_microbatches)
        return cls(ids, lengths, order, num_steps, shape)

    def most(self, counts: Sequence[Sequence[int]]) -> int:
        """How much of `counts`, a number for each of `lengths`, a packed sequence has at most at
        any step, rounded up to an eighth of its length."""
        counts = np.asarray(counts)

        def at(step):
            chosen = self.order.indices(step)
            sizes = self.lengths[chosen]
            packing = batching.pack(sizes.reshape(-1), self.shape, group=sizes.shape[1])
            return packing.most(counts[chosen].reshape(-1))

        return batching.eighths(max(1, *map(at, range(self.num_steps))), self.shape.length)

    @property
    def mean_length(self) -> float:
        return float(np.mean(self.lengths))


def fit(
    ctx,
    model,
    steps: Steps,
    make_batch: Callable,
    loss: Callable,
    *,
    kind: str = "policy",
    head: dict | None = None,
    means: Sequence[str] = (),
    meter: Callable | None = None,
) -> dict:
    """Trains from the stage's newest checkpoint on.

    Args:
      ctx: the stage's context.
      model: where training begins; its weights are freed once the state holds its own copy.
      steps: which examples each step takes.
      make_batch: indices of examples → a batch on the host.
      loss: (params, microbatch) → (sum, (count, sums)), as `optim.sum_gradients` takes it.
      kind: "policy", a decoder, or "reward", a decoder with a scalar head.
      head: the head to begin with; None: that of the model.
      means: which of the loss's sums the metrics divide by its count.
      meter: what `train.Session` takes.
    Returns:
      The trained parameters in float32, adapters on their base.
    """
    # ---- Optimiser and step ----------------------------------------------------------------------
    config, mesh = ctx.config, ctx.mesh
    rate, tx = state_lib.make_optimiser(config, f"config.graph.{ctx.name}", steps.num_steps)
    adapters = ctx.adapters(model)  # None: all weights are trained
    base = adapters and lora.base_of(model.params)
    params = state_lib.abstract_params(model.config, kind, mesh, adapters=adapters)
    abstract = {"params": params, "optimiser": state_lib.abstract_optimiser(tx, params, mesh)}
    update = state_lib.make_update(
        loss, tx, abstract, mesh, config.num_microbatches, adapters, base, steps.shape.spare
    )

    # ---- State -----------------------------------------------------------------------------------
    def init() -> dict:
        decoder = model.params.get("decoder", model.params)
        key = seeds.row_key(ctx.seed, ctx.name, "adapters")
        start = state_lib.start(model.config, decoder, mesh, key, adapters, model.trained)
        if kind == "reward":
            first = state_lib.copy(model.params["head"]) if head is None else head
            start = state_lib.with_head(start, first, mesh)
        del decoder
        model.release()  # before the optimiser's moments, which are as large
        return {"params": start, "optimiser": state_lib.init_optimiser(tx, start, mesh)}

    # ---- Loop ------------------------------------------------------------------------------------
    def examples(step: int):
        indices = steps.order.indices(step)
        return [steps.ids[index] for index in indices], make_batch(indices)

    def train_step(state, batch):
        state, scalars = update(state, batch)
        return state, scalars | {name: scalars[name] / scalars["count"] for name in means}

    with train.Session(
        ctx,
        steps.num_steps,
        config.save_every_steps,
        abstract,
        log_every=config.log_every_steps,
        meter=meter,
    ) as session:
        state = session.restore(init)
        model.release()
        batches = feed.Batches(examples, steps.num_steps)
        state = train.train(session, state, train_step, batches, rate)
    return lora.attach(base, state["params"], adapters)


def summary(ctx, num_steps: int, more: Mapping) -> dict:
    """The stage's summary from its metrics: steps, first and last loss, and `more`."""
    history = read_rows(ctx.directory.path / "metrics.jsonl")
    losses = [numbers["loss"] for numbers in history if "loss" in numbers]
    first, last = (losses[0], losses[-1]) if losses else (None, None)
    headline = f"{num_steps} steps"
    if losses:
        headline = f"loss {first:.3f} → {last:.3f} in {headline}"
    return {
        "steps": num_steps,
        "loss_first": first,
        "loss_last": last,
        "headline": headline,
        **more,
    }
