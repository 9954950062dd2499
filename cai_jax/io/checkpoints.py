"""Checkpoints of a training stage: whole or not there at all, checked bit for bit, restorable on
another mesh.

    checkpoints/00000010/params/       one Orbax checkpoint an item, so that weights can be read without the optimiser
    checkpoints/00000010/optimiser/
    checkpoints/00000010/step.json     {meta, digests, keep}: written last, so a step without it was never finished

A kill in mid-save leaves a folder without step.json; it is ignored and replaced. Orbax notices a
truncated file but not a flipped bit inside array data, therefore every leaf has a digest, made and
checked on the devices that hold it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import logging
import re
import shutil
import sys
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore
from absl import logging as absl_logging
from etils import epath

from cai_jax.errors import UserError
from cai_jax.io import artefacts, memory, progress


def _words(x):
    """The bits of an array as uint32."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")).astype(
        jnp.uint32
    )


def _mix(x):
    """A bijection of uint32 that spreads every bit over all (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@jax.jit
def _digest(x):
    """uint32 [2]. Sums modulo 2³², so the value does not depend on the sharding. The first is Σ
    word × odd weight: a change of a single element always changes it. The second mixes words with
    places without linearity."""
    words = _words(x)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    weight = _mix(place + jnp.uint32(1))
    sums = words * (weight | 1), _mix(words ^ weight)
    return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in sums])


def digests(tree) -> dict[str, str]:
    """Leaf name → digest in hexadecimal."""
    pairs = jax.device_get({name: _digest(leaf) for name, leaf in _flat(tree).items()})
    return {name: f"{int(pair[0]):08x}{int(pair[1]):08x}" for name, pair in pairs.items()}


def _flat(tree) -> dict:
    """{"layers.q": leaf, …}. Optimiser states are named tuples: flat names keep what is on disk
    free of classes."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _without_abandoned_writes(otherwise, unraisable):
    """Once one read or write has failed, Orbax closes its event loop and drops its coroutines;
    tensorstore's threads still report theirs to it, and each prints a traceback. The first failure
    is what is told."""
    closed = (
        isinstance(unraisable.exc_value, RuntimeError)
        and str(unraisable.exc_value) == "Event loop is closed"
    )
    dropped = getattr(getattr(unraisable.object, "cr_code", None), "co_filename", "")
    if not closed and "orbax" not in dropped:
        otherwise(unraisable)


@functools.lru_cache(maxsize=1)
def _orbax() -> ocp.Checkpointer:
    # An error comes as an exception; its traceback in the log beside it would bury the one line
    # that says what to do.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = functools.partial(_without_abandoned_writes, sys.unraisablehook)
    # Weights do not compress: without compression a save takes a quarter of the time.
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False)
    )


@contextlib.contextmanager
def _without_leaks():
    """TensorStore (to 0.1.86 at least) never lets go of the keys and values of JSON objects that it
    turns into Python's. In a save Orbax asks for its counters twice an item, to log a throughput,
    and for the same place on disk once an array: in here there are no counters, and the place is
    asked for once an item."""
    spec, collect = tensorstore.KvStore.Spec, tensorstore.experimental_collect_matching_metrics
    to_json, known = spec.to_json, {}

    def once(self, *options, **named):
        key = repr(self), options, tuple(named.items())
        if key not in known:
            known[key] = to_json(self, *options, **named)
        return copy.deepcopy(known[key])

    spec.to_json, tensorstore.experimental_collect_matching_metrics = once, lambda *_, **__: []
    try:
        yield
    finally:
        spec.to_json, tensorstore.experimental_collect_matching_metrics = to_json, collect


class Damaged(Exception):
    """A step that cannot be read back as it was written; the text names the item, the leaf and what
    is wrong."""


class Checkpoints:
    """The steps of one directory. Creating the object touches nothing; all processes must call its
    methods together."""

    def __init__(self, directory, keep: int = 2):
        """`keep`: how many of the newest steps stay; steps saved with keep=True stay for ever
        (their weights only)."""
        self.path = (
            epath.Path(directory).absolute()
            if "://" not in str(directory)
            else epath.Path(directory)
        )
        self._keep = keep

    def _step(self, step: int) -> epath.Path:
        return self.path / f"{step:08d}"

    def _info(self, step: int) -> dict | None:
        try:
            return artefacts.read_sealed(self._step(step) / "step.json")
        except UserError as error:
            raise Damaged(str(error)) from error

    def steps(self) -> list[int]:
        """The finished steps, ascending."""
        found = sorted(self.path.glob("[0-9]*")) if self.path.exists() else []
        return [
            int(folder.name)
            for folder in found
            if folder.name.isdigit() and (folder / "step.json").exists()
        ]

    def latest(self) -> int | None:
        steps = self.steps()
        return steps[-1] if steps else None

    def fingerprint(self, step: int, item: str) -> str:
        """16 hexadecimal digits that tell the values of an item from any others, from the digests
        saved with it."""
        return hashlib.sha256(
            artefacts.dump(self._info(step)["digests"][item]).encode()
        ).hexdigest()[:16]

    def save(
        self, step: int, trees: Mapping, meta: Mapping | None = None, *, keep: bool = False
    ) -> None:
        """Saves the named trees of arrays and the JSON-able `meta`; returns when all is on disk.

        Raises ValueError where the step exists, UserError where it cannot be written. Older steps
        are then thinned out.
        """
        if step in self.steps():
            raise ValueError(f"{self._step(step)}: this step was saved before")
        folder = self._step(step)
        self._remove(folder)
        self._require_space(trees)
        marks = {name: digests(tree) for name, tree in trees.items()}
        try:
            with _without_leaks():
                for name, tree in trees.items():
                    _orbax().save(folder / name, args=ocp.args.PyTreeSave(_flat(tree)))
        except (OSError, ValueError) as error:  # tensorstore tells of a full disk by a ValueError
            why = getattr(error, "strerror", None) or _first_line(error)
            raise UserError(
                f"{folder}: cannot write the checkpoint ({why}); free space there"
            ) from error
        if artefacts.is_writer():
            artefacts.write_sealed(
                folder / "step.json", {"meta": dict(meta or {}), "digests": marks, "keep": keep}
            )
        artefacts.barrier(f"saved {folder}")
        self._thin()
        memory.give_back()

    def _require_space(self, trees: Mapping) -> None:
        """Asks before Orbax finds out in the middle of its writes."""
        if artefacts.is_writer() and "://" not in str(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            needed, free = (
                sum(leaf.nbytes for leaf in jax.tree.leaves(dict(trees))),
                shutil.disk_usage(self.path).free,
            )
            if free < needed:
                raise UserError(
                    f"{self.path}: a checkpoint needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} "
                    "MB are free; free "
                    "space there, then run the same command again"
                )

    def _thin(self) -> None:
        """Removes all but the newest steps; of those to be kept for ever, what is not weights."""
        old = {}
        for step in self.steps()[: -self._keep]:
            try:
                old[step] = self._info(step)["keep"]
            except Damaged as error:
                old[step] = error
        # all know what goes before the first is gone: who looks later would find fewer, and not
        # wait for the others
        if old:
            artefacts.barrier(f"thinning {self.path}")
        for step, keep in old.items():
            if isinstance(keep, Damaged):
                self._put_aside(step, keep)
            elif keep:
                self.prune(step, ("params",))
            else:
                self._remove(self._step(step))

    def prune(self, step: int, items: Collection[str]) -> None:
        """Keeps only these items of a step."""
        info = self._info(step)
        extra = [name for name in info["digests"] if name not in items]
        if extra and artefacts.is_writer():
            info["digests"] = {
                name: marks for name, marks in info["digests"].items() if name not in extra
            }
            artefacts.write_sealed(self._step(step) / "step.json", info)
            for name in extra:
                (self._step(step) / name).rmtree()
        artefacts.barrier(f"pruned {self._step(step)}")

    def _remove(self, folder: epath.Path) -> None:
        if artefacts.is_writer() and folder.exists():
            # First the mark that makes it a finished step: a kill between the two leaves an ignored
            # folder.
            (folder / "step.json").unlink(missing_ok=True)
            folder.rmtree()
        artefacts.barrier(f"removed {folder}")

    def restore(self, step: int, targets: Mapping) -> tuple[dict, dict]:
        """(trees, meta) of one step. `targets`: item → tree of ShapeDtypeStructs with shardings
        (any mesh, any dtype).

        Raises ValueError where there is no such step or item, and UserError where it is damaged.
        """
        try:
            return self._read(step, targets)
        except Damaged as error:
            raise UserError(
                f"{error}; move {self.path.parent} aside to train again, or name an older step"
            ) from error

    def restore_latest(self, targets: Mapping) -> tuple[int, dict, dict] | None:
        """(step, trees, meta) of the newest step that is intact and has all items; None where there
        is none.

        A damaged step is named in a warning and moved aside, and the one before it is used.
        """
        for step in reversed(self.steps()):
            try:
                if set(targets) <= set(self._info(step)["digests"]):
                    return (step, *self._read(step, targets))
            except (
                Damaged,
                ValueError,
            ) as error:  # ValueError: the names or shapes themselves were hit
                self._put_aside(step, error)
        return None

    def _put_aside(self, step: int, error: Exception) -> None:
        """A damaged step is out of the way, and still there for whoever wants to look at it."""
        progress.warn(f"{error}; going back to the step before")
        aside = self.path / f"damaged-{self._step(step).name}"
        artefacts.barrier(f"found {aside}")  # a process that looked only now would not find it
        if artefacts.is_writer():
            if aside.exists():
                aside.rmtree()
            self._step(step).rename(aside)
        artefacts.barrier(f"moved {aside}")

    def _read(self, step: int, targets: Mapping) -> tuple[dict, dict]:
        folder, info = self._step(step), self._info(step)
        if info is None:
            raise ValueError(f"{self.path}: no step {step}; there are {self.steps()}")
        trees = {}
        for name, target in targets.items():
            if name not in info["digests"]:
                raise ValueError(f"{folder}: no item '{name}'; there are {sorted(info['digests'])}")
            flat = _flat(target)
            wrong = sorted(set(flat) ^ set(info["digests"][name]))
            if wrong:
                raise ValueError(
                    f"{folder / name}: only in the model or only in the checkpoint: "
                    f"{', '.join(wrong)}"
                )
            restored = _read_item(folder / name, flat)
            marks = digests(restored)
            bad = [leaf for leaf in flat if marks[leaf] != info["digests"][name][leaf]]
            if bad:
                raise Damaged(
                    f"{folder / name}: damaged, the digest of '{bad[0]}' is not what was saved"
                )
            restored = {leaf: value.astype(flat[leaf].dtype) for leaf, value in restored.items()}
            trees[name] = jax.tree.unflatten(
                jax.tree.structure(target), [restored[leaf] for leaf in flat]
            )
        return trees, info["meta"]


def _read_item(path: epath.Path, flat: dict) -> dict:
    try:
        saved = _orbax().metadata(path).item_metadata.tree
        wrong = [name for name in flat if tuple(saved[name].shape) != tuple(flat[name].shape)]
        # In the dtype it was saved in: the digest is of those bits.
        flat = {
            name: jax.ShapeDtypeStruct(leaf.shape, saved[name].dtype, sharding=leaf.sharding)
            for name, leaf in flat.items()
        }
    except Exception as error:  # whatever a broken file makes the reader raise means the same here
        raise Damaged(f"{path}: damaged ({_first_line(error)})") from error
    if wrong:
        raise ValueError(
            f"{path}: '{wrong[0]}' is {saved[wrong[0]].shape}, the model needs "
            f"{flat[wrong[0]].shape}"
        )
    try:
        arguments = ocp.checkpoint_utils.construct_restore_args(flat)
        return _orbax().restore(
            path, args=ocp.args.PyTreeRestore(item=flat, restore_args=arguments)
        )
    except Exception as error:
        raise Damaged(f"{path}: damaged ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """What the system said, where the message ends in it; else how the message begins."""
    reason = re.search(r"([^:]+) \[os_error_code", str(error))
    return (
        reason[1].strip()
        if reason
        else (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    )
