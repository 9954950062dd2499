"""Training state as plain trees: {"params": …, "optimiser": …}, float32, sharded like the
parameters.

What is trained is trained in float32 whatever dtype the forward pass runs in (`cast`), so that
small updates are not lost and a checkpoint resumes exactly. It is a complete model, or adapters
(`models/lora.py`): then the state has nothing else, and the frozen base goes into every step as an
argument of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cai_jax.core import optim, sharding
from cai_jax.errors import UserError
from cai_jax.models import heads, lora
from cai_jax.models.config import ModelConfig
from cai_jax.models.rounding import is_int8


def abstract_params(
    config: ModelConfig, kind: str, mesh, dtype=jnp.float32, adapters: lora.Adapters | None = None
):
    """What is trained, without arrays.

    Args:
      config: the decoder's.
      kind: "policy", a decoder, or "reward", a decoder with a head.
      mesh, dtype: of the arrays.
      adapters: what is trained in place of the decoder.
    Returns:
      The tree of ShapeDtypeStructs with shardings.
    """
    shapes, axes = heads.abstract_model(config, kind, dtype)
    if adapters is not None:
        trained = lora.abstract(config, adapters, dtype), lora.axes(config, adapters)
        if kind == "policy":
            shapes, axes = trained
        else:
            shapes, axes = {**shapes, "decoder": trained[0]}, {**axes, "decoder": trained[1]}
    return with_shardings(shapes, sharding.tree_shardings(axes, shapes, mesh))


def start(
    config: ModelConfig, params, mesh, key, adapters: lora.Adapters | None = None, trained=None
):
    """What training begins with.

    Args:
      config, params: a decoder, whose own adapters are merged.
      mesh: of the result.
      key: uint32 [2], what new adapters are drawn from.
      adapters: what is trained in place of the decoder.
      trained: the adapters that were trained before, if any.
    Returns:
      Float32 parameters, or adapters, that may be donated.
    """
    if adapters is None:
        return copy(lora.merge(params))
    if trained is not None:
        return copy(trained)
    shardings = shardings_of(abstract_params(config, "policy", mesh, adapters=adapters))
    draw = jax.jit(lora.init, static_argnums=(0, 1), out_shardings=shardings)
    return draw(config, adapters, jax.random.wrap_key_data(key))


def with_shardings(shapes, shardings):
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings,
    )


def abstract_of(tree):
    return with_shardings(tree, shardings_of(tree))


def shardings_of(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def abstract_optimiser(tx: optax.GradientTransformation, params, mesh):
    """ShapeDtypeStructs with shardings of `tx.init(params)`: moments are sharded as their
    parameters."""
    shardings = sharding.optimizer_shardings(tx, params, shardings_of(params), mesh)
    return with_shardings(jax.eval_shape(tx.init, params), shardings)


def init_optimiser(tx: optax.GradientTransformation, params, mesh):
    shardings = shardings_of(abstract_optimiser(tx, abstract_of(params), mesh))
    return jax.jit(tx.init, out_shardings=shardings)(params)


@functools.partial(jax.jit, static_argnums=1)
def _copy(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype, copy=True), tree)


def copy(tree, dtype=jnp.float32):
    """A copy of the parameters in `dtype` that may be donated, on the same devices."""
    return _copy(tree, jnp.dtype(dtype))


def put_like(tree, abstract):
    """The same arrays under exactly the shardings of `abstract`. Layouts that are equal but written
    differently would compile a step a second time, with its own output as input."""
    return sharding.put(tree, shardings_of(abstract))


def with_head(decoder, head: dict, mesh):
    """{"decoder", "head"} on the mesh."""
    axes = {"weight": ("embed",), "bias": ()}
    shardings = sharding.tree_shardings(axes, head, mesh)
    return {"decoder": decoder, "head": sharding.put(head, shardings)}


def forward_options(run_config) -> dict:
    """What `hidden_states` takes of `config.model`."""
    return {"scan": run_config.model.scan_layers, "remat": run_config.model.remat}


def cast(tree, dtype):
    """The matrices and norms in the dtype of the forward pass; heads stay float32, and matrices in
    8 bits as they are. Free where nothing changes."""
    if isinstance(tree, dict) and set(tree) == {"decoder", "head"}:
        return {"decoder": cast(tree["decoder"], dtype), "head": tree["head"]}
    return jax.tree.map(
        lambda leaf: leaf if is_int8(leaf) else leaf.astype(dtype), tree, is_leaf=is_int8
    )


def compiler_options(mesh) -> dict | None:
    """How a training step is compiled: XLA's order of operations for a CPU favours concurrency, and
    then what the backward pass recomputes is computed early and kept. In the other order a step of
    SmolLM2 needs 0.65 times the memory, in the same time.

    Not in several processes: there that order puts collectives behind loops that they do not need,
    XLA starts them while the loop is still at work on its own, and the processes meet in different
    ones (tests/test_sharding.py looks for that).
    """
    alone_on_cpu = jax.process_count() == 1 and mesh.devices.flat[0].platform == "cpu"
    return (
        {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if alone_on_cpu else None
    )


def make_optimiser(config, where: str, num_steps: int):
    """(step → learning rate, a number on the host; optimiser) from a stage's fields; UserError for
    an unknown schedule."""
    try:
        rate = optim.learning_rate(
            config.learning_rate,
            schedule=config.schedule,
            warmup_steps=config.warmup_steps,
            num_steps=num_steps,
        )
    except ValueError as error:
        raise UserError(f"{where}.{error}") from None
    tx = optim.adam(rate, max_grad_norm=config.max_grad_norm, weight_decay=config.weight_decay)
    return optim.on_host(rate, num_steps), tx


def jit_step(
    loss: Callable,
    tx: optax.GradientTransformation,
    abstract,
    mesh,
    num_microbatches: int,
    adapters: lora.Adapters | None = None,
    spare: bool = False,
):
    """The jitted step (params, optimiser, batch, base) → (params, optimiser, scalars), to be called
    or lowered under `jax.set_mesh(mesh)` with a batch on the mesh.

    Args:
      loss: as `optim.sum_gradients` takes it.
      tx: the optimiser.
      abstract: the parameters' shapes; they and the optimiser's state are donated.
      mesh: where they are.
      num_microbatches: in which a step is computed.
      adapters: act on the base, which is not donated (None without adapters).
      spare: microbatches without a segment are not computed on one device (a branch a microbatch,
        so leave it out where all are filled).
    Returns:
      The step; its scalars are "loss" (mean over what the loss counts), "grad_norm" (before
      clipping), "count", and the loss's sums.
    """
    # On one device: over several the question is a collective of its own in every microbatch.
    filled = (lambda batch: jnp.any(batch["segments"] > 0)) if spare and mesh.size == 1 else None

    def step(params, optimiser, batch, base):
        def of_trained(trained, microbatch):
            return loss(lora.attach(base, trained, adapters), microbatch)

        mean, grads, count, sums = optim.sum_gradients(
            of_trained, params, batch, num_microbatches, filled
        )
        params, optimiser, norm = optim.apply_gradients(tx, grads, optimiser, params)
        return params, optimiser, {"loss": mean, "grad_norm": norm, "count": count, **sums}

    shardings = shardings_of((abstract, abstract_optimiser(tx, abstract, mesh)))
    return jax.jit(
        step,
        donate_argnums=(0, 1),
        out_shardings=(*shardings, sharding.replicated(mesh)),
        compiler_options=compiler_options(mesh),
    )


def make_update(loss, tx, abstract, mesh, num_microbatches, adapters=None, base=None, spare=False):
    """The step of `jit_step` for a state and batches on the host.

    Args:
      loss, tx, mesh, num_microbatches, adapters, spare: as in `jit_step`.
      abstract: the state's shapes.
      base: what the adapters act on.
    Returns:
      (state, batch) → (state, scalars).
    """
    jitted = jit_step(loss, tx, abstract["params"], mesh, num_microbatches, adapters, spare)

    def update(state, batch):
        with jax.set_mesh(mesh):
            batch = sharding.put_batch(batch, mesh)
            params, optimiser, scalars = jitted(state["params"], state["optimiser"], batch, base)
        return {"params": params, "optimiser": optimiser}, scalars

    return update
