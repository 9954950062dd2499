"""Digests of what files hold: equal contents have equal digests, wherever the files are.

Every start of a run asks for them. The digest of a large file is therefore kept in the user's cache
directory under all that the system says about the file's state (real path, size, both times in
nanoseconds, inode): the first start reads the file, later ones only look at its state. Each digest
is a cache file of its own, so that processes never write the same one with different contents. A
cache that cannot be written or read costs time and nothing else.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterable, Mapping

from cai_jax.io import artefacts

KEPT_FROM = 2**20  # bytes; smaller files are read every time
SETTLED_SECONDS = 2  # a file that changed so recently may change again within one tick of its clock
READERS = 8  # files that are read at a time
DIGITS = 16  # hexadecimal digits of a digest as it is shown and compared
MODEL_SUFFIXES = (".json", ".jinja", ".safetensors")
TEMPLATES = "additional_chat_templates"  # the folder of a model directory with its named templates
UNREAD = re.compile(r"(README|LICENSE|NOTICE)(\..*)?|.*\.md|\..*", re.IGNORECASE)


def user_cache() -> pathlib.Path | None:
    """Where programs keep what they can make again; None for a user without a home directory."""
    home = os.path.expanduser("~")
    folder = os.environ.get("XDG_CACHE_HOME") or (home != "/" and os.path.join(home, ".cache"))
    return pathlib.Path(folder, "cai_jax") if folder and os.path.isabs(folder) else None


def of_file(path) -> str:
    """The digest of a file's contents, from the cache where its state is one that was seen before.

    Raises:
      OSError: the file cannot be read.
    """
    before = None if "://" in str(path) else os.stat(path)
    entry = _entry(path, before) if before and before.st_size >= KEPT_FROM else None
    with contextlib.suppress(OSError, ValueError):
        known = entry.read_text(encoding="ascii") if entry else ""
        if re.fullmatch("[0-9a-f]{64}", known):
            return known[:DIGITS]
    digest = artefacts.file_digest(path)
    if entry:
        after = os.stat(path)
        settled = time.time() - max(after.st_mtime, after.st_ctime) > SETTLED_SECONDS
        if settled and _entry(path, after) == entry:
            _keep(entry, digest)
    return digest[:DIGITS]


def _entry(path, state: os.stat_result) -> pathlib.Path | None:
    """The cache file for a file in this state."""
    cache = user_cache()
    numbers = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev)
    name = os.fsencode(os.path.realpath(path)) + b"\0" + repr(numbers).encode()
    return cache and cache / "digests" / hashlib.sha256(name).hexdigest()


def _keep(entry: pathlib.Path, digest: str) -> None:
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, delete=False) as file:
            file.write(digest)
        os.replace(file.name, entry)


def of_files(files: Mapping[str, object]) -> dict[str, str]:
    """name → digest for name → path, sorted by name; several files are read at a time."""
    names = sorted(files)
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        digests = readers.map(of_file, [files[name] for name in names])
        return dict(zip(names, digests, strict=True))


def of_folder(directory, pattern: str = "**/*") -> dict[str, str]:
    """relative name → digest of the files of a data directory, hidden ones and texts about the data
    left out."""
    directory = pathlib.Path(directory)
    paths = [path for path in directory.glob(pattern) if path.is_file()]
    names = {path.relative_to(directory): path for path in paths}
    return of_files(
        {
            name.as_posix(): path
            for name, path in names.items()
            if not any(UNREAD.fullmatch(part) for part in name.parts)
        }
    )


def of_model(directory, weights: bool = True, tokenizer: bool = True) -> dict[str, str]:
    """relative name → digest of the files of a model directory that decide what the model does.

    Args:
      directory: holds config.json.
      weights: include the weight files.
      tokenizer: include everything that decides tokens: tokenizer, templates, generation config.
    """
    directory = pathlib.Path(directory)
    files = [path for path in directory.glob("[!.]*") if path.suffix in MODEL_SUFFIXES]
    files += (directory / TEMPLATES).glob("[!.]*.jinja")
    is_weights = {path: path.suffix == ".safetensors" for path in files}
    return of_files(
        {
            path.relative_to(directory).as_posix(): path
            for path in files
            if path.is_file()
            and (weights if is_weights[path] else tokenizer or path.name == "config.json")
        }
    )


def combined(values: Mapping[str, str] | Iterable[str]) -> str:
    """One digest of several names and digests."""
    pairs = values.items() if isinstance(values, Mapping) else ((value,) for value in values)
    digest = hashlib.sha256()
    for pair in pairs:
        for text in pair:
            data = text.encode("utf-8", "surrogateescape")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:DIGITS]
