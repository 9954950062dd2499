"""Direct preference optimisation: a policy from comparisons or revisions without a preference model
(Rafailov et al. 2023, 2305.18290). The paper's section 4 has pm and rl in its place.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.core import dpo, losses, sharding
from cai_jax.core.sharding import batch_ways
from cai_jax.models import heads
from cai_jax.planning import throughput
from cai_jax.stages.context import StageContext
from cai_jax.training import batching, pairs, supervised
from cai_jax.training import state as state_lib

SCHEMA = 1
MEANS = ("accuracy", "margin", "chosen_logprob", "rejected_logprob")
MEANS += ("chosen_tokens", "rejected_tokens")


def check(fields, config, where: str) -> None:
    """Labels are those of the comparisons."""
    pairs.check_labels(fields.inputs, config, where)


def make_batch(chosen, data: pairs.PairSet, shape, count: int = 0, reference=None) -> dict:
    """`pairs.make_batch` with the answers' positions [R, count] (0: as few as hold them).

    Args:
      chosen, data, shape: the pairs, those that they are of, and the shape.
      count: positions of a sequence.
      reference: pair id → the log-probability of each side under the reference.
    Returns:
      The arrays by name; `numbers` are the reference's.
    """
    numbers = reference and np.array([reference[pair.id] for pair in chosen], np.float32)
    batch = pairs.make_batch(chosen, data.tokens, shape, data.answers, numbers)
    return {**batch, "positions": batching.positions(batch["answers"], count)}


def answer_logprobs(params, batch, config, dtype, **options):
    """Log-probabilities of both answers of every pair.

    Args:
      params: a decoder.
      batch: of `make_batch`, R sequences of N pairs each.
      config, dtype: the decoder's, and of its forward pass.
      **options: scan, remat, chunk.
    Returns:
      (log-probability in nats, tokens) of each side's answer, float32 [R, N, 2].
    """
    segments, answers = batch["segments"], batch["answers"]
    options |= {"segments_BxT": segments, "places": batch["positions"]}
    params = state_lib.cast(params, dtype)
    logprobs = heads.dialogue_logprobs(params, batch["tokens"], segments > 0, config, **options)
    R, N, _ = batch["ends"].shape

    def of_sides(values):
        sums = losses.sequence_sum(jnp.where(answers, values, 0.0), segments)
        return jnp.take_along_axis(sums, batch["ends"].reshape(R, 2 * N), axis=1).reshape(R, N, 2)

    return of_sides(logprobs), of_sides(jnp.ones_like(logprobs))


def make_loss(model_config, dtype, fields, **options):
    """The loss of `dpo.pair_loss`, as (sum, (count, sums)). `options`: scan, remat, chunk."""

    def loss(params, batch):
        sides = answer_logprobs(params, batch, model_config, dtype, **options)
        logprobs, lengths, reference = (x.reshape(-1, 2) for x in (*sides, batch["numbers"]))
        target, valid = batch["target"].reshape(-1), batch["valid"].reshape(-1)
        smoothed = dpo.smoothed(target, fields.label_smoothing)
        names = {"kind": fields.loss, "nll_coefficient": fields.nll_coefficient}
        given = logprobs, reference, lengths
        total, count = dpo.pair_loss(*given, smoothed, valid, beta=fields.beta, **names)
        sums = dpo.pair_sums(*given, target, valid, fields.beta)
        tokens = jnp.sum(batch["segments"] > 0, dtype=jnp.float32)
        return total, (count, {**sums, "tokens": tokens})

    return loss


def read(ctx: StageContext, params, model, data: pairs.PairSet, chosen, known=()):
    """Log-probabilities of pairs under a policy, in batches that depend on `chosen` alone.

    Args:
      ctx: the stage's context.
      params, model: the policy's weights, and its config.
      data: what `chosen` are of.
      chosen: the pairs.
      known: ids of pairs; a batch without others is left out.
    Yields:
      (pairs, log-probabilities of both answers [n, 2], nats) of a batch.
    """
    size = -(-ctx.config.batch_size // ctx.config.num_microbatches)
    order = batching.Order(len(chosen), size, ctx.seed, f"{ctx.name} reference")
    lengths = [[len(data.tokens[pair.id, side]) for side in (0, 1)] for pair in chosen]
    num_steps, ways = order.steps_per_epoch, batch_ways(ctx.mesh)
    shape = batching.common_shape(np.asarray(lengths), order, num_steps, ways)
    chunk = ctx.run_config.model.logprob_chunk
    how = {"config": model.config, "dtype": ctx.dtype, "scan": True, "chunk": chunk}
    forward = jax.jit(functools.partial(answer_logprobs, **how))
    for step in range(num_steps):
        some = [chosen[index] for index in order.indices(step)]
        if all(pair.id in known for pair in some):
            continue
        indices = np.arange(1, len(some) + 1).repeat(2).reshape(-1, 2)
        batch = pairs.make_batch(some, data.tokens, shape, data.answers, indices)
        index = batch.pop("numbers")[..., 0]
        batch["positions"] = batching.positions(batch["answers"], shape.length)
        with jax.set_mesh(ctx.mesh):
            logprobs, _ = forward(params, sharding.put_batch(batch, ctx.mesh))
        by_pair = sharding.fetch(logprobs)[index > 0][np.argsort(index[index > 0])]
        yield some, by_pair


def reference_logprobs(ctx: StageContext, model, data: pairs.PairSet) -> dict:
    """Pair id → the log-probability of each side under the reference, computed once: they are the
    stage's records."""
    journal, every = ctx.directory.journal(), [*data.train, *data.held]
    reference = ctx.reference(model)
    for some, logprobs in read(ctx, reference.params, reference, data, every, journal.finished):
        for pair, values in zip(some, logprobs.tolist(), strict=True):
            if pair.id not in journal.finished:
                about = {"source": pair.source, "target": pair.target, "prompt_id": pair.group}
                journal.append({"id": pair.id, **about, "reference": values})
    journal.finish()
    if reference is not model:
        reference.release()
    return {name: row["reference"] for name, row in journal.finished.items()}


def run(ctx: StageContext) -> dict:
    """Trains `init` on the pairs and publishes the weights as `@stage`."""
    # ---- Data ------------------------------------------------------------------------------------
    config = ctx.config
    model = ctx.models.load(config.init, format=config.format)
    data = pairs.load(ctx, model, ended=False)
    reference = reference_logprobs(ctx, model, data)
    steps = supervised.Steps.of(ctx, [pair.id for pair in data.train], data.lengths)
    answers = [[int(data.answers[pair.id, side].sum()) for side in (0, 1)] for pair in data.train]
    count = steps.most(answers)

    # ---- Training --------------------------------------------------------------------------------
    def batch(indices):
        return make_batch([data.train[i] for i in indices], data, steps.shape, count, reference)

    options = state_lib.forward_options(ctx.run_config)
    options["chunk"] = ctx.run_config.model.logprob_chunk
    loss = make_loss(model.config, ctx.dtype, config, **options)
    adapters = ctx.adapters(model)
    meter = throughput.training(ctx.mesh, model.config, steps.mean_length, adapters, head=False)
    params = supervised.fit(ctx, model, steps, batch, loss, means=MEANS, meter=meter)
    ctx.publish(model, "policy")

    # ---- Held-out prompts ------------------------------------------------------------------------
    margins = []
    for some, logprobs in read(ctx, params, model, data, data.held) if data.held else ():
        ratios = logprobs - np.array([reference[pair.id] for pair in some])
        sides = np.sign([pair.target - 0.5 for pair in some])
        margins += (config.beta * (ratios[:, 0] - ratios[:, 1]) * sides).tolist()
    held = {"n": len(margins), "margin": float(np.mean(margins)) if margins else None}
    held["accuracy"] = float(np.mean(0.5 + 0.5 * np.sign(margins))) if margins else None
    more = {"examples": len(data.train), "held_out": held}
    result = supervised.summary(ctx, steps.num_steps, more)
    if margins:
        result["headline"] = (
            f"held out: {held['accuracy']:.0%} of {held['n']}; {result['headline']}"
        )
    return result
