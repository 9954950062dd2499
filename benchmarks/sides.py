"""A side of `benchmarks.training` as a process of its own: one JSON request a line in, one JSON
answer a line out.

    python -m benchmarks.sides NAME WORK.json

A side is a generator that is ready to begin when it first yields, does its work once between two
yields, and yields the numbers of it. What is measured is the time from a request to the next
yield.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import time

from benchmarks.peer import ALLOCATOR

# Name → module and function; the last ones need their packages, see benchmarks/requirements.txt.
SIDES = {
    "sl ours": "training_ours:supervised",
    "sl torch": "training_peers:supervised",
    "ppo ours": "training_ours:ppo",
    "ppo ours, shared trunk": "training_ours:ppo_shared",
    "ppo ours, adapters": "training_ours:ppo_adapters",
    "ppo ours, adapters, shared trunk": "training_ours:ppo_adapters_shared",
    "ppo trl": "training_peers:trl_ppo",
    "ppo tunix": "training_peers:tunix_ppo",
}


class Side:
    """The other end of the pipe. `python`: the interpreter that has the side's packages."""

    def __init__(self, name: str, work: str, python: str = sys.executable):
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.sides", name, work],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ALLOCATOR},
        )
        self.ready = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.name}: the process ended with exit status {self.process.wait()}"
            )
        return json.loads(line)

    def work(self) -> dict:
        """{"seconds", "cpu_seconds" of all its threads, "peak_bytes" of the process so far, and
        what the side tells}."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve(name: str, file: str) -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    with open(file, encoding="utf-8") as text:
        work = json.load(text)
    module, _, function = SIDES[name].partition(":")
    side = getattr(importlib.import_module(f"benchmarks.{module}"), function)(work)

    def answer(seconds, cpu, numbers):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        out.write(
            json.dumps(
                {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, **(numbers or {})}
            )
            + "\n"
        )
        out.flush()

    before, cpu, numbers = time.perf_counter(), time.process_time(), next(side) or {}
    answer(
        time.perf_counter() - before, time.process_time() - cpu, numbers | {"versions": versions()}
    )
    while sys.stdin.readline():
        before, cpu = time.perf_counter(), time.process_time()
        numbers = next(side)
        answer(time.perf_counter() - before, time.process_time() - cpu, numbers)
    os._exit(0)  # a side may have threads that wait for more


def compilations():
    """Keeps compiled programs on disk, as runs do. Returns a function: {"compiled": whether this
    process has compiled what it then kept, which takes memory of its own, "compile_seconds": of all
    programs so far, cached ones too}."""
    import jax

    from cai_jax import main

    main.use_compilation_cache()
    kept, seconds = [], []
    jax.monitoring.register_event_listener(
        lambda event, **_: (
            kept.append(event) if event == "/jax/compilation_cache/cache_misses" else None
        )
    )
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, took, **_: (
            seconds.append(took) if event.endswith("backend_compile_duration") else None
        )
    )
    return lambda: {"compiled": bool(kept), "compile_seconds": sum(seconds)}


def versions() -> dict[str, str]:
    """Of the packages that matter and that this process has imported."""
    packages = {name: name for name in ("jax", "jaxlib", "torch", "transformers", "trl")} | {
        "tunix": "google-tunix"
    }
    return {
        package: importlib.metadata.version(package)
        for module, package in packages.items()
        if module in sys.modules
    }


if __name__ == "__main__":
    serve(*sys.argv[1:])
