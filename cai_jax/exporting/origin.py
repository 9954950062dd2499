"""Where an exported model comes from, for its card: the name of its base on the hub, and the
licence of that."""

from __future__ import annotations

import json
import pathlib
import re

from cai_jax import references
from cai_jax.errors import UserError
from cai_jax.io import artefacts

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
LICENCE = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}")


def base_of(run_path, stage: str, role: dict) -> str:
    """The reference that training of `stage` goes back to: a directory or a hub name, through any
    number of stages."""
    origin = references.parse(str(role.get("initialised_from") or ""))
    for _ in range(20):
        if not origin.stage:
            break
        role = artefacts.read_json(run_path / origin.stage / "model" / "role.json") or {}
        origin = references.parse(str(role.get("initialised_from") or ""))
    return origin.name.removeprefix("hf://")


def header(base: str, base_name: str = "", licence: str = "") -> dict[str, str]:
    """{"base_model", "license"} of a model card, as far as they are known.

    Args:
      base: the base model's directory or hub name.
      base_name: what the user calls it; "" for its own name, where that is a hub name or its
        config.json has one.
      licence: as the user says; "" for that in the head of the base's README.md.
    Raises:
      UserError: what the user says is no such name.
    """
    if base_name and not HUB_NAME.fullmatch(base_name):
        raise UserError(f"--base-name: expected ORG/NAME of the hub, not '{base_name}'")
    if licence and not LICENCE.fullmatch(licence):
        raise UserError(f"--license: expected an identifier such as apache-2.0, not '{licence}'")
    directory = pathlib.Path(base).expanduser()
    known = {
        "base_model": base_name or _own_name(base, directory),
        "license": licence or _own_licence(directory),
    }
    return {key: value for key, value in known.items() if value}


def _own_name(base: str, directory: pathlib.Path) -> str:
    if not directory.is_dir():
        return base if HUB_NAME.fullmatch(base) else ""
    try:
        fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        name = str(fields.get("_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return ""
    return name if HUB_NAME.fullmatch(name) and not pathlib.Path(name).exists() else ""


def _own_licence(directory: pathlib.Path) -> str:
    """`license:` in the head of a model card, "" where there is none that is an identifier."""
    from huggingface_hub import repocard

    try:
        text = str((repocard.metadata_load(directory / "README.md") or {}).get("license") or "")
    except Exception:  # another's file: it may be no YAML at all
        return ""
    return text if LICENCE.fullmatch(text) else ""
