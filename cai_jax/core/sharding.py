"""The mesh, the rules that place every array on it, and the way of arrays to and from it.

Arrays name their dimensions by logical axes ("embed", "heads", …); RULES says over which axes of
the mesh `(data, fsdp, tensor)` each is split. Everything works for one process and for several:
`put` and `fetch` are the only doors between host data (equal on every process) and arrays on the
mesh.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cai_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis → the mesh axes that split it. A dimension of a size that they do not divide is not
# split.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "head_dim": (),
    "length": (),
}


def make_mesh(config: Mapping | None = None, devices: Sequence | None = None) -> Mesh:
    """A mesh of axes (data, fsdp, tensor) over `devices` (default: all, of every process).

    `config` gives the three sizes; one of them may be -1 and takes the devices that the others
    leave. Missing sizes are -1 for data and 1 for the rest. Raises UserError where the product is
    not the number of devices. Between slices (TPU multi-slice: fast links inside a slice, the
    network between) only the data axis reaches.
    """
    devices = list(jax.devices() if devices is None else devices)
    config = {} if config is None else config
    sizes = [int(config.get(axis, -1 if axis == "data" else 1)) for axis in MESH_AXES]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(
            f"mesh: {text}: sizes must be positive, and at most one -1 (fills with what is left)"
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"mesh: {text} does not fit {len(devices)} devices; make the product of the sizes "
            "equal to it"
        )
    slices = len(
        {getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"} or {0}
    )
    if sizes[0] % slices:
        raise UserError(
            f"mesh: {text}: data={sizes[0]} is not a multiple of the {slices} slices; between "
            "slices only data "
            "parallelism is fast enough"
        )
    # Axes may split a physical dimension of the torus: otherwise few shapes would be possible on a
    # 4x4x4 slice.
    if slices > 1:
        inner = (sizes[0] // slices, *sizes[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(tuple(sizes), devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh, rules: Mapping = RULES
) -> PartitionSpec:
    """How an array is split.

    Args:
      axes: the logical axes that its dimensions are called by.
      shape: its dimensions.
      mesh: over whose axes it is split.
      rules: logical axis → axes of the mesh.
    Returns:
      One entry a dimension; None where it is on every device.
    Raises:
      ValueError: an unknown logical axis, or two dimensions claim the same axis of the mesh.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} axes {tuple(axes)} for shape {tuple(shape)}")
    axes_of, owner = [], {}
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in rules:
            raise ValueError(f"unknown logical axis {axis!r}; known: {', '.join(sorted(rules))}")
        wanted = () if axis is None else rules[axis]
        for name in wanted:
            if name in owner:
                raise ValueError(
                    f"axes {tuple(axes)}: {owner[name]!r} and {axis!r} both claim mesh axis "
                    f"{name!r}"
                )
            owner[name] = axis
        ways = math.prod(mesh.shape[name] for name in wanted)
        # Names of size 1 stay in the spec: the layout is the same, and specs do not change with the
        # mesh.
        axes_of.append(wanted if wanted and size % ways == 0 else None)
    return PartitionSpec(*(names[0] if names and len(names) == 1 else names for names in axes_of))


def tree_shardings(axes_tree, shape_tree, mesh: Mesh, rules: Mapping = RULES):
    """How the arrays of a tree are split.

    Args:
      axes_tree: has tuples of logical axes where `shape_tree` has arrays.
      shape_tree: arrays or their shapes.
      mesh, rules: as in `spec`.
    Returns:
      The tree of NamedShardings.
    """
    return jax.tree.map(
        lambda leaf, axes: NamedSharding(mesh, spec(axes, leaf.shape, mesh, rules)),
        shape_tree,
        axes_tree,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, axes: Sequence[str | None], rules: Mapping = RULES) -> jax.Array:
    """`with_sharding_constraint` by logical axes under `jax.set_mesh`; without a mesh, or on one
    device, nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if single_device() or set(mesh.axis_names) != set(MESH_AXES):
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh, rules))


def single_device() -> bool:
    """Whether what is traced now is for one device: there is no mesh (`jax.set_mesh`), or one of
    one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def later(x: jax.Array, after) -> jax.Array:
    """x, but not before the arrays of `after` are there. What a backward pass
    recomputes from it is then not taken from the forward pass and kept from there; on one device by
    a condition, as XLA for CPUs removes barriers before it looks for that."""
    if single_device():
        return jnp.where(never(after), jnp.zeros_like(x), x)
    return jax.lax.optimization_barrier((x, after))[0]


def never(after) -> jax.Array:
    """False, and not known before the arrays of `after` are there."""
    samples = jnp.stack(
        [leaf[(0,) * leaf.ndim].astype(jnp.float32) for leaf in jax.tree.leaves(after)]
    )
    # Sorted, because XLA makes that once and on its own: the numbers alone it would look up again
    # wherever this is asked for.
    return jnp.sort(samples)[0] > jnp.inf


def put(tree, shardings):
    """Host arrays (the same full value on every process) → arrays on the mesh. `shardings` is one
    sharding for all leaves or a tree of them. Arrays that already are on devices are moved."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_put, tree, shardings)


def _put(x, sharding):
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x if x.sharding == sharding else jax.jit(lambda y: y, out_shardings=sharding)(x)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def batch_ways(mesh: Mesh) -> int:
    """Into how many shards the batch axis is split."""
    return math.prod(mesh.shape[name] for name in RULES["batch"])


def batch_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The first axis split over the batch axes of the mesh, where it divides."""
    axes = ("batch",) + (None,) * (len(shape) - 1) if len(shape) else ()
    return NamedSharding(mesh, spec(axes, shape, mesh))


def put_batch(tree, mesh: Mesh):
    """Puts every leaf as `batch_sharding` says."""
    return jax.tree.map(lambda x: _put(x, batch_sharding(np.shape(x), mesh)), tree)


def abstract_batch(tree, mesh: Mesh):
    """What `put_batch` would give, as ShapeDtypeStructs; leaves need a shape and a dtype only."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(x.shape, mesh)),
        tree,
    )


def fetch(tree):
    """Arrays on the mesh → numpy, the full value on every process (a collective where several
    processes share them)."""

    def get(x):
        if not isinstance(x, jax.Array):
            return np.asarray(x)
        if x.is_fully_addressable or x.is_fully_replicated:
            return jax.device_get(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(get, tree)


def optimizer_shardings(
    tx: optax.GradientTransformation, params_abstract, param_shardings, mesh: Mesh
):
    """Moments are split as their parameters, everything else is on every device.

    Args:
      tx: the optimiser.
      params_abstract: shapes of the parameters.
      param_shardings: of the parameters.
      mesh: over which they are split.
    Returns:
      The shardings of `tx.init(params)`.
    """
    everywhere = replicated(mesh)
    return optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, params_abstract),
        param_shardings,
        transform_non_params=lambda _: everywhere,
    )
