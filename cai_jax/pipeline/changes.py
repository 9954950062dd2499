"""What a run directory holds against what its config asks for: which stages changed, moving them
aside, and the way back."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from cai_jax.errors import UserError
from cai_jax.io import artefacts, progress
from cai_jax.pipeline import identity

ASIDE = "aside"  # RUN/aside/STAGE-DATE-TIME


class Changes(NamedTuple):
    """Stages whose work was done under other fields or inputs, and a text that names those
    fields."""

    stages: tuple[str, ...] = ()
    text: str = ""


def changed_fields(old: dict, new: dict) -> list[str]:
    """What differs between two stages' fields: dotted names with both values, and files whose
    contents differ."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    files = [value.get("contents", {}) for value in (old, new)]
    changes = {}
    for key in sorted({*before, *after}):
        field = key.removesuffix(" →")
        known = files[0].get(field, {}).get("text")
        same = known and known == files[1].get(field, {}).get("text")  # only spelled otherwise
        if before.get(key) != after.get(key) and not same:
            changes[f"{field}: {before.get(key)!r} → {after.get(key)!r}"] = None
    return [*changes, *identity.changed_files(*files)]


def _flatten(value: Mapping, path: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of every field but the contents of files."""
    for key, item in value.items():
        name = f"{path}.{key}" if path else str(key)
        if name == "contents":
            continue
        if isinstance(item, dict) and item:
            yield from _flatten(item, name)
        else:
            yield name, item


def find(nodes: Mapping, run_path: epath.Path) -> Changes:
    """The stages of `nodes` (name → pipeline.Node) whose directory holds the work of another
    fingerprint."""
    stale, reasons = [], []
    for node in nodes.values():
        directory = artefacts.StageDirectory(run_path / node.name)
        manifest = directory.manifest
        if manifest and directory.holds_work and manifest.get("fingerprint") != node.fingerprint:
            stale.append(node.name)
            reasons += [
                f"{node.name}.{change}"
                for change in changed_fields(manifest.get("fields", {}), node.fields)
            ]
            if manifest.get("kind") != node.kind:
                reasons.append(f"{node.name}.kind: {manifest.get('kind')} → {node.kind}")
    if not stale:
        return Changes()
    text = (
        f"{run_path}: changed since it ran: {'; '.join(reasons) or 'an input'}. "
        f"Stages touched: {', '.join(stale)}"
    )
    return Changes(tuple(stale), text)


def require_allowed(changes: Changes, stages: Sequence[str], on_change: str) -> None:
    """Raises UserError where the run's changes stop it, or would move a stage that is not among
    `stages`."""
    if not changes.stages:
        return
    if on_change != "redo":
        raise UserError(
            f"{changes.text}. Run with --config.on_change=redo to move them aside and run them "
            "again, or use another --workdir"
        )
    others = [name for name in changes.stages if name not in stages]
    if others:
        raise UserError(
            f"{changes.text}. Nothing was moved: {', '.join(others)} "
            f"{'is' if len(others) == 1 else 'are'} not among the stages of this command; give the "
            f"fields they were made with, or run them again as well: "
            f"--config.stages={','.join([*others, *stages])}"
        )


def move_aside(run_path: epath.Path, stages: Sequence[str]) -> None:
    """Moves stage directories to RUN/aside and prints the way back: what a week has computed is not
    deleted."""
    # A process that looked only now would find nothing there.
    artefacts.barrier(f"changed {list(stages)}")
    if artefacts.is_writer():
        undo = []
        for name in stages:
            target = _aside(run_path, name)
            progress.say(f"moved {run_path / name} to {target}")
            undo.append(shlex.join(["mv", str(target), str(run_path / name)]))
        progress.say(
            "to undo this: give the earlier fields with --config.on_change=restore, or by hand, "
            f"once the new directories are out of the way: {' && '.join(undo)}"
        )
    artefacts.barrier(f"moved aside {list(stages)}")


def _aside(run_path: epath.Path, name: str) -> epath.Path:
    """Renames RUN/NAME to a free name under RUN/aside and returns that."""
    stamp, number = time.strftime("%Y%m%d-%H%M%S"), 0
    while (target := run_path / ASIDE / f"{name}-{stamp}{f'.{number}' if number else ''}").exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    (run_path / name).rename(target)
    return target


def restore(nodes: Mapping, run_path: epath.Path, stages: Sequence[str]) -> list[str]:
    """Moves those of `stages` back that were moved aside under just the fingerprint of `nodes`;
    returns their names.

    What is in their place goes aside in turn. A stage whose directory fits already is left alone.

    Raises UserError, with nothing moved, where another stage of the run would still be a changed
    one.
    """
    kept = {name: _kept(run_path, name, nodes[name].fingerprint) for name in stages}
    kept = {name: path for name, path in kept.items() if path}
    # What would stay changed stops the command before anything moves.
    rest = {name: node for name, node in nodes.items() if name not in kept}
    require_allowed(find(rest, run_path), stages, "restore")
    artefacts.barrier(f"aside {sorted(kept)}")
    if artefacts.is_writer():
        for name, path in kept.items():
            if (run_path / name).exists():
                progress.say(f"moved {run_path / name} to {_aside(run_path, name)}")
            path.rename(run_path / name)
            progress.say(f"moved {path} back to {run_path / name}")
        if not kept:
            progress.say(f"{run_path / ASIDE}: no stage was moved aside with these fields")
    artefacts.barrier(f"restored {sorted(kept)}")
    return sorted(kept)


def _kept(run_path: epath.Path, name: str, fingerprint: str) -> epath.Path | None:
    """The newest directory of a stage under RUN/aside with just that fingerprint; None where the
    stage's own has it already, or none does."""
    if artefacts.StageDirectory(run_path / name).manifest.get("fingerprint") == fingerprint:
        return None
    for path in sorted((run_path / ASIDE).glob(f"{name}-*"), reverse=True):
        is_its = re.fullmatch(rf"{re.escape(name)}-\d{{8}}-\d{{6}}(\.\d+)?", path.name)
        if is_its and artefacts.StageDirectory(path).manifest.get("fingerprint") == fingerprint:
            return path
    return None
