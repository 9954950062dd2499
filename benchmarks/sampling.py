"""The sampling engine against transformers' `generate`: `python -m benchmarks.sampling --json
out.json`.

Both run the same weights and the same prompts in turns (ours, theirs; theirs, ours; …), so that
whatever else the machine does falls on both; medians are over the repeats. Every workload runs in a
process of its own, so that its peak memory and its compile seconds are its own. After every repeat
the numbers so far are printed and saved; with a file that exists already the command goes on with
what is missing in it. Slow peers are timed on `--peer-share` of the work, another part in each
repeat, and multiplied (only where the parts are independent); ours always does all of it.

`--quick` cuts everything to a tenth, to try it in some five minutes: its numbers say little. On a
machine that others use, `--cores 1` ties everything to one core, where seconds of the processor can
be compared; both clocks are always written. benchmarks/README.md has the results, `python -m
benchmarks.table out.json` prints the table.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time

from benchmarks import results
from benchmarks.peer import ALLOCATOR, forget_peak, peak_bytes
from cai_jax.errors import command

# Workload and how often it is repeated: estimated to take some 55 minutes in all on two cores.
REPEATS = {
    "decode": 5,
    "latency": 7,
    "first_token": 5,
    "labels": 5,
    "skewed": 3,
    "critique": 4,
    "revise": 4,
}
ROOT = pathlib.Path(__file__).resolve().parent.parent


def measure(name: str, args, say) -> None:
    """One workload in this process: `say` gets its description, then each repeat as it is done."""
    import jax

    from benchmarks import stage_workloads, workloads

    make = getattr(workloads, name, None) or getattr(stage_workloads, name)
    compiling = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            compiling.append(seconds) if event.endswith("backend_compile_duration") else None
        )
    )
    bench = workloads.Bench(args.model, args.scale, args.dtype, json.loads(args.options))
    work = make(bench)
    ways = {way: run for way, run in work.ways.items() if not args.ways or way in args.ways}
    compiling.clear()
    forget_peak()
    about = {"units": work.units, "first": {}}
    for way in work.compiled:
        if way in ways or way == "ours":
            took = work.ways[way]()
            about["first"][way] = {"wall": round(took.wall, 3), "cpu": round(took.cpu, 3)}
        if way == "ours":
            about |= {
                "compile_s": round(sum(compiling), 1),
                "programs": len(compiling),
                "ours_peak_bytes": peak_bytes(),
            }
    work.warm()
    say(about)
    for repeat in range(args.done, args.repeats):
        before, timings = time.time(), {}
        compiling.clear()
        for way in list(ways)[:: -1 if repeat % 2 else 1]:
            run, share = ways[way], 1.0
            if isinstance(run, workloads.Peers):
                parts = run.parts(repeat, args.peer_share)
                share = len(parts) / run.units
                took = run.run(parts).times(1 / share)
            else:
                took = run()
            timings[way] = {"wall": took.wall, "cpu": took.cpu, "share": share}
        measured = {"about": work.about, "late_programs": len(compiling)}
        if peer_peak := bench.peer_peak():
            measured["generate_peak_bytes"] = peer_peak
        say(
            {
                "repeat": {way: timings[way] for way in ways},
                "load": round(os.getloadavg()[0], 1),
                **measured,
            }
        )
        if args.until and time.time() + (time.time() - before) > args.until:
            break
    bench.close()


def sampler_digest() -> str:
    """Of the code that is measured: repeats of different samplers are not mixed."""
    digest = hashlib.sha256()
    for folder in ("sampling", "models"):
        for path in sorted((ROOT / "cai_jax" / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str | None:
    """Of the checkout, where it is one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--workloads", nargs="+", default=list(REPEATS), choices=list(REPEATS))
    parser.add_argument(
        "--ways", nargs="+", default=[], help="only these ways of each workload, e.g. ours generate"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=None,
        help=f"of every workload; by default {REPEATS}, 1 with --quick",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=0,
        help="begin no repeat that would end later than this; 0: no limit",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size of the workloads")
    parser.add_argument("--quick", action="store_true", help="--scale 0.1 --repeats 1")
    parser.add_argument(
        "--peer-share",
        type=float,
        default=0.06,
        metavar="SHARE",
        help="slow peers do at least this share of the work, in complete batches; 1: all of it",
    )
    parser.add_argument(
        "--cores", type=int, default=0, help="tie both sides to so many cores; 0: all"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--options", default="{}", help="fields of EngineOptions as JSON")
    parser.add_argument(
        "--device", default="", help="what the results say of the machine, e.g. '2-core CPU'"
    )
    parser.add_argument(
        "--json",
        default=None,
        help="results are added to this file; what it has already is not measured again",
    )
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--done", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.scale, args.repeats = 0.1, args.repeats or 1
    return args


def run(name: str, args, known: dict, wanted: int, until: float, saved) -> int:
    """Measures one workload in a process of its own.

    Args:
        name: of the workload.
        args: the command's options.
        known: what was measured before; the results are added to it.
        wanted: repeats.
        until: the time at which no further repeat begins.
        saved: called after every repeat.

    Returns:
        The process's exit status.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.sampling",
        *sys.argv[1:],
        "--child",
        name,
        "--repeats",
        str(wanted),
        "--done",
        str(results.repeats(known)),
        "--until",
        str(until),
    ]
    child = subprocess.Popen(
        command, env={**os.environ, **ALLOCATOR}, stdout=subprocess.PIPE, text=True
    )
    for line in child.stdout:
        if not line.startswith('{"measured": '):
            print(line, end="", flush=True)
            continue
        measured = json.loads(line)["measured"]
        repeat, load = measured.pop("repeat", None), measured.pop("load", None)
        known |= measured
        if repeat is None:
            print(
                f"{name:12} compiled in {known['compile_s']:.1f} s; first run {known['first']}",
                flush=True,
            )
            continue
        results.add(known, repeat)
        known.setdefault("load", []).append(load)
        known["summary"] = results.summarise(known)
        saved()
        print("\n".join(results.lines(name, known)), flush=True)
    return child.wait()


@command
def main() -> None:
    args = parse()
    if args.cores:  # inherited by the peer; thread pools take their size from it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
        os.environ["OMP_NUM_THREADS"] = str(args.cores)
    if args.child:
        measure(
            args.child, args, lambda measured: print(json.dumps({"measured": measured}), flush=True)
        )
        return
    until = time.time() + 60 * args.minutes if args.minutes else 0.0
    path = pathlib.Path(args.json) if args.json else None
    saved = results.load(path) if path else {}
    saved["versions"] = {
        name: importlib.metadata.version(name)
        for name in ("jax", "jaxlib", "torch", "transformers")
    }
    saved["device"] = args.device or saved.get("device", "")
    settings = {
        "scale": args.scale,
        "cores": len(os.sched_getaffinity(0)),
        "dtype": args.dtype,
        "ways": args.ways,
        "options": json.loads(args.options),
        "peer_share": args.peer_share,
        "sampler": sampler_digest(),
    }
    failed = []
    for name in args.workloads:
        key = " ".join(
            [name]
            + [args.dtype] * (args.dtype != "float32")
            + [args.options] * (args.options != "{}")
        )
        try:
            known = results.entry(saved, key, settings)
        except ValueError as error:
            sys.exit(f"{path}: {error}")
        wanted = args.repeats or REPEATS[name]
        if results.repeats(known) >= wanted:
            print("\n".join(results.lines(name, known)), flush=True)
            continue
        if until and time.time() > until:
            print(f"{name:12} not begun: the {args.minutes:g} minutes are over", flush=True)
            continue
        known["commit"] = commit()
        before = time.time()
        status = run(name, args, known, wanted, until, lambda: path and results.save(path, saved))
        if status:
            print(f"{name:12} failed: exit status {status}", flush=True)
            failed.append(name)
        elif path:
            known["run_s"] = round(known.get("run_s", 0) + time.time() - before)
            results.save(path, saved)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(main())
