"""Adapters of low rank (LoRA, Hu et al. 2021, arXiv 2106.09685): what is trained next to weights
that stay as they are.

A matrix W [*in, *out] acts as W + (alpha / rank) · A·B with A [*in, R] drawn and B [R, *out] zero
at the start. `attach` puts adapters on the base's own arrays, and what comes out is used like any
parameters; nothing is added up, so that several models cost one base, and the gradient never has
the size of W. `merge` adds up.

    adapters = Adapters(rank=8, alpha=16.0)
    trained = init(config, adapters, key)  # {"layers": {"q": {"a": [L,D,R], "b": [L,R,H,Dh]}, …}}
    hidden = hidden_states(attach(base, trained, adapters), tokens, mask, config)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cai_jax.errors import UserError
from cai_jax.models import rounding
from cai_jax.models.blocks import LowRank
from cai_jax.models.config import ModelConfig
from cai_jax.models.params import MATRICES, ParamSpec, Path, initial_value, nest, param_table
from cai_jax.models.rounding import is_int8

BASE_DTYPES = ("", "int8")


@dataclasses.dataclass(frozen=True)
class Adapters:
    """rank and alpha as above; targets: names of MATRICES, or ("all",) for all that the model has;
    base_dtype: of the matrices that stay as they are, "" that of everything else or "int8"
    (`rounding.py`)."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("all",)
    base_dtype: str = ""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def int8(self) -> bool:
        return self.base_dtype == "int8"

    def to_json(self) -> dict:
        """The fields that `from_fields` reads; a base that is not rounded is no field: older runs
        stay as they are."""
        fields = {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets)}
        return fields | ({"base_dtype": self.base_dtype} if self.base_dtype else {})

    @staticmethod
    def from_fields(fields: Mapping | None, where: str) -> Adapters | None:
        """From a stage's `adapters` {rank, alpha, targets, base_dtype}, whose numbers are checked
        with the config; None where there are none or the rank is 0. UserError, headed by `where`,
        for other names."""
        if not fields:
            return None
        # "q,v" on the command line is one string to ml_collections.
        given = [fields["targets"]] if isinstance(fields["targets"], str) else fields["targets"]
        names = [name.strip() for text in given for name in str(text).split(",")]
        targets = tuple(dict.fromkeys(filter(None, names)))
        wrong = [name for name in targets if name not in MATRICES and targets != ("all",)]
        if not targets or wrong:
            raise UserError(
                f"{where}.targets: expected all, or some of {', '.join(MATRICES)}, not "
                f"{', '.join(wrong) or 'nothing'!r}"
            )
        rank, base = fields["rank"], fields.get("base_dtype") or ""
        if base not in BASE_DTYPES:
            raise UserError(
                f"{where}.base_dtype: expected int8, or nothing for the run's, not {base!r}"
            )
        if base and not rank:
            raise UserError(
                f"{where}.base_dtype: {base} is for a frozen base; give the adapters a rank, "
                "or leave it away"
            )
        return Adapters(rank, float(fields["alpha"]), targets, base) if rank else None

    def names(self, config: ModelConfig) -> tuple[str, ...]:
        """The matrices of this model that have adapters. UserError for one that it does not
        have."""
        present = tuple(name for name in MATRICES if ("layers", name) in param_table(config))
        if self.targets == ("all",):
            return present
        if missing := [name for name in self.targets if name not in present]:
            raise UserError(
                f"adapters.targets: {config.family} has no matrix '{missing[0]}'; it has "
                f"{', '.join(present)}"
            )
        return tuple(name for name in present if name in self.targets)


@functools.lru_cache(maxsize=64)
def table(config: ModelConfig, adapters: Adapters) -> dict[Path, ParamSpec]:
    """Every adapter: path → ParamSpec. They lie as their matrices do; the axis of the rank is on
    every device."""
    specs = {}
    for name in adapters.names(config):
        matrix, rank = param_table(config)["layers", name], adapters.rank
        stop = 1 + MATRICES[name]
        # N(0, 1 / (3 · fan-in)): the variance of the uniform numbers that are usual (Kaiming with a
        # = √5).
        std = (3 * math.prod(matrix.shape[1:stop])) ** -0.5
        specs["layers", name, "a"] = ParamSpec(
            (*matrix.shape[:stop], rank), (*matrix.axes[:stop], None), "normal", std
        )
        specs["layers", name, "b"] = ParamSpec(
            (matrix.shape[0], rank, *matrix.shape[stop:]),
            (matrix.axes[0], None, *matrix.axes[stop:]),
            "zeros",
        )
    return specs


def abstract(config: ModelConfig, adapters: Adapters, dtype=jnp.float32) -> dict:
    """The tree of ShapeDtypeStructs."""
    return nest(
        {path: jax.ShapeDtypeStruct(p.shape, dtype) for path, p in table(config, adapters).items()}
    )


def axes(config: ModelConfig, adapters: Adapters) -> dict:
    """The tree of logical axes, for `sharding.tree_shardings`."""
    return nest({path: p.axes for path, p in table(config, adapters).items()})


def init(config: ModelConfig, adapters: Adapters, key: jax.Array, dtype=jnp.float32) -> dict:
    """Adapters that change nothing yet.

    Args:
      config: of the base.
      adapters: their numbers.
      key: for A; B is zero.
      dtype: of the arrays.
    Returns:
      The tree of arrays; pure, so `jit` with `out_shardings` makes it in place on a mesh.
    """
    return nest(
        {path: initial_value(path, p, key, dtype) for path, p in table(config, adapters).items()}
    )


def attach(base: dict, trained: dict, adapters: Adapters | None) -> dict:
    """Parameters that use the arrays of `base` as they are, with adapters on its matrices.

    trained: adapters, or {"decoder": adapters, "head"} (then so is what comes out). Without
    `adapters`, `trained` is the parameters themselves.
    """
    if adapters is None:
        return trained
    dtype = base["embed"].dtype
    return _attach(
        base,
        trained,
        lambda weight, a, b: LowRank(weight, a.astype(dtype), (adapters.scale * b).astype(dtype)),
    )


def attached_shapes(base: dict, trained: dict, adapters: Adapters | None) -> dict:
    """`attach` for ShapeDtypeStructs with shardings."""

    def shapes(weight, *pair):
        return LowRank(
            weight,
            *(
                jax.ShapeDtypeStruct(x.shape, base["embed"].dtype, sharding=x.sharding)
                for x in pair
            ),
        )

    return trained if adapters is None else _attach(base, trained, shapes)


def _attach(base: dict, trained: dict, join) -> dict:
    if "head" in trained:
        return {"decoder": _attach(base, trained["decoder"], join), "head": trained["head"]}
    layers = base["layers"]
    joined = {
        name: join(layers[name], pair["a"], pair["b"]) for name, pair in trained["layers"].items()
    }
    return {**base, "layers": {**layers, **joined}}


def _is_low_rank(leaf) -> bool:
    return isinstance(leaf, LowRank)


def base_of(params: dict) -> dict:
    """The decoder's parameters without adapters and without a head; the arrays are the same."""
    params = params.get("decoder", params)
    return jax.tree.map(
        lambda leaf: leaf.weight if _is_low_rank(leaf) else leaf, params, is_leaf=_is_low_rank
    )


def merge(params: dict) -> dict:
    """The same model without adapters, nothing in 8 bits: new arrays where there was either, the
    others are shared."""
    dtype = params.get("decoder", params)["embed"].dtype

    def added(leaf):
        if not _is_low_rank(leaf) and not is_int8(leaf):
            return leaf
        weight = leaf.weight if _is_low_rank(leaf) else leaf
        return _merger((weight.values if is_int8(weight) else weight).sharding, dtype)(leaf)

    return jax.tree.map(added, params, is_leaf=lambda leaf: _is_low_rank(leaf) or is_int8(leaf))


@functools.lru_cache(maxsize=64)
def _merger(place, dtype):
    return jax.jit(jax.vmap(lambda leaf: added_up(leaf, dtype)), out_shardings=place)


def added_up(weight, dtype) -> jax.Array:
    """One layer's weight as a single array: adapters added up and 8 bits turned back, in float32
    and then cast; any other array as it is."""
    if is_int8(weight):
        return rounding.restored(weight).astype(dtype)
    if not _is_low_rank(weight):
        return weight
    base = (
        rounding.restored(weight.weight)
        if is_int8(weight.weight)
        else weight.weight.astype(jnp.float32)
    )
    return (
        base + jnp.tensordot(weight.a.astype(jnp.float32), weight.b.astype(jnp.float32), 1)
    ).astype(dtype)
