"""The results of `benchmarks.sampling` as Markdown: `python -m benchmarks.table out.json [--clock
cpu]`."""

from __future__ import annotations

import argparse
import pathlib

from benchmarks import results

# Workload, what it is, its unit, and per peer: how many times as fast as it ours should be, and is
# meant to become.
ROWS = (
    ("decode", "decode, batch 16, {new_tokens} new tokens", "tokens/s", {"generate": (1.3, 1.7)}),
    (
        "critique",
        "critique, {rows} dialogues behind {header_tokens} tokens, {new_tokens} new tokens",
        "tokens/s",
        {"generate": (6, 10), "generate, prefix cache by hand": (None, None)},
    ),
    ("revise", "revise stage, {rows} prompts, {rounds} rounds", "prompts/s", {"generate": (5, 10)}),
    (
        "skewed",
        "length-skewed, {rows} prompts, longest {longest} tokens",
        "tokens/s",
        {"generate": (2.5, 4), "ours, static batches": (1.5, None)},
    ),
    (
        "labels",
        "feedback labels, {comparisons} comparisons, both orders",
        "labels/s",
        {"plain forward": (2.5, 5), "transformers forward": (2.5, 5)},
    ),
    ("latency", "batch 1, {new_tokens} new tokens", "tokens/s", {"generate": (1, 2)}),
    (
        "first_token",
        "first token of one prompt of {header_tokens} + {own_tokens} tokens",
        "",
        {"generate": (None, None), "ours, header kept": (None, None)},
    ),
)


def digits(x: float) -> str:
    """Three digits that mean something, never as a power of ten."""
    return f"{x:.3g}" if x < 1000 else f"{x:,.0f}"


def seconds(row: dict, suffix: str) -> str:
    return (
        f"{digits(row[f'median{suffix}_s'])} s ({digits(row[f'min{suffix}_s'])} to "
        f"{digits(row[f'max{suffix}_s'])})"
    )


def rate(row: dict, suffix: str, unit: str) -> str:
    return f", {digits(row[f'per{suffix}_second'])} {unit}" if unit else ""


def comparisons(workloads: dict, clock: str = "wall"):
    """A row a workload and peer: (what, ours, peer's name, peer, ratio, reach, aim, reached,
    repeats)."""
    suffix = results.CLOCKS[clock]
    for name, what, unit, peers in ROWS:
        if not (known := workloads.get(name, {})).get("summary"):
            continue
        summary = known["summary"]
        for peer, (reach, aim) in peers.items():
            if peer not in summary or "ours" not in summary:
                continue
            row = summary[peer]
            ratio = row[f"times_ours{suffix}"]
            part = f"; timed on {row['share']:.2g} of the work" if row["share"] < 1 else ""
            yield (
                what.format(**known["about"]),
                seconds(summary["ours"], suffix) + rate(summary["ours"], suffix, unit),
                peer,
                seconds(row, suffix) + rate(row, suffix, unit) + part,
                (
                    f"{ratio:.2f}× ({row[f'times_ours{suffix}_min']:.2f} to "
                    f"{row[f'times_ours{suffix}_max']:.2f})"
                ),
                f"{reach:g}×" if reach else "",
                f"{aim:g}×" if aim else "",
                ("yes" if ratio >= reach else "**no**") if reach else "",
                str(row["repeats"]),
            )


def markdown(saved: dict, clock: str = "wall") -> str:
    """The table of speeds, and one of memory and compiling."""

    def line(cells):
        return "| " + " | ".join(cells) + " |"

    workloads = saved["workloads"]
    head = (
        "workload",
        "ours",
        "peer",
        "the peer's",
        "ratio",
        "reach",
        "aim",
        "reached?",
        "repeats",
    )
    rows = [line(head), line(["---"] * len(head)), *map(line, comparisons(workloads, clock)), ""]
    head = ("workload", "compile s", "programs", "peak MiB, ours", "generate", "load")
    rows += [line(head), line(["---"] * len(head))]
    for name, known in workloads.items():
        if known.get("summary"):
            peaks = [
                f"{known[key] / 2**20:.0f}" if known.get(key) else ""
                for key in ("ours_peak_bytes", "generate_peak_bytes")
            ]
            load = f"{min(known['load'])} to {max(known['load'])}"
            rows.append(
                line([name, f"{known['compile_s']:.1f}", str(known["programs"]), *peaks, load])
            )
    clocks = {"wall": "by the clock", "cpu": "of processors (all threads)"}
    cores = sorted(
        {known["settings"]["cores"] for known in workloads.values() if known.get("summary")}
    )
    about = [
        (
            f"Seconds {clocks[clock]}: median (fastest to slowest) of the repeats, ratios of each "
            "repeat likewise."
        ),
        saved.get("device", ""),
        f"{' or '.join(map(str, cores))} cores;",
        ", ".join(f"{name} {version}" for name, version in saved.get("versions", {}).items()),
    ]
    return "\n".join([*rows, "", " ".join(filter(None, about))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=pathlib.Path)
    parser.add_argument("--clock", default="wall", choices=list(results.CLOCKS))
    args = parser.parse_args()
    print(markdown(results.load(args.json), args.clock))


if __name__ == "__main__":
    main()
