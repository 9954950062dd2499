"""`python -m cai_jax.data.prepare NAME`: brings a data set into TFDS's directory, so that
"tfds:NAME" can be read.

NAME is `cai_hh_rlhf/helpful_base` or another of its configurations, or `cai_hh_rlhf` for all of
them; likewise `cai_evals`, the official evaluations, and `cai_run`, what a run made
(`--manual_dir=RUN`).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cai_jax.errors import Parser, UserError, command

BUILDERS = {
    "cai_hh_rlhf": ("hh_rlhf", "CaiHhRlhf"),
    "cai_evals": ("cai_sets", "CaiEvals"),
    "cai_run": ("cai_sets", "CaiRun"),
}


def prepare(name: str, *, data_dir: str | None = None, manual_dir: str | None = None):
    """Builds every configuration that `name` stands for (array_record) and returns the TFDS
    builders.

    What was built before is kept. Raises UserError for an unknown name, for files that are missing
    or malformed (`file:line: field …`), and where nothing can be downloaded.
    """
    base, _, config = name.partition("/")
    if base not in BUILDERS:
        raise UserError(f"{name}: no such data set; there are {', '.join(BUILDERS)}")
    if manual_dir is not None and not (
        Path(manual_dir).is_dir() and any(Path(manual_dir).iterdir())
    ):
        raise UserError(
            f"{manual_dir}: no such directory, or it is empty; --manual_dir holds the "
            "published files"
        )

    import tensorflow_datasets as tfds

    module = importlib.import_module(f"cai_jax.data.{BUILDERS[base][0]}")
    builder_class = getattr(module, BUILDERS[base][1])
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    known = list(builder_class.builder_configs)
    if config and config not in known:
        raise UserError(f"{name}: no such configuration; there are {', '.join(known)}")
    names = [config] if config else known
    if base == "cai_run" and manual_dir is None:
        raise UserError(f"{name}: needs --manual_dir=RUN, the directory of a run")
    if manual_dir and not config:  # all of them: those whose files are there
        names = [name for name in known if module.find_files(Path(manual_dir), name)]
        if not names:
            example = next(iter(module.candidates(known[0])))
            raise UserError(f"{manual_dir}: holds none of the files, such as {example}")
    return [_build(tfds, builder_class, name, data_dir, manual_dir) for name in names]


def _build(tfds, builder_class, config: str, data_dir: str | None, manual_dir: str | None):
    try:
        builder = builder_class(config=config, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual_dir,
                try_download_gcs=False,
                compute_stats=tfds.download.ComputeStatsMode.SKIP,
            )
        )
    except UserError:
        raise
    except (
        Exception
    ) as error:  # TFDS re-raises what the rows' generator raised, in classes of its own making
        cause = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from error
        what = (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        )
        raise UserError(f"{builder_class.name}/{config}: could not be prepared ({what})") from error
    return builder


def _told(source) -> str:
    """A file with its digest; of hh-rlhf, whose files of 2022 are known, whether it is one of
    those."""
    known = (
        ""
        if "published" not in source
        else (
            ", as published in 2022"
            if source["published"]
            else ", not the file of 2022: a subset or newer"
        )
    )
    return f"{source['name']} (sha256 {source['sha256'][:12]}…{known})"


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m cai_jax.data.prepare", description=__doc__.splitlines()[0])
    parser.add_argument(
        "name",
        help=(
            "cai_hh_rlhf, cai_evals or cai_run, or one configuration such as "
            "cai_hh_rlhf/helpful_base"
        ),
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
            sources = (
                [files[split]] if split in files else files.values()
            )  # a run's one split is made of several files
            print(
                f"{builder.info.full_name}  {split}: {info.num_examples} rows from "
                f"{', '.join(map(_told, sources))}"
            )
        print(
            f"  read as tfds:{builder.name}/{builder.builder_config.name}@{builder.data_dir_root}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
