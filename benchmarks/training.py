"""Training beside torch, TRL and Tunix: `python -m benchmarks.training --json out.json`.

SmolLM2-135M in float32. `sl`: a step of 4 × 256 tokens beside transformers' model with torch's AdamW. `ppo`: a whole update
(16 prompts × 32 tokens, 48 response tokens, 4 epochs of 4 minibatches) in four forms of ours beside TRL's
`trl.experimental.ppo`. `tunix`: the same beside Tunix's PPOLearner. Each side is a process of its own with the allocator's
best settings; the sides of a group take turns, so that whatever else the machine does falls on all of them. A process of
ours that had to compile is started once more, so that its peak memory is that of training. Results are written after every
round. `--quick` makes everything small; `--python` names an interpreter that has the peers' packages.
benchmarks/README.md has what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

from benchmarks.sides import Side

PPO = "ppo ours", "ppo ours, shared trunk", "ppo ours, adapters", "ppo ours, adapters, shared trunk"
GROUPS = {"sl": ("sl ours", "sl torch"), "ppo": (*PPO, "ppo trl"), "tunix": ("ppo ours", "ppo tunix")}  # the peer comes last
WORK = {"rows": 4, "row": 256, "prompts": 16, "prompt": 32, "new_tokens": 48, "epochs": 4, "minibatches": 4, "chunk": 128}
QUICK = WORK | {"rows": 2, "row": 64, "prompts": 4, "prompt": 16, "new_tokens": 8, "epochs": 2, "minibatches": 2}
BEGAN = time.monotonic()


def work_of(model: str, sizes: dict) -> dict:
    """The same tokens for all sides: those of the embedded prompts, one after the other, cut to length."""
    from cai_jax.data.dialogue import load_format
    from cai_jax.data.prompts import load_prompts

    encode = load_format(model).tokenizer.encode
    text = " ".join(prompt.dialogue[-1].text for prompt in load_prompts("embedded:helpful"))
    tokens = encode(text)
    wanted = max(sizes["rows"] * sizes["row"], sizes["prompts"] * sizes["prompt"])
    tokens = list(tokens) * -(-wanted // len(tokens))

    def cut(count, length):
        return [tokens[n * length : (n + 1) * length] for n in range(count)]

    return sizes | {"model": model, "rows": cut(sizes["rows"], sizes["row"]), "prompts": cut(sizes["prompts"], sizes["prompt"])}


def start(name: str, work: str, python: str) -> Side:
    side = Side(name, work, python)
    if side.ready.get("compiled"):
        compiled = side.ready["compile_seconds"]
        side.close()
        side = Side(name, work, python)
        side.ready["cold_compile_seconds"] = compiled
    return side


def tokens_of(group: str, sizes: dict) -> int:
    """Tokens that one round trains on, once each: what tokens/s speaks of."""
    return sizes["rows"] * sizes["row"] if group == "sl" else sizes["prompts"] * (sizes["prompt"] + sizes["new_tokens"])


def summary(group: str, rounds: list[dict], ready: dict[str, dict], sizes: dict) -> dict:
    """Medians of rounds {side: its answer}. `speed`: how many times as fast as the peer, the median over rounds; `memory`:
    the peak as a share of the peer's."""
    found, peer = {}, GROUPS[group][-1]
    for name in ready:
        rows = [each[name] for each in rounds]
        found[name] = {"ready": ready[name], "peak_bytes": max(row["peak_bytes"] for row in rows), "each": rows}
        for key in rows[0]:
            if key.endswith("seconds"):
                found[name][key] = statistics.median(row[key] for row in rows)
        found[name]["tokens_per_second"] = tokens_of(group, sizes) / found[name]["seconds"]
        found[name]["tokens_per_cpu_second"] = tokens_of(group, sizes) / found[name]["cpu_seconds"]
        if peer in ready:
            found[name]["speed"] = statistics.median(each[peer]["seconds"] / each[name]["seconds"] for each in rounds)
            found[name]["cpu_speed"] = statistics.median(each[peer]["cpu_seconds"] / each[name]["cpu_seconds"] for each in rounds)
    for name in found:
        if peer in found:
            found[name]["memory"] = found[name]["peak_bytes"] / found[peer]["peak_bytes"]
    return found


def run(group: str, args, sizes: dict, work: str, save) -> dict:
    sides, failed, rounds, result, took = {}, {}, [], {}, 0.0
    for name in GROUPS[group]:
        if args.ways and not any(way in name for way in args.ways):
            continue
        python = sys.executable if " ours" in name else args.python or sys.executable
        print(f"{name}: starts", file=sys.stderr, flush=True)
        try:
            sides[name] = start(name, work, python)
        except RuntimeError as error:  # its own words are on standard error
            failed[name] = str(error)
            print(f"{name}: left out: {error}", flush=True)
    try:
        for number in range(args.repeats if sides else 0):
            if rounds and args.minutes and time.monotonic() - BEGAN + took > 60 * args.minutes:
                break  # another one would take too long
            before = time.monotonic()
            rounds.append({name: side.work() for name, side in sides.items()})
            took = time.monotonic() - before
            for name, row in rounds[-1].items():
                if row.get("steps", 0) not in (0, sizes["epochs"] * sizes["minibatches"]):
                    sys.exit(f"{name} made {row['steps']} optimiser steps, which is other work")
            ready = {name: side.ready for name, side in sides.items()}
            result = {"sizes": sizes, "rounds": number + 1, "cores": args.cores or os.cpu_count(), "failed": failed,
                      "load": [round(x, 1) for x in os.getloadavg()], "sides": summary(group, rounds, ready, sizes)}
            save(result)
            told = ", ".join(f"{name} {row['seconds']:.2f} s" for name, row in rounds[-1].items())
            print(f"{group}: round {number + 1}: {told}", file=sys.stderr, flush=True)
    finally:
        for side in sides.values():
            side.close()
    return result


def table(group: str, found: dict) -> list[str]:
    lines = []
    for name, row in found.get("sides", {}).items():
        line = (f"{name:34} {row['seconds']:7.2f} s {row['tokens_per_second']:6.1f} tokens/s, {row['cpu_seconds']:7.2f} processor "
                f"s, {row['peak_bytes'] / 2**20:6.0f} MiB")
        if "speed" in row:
            line += f"  speed {row['speed']:.2f}× (of processors {row['cpu_speed']:.2f}×), memory {row['memory']:.2f}×"
        parts = [f"{part} {row[f'{part}_seconds']:.1f}" for part in ("rollout", "score", "learn") if f"{part}_seconds" in row]
        lines.append(line + (f"  ({', '.join(parts)})" if parts else ""))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--ways", nargs="+", default=[], help="only sides whose name has one of these in it, e.g. 'ppo ours' trl")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0, help="begin no round that would end later than this; 0: no limit")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that everything runs")
    parser.add_argument("--cores", type=int, default=0, help="tie all sides to so many cores; 0: all")
    parser.add_argument("--python", default="", help="the interpreter for torch, TRL and Tunix; default: this one")
    parser.add_argument("--device", default="", help="what the results say of the machine, e.g. '2-core CPU'")
    parser.add_argument("--json", default=None, help="results are added to this file, round by round")
    args = parser.parse_args()
    if args.cores:  # inherited by the sides; thread pools take their size from it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
        os.environ["OMP_NUM_THREADS"] = str(args.cores)
    sizes = QUICK if args.quick else WORK

    def save(group, found):
        if args.json:
            path = pathlib.Path(args.json)
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"groups": {}}
            known |= {"device": args.device, "model": pathlib.Path(args.model).name}
            known["groups"][group] = found
            path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        work = os.path.join(folder, "work.json")
        pathlib.Path(work).write_text(json.dumps(work_of(args.model, sizes)), encoding="utf-8")
        for group in args.groups:
            before = time.time()
            found = run(group, args, sizes, work, lambda found, group=group: save(group, found))
            print("\n".join([*table(group, found), f"{group}: {time.time() - before:.0f} s in all"]), flush=True)


if __name__ == "__main__":
    main()
