"""Where a model's files are: a directory, a name on the Hugging Face hub, or gs://, the last two
copied to this machine first."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import tempfile

from etils import epath

from cai_jax.errors import UserError
from cai_jax.io import contents, progress


def resolve(reference: str) -> str:
    """The local directory of a model reference, fetched first where it is remote.

    A path, `random:DIR`, `gs://bucket/path` (copied once into a cache), `org/name[@REVISION]` or
    `hf://org/name[@REVISION]` (from the hub).
    """
    reference = reference.removeprefix("random:")
    if pathlib.Path(reference).expanduser().is_dir():
        return str(pathlib.Path(reference).expanduser())
    if "://" in reference and not reference.startswith("hf://"):
        return _copy_remote(reference)
    if (named := hub_name(reference)) is not None:
        return _download(*named)
    raise UserError(
        f"{reference}: no such model directory (it holds config.json and model.safetensors); "
        "`make model` converts "
        "SmolLM2, org/name is fetched from the Hugging Face hub"
    )


def hub_name(reference: str) -> tuple[str, str] | None:
    """("org/name", revision or "") of a reference to the hub, None for everything else."""
    reference = reference.removeprefix("random:")
    if pathlib.Path(reference).expanduser().is_dir():
        return None
    name, _, revision = reference.removeprefix("hf://").partition("@")
    first = pathlib.Path(name).parts[:1]
    local = not reference.startswith("hf://") and (
        first in (("models",), ("runs",)) or pathlib.Path(*first).exists()
    )
    return (name, revision) if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not local else None


def _download(name: str, revision: str = "") -> str:
    import huggingface_hub

    options = {"revision": revision} if revision else {}
    try:
        return huggingface_hub.snapshot_download(
            name, allow_patterns=["*.json", "*.safetensors", "*.jinja"], **options
        )
    except Exception as error:  # the hub client raises its own, httpx's and the system's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name}: no such directory, and the Hugging Face hub did not give it: {reason}"
        ) from error


def _copy_remote(url: str) -> str:
    """A local copy of a remote model directory. Its name holds what the store says of the files, so
    that files which were replaced there are copied again; where the store cannot be asked, the last
    copy is used with a warning."""
    home = contents.user_cache() or pathlib.Path(tempfile.gettempdir()) / "cai_jax"
    last = home / f"{contents.combined([url])}.last"
    try:
        files = _remote_files(url)
        state = {name: _remote_state(file) for name, file in files.items()}
    except Exception as error:  # each kind of store raises its own
        if last.is_file() and (target := home / last.read_text(encoding="ascii")).is_dir():
            progress.warn(f"{_unreadable(url, error)}; the last copy of it, {target}, is used")
            return str(target)
        raise UserError(_unreadable(url, error)) from error
    target = home / contents.combined({url: contents.combined(state)})
    if not target.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(dir=home)
        try:
            for name, file in files.items():
                os.makedirs(os.path.dirname(os.path.join(partial, name)), exist_ok=True)
                file.copy(os.path.join(partial, name))
            os.replace(partial, target)
        except Exception as error:  # another process may have been faster
            shutil.rmtree(partial, ignore_errors=True)
            if not target.is_dir():
                raise UserError(_unreadable(url, error)) from error
    with contextlib.suppress(OSError):
        last.write_text(target.name, encoding="ascii")
    return str(target)


def _remote_files(url: str) -> dict:
    """relative name → path of the files of a remote directory that a model is read from."""
    files = {}
    for file in epath.Path(url).iterdir():
        if file.name == contents.TEMPLATES:
            files |= {f"{file.name}/{inner.name}": inner for inner in file.glob("*.jinja")}
        elif file.suffix in contents.MODEL_SUFFIXES:
            files[file.name] = file
    if not files:
        raise FileNotFoundError("no files of a model there")
    return dict(sorted(files.items()))


def _remote_state(file) -> str:
    state = file.stat()
    return f"{state.length} {state.mtime}"


def _unreadable(url: str, error: Exception) -> str:
    return f"{url}: could not be read ({type(error).__name__}: {error}); gs:// needs gcsfs"
