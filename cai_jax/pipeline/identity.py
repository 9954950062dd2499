"""What the references in a config name, by content: the one function behind every fingerprint is
`of`.

    reference                          is identified by
    FILE, FILE#field=column            the contents, and the file's own name: rows without an id are named after it
    DIRECTORY of data, hf:DIRECTORY    the contents of its files by relative name, and the directory's own name
    embedded, embedded:NAME            the contents of the project's files
    tfds:NAME[@DIRECTORY]              the prepared files
    hf:ORG/NAME@COMMIT, org/name@COMMIT  the commit (an unpinned revision gets one when a run begins: `pins.py`)
    a model directory, gs://…          the contents of weights, configs, tokenizer and templates, whatever it is called
    random:DIRECTORY                   the same without weights: these come from the run's seed
    responses:FILE                     the file
    python:module.function             the module's source, and that of modules it imports from its own directory
    a+b                                both, in this order

Neither the spelling of a path nor moving a directory makes a difference; links are followed.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import pathlib

import cai_jax
from cai_jax.configuration import fields
from cai_jax.configuration.run import names_of
from cai_jax.data import sources
from cai_jax.errors import UserError
from cai_jax.io import artefacts, contents
from cai_jax.models import hf

MODEL_FIELDS = names_of(fields.Model)
# Texts that name nothing outside the config, even where a file of that name happens to be in the
# working directory.
PLAIN_FIELDS = {*names_of(fields.Choice, fields.Word), "kind", "seed"}
MAX_LISTED = 200  # files of a reference that a manifest names one by one
CODE, EMBEDDED, RANDOM = "python:", "embedded", "random:"


@dataclasses.dataclass(frozen=True)
class Part:
    """Something on disk that a reference names.

    `where` is the path as it was spelled, for messages; `files` holds the digests by relative name
    ("" for a file).
    """

    where: str
    digest: str
    files: dict[str, str]

    def to_json(self) -> dict:
        files = self.files if len(self.files) <= MAX_LISTED else {}
        return {"where": self.where, "digest": self.digest, "files": files}


@dataclasses.dataclass(frozen=True)
class Identity:
    """`text`: the reference with contents in the place of paths; `parts`: what it names on disk."""

    text: str
    parts: tuple[Part, ...]

    def to_json(self) -> dict:
        return {"text": self.text, "parts": [part.to_json() for part in self.parts]}


def changed_files(old: dict, new: dict) -> list[str]:
    """What to say of files whose contents differ, where a field goes on naming the same path.

    Args:
      old, new: field → `Identity.to_json()`.
    """
    changes = []
    for field in sorted(set(old) & set(new)):
        for before, after in zip(old[field]["parts"], new[field]["parts"], strict=False):
            if before["digest"] == after["digest"] or before["where"] != after["where"]:
                continue
            names = sorted(set(before["files"]) | set(after["files"]))
            paths = [
                f"{after['where']}/{name}".rstrip("/")
                for name in names
                if before["files"].get(name) != after["files"].get(name)
            ] or [after["where"]]
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            changes.append(f"{field}: contents of {', '.join(paths[:3])}{more}")
    return changes


def is_model_field(path: tuple[str, ...]) -> bool:
    """Whether the field at `path` names a model or a role."""
    return path[-1] in MODEL_FIELDS or "models" in path[:-1]


def is_plain(path: tuple[str, ...]) -> bool:
    """Whether the text at `path` is a word of ours, an item of a list of such words included."""
    *above, field = [key for key in path if not key.isdecimal()]
    return "models" not in above and field in PLAIN_FIELDS


def of(reference: str, is_model: bool = False) -> Identity | None:
    """The identity of a reference by content, None where it names nothing that can be read here.

    Args:
      reference: as in a config; roles are resolved before.
      is_model: a directory is then a model directory, and gs:// and hub names are models.
    Raises:
      UserError: what it names is there and cannot be read.
    """
    if not reference or len(reference) > 4000 or "\0" in reference or reference.startswith("@"):
        return None
    try:
        if is_model and (found := _model(reference)) is not None:
            return found
        if reference.startswith(CODE):
            return _code(reference)
        if reference == EMBEDDED:
            return _folder(reference, pathlib.Path(cai_jax.__path__[0]) / "constitution", "*.json")
        if "://" in reference:
            return None
        try:
            named = sources.parse(reference)
        except UserError:  # whoever reads it says what is wrong
            return None
        found = [_data(source) for source in named]
    except OSError as error:
        where = error.filename or reference
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from error
    if not any(item.parts for item in found):
        return None
    text = "+".join(item.text for item in found)
    return Identity(text, tuple(part for item in found for part in item.parts))


def _model(reference: str) -> Identity | None:
    prefix = RANDOM if reference.startswith(RANDOM) else ""
    name = reference.removeprefix(prefix)
    folder = pathlib.Path(os.path.expanduser(name))
    if not folder.is_dir():
        if "://" not in name or ":" in name.partition("://")[0]:
            return None
        if name.startswith("hf://"):
            return Identity(prefix + name.removeprefix("hf://"), ())
        folder = pathlib.Path(hf.resolve(name))
    files = contents.of_model(folder, weights=not prefix)
    digest = contents.combined(files)
    return Identity(f"{prefix}model {digest}", (Part(name.rstrip("/"), digest, files),))


def _data(source: sources.Source) -> Identity:
    """Without parts where what it names is not there."""
    options = dataclasses.asdict(source) | {"name": "", "written": ""}
    path = source.path
    if source.kind == sources.TFDS:
        return _described(_tfds(source), options | {"at": ""})
    if path is not None and path.is_dir():
        return _described(_folder(source.name, path), options)
    if path is not None and path.is_file():
        return _described(_file(source.location, path), options)
    return _described(None, options | {"name": source.name})


def _described(found: Identity | None, options: dict) -> Identity:
    """What was identified together with all else that the reference says: columns, split, limit."""
    given = {key for key in ("split", "limit") if options[key] is not None}  # "[]" is not nothing
    said = artefacts.dump({key: value for key, value in options.items() if value or key in given})
    return Identity(f"{found.text if found else ''}{said}", found.parts if found else ())


def _file(where: str, path: pathlib.Path) -> Identity:
    digest = contents.combined({own_name(path): contents.of_file(path)})
    return Identity(f"file {digest}", (Part(where, digest, {"": digest}),))


def _folder(where: str, path: pathlib.Path, pattern: str = "") -> Identity:
    if pattern:
        files = contents.of_files({file.name: file for file in path.glob(pattern)})
    else:
        files = contents.of_folder(path)
    digest = contents.combined([own_name(path), contents.combined(files)])
    return Identity(f"folder {digest}", (Part(where.rstrip("/") or where, digest, files),))


def own_name(path) -> str:
    """The last name of a path, however it is spelled ("x/", "./x" and "." in x are all "x")."""
    return pathlib.Path(os.path.abspath(path)).name


def _tfds(source: sources.Source) -> Identity | None:
    """The prepared files; the library, which takes seconds to import, is not needed for that."""
    folder = source.at or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    dataset, _, version = source.name.partition(":")
    path = pathlib.Path(os.path.expanduser(folder), dataset, version)
    if not dataset or not path.is_dir():
        return None
    files = contents.of_folder(path)
    digest = contents.combined(files)
    return Identity(f"{source.name} {digest}", (Part(str(path), digest, files),))


def _code(name: str) -> Identity | None:
    module = name.removeprefix(CODE).rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (
        Exception
    ):  # a package's own code runs, and may raise anything; who imports it says what is wrong
        return None
    if spec is None or not spec.origin or not os.path.isfile(spec.origin):
        return None
    origin = pathlib.Path(spec.origin)
    sources = {path.name: path for path in [origin, *sorted(_neighbours(origin))]}
    files = contents.of_files(sources)
    digest = contents.combined(files)
    return Identity(f"{name} {digest}", (Part(str(origin.parent), digest, files),))


def _neighbours(source: pathlib.Path) -> set[pathlib.Path]:
    """The modules of the same directory that a source file imports, and those that they import."""
    found, waiting = set(), [source]
    while waiting:
        try:
            tree = ast.parse(waiting.pop().read_bytes())
        except (
            OSError,
            SyntaxError,
            ValueError,
        ):  # compiled code, or a mistake that the import names
            continue
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            parts = {part for name in names for part in name.split(".")}
            for path in (source.parent / f"{part}.py" for part in parts if part):
                if path.is_file() and path != source and path not in found:
                    found.add(path)
                    waiting.append(path)
    return found


def writes_date(reference: str) -> bool:
    """Whether a chat template of a model writes today's date; of a model that is not on this
    machine it may."""
    if hf.hub_name(reference) or "://" in reference:
        return True
    folder = pathlib.Path(os.path.expanduser(reference.removeprefix("random:")))
    files = [folder / "tokenizer_config.json", *folder.glob("*.jinja")]
    files += (folder / contents.TEMPLATES).glob("*.jinja")
    return any(path.is_file() and b"strftime_now" in path.read_bytes() for path in files)
