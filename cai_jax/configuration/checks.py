"""Values that no stage could work with, refused before anything is written."""

from __future__ import annotations

import ml_collections

from cai_jax.configuration import fields
from cai_jax.configuration.run import RUN
from cai_jax.errors import UserError

# Files and directories of a run directory, next to those of the stages.
RESERVED = (
    "aside",
    "config.json",
    "lock.held",
    "lock.json",
    "pinned.json",
    "status.json",
)


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for the first field of a run's config that is not declared or whose value is
    out of range, with its name and what is expected."""
    for name, item in RUN.items():
        if not isinstance(item, fields.Field) and not isinstance(
            config.get(name), ml_collections.ConfigDict
        ):
            raise UserError(
                f"config.{name}: expected a group of fields as in configs/default.py, not "
                f"{config.get(name)!r}"
            )
    if not config.stages or not all(config.stages):
        raise UserError(f"config.stages: name at least one stage of {', '.join(config.graph)}")
    for name in config.graph:  # each is a directory of the run
        fields.require_name(name, "config.graph")
        if name in RESERVED:
            raise UserError(f"config.graph: a stage cannot be called {name!r}; it is a file's name")
    fields.check(RUN, config, "config")
