"""Training state as plain trees: {"params": …, "optimiser": …}, float32, sharded like the
parameters.

What is trained is trained in float32 whatever dtype the forward pass runs in (`cast`), so that
small updates are not lost and a checkpoint resumes exactly. It is a whole model, or adapters
(`models/lora.py`): then the state has nothing but those, and the frozen base goes into every step
as an argument of its own.
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
    """ShapeDtypeStructs with shardings of what is trained of a "policy" or a "reward" (a decoder
    with a head): all of the decoder, or `adapters` on it."""
    shapes, axes = heads.abstract_model(config, kind, dtype)
    if adapters is not None:
        trained = lora.abstract(config, adapters, dtype), lora.axes(config, adapters)
        shapes, axes = (
            trained
            if kind == "policy"
            else (
                {**whole, "decoder": part}
                for whole, part in zip((shapes, axes), trained, strict=True)
            )
        )
    return with_shardings(shapes, sharding.tree_shardings(axes, shapes, mesh))


def start(
    config: ModelConfig, params, mesh, key, adapters: lora.Adapters | None = None, trained=None
):
    """What training begins with, free to be donated: a copy of the decoder's `params` (their own
    adapters added up), or with `adapters` a copy of the ones that were `trained` before, or new
    ones drawn from `key` (uint32 [2])."""
    if adapters is None:
        return fresh(lora.merge(params))
    if trained is not None:
        return fresh(trained)
    places = shardings_of(abstract_params(config, "policy", mesh, adapters=adapters))
    made = jax.jit(lora.init, static_argnums=(0, 1), out_shardings=places)
    return made(config, adapters, jax.random.wrap_key_data(key))


def with_shardings(shapes, shardings):
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings
    )


def abstract_optimiser(tx: optax.GradientTransformation, params, mesh):
    """ShapeDtypeStructs with shardings of `tx.init(params)`: moments lie as their parameters do."""
    places = sharding.optimizer_shardings(
        tx, params, jax.tree.map(lambda leaf: leaf.sharding, params), mesh
    )
    return with_shardings(jax.eval_shape(tx.init, params), places)


def init_optimiser(tx: optax.GradientTransformation, params, mesh):
    places = jax.tree.map(
        lambda leaf: leaf.sharding, abstract_optimiser(tx, abstract_of(params), mesh)
    )
    return jax.jit(tx.init, out_shardings=places)(params)


def abstract_of(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def shardings_of(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


@functools.partial(jax.jit, static_argnums=1)
def _copy(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype, copy=True), tree)


def placed(tree, abstract):
    """The same arrays under exactly the shardings of `abstract`. Layouts that are equal but written
    differently would compile a step a second time, with its own output as input."""
    return sharding.put(tree, shardings_of(abstract))


def fresh(tree, dtype=jnp.float32):
    """A copy of the parameters in `dtype` that may be donated, on the same devices."""
    return _copy(tree, jnp.dtype(dtype))


def forward_options(run_config) -> dict:
    """What `hidden_states` wants to know of `config.model`."""
    return {"scan": run_config.model.scan_layers, "remat": run_config.model.remat}


def cast(tree, dtype):
    """The matrices and norms in the dtype of the forward pass; heads stay float32, and matrices in
    8 bits as they are. Free where nothing changes."""
    if isinstance(tree, dict) and set(tree) == {"decoder", "head"}:
        return {"decoder": cast(tree["decoder"], dtype), "head": tree["head"]}
    return jax.tree.map(
        lambda leaf: leaf if is_int8(leaf) else leaf.astype(dtype), tree, is_leaf=is_int8
    )


def with_head(decoder, head: dict, mesh):
    """{"decoder", "head"} on the mesh."""
    axes = {"weight": ("embed",), "bias": ()}
    return {
        "decoder": decoder,
        "head": sharding.put(head, sharding.tree_shardings(axes, head, mesh)),
    }


def compiler_options(mesh) -> dict | None:
    """How a training step is compiled: XLA's order of operations for a CPU favours concurrency, and
    then what the backward pass makes again is made early and kept. In the other order a step of
    SmolLM2 needs 0.65 times the memory, in the same time.

    Not in several processes: there that order puts collectives behind loops that they do not need,
    XLA starts them while the loop is still at work on its own, and the processes meet in different
    ones (tests/test_sharding.py looks for such places).
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


def jit_update(
    loss: Callable,
    tx: optax.GradientTransformation,
    abstract: dict,
    mesh,
    num_microbatches: int,
    adapters: lora.Adapters | None = None,
    spare: bool = False,
):
    """The jitted step (state, batch, base) → (state, scalars) of a loss as `optim.sum_gradients`
    takes it; the state is donated, the base, on which the state's adapters act, is not (None
    without adapters).

    Call or lower it under `jax.set_mesh(mesh)`, with a batch on the mesh. `spare`: microbatches
    without a segment are not computed on one device (a branch a microbatch, so leave it out where
    all are filled). Scalars: "loss" (mean over what the loss counts), "grad_norm" (before
    clipping), "count", and the loss's sums.
    """

    def update(state, batch, base=None):
        def of_trained(trained, part):
            return loss(lora.attach(base, trained, adapters), part)

        # On one device: over several the question is a collective of its own in every microbatch.
        filled = (lambda part: jnp.any(part["segments"] > 0)) if spare and mesh.size == 1 else None
        mean, grads, count, sums = optim.sum_gradients(
            of_trained, state["params"], batch, num_microbatches, filled
        )
        params, optimiser, norm = optim.apply_gradients(
            tx, grads, state["optimiser"], state["params"]
        )
        scalars = {"loss": mean, "grad_norm": norm, "count": count, **sums}
        return {"params": params, "optimiser": optimiser}, scalars

    return jax.jit(
        update,
        donate_argnums=0,
        out_shardings=(shardings_of(abstract), sharding.replicated(mesh)),
        compiler_options=compiler_options(mesh),
    )


def make_update(
    loss: Callable,
    tx: optax.GradientTransformation,
    abstract: dict,
    mesh,
    num_microbatches: int,
    adapters: lora.Adapters | None = None,
    base=None,
    spare: bool = False,
):
    """The step of `jit_update`, (state, batch) → (state, scalars), for batches on the host."""
    jitted = jit_update(loss, tx, abstract, mesh, num_microbatches, adapters, spare)

    def step(state, batch):
        with jax.set_mesh(mesh):
            return jitted(state, sharding.put_batch(batch, mesh), base)

    return step
