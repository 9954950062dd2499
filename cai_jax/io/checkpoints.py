"""Checkpoints of a training stage: complete or not there at all, checked bit for bit, restorable on
another mesh.

    checkpoints/00000010/params/      an Orbax item a tree: weights are read without the optimiser
    checkpoints/00000010/optimiser/
    checkpoints/00000010/about/       {meta, digests, keep}, with its own digest

Orbax's CheckpointManager writes a step under another name and renames it, lists the steps and
removes old ones. It notices a truncated file but not a flipped bit inside array data; therefore
every leaf has a digest, computed and checked on the devices that hold it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as managers

from cai_jax.errors import UserError
from cai_jax.io import artefacts, memory, progress

ABOUT = "about"
KEPT = "params"  # what stays of a snapshot once newer steps are there


NAMES = ocp.path.step.standard_name_format(step_format_fixed_length=8)


class Damaged(Exception):
    """A step that cannot be read back as it was written; the text names the item, the leaf and what
    is wrong."""


# Digests ------------------------------------------------------------------------------------------


def _words(x):
    """The bits of an array as uint32."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    word = jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    return jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)


def _mix(x):
    """A bijection of uint32 that spreads every bit over all (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@jax.jit
def _digest(x):
    """uint32 [2]. Sums modulo 2³², so the value does not depend on the sharding. The first is Σ
    word × odd weight: a change of a single element always changes it. The second mixes words with
    their positions without linearity."""
    words = _words(x)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = position * jnp.uint32(size) + along
    weight = _mix(position + jnp.uint32(1))
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


@dataclasses.dataclass
class _Snapshots(managers.PreservationPolicy):
    """Preserves the steps for which `is_kept(step)`."""

    is_kept: Callable[[int], bool]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [self.is_kept(checkpoint.step) for checkpoint in checkpoints]


# Steps --------------------------------------------------------------------------------------------


class Checkpoints:
    """The steps of one directory. Creating the object touches nothing; all processes must call its
    methods together."""

    def __init__(self, directory, keep: int = 2):
        """`keep`: how many of the newest steps stay; steps saved with keep=True stay for ever
        (their weights only)."""
        local = "://" not in str(directory)
        self.path = epath.Path(directory).absolute() if local else epath.Path(directory)
        self._keep = keep

    @contextlib.contextmanager
    def _manager(
        self, items: Iterable[str], saves: bool = False
    ) -> Iterator[ocp.CheckpointManager]:
        """A manager that knows what is on disk now; it keeps the newest steps and the snapshots."""
        _quiet()
        # Weights do not compress: without compression a save takes a quarter of the time.
        handlers = {name: ocp.PyTreeCheckpointHandler(use_compression=False) for name in items}
        handlers[ABOUT] = ocp.JsonCheckpointHandler()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(
                [managers.LatestN(self._keep), _Snapshots(self._is_kept)]
            ),
            step_name_format=NAMES,
            enable_async_checkpointing=False,
            # A reader leaves alone what another process may be writing now.
            create=saves,
            cleanup_tmp_directories=saves,
        )
        with ocp.CheckpointManager(self.path, options=options, item_handlers=handlers) as made:
            yield made

    def _step(self, step: int) -> epath.Path:
        return self.path / f"{step:08d}"

    def _about(self, step: int) -> dict:
        path = self._step(step) / ABOUT / "metadata"
        try:
            about = artefacts.read_json(path)
        except UserError as error:
            raise Damaged(str(error)) from error
        if about is None or not artefacts.is_intact(about) or "digests" not in about:
            raise Damaged(f"{path}: damaged, its digest is not that of its contents")
        return about

    def _is_kept(self, step: int) -> bool:
        try:
            return self._about(step)["keep"]
        except Damaged:  # whoever reads it names it
            return True

    def steps(self) -> list[int]:
        """The finished steps, ascending."""
        return sorted(step.step for step in NAMES.find_all(self.path)) if self.path.exists() else []

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def fingerprint(self, step: int, item: str) -> str:
        """16 hexadecimal digits that tell the values of an item from any others, from the digests
        saved with it."""
        marks = self._about(step)["digests"][item]
        return artefacts.digest(artefacts.dump(marks).encode())[:16]

    def save(
        self, step: int, trees: Mapping, meta: Mapping | None = None, *, keep: bool = False
    ) -> None:
        """Saves a step; returns when all is on disk and older steps are thinned out.

        Args:
          step: its number.
          trees: item → tree of arrays.
          meta: JSON-able, given back by `restore`.
          keep: the step's weights stay for ever.
        Raises:
          ValueError: the step exists.
          UserError: it cannot be written.
        """
        if step in self.steps():
            raise ValueError(f"{self._step(step)}: this step was saved before")
        self._require_space(trees)
        about = {
            "meta": dict(meta or {}),
            "digests": {name: digests(tree) for name, tree in trees.items()},
            "keep": keep,
        }
        items = {name: ocp.args.PyTreeSave(_flat(tree)) for name, tree in trees.items()}
        items[ABOUT] = ocp.args.JsonSave(artefacts.sealed(about))
        try:
            with _without_leaks(), self._manager(trees, saves=True) as manager:
                manager.save(step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
            why = getattr(error, "strerror", None) or _first_line(error)
            raise UserError(
                f"{self._step(step)}: cannot write the checkpoint ({why}); free space there"
            ) from error
        for old in self.steps()[: -self._keep]:
            with contextlib.suppress(Damaged):  # whoever reads it names it
                self._prune(old)
        memory.give_back()

    def _require_space(self, trees: Mapping) -> None:
        """Asks before Orbax fails in the middle of its writes."""
        if artefacts.is_writer() and "://" not in str(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(dict(trees)))
            free = shutil.disk_usage(self.path).free
            if free < needed:
                raise UserError(
                    f"{self.path}: a checkpoint needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} "
                    "MB are free; free space there, then run the same command again"
                )

    def _prune(self, step: int) -> None:
        """Removes all items of a snapshot but its weights."""
        about = self._about(step)
        extra = [name for name in about["digests"] if name != KEPT]
        if extra and artefacts.is_writer():
            for name in extra:
                del about["digests"][name]
            artefacts.write_json(self._step(step) / ABOUT / "metadata", artefacts.sealed(about))
            for name in extra:
                (self._step(step) / name).rmtree()

    def restore(self, step: int, targets: Mapping) -> tuple[dict, dict]:
        """(trees, meta) of one step.

        Args:
          step: one of `steps()`.
          targets: item → tree of ShapeDtypeStructs with shardings (any mesh, any dtype).
        Raises:
          ValueError: there is no such step or item, or it has other shapes.
          UserError: it is damaged.
        """
        if step not in self.steps():
            raise ValueError(f"{self.path}: no step {step}; there are {self.steps()}")
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
                if set(targets) <= set(self._about(step)["digests"]):
                    return (step, *self._read(step, targets))
            except (Damaged, ValueError) as error:  # ValueError: names or shapes were hit
                self._put_aside(step, error)
        return None

    def _put_aside(self, step: int, error: Exception) -> None:
        """A damaged step is out of the way, and still there for whoever wants to look at it."""
        progress.warn(f"{error}; going back to the step before")
        aside = self.path / f"damaged-{self._step(step).name}"
        artefacts.barrier(f"moving to {aside}")  # all processes have listed the steps
        if artefacts.is_writer():
            if aside.exists():
                aside.rmtree()
            self._step(step).rename(aside)
        artefacts.barrier(f"moved to {aside}")

    def _read(self, step: int, targets: Mapping) -> tuple[dict, dict]:
        about, trees = self._about(step), {}
        wanted = {name: _flat(target) for name, target in targets.items()}
        for name, flat in wanted.items():
            known = about["digests"].get(name)
            if known is None:
                raise ValueError(
                    f"{self._step(step)}: no item '{name}'; there are {sorted(about['digests'])}"
                )
            if wrong := sorted(set(flat) ^ set(known)):
                raise ValueError(
                    f"{self._step(step) / name}: only in the model or only in the checkpoint: "
                    f"{', '.join(wrong)}"
                )
        restored = self._read_items(step, wanted)
        for name, flat in wanted.items():
            marks, known = digests(restored[name]), about["digests"][name]
            if bad := [leaf for leaf in flat if marks[leaf] != known[leaf]]:
                raise Damaged(
                    f"{self._step(step) / name}: damaged, the digest of '{bad[0]}' is not what "
                    "was saved"
                )
            leaves = [restored[name][leaf].astype(flat[leaf].dtype) for leaf in flat]
            trees[name] = jax.tree.unflatten(jax.tree.structure(targets[name]), leaves)
        return trees, about["meta"]

    def _read_items(self, step: int, wanted: dict[str, dict]) -> dict[str, dict]:
        """Item → leaf → array, in the dtypes that were saved: the digests are of those bits."""
        with self._manager(wanted) as manager, _as_damage(self._step(step)):
            saved = manager.item_metadata(step)
            args = {}
            for name, flat in wanted.items():
                known = saved[name].tree
                for leaf in flat:
                    if tuple(known[leaf].shape) != tuple(flat[leaf].shape):
                        raise ValueError(
                            f"{self._step(step) / name}: '{leaf}' is {known[leaf].shape}, the "
                            f"model needs {flat[leaf].shape}"
                        )
                target = {
                    leaf: jax.ShapeDtypeStruct(x.shape, known[leaf].dtype, sharding=x.sharding)
                    for leaf, x in flat.items()
                }
                how = ocp.checkpoint_utils.construct_restore_args(target)
                args[name] = ocp.args.PyTreeRestore(item=target, restore_args=how)
            return manager.restore(step, args=ocp.args.Composite(**args))


@contextlib.contextmanager
def _without_leaks() -> Iterator[None]:
    """TensorStore (to 0.1.86 at least) never frees keys and values of JSON objects that it gives to
    Python. In a save Orbax asks for its counters, to log a throughput, and for the location
    on disk once an array: in here there are no counters, and the location is asked for once."""
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


@contextlib.contextmanager
def _as_damage(path) -> Iterator[None]:
    """Whatever a broken file makes the reader raise means the same here."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and "the model needs" in str(error):
            raise
        raise Damaged(f"{path}: damaged ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """The system's reason, where the message ends in it; else how the message begins."""
    if reason := re.search(r"([^:]+) \[os_error_code", str(error)):
        return reason[1].strip()
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


@functools.cache
def _quiet() -> None:
    """An error comes as an exception; its traceback in the log next to it would bury the one line
    that says what to do. Once a write has failed, Orbax closes its event loop, and tensorstore's
    threads each print a traceback as they report to it."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    absl_logging.set_verbosity(absl_logging.FATAL)
    otherwise = sys.unraisablehook

    def hook(unraisable):
        closed = str(unraisable.exc_value) == "Event loop is closed"
        dropped = getattr(getattr(unraisable.object, "cr_code", None), "co_filename", "")
        if not closed and "orbax" not in dropped:
            otherwise(unraisable)

    sys.unraisablehook = hook
