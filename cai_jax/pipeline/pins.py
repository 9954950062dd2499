"""What a run would otherwise find changed from one day to the next, fixed when it begins:
RUN/pinned.json.

A model or data set of the hub whose reference names no commit gets the commit of that day; chat
templates that write the date get the day on which the run began (`config.date`). A run that goes
on, on whatever day and machine, reads the same. Delete the file, and run with
--config.on_change=redo, to take what is newest.
"""

from __future__ import annotations

import datetime
import pathlib
import re
from collections.abc import Iterator

import ml_collections

from cai_jax.data import hub, sources
from cai_jax.errors import UserError
from cai_jax.io import artefacts, progress
from cai_jax.models import hf
from cai_jax.pipeline import identity

FILE = "pinned.json"
COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 10  # that the hub has for an answer


def fix(config: ml_collections.ConfigDict, run_path) -> dict:
    """Puts commits behind the hub's names in `config`, and the date into it: those of
    RUN/pinned.json, else today's.

    Args:
      config: changed in place: `models`, `topic` where there is one, and the stages of the graph.
      run_path: the run's directory, which need not be there.
    Returns:
      What `save` writes once the directory is known to be ours.
    """
    pins = {}
    if artefacts.is_writer():
        known = artefacts.read_json(run_path / FILE) or {}
        today = datetime.date.today().isoformat()
        pins["date"] = config.get("date") or known.get("date") or today
        revisions = known.get("revisions") or {}
        if not isinstance(revisions, dict):
            raise UserError(
                f"{run_path / FILE}: field 'revisions': expected an object; move it away"
            )
        pins["revisions"] = _revisions(config, revisions)
    pins = artefacts.from_writer(pins)
    for fields, key, path, _ in _strings(config):
        for text, *_ in _unpinned(fields[key], path):
            if commit := pins["revisions"].get(text):
                pattern = _spelled(text) + r"(?=$|[\s+#\[])"
                fields[key] = re.sub(
                    pattern,
                    lambda found, commit=commit: re.split(r"(?<!\\)@", found[0])[0] + f"@{commit}",
                    fields[key],
                )
    if "date" in config:
        config.date = pins["date"]
    return pins


def _spelled(text: str) -> str:
    """A pattern for `text` in which marks may have backslashes before them, as a source string
    writes them."""
    return "".join(
        rf"\\?{re.escape(mark)}" if mark in "+#@[]," else re.escape(mark) for mark in text
    )


def _revisions(config, known: dict[str, str]) -> dict[str, str]:
    """What is known and, for what a stage that is to be run may read, the commits of now."""
    revisions = dict(known)
    for fields, key, path, needed in _strings(config):
        for text, name, repo_type, revision in _unpinned(fields[key], path):
            if text in revisions or not needed:
                continue
            if commit := commit_of(name, repo_type, revision):
                revisions[text] = commit
                progress.say(f"{text}: commit {commit[:12]} is used for all of this run ({FILE})")
            else:
                where = f"config.{'.'.join(path)}"
                progress.warn(f"{where}: '{text}' names no commit, and none was to be had")
    return revisions


def save(pins: dict, run_path) -> None:
    """Writes RUN/pinned.json where it is not there with the same contents."""
    if artefacts.is_writer() and artefacts.read_json(run_path / FILE) != pins:
        artefacts.write_json(run_path / FILE, pins)


def _strings(config) -> Iterator[tuple[ml_collections.ConfigDict, str, tuple[str, ...], bool]]:
    """(fields, key, path, whether a stage that is to be run may read it) of every string that may
    be a reference."""
    for top in ("models", "topic", "graph"):
        waiting = [((top,), config.get(top))]
        while waiting:
            path, fields = waiting.pop()
            for key in fields or ():
                value = fields[key]
                if isinstance(value, ml_collections.ConfigDict):
                    waiting.append(((*path, key), value))
                elif isinstance(value, str) and key not in identity.PLAIN_FIELDS:
                    needed = top != "graph" or path[1:2] == () or path[1] in config.stages
                    yield fields, key, (*path, key), needed


def _unpinned(value: str, path: tuple[str, ...]) -> Iterator[tuple[str, str, str, str]]:
    """(text, repository, its type, revision) of the hub's names in a reference that name no
    commit."""
    if path[0] == "models" or identity.is_model_field(path):
        name, revision = hf.hub_name(value) or ("", "")
        if name and not COMMIT.fullmatch(revision):
            yield value.removeprefix("random:"), name, "model", revision or "main"
        return
    if not value.startswith(hub.HUB) and f"+{hub.HUB}" not in value.replace(" ", ""):
        return
    try:
        named = sources.parse(value)
    except UserError:  # whoever reads it says what is wrong
        return
    for source in named:
        is_remote = (
            source.kind == sources.HUB and not pathlib.Path(source.name).expanduser().is_dir()
        )
        if is_remote and source.name.count("/") and not COMMIT.fullmatch(source.at):
            repository = "/".join(source.name.split("/")[:2])
            yield source.location, repository, "dataset", source.at or hub.CONVERTED


def commit_of(name: str, repo_type: str, revision: str) -> str | None:
    """The commit of a revision on the hub now, or of what was fetched of it before; None where
    neither is there."""
    import huggingface_hub

    where = {"repo_type": repo_type, "revision": revision}
    try:
        found = huggingface_hub.HfApi().repo_info(name, timeout=SECONDS, **where).sha
    except Exception:  # no network, or no such name
        try:
            folder = huggingface_hub.snapshot_download(name, local_files_only=True, **where)
            found = pathlib.Path(folder).name
        except Exception:
            found = None
    return found if found and COMMIT.fullmatch(found) else None
