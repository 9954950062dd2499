"""Optimisers, learning-rate schedules, and exact gradient accumulation. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate(
    peak: float, *, schedule: str = "constant", warmup_steps: int = 0, num_steps: int = 0
):
    """Linear warm-up from peak/(warmup + 1), then constant (the paper) or down to 0 at num_steps.

    Args:
      peak: the rate after warm-up.
      schedule: one of SCHEDULES.
      warmup_steps, num_steps: how long warm-up and everything take.
    Returns:
      The function step → learning rate.
    Raises:
      ValueError: another schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, not {schedule!r}")
    decay_steps = max(num_steps - warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps),
    }[schedule]
    if not warmup_steps:
        return after
    # The first step moves too: a rate of exactly 0 would spend a batch on nothing.
    first = peak / (warmup_steps + 1)
    return optax.join_schedules(
        [optax.linear_schedule(first, peak, warmup_steps), after], [warmup_steps]
    )


def on_host(rate, num_steps: int):
    """The same numbers, step → float, without a device: for logging steps 0 to
    num_steps."""
    known = np.asarray(
        jax.vmap(lambda step: jnp.asarray(rate(step), jnp.float32))(jnp.arange(num_steps + 1))
    )
    return lambda step: float(known[step])


def adam(
    rate,
    *,
    max_grad_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Gradient clipping by global norm, then Adam with decoupled weight decay on matrices (not on
    norms and biases).

    Args:
      rate: step → learning rate; or {name: rate} for parameters that are a dict of the same names,
        each item with its own.
      max_grad_norm: None or 0 for no clipping.
      weight_decay: 0 for none.
      b1, b2, eps: Adam's.
    Returns:
      The transformation, whose moments are float32.
    """
    transforms = [clip_by_global_norm(max_grad_norm)] if max_grad_norm else []
    transforms.append(optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=jnp.float32))
    if weight_decay:
        transforms.append(optax.add_decayed_weights(weight_decay, mask=decayed))
    scale = (
        scale_by_rates(rate) if isinstance(rate, Mapping) else optax.scale_by_learning_rate(rate)
    )
    return optax.chain(*transforms, scale)


def scale_by_rates(rates: Mapping[str, Callable]) -> optax.GradientTransformation:
    """Of updates {name: tree} every tree times minus its own learning rate; the count of steps is
    common to all."""

    def init(params):
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        now = {name: -rates[name](state.count) for name in updates}
        scaled = {name: optax.tree.scale(now[name], tree) for name, tree in updates.items()}
        return scaled, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Gradients times min(1, max_norm / their norm). A factor goes into the operations that follow;
    optax's division makes a second copy of all gradients."""

    def update(grads, state, params=None):
        factor = max_norm / jnp.maximum(optax.global_norm(grads), max_norm)
        return jax.tree.map(lambda grad: grad * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decayed(params):
    """True where weight decay acts: on matrices, not on norms and biases (stacking makes those 2-D)
    or heads."""

    def matrix(path, leaf):
        return leaf.ndim > 1 and not any("norm" in str(k) or "bias" in str(k) for k in path)

    return jax.tree_util.tree_map_with_path(matrix, params)


def split_microbatches(batch, num_microbatches: int):
    """[B, …] → [M, B/M, …] in every leaf. Rows are dealt out in turn, so that each microbatch is
    on every device."""

    def split(leaf):
        chex.assert_is_divisible(leaf.shape[0], num_microbatches)
        return jnp.moveaxis(leaf.reshape(-1, num_microbatches, *leaf.shape[1:]), 1, 0)

    return jax.tree.map(split, batch)


def sum_gradients(
    loss: Callable, params, batch, num_microbatches: int = 1, filled: Callable | None = None
):
    """Loss, gradient and statistics of a batch that is worked through in microbatches, exactly as
    if at once.

    Args:
      loss: (params, microbatch) → (sum, (count, sums)) with scalar leaves in `sums`; names there
        that end in "_error" are ≥ 0 and joined by max, the others are added.
      params, batch: what is differentiated, and arrays [B, …].
      num_microbatches: in which the batch is computed.
      filled: microbatch → bool scalar; where it is False the work is spared, the sums must be 0.
    Returns:
      (Σ sum / Σ count, gradient of that, Σ count, sums). The division happens once, so that
      microbatches weigh by their tokens. Without a single count loss and gradients are 0.
    """

    def compute(microbatch, share=lambda count: 1.0):
        total, pullback, (count, sums) = jax.vjp(
            lambda params: loss(params, microbatch), params, has_aux=True
        )
        (grads,) = pullback(jnp.asarray(share(count), total.dtype))
        return total, count, sums, grads

    def join(a, b):
        sums = {
            name: (jnp.maximum if name.endswith("_error") else jnp.add)(a[2][name], b[2][name])
            for name in a[2]
        }
        return a[0] + b[0], a[1] + b[1], sums, jax.tree.map(jnp.add, a[3], b[3])

    if num_microbatches == 1:
        # Divided before the backward pass: divided after it, the gradients would be there twice.
        total, count, sums, grads = compute(batch, lambda count: 1.0 / jnp.maximum(count, 1.0))
        return total / jnp.maximum(count, 1.0), grads, count, sums
    else:
        microbatches = split_microbatches(batch, num_microbatches)
        shapes = jax.eval_shape(compute, jax.tree.map(lambda leaf: leaf[0], microbatches))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(carry, microbatch):
            if filled is None:
                return join(carry, compute(microbatch)), None
            summed = jax.lax.cond(filled(microbatch), compute, lambda _: zeros, microbatch)
            return join(carry, summed), None

        result, _ = jax.lax.scan(add, zeros, microbatches)
    total, count, sums, grads = result
    divisor = jnp.maximum(count, 1.0)
    return total / divisor, jax.tree.map(lambda leaf: leaf / divisor, grads), count, sums


def apply_gradients(tx: optax.GradientTransformation, grads, optimiser, params):
    """An optimiser step.

    Args:
      tx, optimiser: the optimiser and its state.
      grads, params: trees alike.
    Returns:
      (params, optimiser state, gradient norm before clipping).
    """
    updates, optimiser = tx.update(grads, optimiser, params)
    return optax.apply_updates(params, updates), optimiser, optax.tree.norm(grads)
