"""What the references in a config name: by content, so that every fingerprint depends on what is
read and not on how it is called; and pinned, where a name means something else every day.

    reference                            is identified by
    FILE, FILE#field=column              contents and the file's own name, which is in its rows' ids
    DIRECTORY of data, hf:DIRECTORY      contents of its files by relative name, and its own name
    embedded, embedded:NAME              contents of the project's files
    tfds:NAME[@DIRECTORY]                the prepared files
    hf:ORG/NAME@COMMIT, org/name@COMMIT  the commit
    a model directory, gs://…            contents of weights, configs, tokenizer and templates
    random:DIRECTORY                     the same without weights, which come from the run's seed
    responses:FILE                       the file
    openai:URL#MODEL                     that text; its answers are kept
    batch:DIR#MODEL                      that text
    recorded:DIR                         the answers that are recorded there
    python:module.function               the module's source, and of its neighbours that it imports
    a+b                                  both, in this order

Neither the spelling of a path nor moving a directory makes a difference; links are followed.

RUN/pinned.json holds what would change from one day to the next (`pin`): the commits of hub names
that name none, and the day on which the run began, for templates that write the date. Delete the
file, and run with --config.on_change=redo, to take what is newest.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator

import ml_collections

import cai_jax
from cai_jax import references
from cai_jax.configuration.fields import Model, Setting, Text, Word, walk, walk_kind
from cai_jax.configuration.run import RUN
from cai_jax.configuration.stages import STAGES
from cai_jax.data import hub, sources
from cai_jax.errors import UserError
from cai_jax.io import artefacts, contents, progress
from cai_jax.models import remote
from cai_jax.textmodels import recorded

MAX_LISTED = 200  # files of a reference that a manifest names individually
PINNED = "pinned.json"
COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 10  # that the hub has for an answer


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """A file or directory that a reference names: the path as it was spelled, for messages, and the
    digests of its files by relative name ("" for a file)."""

    where: str
    digest: str
    files: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Identity:
    """`text`: the reference with contents in place of paths; `parts`: what it names on disk."""

    text: str
    parts: tuple[OnDisk, ...] = ()

    def to_json(self) -> dict:
        parts = [dataclasses.asdict(part) for part in self.parts]
        shown = [
            part if len(part["files"]) <= MAX_LISTED else part | {"files": {}} for part in parts
        ]
        return {"text": self.text, "parts": shown}


def changed_files(old: dict, new: dict) -> list[str]:
    """A line a field that goes on naming the same path, whose contents differ. `old` and `new`:
    field → `Identity.to_json()`."""
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


# By content ---------------------------------------------------------------------------------------


def of(reference: str, is_model: bool = False) -> Identity | None:
    """The identity of a reference by content, None where it names nothing that can be read here.

    Args:
      reference: as in a config; roles are resolved before.
      is_model: a directory is then a model directory, and gs:// and hub names are models.
    Raises:
      UserError: what it names exists and cannot be read.
    """
    if not reference or len(reference) > sources.LONGEST or "\0" in reference:
        return None
    parsed = references.parse(reference)
    try:
        if parsed.kind == references.RECORDED:
            return _recorded(parsed)
        if parsed.stage or parsed.kind in references.ANSWERING:
            return None
        if is_model and (model := _model(parsed)):
            return model
        if parsed.kind == references.PYTHON:
            return _code(parsed.name)
        if reference == sources.EMBEDDED:
            folder = pathlib.Path(cai_jax.__path__[0], "constitution")
            return _read(f"folder {reference}", reference, contents.of_folder(folder, "*.json"))
        return _data(parsed.name)
    except OSError as error:
        where = error.filename or reference
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from error


def _read(text: str, where: str, files: dict[str, str], own_name: str = "") -> Identity:
    digest = contents.combined([text, own_name, contents.combined(files)])
    return Identity(f"{text} {digest}", (OnDisk(where, digest, files),))


def _model(reference: references.Reference) -> Identity | None:
    folder = pathlib.Path(reference.name).expanduser()
    if not folder.is_dir():
        store, _, name = reference.name.partition("://")
        if not name or ":" in store:
            return None
        if store == "hf":
            return Identity(f"{reference.kind}{name}")
        folder = pathlib.Path(remote.resolve(reference.name))
    is_random = reference.kind == references.RANDOM
    files = contents.of_model(folder, weights=not is_random)
    return _read(f"{reference.kind}model", reference.name.rstrip("/"), files)


def _recorded(reference: references.Reference) -> Identity | None:
    directory, _, model = reference.name.partition("#")
    paths = {str(path.relative_to(directory)): path for path in recorded.files(directory)}
    text = f"{references.RECORDED}#{model}"
    return _read(text, directory, contents.of_files(paths)) if paths else None


def _data(reference: str) -> Identity | None:
    """Of the sources of an `a+b` text, with all else that it says: columns, split, limit."""
    try:
        named = [] if "://" in reference else sources.parse(reference)
    except UserError:  # whoever reads it says what is wrong
        return None
    texts, parts = [], []
    for source in named:
        known = _source(source)
        options = dataclasses.asdict(source) | {"written": ""}
        options |= {"name": ""} if known else {}
        options |= {"at": ""} if known and source.kind == sources.TFDS else {}
        given = {name for name in ("split", "limit") if options[name] is not None}  # "[]" counts
        shown = {name: value for name, value in options.items() if value or name in given}
        texts.append(f"{known.text if known else ''}{artefacts.dump(shown)}")
        parts += known.parts if known else ()
    return Identity("+".join(texts), tuple(parts)) if parts else None


def _source(source: sources.Source) -> Identity | None:
    """The file or directory of a source, None where it is not there."""
    path = source.path
    if source.kind == sources.TFDS:  # the prepared files, without the library: it takes seconds
        dataset, _, version = source.name.partition(":")
        path = dataclasses.replace(source, name=dataset).path / version
        if not dataset or not path.is_dir():
            return None
        return _read(source.name, str(path), contents.of_folder(path))
    own_name = pathlib.Path(os.path.abspath(path)).name if path else ""  # however it is spelled
    if path and path.is_dir():
        where = source.name.rstrip("/") or source.name
        return _read("folder", where, contents.of_folder(path), own_name)
    if path and path.is_file():
        return _read("file", source.location, {"": contents.of_file(path)}, own_name)
    return None


def _code(name: str) -> Identity | None:
    module = name.rpartition(".")[0]
    try:
        spec = importlib.util.find_spec(module) if module else None
    except Exception:  # a package's own code runs, and may raise anything
        return None
    if spec is None or not spec.origin or not os.path.isfile(spec.origin):
        return None
    origin = pathlib.Path(spec.origin)
    files = contents.of_files({path.name: path for path in [origin, *sorted(_neighbours(origin))]})
    return _read(f"{references.PYTHON}{name}", str(origin.parent), files)


def _neighbours(source: pathlib.Path) -> set[pathlib.Path]:
    """The modules of the same directory that a source file imports, and those that they import."""
    imported, waiting = set(), [source]
    while waiting:
        try:
            tree = ast.parse(waiting.pop().read_bytes())
        except (OSError, SyntaxError, ValueError):  # compiled, or a mistake that the import names
            continue
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                dotted = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                names |= {part for name in dotted for part in name.split(".") if part}
        paths = {source.parent / f"{name}.py" for name in names} - imported - {source}
        paths = {path for path in paths if path.is_file()}
        imported |= paths
        waiting += paths
    return imported


def writes_date(reference: str) -> bool:
    """Whether a chat template of a model writes today's date; of a model that is not on this
    machine it may."""
    if remote.hub_name(reference) or "://" in reference:
        return True
    folder = pathlib.Path(references.parse(reference).name).expanduser()
    files = [folder / "tokenizer_config.json", *folder.glob("*.jinja")]
    files += (folder / contents.TEMPLATES).glob("*.jinja")
    return any(path.is_file() and b"strftime_now" in path.read_bytes() for path in files)


# Pinned -------------------------------------------------------------------------------------------


def pin(config: ml_collections.ConfigDict, run_path) -> dict:
    """Puts commits behind the hub's names in `config`, and the date into it: those of
    RUN/pinned.json, else today's.

    Args:
      config: changed in place: `models`, `topic` where there is one, and the stages of the graph.
      run_path: the run's directory, which need not be there.
    Returns:
      What `save_pins` writes once the directory is known to be ours.
    """
    pins = {}
    if artefacts.is_writer():
        known = artefacts.read_json(run_path / PINNED) or {}
        today = datetime.date.today().isoformat()
        pins["date"] = config.get("date") or known.get("date") or today
        revisions = known.get("revisions") or {}
        if not isinstance(revisions, dict):
            raise UserError(
                f"{run_path / PINNED}: field 'revisions': expected an object; move it away"
            )
        pins["revisions"] = _revisions(config, revisions)
    pins = artefacts.from_writer(pins)
    for setting, _ in _references(config):
        key = setting.where.rpartition(".")[2]
        for text, *_ in _unpinned(setting):
            if commit := pins["revisions"].get(text):
                setting.group[key] = _with_commit(setting.group[key], text, commit)
    if "date" in config:
        config.date = pins["date"]
    return pins


def save_pins(pins: dict, run_path) -> None:
    """Writes RUN/pinned.json where it does not exist with the same contents."""
    if artefacts.is_writer() and artefacts.read_json(run_path / PINNED) != pins:
        artefacts.write_json(run_path / PINNED, pins)


def _with_commit(value: str, text: str, commit: str) -> str:
    """`value` with the commit behind the name `text`, whose marks may have backslashes there."""
    spelled = "".join(
        rf"\\?{re.escape(mark)}" if mark in "+#@[]," else re.escape(mark) for mark in text
    )
    return re.sub(
        spelled + r"(?=$|[\s+#\[])",
        lambda match: re.split(r"(?<!\\)@", match[0])[0] + f"@{commit}",
        value,
    )


def _revisions(config, known: dict[str, str]) -> dict[str, str]:
    """What is known and, for what a stage that is to be run may read, the commits of now."""
    revisions = dict(known)
    for setting, needed in _references(config):
        for text, name, repo_type, revision in _unpinned(setting):
            if text in revisions or not needed:
                continue
            if commit := commit_of(name, repo_type, revision):
                revisions[text] = commit
                progress.say(f"{text}: commit {commit[:12]} is used for all of this run ({PINNED})")
            else:
                progress.warn(f"{setting.where}: '{text}' names no commit, and none was to be had")
    return revisions


def _references(config) -> list[tuple[Setting, bool]]:
    """(field, whether a stage that is to be run may read it) of every text that may be a
    reference."""
    shared = {name: config[name] for name in ("models", "topic") if name in config}
    settings = [(setting, True) for setting in walk(RUN, shared, "config")]
    for name, stage in config.graph.items():
        needed = name in config.stages
        own = walk_kind(STAGES, stage, f"config.graph.{name}")
        settings += [(setting, needed) for setting in own]
    return [
        (setting, needed)
        for setting, needed in settings
        if isinstance(setting.field.range, Text) and not isinstance(setting.field.range, Word)
    ]


def _unpinned(setting: Setting) -> Iterator[tuple[str, str, str, str]]:
    """(text, repository, its type, revision) of the hub's names in a reference that name no
    commit."""
    value = setting.value
    if isinstance(setting.field.range, Model):
        name, revision = remote.hub_name(value) or ("", "")
        if name and not COMMIT.fullmatch(revision):
            text = value.removeprefix(references.RANDOM)
            yield text, name, "model", revision or "main"
        return
    if not value.startswith(hub.HUB) and f"+{hub.HUB}" not in value.replace(" ", ""):
        return
    try:
        named = sources.parse(value)
    except UserError:  # whoever reads it says what is wrong
        return
    for source in named:
        is_remote = source.kind == sources.HUB and not source.path.is_dir()
        if is_remote and source.name.count("/") and not COMMIT.fullmatch(source.at):
            repository = "/".join(source.name.split("/")[:2])
            yield source.location, repository, "dataset", source.at or hub.CONVERTED


def commit_of(name: str, repo_type: str, revision: str) -> str | None:
    """The commit of a revision on the hub now, or of what was fetched of it before; None where
    neither can be had."""
    import huggingface_hub

    where = {"repo_type": repo_type, "revision": revision}
    try:
        commit = huggingface_hub.HfApi().repo_info(name, timeout=SECONDS, **where).sha
    except Exception:  # no network, or no such name
        try:
            folder = huggingface_hub.snapshot_download(name, local_files_only=True, **where)
            commit = pathlib.Path(folder).name
        except Exception:
            commit = None
    return commit if commit and COMMIT.fullmatch(commit) else None
