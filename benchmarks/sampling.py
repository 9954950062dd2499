"""The sampling engine beside transformers' `generate`: `python -m benchmarks.sampling --json out.json`.

Both run the same weights and the same prompts in turns (ours, theirs, ours, …), so that whatever else the machine does
falls on both; medians are over the repeats. Every workload runs in a process of its own, so that its peak memory and its
compile seconds are its own. `--scale 0.25` cuts every workload to a quarter (`--quick` too). On a machine that others use,
`--cores 1` ties everything to one core, where seconds of the processor can be compared; both clocks are always written.
benchmarks/README.md has what was found.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

from benchmarks.peer import ALLOCATOR

NAMES = ("decode", "latency", "first_token", "labels", "skewed", "critique", "revise")


def measure(name: str, args) -> dict:
    """One workload in this process: {"ways": {name: {median_s, all_s, …}}, …}."""
    import jax

    from benchmarks import workloads

    compiling = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiling.append(seconds) if event.endswith("backend_compile_duration") else None
    )
    bench = workloads.Bench(args.model, args.scale, args.dtype, json.loads(args.options))
    work = workloads.WORKLOADS[name](bench)
    compiling.clear()
    first, result = {}, dict(work.about)
    for way in work.compiled:
        first[way] = work.ways[way]()
        if way == "ours":
            result["compile_s"], result["programs"] = sum(compiling), len(compiling)
            result["ours_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ways = {way: run for way, run in work.ways.items() if not args.ways or way in args.ways}
    rounds = [{way: run() for way, run in ways.items()} for _ in range(args.repeats)]
    result["ways"] = {}
    for way in ways:
        row = result["ways"][way] = {"first_s": first[way].wall, "first_cpu_s": first[way].cpu} if way in first else {}
        for clock, suffix in (("wall", ""), ("cpu", "_cpu")):
            seconds = [getattr(each[way], clock) for each in rounds]
            row |= {f"median{suffix}_s": statistics.median(seconds), f"all{suffix}_s": [round(s, 3) for s in seconds],
                    f"per{suffix}_second": work.units / statistics.median(seconds)}  # fmt: skip
            if "ours" in ways:
                ratios = [getattr(each[way], clock) / getattr(each["ours"], clock) for each in rounds]
                row |= {f"times_ours{suffix}": statistics.median(ratios), f"times_ours{suffix}_each": [round(r, 3) for r in ratios]}
    return result | bench.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--workloads", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--ways", nargs="+", default=[], help="only these ways of each workload, e.g. ours generate")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--quick", dest="scale", action="store_const", const=0.25)
    parser.add_argument("--cores", type=int, default=0, help="tie both sides to so many cores; 0: all")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--options", default="{}", help="fields of EngineOptions as JSON")
    parser.add_argument("--device", default="", help="what the results say of the machine, e.g. '2-core CPU'")
    parser.add_argument("--json", default=None, help="results are added to this file, workload by workload")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cores:  # inherited by the peer; thread pools take their size from it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
        os.environ["OMP_NUM_THREADS"] = str(args.cores)
    if args.child:
        print(json.dumps(measure(args.child, args)))
        return
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "torch", "transformers")}
    for name in args.workloads:
        command = [sys.executable, "-m", "benchmarks.sampling", *sys.argv[1:], "--child", name]
        before = time.time()
        done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{name}: the process ended with exit status {done.returncode}")
        found = json.loads(done.stdout.splitlines()[-1])
        found |= {"repeats": args.repeats, "scale": args.scale, "cores": args.cores or os.cpu_count(),
                  "load": [round(x, 1) for x in os.getloadavg()], "run_s": round(time.time() - before)}  # fmt: skip
        for way, row in found["ways"].items():
            print(f"{name:12} {way:32} {row['median_s']:8.2f} s {row['per_second']:8.1f}/s  ours is {row.get('times_ours', 0):.2f}×"
                  f"   of processors {row['median_cpu_s']:8.2f} s {row['per_cpu_second']:8.1f}/s  ours is "
                  f"{row.get('times_ours_cpu', 0):.2f}×", flush=True)  # fmt: skip
        mib = {key: round(value / 2**20) for key, value in found.items() if key.endswith("peak_bytes")}
        print(f"{'':12} compiles {found['compile_s']:.1f} s, {found['programs']} programs; peak MiB {mib}", flush=True)
        if args.json:
            path = pathlib.Path(args.json)
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"workloads": {}}
            known |= {"device": args.device, "versions": versions}
            key = name if args.dtype == "float32" else f"{name} {args.dtype}"
            known["workloads"][key if not json.loads(args.options) else f"{key} {args.options}"] = found
            path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
