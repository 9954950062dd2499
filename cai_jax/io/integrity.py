"""Are the files of a finished stage still what the stage wrote? If not, what has to be done again.

The manifest of a stage that is done holds the SHA-256 of its files; checkpoints keep digests of
their own and are checked when they are read. Rows of a damaged journal are made again one by one,
other files by running the end of the stage again. Only the rollouts of a training cannot be made
again without the training.
"""

from __future__ import annotations

import hashlib

from etils import epath

from cai_jax.io import artefacts

# Not compared: times differ from run to run, checkpoints and manifests check themselves.
UNCHECKED = (
    "manifest.json",
    "manifest.backup.json",
    "timing.jsonl",
    "checkpoints",
    "tensorboard",
    "profile",
)


def file_digests(directory: artefacts.StageDirectory) -> dict[str, str]:
    """Relative path → SHA-256 of every file that the stage left to others."""
    return {str(path.relative_to(directory.path)): _sha256(path) for path in _files(directory.path)}


def _files(path: epath.Path, top: bool = True):
    for child in sorted(path.iterdir()) if path.exists() else ():
        if (
            child.name.startswith(".")
            or (top and child.name in UNCHECKED)
            or child.name.endswith(".parts")
        ):
            continue
        if child.is_dir():
            yield from _files(child, False)
        else:
            yield child


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check(directory: artefacts.StageDirectory) -> artefacts.Damaged | None:
    """What is wrong with a stage, in one line, and how much of it has to be done again; None where
    all is as it was."""
    path, manifest = directory.path, directory.manifest
    if not manifest:
        if directory.holds_work:
            return artefacts.Damaged(
                directory.name,
                f"{path}: its manifest is missing, so nobody knows what made it",
                True,
            )
        return None
    bad = []
    for name, expected in (manifest.get("files") or {}).items() if manifest.get("done") else ():
        file = path / name
        if not file.exists():
            bad.append(f"{name} (missing)")
        elif _sha256(file) != expected:
            bad.append(name)
    if not bad:
        return None
    trained = manifest.get("kind") == "rl" and any(
        name.startswith(("rollouts/", "records.")) for name in bad
    )
    return artefacts.Damaged(
        directory.name, f"{path}: not what the stage wrote: {', '.join(bad)}", trained
    )
