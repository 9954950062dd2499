"""Data sets of the Hugging Face hub: `hf:ORG/NAME[/CONFIG][@REVISION]`, as the Parquet files that
the hub makes of every data set.

    hf:Anthropic/hh-rlhf#chosen=chosen,rejected=rejected        hf:walledai/XSTest#prompt=prompt,kind=type
    hf:allenai/real-toxicity-prompts#prompt=prompt.text         hf:ORG/NAME/CONFIG@main#prompt=question

Those lie in the repository's branch refs/convert/parquet, as CONFIG/SPLIT/0000.parquet. Another
revision, and a directory in the place of ORG/NAME (a clone, say), may also have SPLIT.parquet or
SPLIT-00000-of-00002.parquet, JSON Lines as well, at its top, in `data/` or in CONFIG/.
huggingface_hub keeps what it has fetched; without a network that is read. No code of a data set is
run.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from cai_jax.errors import UserError

HUB = "hf:"
CONVERTED = "refs/convert/parquet"
SPLIT = "train"
ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")
SHARD = re.compile(r"-(\d+)-of-(\d+)\.")


def files(name: str, revision: str, split: str | None) -> list[Path]:
    """The files of one split, in their order, fetched first where they are not here. `name` is
    ORG/NAME[/CONFIG] or a directory. UserError where the data set, the configuration (of several,
    one must be named) or the split is not there."""
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        listed = sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
        )
        return [folder / file for file in chosen(listed, name, None, split or SPLIT)]
    parts = name.split("/")
    if not all(parts) or len(parts) > 3 or name.startswith((".", "~")):
        raise UserError(
            f"{HUB}{name}: expected {HUB}ORG/NAME, {HUB}ORG/NAME/CONFIG, or a directory that "
            "is there"
        )
    repository, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    return _fetched(repository, revision or CONVERTED, name, config, split or SPLIT)


def _fetched(
    repository: str, revision: str, name: str, config: str | None, split: str
) -> list[Path]:
    import huggingface_hub

    where = {"repo_id": repository, "repo_type": "dataset", "revision": revision}
    refused = (
        None  # what the hub itself said; of a cache without the files there is nothing to learn
    )
    try:
        try:
            listed = sorted(huggingface_hub.HfApi().list_repo_files(**where))
        except (
            Exception
        ) as error:  # no network, or no such data set: what was fetched before will do
            refused = error
            folder = Path(huggingface_hub.snapshot_download(**where, local_files_only=True))
            listed = sorted(
                str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
            )
        wanted = chosen(listed, name, config, split)
        return [Path(huggingface_hub.hf_hub_download(filename=file, **where)) for file in wanted]
    except UserError:
        raise
    except Exception as error:  # the hub client raises its own, httpx's and the system's errors
        cause = refused or error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise UserError(
            f"{HUB}{name}: the Hugging Face hub did not give the data set: {reason}; check "
            "name and network, "
            f"or name a directory that has its files: {HUB}DIRECTORY"
        ) from error


def chosen(listed: list[str], name: str, config: str | None, split: str) -> list[str]:
    """Of a repository's files, those of a configuration's split. A configuration named "default",
    or the only one, need not be named."""
    data = [file for file in listed if file.endswith(ENDINGS)]
    configs = sorted({file.split("/")[0] for file in data if file.count("/") == 2})
    if config is None and configs:
        if "default" not in configs and len(configs) > 1:
            example = f"{HUB}{name}/{configs[0]}"
            raise UserError(
                f"{HUB}{name}: name one of its configurations, such as {example}; there are "
                f"{', '.join(configs)}"
            )
        config = "default" if "default" in configs else configs[0]
    # The first of these places that holds the split; within one, everything that matches has to be
    # one set of files.
    places = [[f"{config}/{split}/*" if config in configs else f"{split}/*"]]
    for folders in ([f"{config}/"] * bool(config), ("data/", "")):
        places.append([f"{folder}{split}{end}" for folder in folders for end in (".*", "-[0-9]*")])
    for place in places:
        found = [file for file in data if any(fnmatch.fnmatchcase(file, one) for one in place)]
        if found:
            _require_one_set(found, f"{HUB}{name}: split '{split}'")
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


def _require_one_set(found: list[str], what: str) -> None:
    """UserError where the files of a split hold its rows twice, or not all of them."""
    sets: dict[tuple, list[str]] = {}
    for file in found:
        folder, _, name = file.rpartition("/")
        ending = next(end for end in ENDINGS if name.endswith(end))
        shard = SHARD.search(name)
        # Of a split in one file, "train.jsonl", and in shards, "train-00000-of-00002.jsonl", only
        # one may be there.
        kind = f"of {int(shard[2])}" if shard else "file" if "-" not in name else "numbered"
        sets.setdefault((folder, ending, kind), []).append(file)
    if len(sets) > 1:
        listed = ", ".join(files[0] for files in sets.values())
        raise UserError(f"{what} is there more than once ({listed}): keep one set of files")
    ((_, _, kind),) = sets
    names = [file.rpartition("/")[2] for file in found]
    if kind.startswith("of "):
        there, total = {int(SHARD.search(name)[1]) for name in names}, int(kind[3:])
        first = 0 if 0 in there or total not in there else 1  # some programs count from 1
    elif all(name.partition(".")[0].isdigit() for name in names):
        there = {int(name.partition(".")[0]) for name in names}
        total, first = max(there) + 1, 0
    else:
        return
    if missing := sorted(set(range(first, first + total)) - there):
        raise UserError(
            f"{what} is incomplete: {len(missing)} of its {total} files are missing, first "
            f"number {missing[0]} "
            f"({', '.join(sorted(names)[:3])} … are there); fetch the others"
        )
