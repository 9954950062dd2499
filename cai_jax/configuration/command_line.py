"""The command line of a run: `--config=NAME|FILE.py [--workdir=DIR] [--config.FIELD=VALUE …]`."""

from __future__ import annotations

import os
import re

import ml_collections
from absl import flags
from ml_collections import config_flags

from cai_jax.configuration import files, helptext
from cai_jax.configuration.fields import nearest
from cai_jax.errors import UserError, require_utf8

USAGE = (
    "usage: python -m cai_jax.main --config=NAME|FILE.py [--workdir=DIR] [--config.FIELD=VALUE …]"
)


def parse(argv: list[str]) -> tuple[ml_collections.ConfigDict, str]:
    """(config, workdir) from the command line; --help prints and exits.

    ml_collections wants --config before any --config.field; here their order does not matter.

    Raises:
      UserError: any mistake in it.
    """
    require_utf8(os.getcwd(), "current directory")  # paths become absolute
    arguments = list(argv[1:])
    for argument in arguments:
        require_utf8(argument, "command line")
    if any(argument in ("-h", "--help", "-help") for argument in arguments):
        kinds = [argument for argument in arguments if not argument.startswith("-")]
        print(helptext.text(USAGE, kinds))
        raise SystemExit(0)
    for name in ("--config", "--workdir"):
        if name in arguments[:-1]:  # "--name value" means "--name=value"
            index = arguments.index(name)
            arguments[index : index + 2] = [f"{name}={arguments[index + 1]}"]
    named = [argument for argument in arguments if re.match(r"--?config=.", argument)]
    if len(named) != 1:
        raise UserError(f"expected --config=FILE once; {USAGE}")
    others = [argument for argument in arguments if argument not in named]

    # --- The config file alone: which fields there are
    name, colon, given = named[0].partition("=")[2].partition(":")
    file = files.locate(name)
    files.importable(file)
    own = [argv[0], f"--config={file}{colon}{given}"]
    config, _ = _read_flags(own)
    for argument in others:
        flag = re.match(r"--?([^=]*)", argument)
        if flag and flag[1].startswith("config."):
            _require_field(config, flag[1])
        elif not flag or flag[1] != "workdir":
            raise UserError(f"command line: '{argument}' is not a flag; {USAGE}")

    # --- And with what the command line sets
    config, workdir = _read_flags([*own, *others])
    if not isinstance(config.get("stages"), tuple | list) or not all(
        isinstance(part, str) for part in config.stages
    ):
        raise UserError(f"config.stages: expected names of stages, not {config.get('stages')!r}")
    # "a,b" on the command line is one string to ml_collections.
    stages = [name.strip() for part in config.stages for name in part.split(",")]
    config.stages = tuple(filter(None, stages))
    return config, workdir or os.path.join("runs", file.stem)


def _read_flags(argv: list[str]) -> tuple[ml_collections.ConfigDict, str | None]:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "the run's configuration", values, lock_config=True, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "runs/NAME by default", flag_values=values)
    try:
        values(argv)
        values.config.is_locked  # noqa: B018 - a file that fails to load fails when it is read
        return values.config, values.workdir
    except flags.IllegalFlagValueError as error:
        raise UserError(f"command line: {explain(str(error))}") from error
    except (Exception, SystemExit) as error:  # a config file is code: it may raise anything
        file = argv[1].partition("=")[2].partition(":")[0]
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{file}: {kind}{explain(str(error))}") from error


def _require_field(config, name: str) -> None:
    """Raises UserError with the nearest name where `config.a.b` is no field of `config`."""
    group, path = config, "config"
    for key in name.split(".")[1:]:
        if not isinstance(group, ml_collections.ConfigDict):
            raise UserError(f"command line: {path} has no fields below it, but '{name}' was given")
        if key not in group:
            raise UserError(f"command line: {path} has no field '{key}'; {nearest(key, group)}")
        group, path = group[key], f"{path}.{key}"


def explain(message: str) -> str:
    """The first sentence or two of a library's error, on one line; of a traceback inside it, the
    last line."""
    before, mark, trace = message.rstrip().partition("Traceback (most recent call last):")
    message = before + trace.splitlines()[-1] if mark and trace.strip() else message
    message = re.sub(r"\s+", " ", message).strip()
    if len(message) > 1 and message[0] == message[-1] and message[0] in "'\"":
        message = message[1:-1]  # a KeyError is the repr of its key
    return message[:400]
