"""Training against torch, TRL and Tunix: `python -m benchmarks.training --json out.json`.

SmolLM2-135M in float32. `sl`: a step of 4 × 256 tokens against transformers' model with torch's
AdamW. `ppo`: a complete update (16 prompts × 32 tokens, 48 response tokens, 4 epochs of 4
minibatches) in four forms of ours against TRL's `trl.experimental.ppo`. `tunix`: the same against
Tunix's PPOLearner. Each side is a process of its own with the allocator's best settings. They start
one after the other, as several would not fit into the memory of one machine, and take turns: warm
up, be measured, end. A process that had to compile is started once more, so that its peak memory is
that of training. Every measurement is written at once; the same command again goes on where it
stopped. `--quick` makes everything small; `--python` names an interpreter that has the peers'
packages. benchmarks/README.md has the results.
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

from benchmarks import results
from benchmarks.sides import Side
from cai_jax.errors import command

PPO = "ppo ours", "ppo ours, shared trunk", "ppo ours, adapters", "ppo ours, adapters, shared trunk"
GROUPS = {
    "sl": ("sl ours", "sl torch"),
    "ppo": (*PPO, "ppo trl"),
    "tunix": ("ppo ours", "ppo tunix"),
}  # the peer comes last
ORDER = (
    "sl ours",
    "sl torch",
    "ppo ours",
    "ppo trl",
    *PPO[1:3],
    "ppo tunix",
    PPO[3],
)  # of a round: what matters most comes first
WORK = {
    "rows": 4,
    "row": 256,
    "prompts": 16,
    "prompt": 32,
    "new_tokens": 48,
    "epochs": 4,
    "minibatches": 4,
    "chunk": 128,
}
QUICK = WORK | {
    "rows": 2,
    "row": 64,
    "prompts": 4,
    "prompt": 16,
    "new_tokens": 8,
    "epochs": 2,
    "minibatches": 2,
}
TURNS = {"sl": 5, "ppo": 1}  # how often a side does its work in one process; the median counts
MEASURED = "seconds", "cpu_seconds", "rollout_seconds", "score_seconds", "learn_seconds"


def work_of(model: str, sizes: dict) -> dict:
    """The same tokens for all sides: those of the embedded prompts, one after the other, cut to
    length."""
    from cai_jax.data.dialogue import load_format
    from cai_jax.data.prompts import read_prompts

    encode = load_format(model).tokenizer.encode
    text = " ".join(prompt.dialogue[-1].text for prompt in read_prompts("embedded:helpful")[0])
    tokens = encode(text)
    wanted = max(sizes["rows"] * sizes["row"], sizes["prompts"] * sizes["prompt"])
    tokens = list(tokens) * -(-wanted // len(tokens))

    def cut(count, length):
        return [tokens[n * length : (n + 1) * length] for n in range(count)]

    return sizes | {
        "model": model,
        "rows": cut(sizes["rows"], sizes["row"]),
        "prompts": cut(sizes["prompts"], sizes["prompt"]),
    }


def start(name: str, work: str, python: str) -> Side:
    side = Side(name, work, python)
    if side.ready.get("compiled"):
        compiled = side.ready["compile_seconds"]
        side.close()
        side = Side(name, work, python)
        side.ready["cold_compile_seconds"] = compiled
    return side


def visit(name: str, work: str, python: str, sizes: dict) -> dict:
    """One side's measurement.

    Args:
        name: of the side, as in `GROUPS`.
        work: the path of the file that describes the work.
        python: the interpreter that runs the side.
        sizes: `WORK` or `QUICK`.

    Returns:
        The medians of its turns, the peak, and what it reports itself.

    Raises:
        RuntimeError: it dies, or did other work.
    """
    side = start(name, work, python)
    try:
        rows = [side.work() for _ in range(TURNS[name.split()[0]])]
    finally:
        side.close()
    steps = {row["steps"] for row in rows if "steps" in row}
    if steps - {sizes["epochs"] * sizes["minibatches"]}:
        raise RuntimeError(f"{name} made {steps} optimiser steps, which is other work")
    medians = {
        key: statistics.median(row[key] for row in rows) for key in MEASURED if key in rows[0]
    }
    return {
        **rows[-1],
        **medians,
        "turns": [row["seconds"] for row in rows],
        "ready": side.ready,
        "load": [round(x, 1) for x in os.getloadavg()],
    }


def tokens_of(name: str, sizes: dict) -> int:
    """Tokens that one round trains on, once each: what tokens/s speaks of."""
    supervised = name.startswith("sl")
    return (
        sizes["rows"] * sizes["row"]
        if supervised
        else sizes["prompts"] * (sizes["prompt"] + sizes["new_tokens"])
    )


def summary(group: str, visits: dict[str, list[dict]], sizes: dict) -> dict:
    """Medians of each side's visits. `speed`: how many times as fast as the peer, the median over
    rounds (a side's n-th visit and the peer's), with the least and the most; `memory`: the peak as
    a share of the peer's."""
    by_side, theirs = {}, visits.get(GROUPS[group][-1], [])
    for name in GROUPS[group]:
        rows = visits.get(name, [])
        if not rows:
            continue
        row = by_side[name] = {
            "visits": len(rows),
            "peak_bytes": max(row["peak_bytes"] for row in rows),
        }
        row |= {
            key: statistics.median(each[key] for each in rows) for key in MEASURED if key in rows[0]
        }
        row["tokens_per_second"] = tokens_of(name, sizes) / row["seconds"]
        row["tokens_per_cpu_second"] = tokens_of(name, sizes) / row["cpu_seconds"]
        if theirs:
            for speed, key in (("speed", "seconds"), ("cpu_speed", "cpu_seconds")):
                ratios = [their[key] / our[key] for their, our in zip(theirs, rows, strict=False)]
                row |= {
                    speed: statistics.median(ratios),
                    f"{speed}_min": min(ratios),
                    f"{speed}_max": max(ratios),
                }
            row["memory"] = row["peak_bytes"] / max(their["peak_bytes"] for their in theirs)
    return by_side


def table(by_side: dict) -> list[str]:
    """A summary as rows of Markdown."""
    lines = []
    for name, row in by_side.items():
        parts = ", ".join(
            f"{part} {row[f'{part}_seconds']:.1f}"
            for part in ("rollout", "score", "learn")
            if f"{part}_seconds" in row
        )
        line = (
            f"| {name} | {row['seconds']:.2f} s{f' ({parts})' if parts else ''} | "
            f"{row['tokens_per_second']:.1f} | "
            f"{row['cpu_seconds']:.1f} s | {row['peak_bytes'] / 2**20:.0f} MiB |"
        )
        if "speed" in row:
            line += (
                f" {row['speed']:.2f}× ({row['speed_min']:.2f} to {row['speed_max']:.2f}) | "
                f"{row['cpu_speed']:.2f}× | "
                f"{row['memory']:.2f}× |"
            )
        else:
            line += " | | |"
        lines.append(f"{line} {row['visits']} |")
    return lines


HEADER = (
    "| side | by the clock | tokens/s | of processors | peak | speed | of processors | "
    "memory | times |"
)


def measure(names, repeats: int, known: dict, visit_side, save, out_of_time) -> dict[str, str]:
    """Visits in rounds until every side has enough.

    Args:
        names: of the sides, in order.
        repeats: visits of each.
        known: what was measured before; visits are added to known["visits"].
        visit_side: measures the side of a name.
        save: called after every visit.
        out_of_time: whether another visit like these would end too late.

    Returns:
        {side that failed: why}.
    """
    failed: dict[str, str] = {}
    for number in range(repeats):
        for name in names:
            rows = known["visits"].setdefault(name, [])
            if len(rows) > number or name in failed:
                continue
            if out_of_time(rows):
                return failed
            before = time.monotonic()
            try:
                rows.append(visit_side(name))
            except RuntimeError as error:  # its own words are on standard error
                failed[name] = str(error)
                print(f"{name}: left out: {error}", flush=True)
                continue
            rows[-1]["whole_seconds"] = time.monotonic() - before
            save()
            print(
                f"{name}, {number + 1}: {rows[-1]['seconds']:.2f} s, "
                f"{rows[-1]['peak_bytes'] / 2**20:.0f} MiB (with its start "
                f"{rows[-1]['whole_seconds']:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    return failed


@command
def main() -> None:
    # --- options
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument(
        "--ways",
        nargs="+",
        default=[],
        help="only sides whose name has one of these in it, e.g. 'ppo ours' trl",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--minutes",
        type=float,
        default=0,
        help="begin nothing that would probably end later; 0: no limit",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: to see that everything runs"
    )
    parser.add_argument(
        "--cores", type=int, default=0, help="tie all sides to so many cores; 0: all"
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="only compile what is then read from disk; nothing is measured",
    )
    parser.add_argument(
        "--python", default="", help="the interpreter for torch, TRL and Tunix; default: this one"
    )
    parser.add_argument(
        "--device", default="", help="what the results say of the machine, e.g. '2-core CPU'"
    )
    parser.add_argument("--json", default=None, help="results are added to this file, side by side")
    args = parser.parse_args()
    began = time.monotonic()
    if args.cores:  # inherited by the sides; thread pools take their size from it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.cores :])
        os.environ["OMP_NUM_THREADS"] = str(args.cores)

    # --- what was measured before
    sizes = QUICK if args.quick else WORK
    path = args.json and pathlib.Path(args.json)
    cores = args.cores or os.cpu_count()
    settings = {
        "model": pathlib.Path(args.model).name,
        "device": args.device,
        "cores": cores,
        "sizes": sizes,
    }
    known = results.load(path) if path else {}
    if any(known.get(name, value) != value for name, value in settings.items()):
        sys.exit(
            f"{path} was measured otherwise (model, device, cores or sizes); give another file"
        )
    known = settings | {"visits": {}} | known

    def save():
        known["groups"] = {group: summary(group, known["visits"], sizes) for group in GROUPS}
        if path:
            results.save(path, known)

    def out_of_time(rows):
        took = rows[-1]["whole_seconds"] if rows else 0
        return args.minutes and time.monotonic() - began + took > 60 * args.minutes

    # --- sides in turns
    chosen = {name for group in args.groups for name in GROUPS[group]}
    names = [
        name
        for name in ORDER
        if name in chosen and (not args.ways or any(way in name for way in args.ways))
    ]
    with tempfile.TemporaryDirectory() as folder:
        work = os.path.join(folder, "work.json")
        pathlib.Path(work).write_text(json.dumps(work_of(args.model, sizes)), encoding="utf-8")

        def python(name):
            return sys.executable if " ours" in name else args.python or sys.executable

        for name in (
            [name for name in names if not name.endswith(("torch", "trl"))] if args.prepare else ()
        ):
            side = Side(name, work, python(name))
            print(f"{name}: {json.dumps(side.ready)}", flush=True)
            side.close()
        if args.prepare:
            return

        def visit_side(name):
            return visit(name, work, python(name), sizes)

        failed = measure(names, args.repeats, known, visit_side, save, out_of_time)
    # --- tables
    save()
    for group in args.groups:
        print(
            "\n".join([f"\n{group}", HEADER, "|---" * 9 + "|", *table(known["groups"][group])]),
            flush=True,
        )
    print(f"{time.monotonic() - began:.0f} s in all")
    if failed:
        sys.exit("; ".join(f"{name}: {why}" for name, why in failed.items()))


if __name__ == "__main__":
    sys.exit(main())
