"""`python -m cai_jax.data.prepare NAME`: brings a data set into TFDS's directory, so that
"tfds:NAME" can be read.

NAME is `cai_hh_rlhf/helpful_base` or another of its configurations, or `cai_hh_rlhf` for all of
them; likewise `cai_evals`, the official evaluations, and `cai_run`, what a run made
(`--manual_dir=RUN`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cai_jax.errors import Parser, UserError, command

BUILDERS = {"cai_hh_rlhf": "CaiHhRlhf", "cai_evals": "CaiEvals", "cai_run": "CaiRun"}


def prepare(name: str, *, data_dir: str | None = None, manual_dir: str | None = None):
    """Builds every configuration of `name` (array_record) and returns the TFDS
    builders.

    What was built before is kept. Raises UserError for an unknown name, for files that are missing
    or malformed (`file:line: field …`), and where nothing can be downloaded.
    """
    base, _, config = name.partition("/")
    if base not in BUILDERS:
        raise UserError(f"{name}: no such data set; there are {', '.join(BUILDERS)}")
    folder = Path(manual_dir or "")
    if manual_dir is not None and not (folder.is_dir() and any(folder.iterdir())):
        raise UserError(
            f"{manual_dir}: no such directory, or it is empty; --manual_dir holds the published "
            "files"
        )
    from cai_jax.data import tfds_sets

    builder_class = getattr(tfds_sets, BUILDERS[base])
    configs = list(builder_class.SETS)
    if config and config not in configs:
        raise UserError(f"{name}: no such configuration; there are {', '.join(configs)}")
    if base == "cai_run" and manual_dir is None:
        raise UserError(f"{name}: needs --manual_dir=RUN, the directory of a run")
    if config:
        configs = [config]
    elif manual_dir:  # all of them: those whose files are there
        present = [known for known in configs if builder_class.find(folder, known)]
        if not present:
            expected = builder_class.expected(configs[0])
            raise UserError(f"{manual_dir}: holds none of the files; expected {expected}")
        configs = present
    return [_build(builder_class, known, data_dir, manual_dir) for known in configs]


def _build(builder_class, config: str, data_dir: str | None, manual_dir: str | None):
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    options = tfds.download.DownloadConfig(
        manual_dir=manual_dir,
        try_download_gcs=False,
        compute_stats=tfds.download.ComputeStatsMode.SKIP,
    )
    try:
        builder = builder_class(config=config, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(download_config=options)
    except Exception as error:  # TFDS raises a UserError of ours in classes of its own making
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from error
        reason = (str(error).splitlines() or ["no message"])[0]
        raise UserError(
            f"{builder_class.name}/{config}: could not be prepared "
            f"({type(error).__name__}: {reason})"
        ) from error
    return builder


def _described(file, is_hh_rlhf: bool) -> str:
    """A file with its digest; of hh-rlhf, whose files of 2022 are known, whether it is one of
    those."""
    known = ""
    if is_hh_rlhf:
        published = ", as published in 2022", ", not the file of 2022: a subset or newer"
        known = published[not file["published"]]
    return f"{file['name']} (sha256 {file['sha256'][:12]}…{known})"


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m cai_jax.data.prepare", description=__doc__.splitlines()[0])
    parser.add_argument(
        "name",
        help="cai_hh_rlhf, cai_evals or cai_run, or a configuration: cai_hh_rlhf/helpful_base",
    )
    parser.add_argument(
        "--manual_dir", help="directory that holds the published files; else they are downloaded"
    )
    parser.add_argument(
        "--data_dir",
        default=os.environ.get("TFDS_DATA_DIR"),
        help="where to write (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)",
    )
    flags = parser.parse_args(argv)
    for builder in prepare(flags.name, data_dir=flags.data_dir, manual_dir=flags.manual_dir):
        files = dict(builder.info.metadata or {}).get("files", {})
        for split, info in builder.info.splits.items():
            # The only split of a run is made of several files.
            used = [files[split]] if split in files else files.values()
            described = ", ".join(_described(f, builder.name == "cai_hh_rlhf") for f in used)
            print(f"{builder.info.full_name}  {split}: {info.num_examples} rows from {described}")
        name = f"{builder.name}/{builder.builder_config.name}"
        print(f"  read as tfds:{name}@{builder.data_dir_root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
