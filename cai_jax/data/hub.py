"""Data sets of the Hugging Face hub: `hf:ORG/NAME[/CONFIG][@REVISION]`, as the Parquet files that
the hub makes of every data set.

    hf:Anthropic/hh-rlhf                   hf:allenai/real-toxicity-prompts#prompt=prompt.text
    hf:ORG/NAME/CONFIG@main#prompt=q       hf:walledai/XSTest#prompt=prompt,kind=type

Those are in the repository's branch refs/convert/parquet, as CONFIG/SPLIT/0000.parquet. Another
revision, and a directory instead of ORG/NAME (a clone, say), may also have SPLIT.parquet or
SPLIT-00000-of-00002.parquet, JSON Lines as well, at its top, in `data/` or in CONFIG/.
huggingface_hub keeps what it has fetched; without a network that is read. No code of a data set is
run.
"""

from __future__ import annotations

import collections
import fnmatch
import re
from pathlib import Path

from cai_jax.errors import UserError

HUB = "hf:"
CONVERTED = "refs/convert/parquet"
SPLIT = "train"
ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.")


def files(name: str, revision: str, split: str | None) -> list[Path]:
    """The files of one split, in their order, fetched first where they are not here. `name` is
    ORG/NAME[/CONFIG] or a directory. UserError where the data set, the configuration (of several,
    one must be named) or the split does not exist."""
    folder, split = Path(name).expanduser(), split or SPLIT
    if name and folder.is_dir():
        return [folder / file for file in chosen(_listed(folder), name, None, split)]
    names = name.split("/")
    if not all(names) or len(names) > 3 or name.startswith((".", "~")):
        raise UserError(
            f"{HUB}{name}: expected {HUB}ORG/NAME, {HUB}ORG/NAME/CONFIG, or a directory that exists"
        )
    where = {"repo_id": "/".join(names[:2]), "repo_type": "dataset"}
    return _fetched(where | {"revision": revision or CONVERTED}, name, (*names, None)[2], split)


def _fetched(where: dict, name: str, config: str | None, split: str) -> list[Path]:
    import huggingface_hub

    refused = None  # the hub's own answer says more than that the cache has no files
    try:
        try:
            listed = sorted(huggingface_hub.HfApi().list_repo_files(**where))
        except Exception as error:  # no network, or no such data set: an earlier download will do
            refused = error
            folder = huggingface_hub.snapshot_download(**where, local_files_only=True)
            listed = _listed(Path(folder))
        wanted = chosen(listed, name, config, split)
        return [Path(huggingface_hub.hf_hub_download(filename=file, **where)) for file in wanted]
    except UserError:
        raise
    except Exception as error:  # the hub client raises its own, httpx's and the system's errors
        lines = str(refused or error).strip().splitlines() or [type(refused or error).__name__]
        raise UserError(
            f"{HUB}{name}: the Hugging Face hub did not give the data set: {lines[0]}; check name "
            f"and network, or name a directory that has its files: {HUB}DIRECTORY"
        ) from error


def _listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def chosen(listed: list[str], name: str, config: str | None, split: str) -> list[str]:
    """Chooses the files of a configuration's split.

    Args:
        listed: all files of the repository.
        name: of the data set, for messages.
        config: a configuration; one named "default", or the only one, need not be named.
        split: the name of the split.

    Returns: those of the repository's files, in their order.
    Raises: UserError where there is no such split or configuration, or not just one set of files.
    """
    data = [file for file in listed if file.endswith(ENDINGS)]
    configs = sorted({file.split("/")[0] for file in data if file.count("/") == 2})
    if config is None and configs:
        if "default" not in configs and len(configs) > 1:
            raise UserError(
                f"{HUB}{name}: name one of its configurations, such as {HUB}{name}/{configs[0]}; "
                f"there are {', '.join(configs)}"
            )
        config = "default" if "default" in configs else configs[0]
    # The first of these that holds the split; what matches there must be one set of files.
    patterns = [[f"{config}/{split}/*" if config in configs else f"{split}/*"]]
    for folders in ([f"{config}/"] if config else [], ["data/", ""]):
        patterns.append([f"{f}{split}{end}" for f in folders for end in (".*", "-[0-9]*")])
    for group in patterns:
        matched = [file for file in data if any(fnmatch.fnmatchcase(file, p) for p in group)]
        if matched:
            _require_single_set(matched, f"{HUB}{name}: split '{split}'")
            return matched
    inside = [f.split("/") for f in data if config and f.startswith(f"{config}/")]
    splits = sorted({names[1] for names in inside if len(names) == 3})
    there = (
        f"splits of {config}: {', '.join(splits)}"
        if splits
        else f"files: {', '.join(data[:8]) or 'none that can be read'}"
    )
    of_config = f" of {config}" if config else ""
    raise UserError(f"{HUB}{name}: no split '{split}'{of_config}; there are {there}")


def _require_single_set(matched: list[str], what: str) -> None:
    """UserError where the files of a split hold its rows twice, or not all of them: of a split in
    one file, "train.jsonl", and in shards, "train-00000-of-00002.jsonl", only one may be there."""
    sets = collections.defaultdict(list)
    numbers, total = [], 0
    for file in matched:
        folder, _, name = file.rpartition("/")
        stem, _, ending = name.partition(".")
        shard = _SHARD.search(name)
        if shard:
            numbers.append(int(shard[1]))
            total = int(shard[2])
        elif stem.isdigit():
            numbers.append(int(stem))
        layout = f"of {shard[2]}" if shard else "numbered" if "-" in name else "file"
        sets[folder, ending, layout].append(file)
    if len(sets) > 1:
        examples = ", ".join(files[0] for files in sets.values())
        raise UserError(f"{what} is there more than once ({examples}): keep one set of files")
    if not total and len(numbers) == len(matched):
        total = max(numbers) + 1
    # Some programs count their shards from 1.
    first = 1 if total in numbers and 0 not in numbers else 0
    if missing := sorted(set(range(first, first + total)) - set(numbers)):
        names = ", ".join(file.rpartition("/")[2] for file in matched[:3])
        raise UserError(
            f"{what} is incomplete: {len(missing)} of its {total} files are missing, first "
            f"number {missing[0]} ({names} … are there); fetch the others"
        )
