"""The command: `python -m cai_jax.main --config=configs/NAME.py [--workdir=DIR]
[--config.field=value …]`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import threading

import jax

from cai_jax import __version__, runtime
from cai_jax.configuration.command_line import parse
from cai_jax.errors import EXIT_BAD_INPUT, EXIT_WAITING, Waiting, command
from cai_jax.io import preemption, progress
from cai_jax.pipeline import graph as pipeline
from cai_jax.runtime import start_processes, use_compilation_cache

EXIT_PREEMPTED = 75
PACKAGES = "jax jaxlib flax optax orbax-checkpoint transformers tokenizers numpy".split()
ALONE = 5  # seconds that a process with bad input waits for the others to end with it


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
    return {
        "config": json.loads(pipeline.resolve(config).to_json_best_effort()),
        "topic_notes": pipeline.topic_notes(config),
        "command": argv[1:],
        "cai_jax": __version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
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
    """Exit code: 0 done, 2 bad input (one line on standard error), 3 requests wait for answers in
    files, 75 preempted (run the same command again)."""
    try:
        run(sys.argv if argv is None else argv)
    except preemption.Preempted as stopped:
        print(f"stopped: {stopped}; run the same command again to go on", file=sys.stderr)
        return EXIT_PREEMPTED
    except Waiting as waiting:
        print(f"waiting: {waiting}; then run the same command again", file=sys.stderr)
        return EXIT_WAITING
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
