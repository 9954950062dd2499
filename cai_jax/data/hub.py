"""Data sets of the Hugging Face hub: `hf:ORG/NAME[/CONFIG][@REVISION]`, as the Parquet files that the hub makes of every data set.

    hf:Anthropic/hh-rlhf#chosen=chosen,rejected=rejected        hf:walledai/XSTest#prompt=prompt,kind=type
    hf:allenai/real-toxicity-prompts#prompt=prompt.text         hf:ORG/NAME/CONFIG@main#prompt=question

Those lie in the repository's branch refs/convert/parquet, as CONFIG/SPLIT/0000.parquet. Another revision, and a directory
in the place of ORG/NAME (a clone, say), may also have SPLIT.parquet or SPLIT-00000-of-00002.parquet, JSON Lines as well, at
its top, in `data/` or in CONFIG/. huggingface_hub keeps what it has fetched; without a network that is read. No code of a
data set is run.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path

from cai_jax.errors import UserError

HUB = "hf:"
CONVERTED = "refs/convert/parquet"
SPLIT = "train"
ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")


def files(name: str, split: str | None) -> list[Path]:
    """The files of one split, in their order, fetched first where they are not here. `name` is what follows "hf:". UserError
    where the data set, the configuration (of several, one must be named) or the split is not there."""
    reference, _, revision = name.partition("@")
    folder = Path(reference).expanduser()
    if reference and folder.is_dir():
        listed = sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
        )
        return [folder / file for file in chosen(listed, name, None, split or SPLIT)]
    parts = reference.split("/")
    if not all(parts) or len(parts) > 3 or reference.startswith((".", "~")):
        raise UserError(
            f"{HUB}{name}: expected {HUB}ORG/NAME, {HUB}ORG/NAME/CONFIG, or a directory that is there"
        )
    repository, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    return _fetched(repository, revision or CONVERTED, name, config, split or SPLIT)


def _fetched(
    repository: str, revision: str, name: str, config: str | None, split: str
) -> list[Path]:
    import huggingface_hub

    where = {"repo_id": repository, "repo_type": "dataset", "revision": revision}
    try:
        try:
            listed = sorted(huggingface_hub.HfApi().list_repo_files(**where))
        except Exception:  # no network, or no such data set: what was fetched before will do
            folder = Path(huggingface_hub.snapshot_download(**where, local_files_only=True))
            listed = sorted(
                str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
            )
        wanted = chosen(listed, name, config, split)
        return [Path(huggingface_hub.hf_hub_download(filename=file, **where)) for file in wanted]
    except UserError:
        raise
    except Exception as error:  # the hub client raises its own, httpx's and the system's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{HUB}{name}: the Hugging Face hub did not give the data set: {reason}"
        ) from error


def chosen(listed: list[str], name: str, config: str | None, split: str) -> list[str]:
    """Of a repository's files, those of a configuration's split. A configuration named "default", or the only one, need not be
    named."""
    data = [file for file in listed if file.endswith(ENDINGS)]
    configs = sorted({file.split("/")[0] for file in data if file.count("/") == 2})
    if config is None and configs:
        if "default" not in configs and len(configs) > 1:
            example = f"{HUB}{name.partition('@')[0]}/{configs[0]}"
            raise UserError(
                f"{HUB}{name}: name one of its configurations, such as {example}; there are {', '.join(configs)}"
            )
        config = "default" if "default" in configs else configs[0]
    places = [f"{config}/{split}/*"] if config in configs else [f"{split}/*"]
    places += [
        f"{folder}{split}{rest}"
        for folder in (*[f"{config}/"] * bool(config), "data/", "")
        for rest in (".*", "-[0-9]*")
    ]
    for place in places:
        if found := [file for file in data if fnmatch.fnmatchcase(file, place)]:
            return found
    splits = sorted(
        {
            file.split("/")[1]
            for file in data
            if config and file.startswith(f"{config}/") and file.count("/") == 2
        }
    )
    there = (
        f"splits of {config}: {', '.join(splits)}"
        if splits
        else f"files: {', '.join(data[:8]) or 'none that can be read'}"
    )
    raise UserError(
        f"{HUB}{name}: no split '{split}'{f' of {config}' if config else ''}; there are {there}"
    )
