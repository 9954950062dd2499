"""The directory that an export writes: whose it is, whether there is room, and what must go before
it is written again."""

from __future__ import annotations

import os
import pathlib
import shutil

from cai_jax.errors import UserError
from cai_jax.io import artefacts

MARK = "cai_jax_export.json"  # which run and stage an export is of, and whether it was finished
MODEL_FILES = ("config.json", "adapter_config.json")
LEFT_OVER = (".writing", ".partial")  # endings of files that a kill left half-written
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.partial", ".*.writing")


def about(run_path, reference: str, fingerprint: str | None, adapters: bool) -> dict:
    """What a mark says of an export.

    Args:
      run_path: the run's directory.
      reference: "@STAGE" or "@STAGE:STEP".
      fingerprint: of the stage.
      adapters: whether only they are written.
    Returns:
      A JSON object.
    """
    return {
        "run": str(pathlib.Path(run_path).absolute()),
        "stage": reference,
        "fingerprint": fingerprint,
        "adapters": adapters,
    }


def require_free(to, what: dict, force: bool = False) -> None:
    """Raises UserError where `to` is no place for this export: a file, somebody else's directory,
    or nothing that can be written.

    An empty directory is free, and one that an export of the same stage of the same run wrote,
    finished or not. `force` allows any model directory.
    """
    target = pathlib.Path(to)
    if target.exists() and not target.is_dir():
        raise UserError(f"{to}: is a file; choose another --to")
    parent = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{to}: {parent} cannot be written; choose another --to")
    there = [path.name for path in target.iterdir()] if target.exists() else []
    if not [name for name in there if not name.endswith(LEFT_OVER)]:
        return
    try:
        mark = artefacts.read_json(target / MARK) or {}
    except UserError:
        mark = {}
    if not mark and not any((target / name).exists() for name in MODEL_FILES):
        raise UserError(f"{to}: exists and is no model directory; choose another --to")
    if force or _same(mark, what):
        return
    known = "stage" in mark and "run" in mark
    holds = f"{mark['stage']} of {mark['run']}" if known else "a model that no export is known of"
    raise UserError(f"{to}: holds {holds}; choose another --to, or replace it with --force")


def _same(mark: dict, what: dict) -> bool:
    """Whether both are the same stage of one run, wherever that directory is now, in the same
    form."""
    if any(mark.get(key) != what[key] for key in ("stage", "adapters")):
        return False
    moved = what["fingerprint"] is not None and mark.get("fingerprint") == what["fingerprint"]
    return mark.get("run") == what["run"] or moved


def begin(to, what: dict, num_bytes: int) -> None:
    """Marks the directory as this export's and takes old weights away, so that no file of another
    export stays next to the new ones.

    Raises UserError where the disk has no room for `num_bytes`.
    """
    target = pathlib.Path(to)
    if artefacts.is_writer():
        target.mkdir(parents=True, exist_ok=True)
        old = {path for pattern in WEIGHTS for path in target.glob(pattern)}
        free = shutil.disk_usage(target).free + sum(path.stat().st_size for path in old)
        if free < num_bytes:
            raise UserError(
                f"{to}: the weights need {num_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are "
                "free there; "
                "choose another --to or --dtype=bfloat16"
            )
        artefacts.write_json(target / MARK, {**what, "finished": False})
        for path in (*old, *(target / name for name in MODEL_FILES)):
            path.unlink(missing_ok=True)
    artefacts.barrier(f"began {to}")


def finish(to, what: dict) -> None:
    """Says in the mark that all of it was written."""
    if artefacts.is_writer():
        artefacts.write_json(pathlib.Path(to) / MARK, {**what, "finished": True})
    artefacts.barrier("exported")
