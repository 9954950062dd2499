"""The command: `python -m cai_jax.main --config=configs/NAME.py [--workdir=DIR]
[--config.field=value …]`."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import threading

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from cai_jax import __version__, runtime
from cai_jax.configuration import files as config_files
from cai_jax.configuration.fields import nearest
from cai_jax.errors import EXIT_BAD_INPUT, UserError, command, require_utf8
from cai_jax.io import preemption, progress
from cai_jax.pipeline import graph as pipeline

USAGE = (
    "usage: python -m cai_jax.main --config=NAME|FILE.py [--workdir=DIR] [--config.FIELD=VALUE …]"
)
EXIT_PREEMPTED = 75
# seconds without a sign of life, or waiting at the end, after which the other processes of a run
# end
HEARTBEAT = 50
ALONE = 5  # seconds that a process with bad input waits for the others to end with it


def parse(argv: list[str]):
    """(config, workdir) from the command line. Raises UserError for every mistake in it.

    ml_collections wants --config before any --config.field; here their order does not matter.
    """
    arguments = list(argv[1:])
    for argument in arguments:
        if not _is_text(argument):
            raise UserError(
                f"command line: {ascii(argument)}: its bytes are not UTF-8, in which run "
                "directories and records are written; rename the file or directory"
            )
    require_utf8(os.getcwd(), "current directory")  # paths become absolute
    if any(argument in ("-h", "--help", "-help") for argument in arguments):
        own = config_files.own_root()
        print(
            f"{USAGE}\nEvery field is documented in "
            f"{own / 'configs' if own else 'configs'}/default.py."
        )
        print(f"NAME may be one of the project's: {', '.join(config_files.names())}")
        raise SystemExit(0)
    for name in ("--config", "--workdir"):
        if name in arguments[:-1]:  # "--name value" means "--name=value"
            index = arguments.index(name)
            arguments[index : index + 2] = [f"{name}={arguments[index + 1]}"]
    heads = [argument for argument in arguments if re.match(r"--?config=.", argument)]
    if len(heads) != 1:
        raise UserError(f"expected --config=FILE once; {USAGE}")
    others = [argument for argument in arguments if argument not in heads]
    name, colon, argument = heads[0].partition("=")[2].partition(":")
    file = config_files.locate(name)
    config_files.importable(file)
    heads = [f"--config={file}{colon}{argument}"]
    config, _ = _read_flags([argv[0], heads[0]])
    for argument in others:
        name = re.match(r"--?([^=]*)", argument)
        if name and name[1].startswith("config."):
            _check_field(config, name[1])
        elif not name or name[1] != "workdir":
            raise UserError(f"command line: '{argument}' is not a flag; {USAGE}")
    config, workdir = _read_flags([argv[0], heads[0], *others])
    if not isinstance(config.get("stages"), tuple | list) or not all(
        isinstance(part, str) for part in config.stages
    ):
        raise UserError(f"config.stages: expected names of stages, not {config.get('stages')!r}")
    # "a,b" on the command line is one string to ml_collections.
    config.stages = tuple(
        name.strip() for part in config.stages for name in part.split(",") if name.strip()
    )
    return config, workdir or os.path.join("runs", file.stem)


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_flags(argv: list[str]):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "the run's configuration", values, lock_config=True, sys_argv=argv
    )
    flags.DEFINE_string(
        "workdir", None, "where the run lives; runs/NAME by default", flag_values=values
    )
    file = argv[1].partition("=")[2].partition(":")[0]
    try:
        values(argv)
        values.config.is_locked  # noqa: B018 - a file that failed to load complains only when it is read
        return values.config, values.workdir
    except (
        Exception,
        SystemExit,
    ) as error:  # a config file is code: it may raise anything while it runs
        if isinstance(error, flags.IllegalFlagValueError):
            raise UserError(f"command line: {explain(str(error))}") from error
        raise UserError(f"{file}: {type(error).__name__}: {explain(str(error))}") from error


def _check_field(config, name: str) -> None:
    """Raises UserError with the nearest name where `config.a.b` is no field of `config`."""
    at, path = config, "config"
    for part in name.split(".")[1:]:
        if not isinstance(at, ml_collections.ConfigDict):
            raise UserError(f"command line: {path} has no fields below it, but '{name}' was given")
        if part not in at:
            raise UserError(
                f"command line: {path} has no field '{part}'; {nearest(part, at.keys())}"
            )
        at, path = at[part], f"{path}.{part}"


def explain(message: str) -> str:
    """The first sentence or two of a library's error, on one line; of a traceback inside it, the
    last line."""
    before, found, trace = message.rstrip().partition("Traceback (most recent call last):")
    message = before + trace.splitlines()[-1] if found and trace.strip() else message
    message = re.sub(r"\s+", " ", message).strip()
    if len(message) > 1 and message[0] == message[-1] and message[0] in "'\"":
        message = message[1:-1]  # a KeyError is the repr of its key
    return message[:400]


def start_processes() -> None:
    """Joins the other processes of this run where the environment names them (see launch/): before
    any device is touched.

    CAI_JAX_COORDINATOR=host:port with CAI_JAX_NUM_PROCESSES and CAI_JAX_PROCESS_ID, or
    CAI_JAX_DISTRIBUTED=auto on TPU pods and clusters that JAX recognises.
    """
    coordinator = os.environ.get("CAI_JAX_COORDINATOR")
    if coordinator:
        try:
            count, index = (
                int(os.environ["CAI_JAX_NUM_PROCESSES"]),
                int(os.environ["CAI_JAX_PROCESS_ID"]),
            )
        except (KeyError, ValueError) as error:
            raise UserError(
                "CAI_JAX_COORDINATOR is set; CAI_JAX_NUM_PROCESSES and CAI_JAX_PROCESS_ID must "
                "be numbers"
            ) from error
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    elif os.environ.get("CAI_JAX_DISTRIBUTED") == "auto":
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT
        )


def use_compilation_cache() -> None:
    """Compiled programs are kept between runs, unless JAX was told where to keep them or not to."""
    directory = runtime.cache_directory()
    if (
        directory
        and not jax.config.jax_compilation_cache_dir
        and os.environ.get("CAI_JAX_NO_CACHE") is None
    ):
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def git_revision() -> str | None:
    """The commit of the code, None where it is no clone or the machine has no git."""
    here = str(pathlib.Path(__file__).parent)
    try:
        done = subprocess.run(
            ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def describe_run(config, workdir: str, argv: list[str]) -> dict:
    """What RUN/config.json holds: the resolved config, the versions, the machine's chips and the
    revision of the code."""
    import importlib.metadata

    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "tokenizers",
        "numpy",
    )
    return {
        "config": json.loads(pipeline.resolve(config).to_json_best_effort()),
        "topic_notes": pipeline.topic_notes(config),
        "command": argv[1:],
        "cai_jax": __version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
    }


def run(argv: list[str]) -> None:
    config, workdir = parse(argv)
    changed = runtime.pin()
    start_processes()
    runtime.require_devices()
    for text in changed:
        progress.warn(text)
    use_compilation_cache()
    preemption.install()
    rows = pipeline.run(config, workdir, lambda: describe_run(config, workdir, argv))
    progress.say("\n" + pipeline.table(rows))
    progress.say(f"\nrun directory: {workdir}")


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input (one line on standard error), 75 preempted (run the same
    command again)."""
    try:
        run(sys.argv if argv is None else argv)
    except preemption.Preempted as stopped:
        print(f"stopped: {stopped}; run the same command again to go on", file=sys.stderr)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def entry() -> None:
    """The `cai_jax` command that pip installs. A process with bad input leaves with its own exit
    code, also where the others, which JAX would have it wait for, have none: they miss its sign of
    life."""
    code = main()
    if code == EXIT_BAD_INPUT and jax.distributed.is_initialized():
        leave = threading.Timer(ALONE, os._exit, (code,))
        leave.daemon = True
        leave.start()
    sys.exit(code)


if __name__ == "__main__":
    entry()
