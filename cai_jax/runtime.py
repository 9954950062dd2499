"""What the environment may not change behind a run's back (JAX's settings), and what it may lack
(devices, a home)."""

from __future__ import annotations

import contextlib
import os

import jax

from cai_jax.errors import UserError, device_line

# Seconds without a sign of life, or of waiting at the end, after which a run's processes end.
HEARTBEAT = 50
# Settings of JAX that decide numbers, random ones above all. An environment variable
# (JAX_ENABLE_X64, …) or a site's configuration could change them behind a run's back; results would
# then depend on the shell that they were started from.
PINNED = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}


def pin() -> list[str]:
    """Sets what decides numbers to the values that this project is tested with; returns a text for
    each that was otherwise."""
    changed = []
    for name, value in PINNED.items():
        given = getattr(jax.config, name)
        if given != value:
            jax.config.update(name, value)
            changed.append(f"{name.upper()}={given} is not used here: {name} is {value}")
    return changed


def require_devices() -> None:
    """Raises UserError, one line, where JAX cannot use the devices that the environment asks
    for."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise UserError(device_line(error)) from error


def cache_directory() -> str | None:
    """Where compiled programs are kept: ~/.cache/cai_jax/compiled, None where there is no home that
    can be written."""
    home = os.path.expanduser("~")
    if home.startswith("~"):
        return None
    directory = os.path.join(home, ".cache", "cai_jax", "compiled")
    with contextlib.suppress(OSError):
        os.makedirs(directory, exist_ok=True)
    return directory if os.access(directory, os.W_OK) else None


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
    """Compiled programs are kept between runs, unless JAX's own settings say where, or not to."""
    directory = cache_directory()
    if (
        directory
        and not jax.config.jax_compilation_cache_dir
        and os.environ.get("CAI_JAX_NO_CACHE") is None
    ):
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
