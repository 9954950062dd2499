"""What `benchmarks.sampling` writes: raw seconds of every repeat, and the medians that follow from
them."""

from __future__ import annotations

import json
import os
import pathlib
import statistics

CLOCKS = {"wall": "", "cpu": "_cpu"}


def load(path: pathlib.Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(path: pathlib.Path, results: dict) -> None:
    """At once or not at all: a machine that stops meanwhile leaves what was there."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def entry(results: dict, key: str, settings: dict) -> dict:
    """The workload's place in the results, which further repeats are added to. ValueError where
    what is there was measured in another way."""
    known = results.setdefault("workloads", {}).setdefault(key, {"settings": settings, "ways": {}})
    if known.get("settings") != settings:
        before = known.get("settings") or {}
        names = ", ".join(
            sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        )
        raise ValueError(
            f"'{key}' is there already, measured otherwise ({names}); give another file, or "
            "remove it there"
        )
    return known


def repeats(known: dict) -> int:
    """How many are finished, with every way."""
    return min((len(way["wall_s"]) for way in known["ways"].values()), default=0)


def add(known: dict, timings: dict) -> None:
    """One repeat: {way: {"wall", "cpu": seconds of all the work, "share": the part of the work that
    was run}}."""
    for name, took in timings.items():
        way = known["ways"].setdefault(name, {"share": [], "wall_s": [], "cpu_s": []})
        way["share"].append(round(took["share"], 4))
        for clock in CLOCKS:
            way[f"{clock}_s"].append(round(took[clock], 3))


def summarise(known: dict) -> dict:
    """{way: median, fastest and slowest seconds by both clocks, units a second at the median; and
    how many times as long as ours it took, as the median, least and most of the repeats}."""
    summary = {}
    for name, way in known["ways"].items():
        row = summary[name] = {"repeats": len(way["wall_s"]), "share": min(way["share"])}
        for clock, suffix in CLOCKS.items():
            seconds = way[f"{clock}_s"]
            median = statistics.median(seconds)
            row |= {
                f"median{suffix}_s": median,
                f"min{suffix}_s": min(seconds),
                f"max{suffix}_s": max(seconds),
                f"per{suffix}_second": known["units"] / median,
            }
            ours = known["ways"].get("ours", {}).get(f"{clock}_s", ())
            ratios = [other / mine for other, mine in zip(seconds, ours, strict=False)]
            if ratios:
                row |= {
                    f"times_ours{suffix}": statistics.median(ratios),
                    f"times_ours{suffix}_min": min(ratios),
                    f"times_ours{suffix}_max": max(ratios),
                }
    return summary


def lines(key: str, known: dict) -> list[str]:
    """The summary to be read as it grows."""
    result = []
    for name, row in known["summary"].items():
        part = f" (measured on {row['share']:.3g} of the work)" if row["share"] < 1 else ""
        result.append(
            f"{key:12} {name:32} {row['median_s']:8.2f} s ({row['min_s']:.2f} to "
            f"{row['max_s']:.2f}) {row['per_second']:8.1f}/s   "
            f"{row.get('times_ours', 0):.2f}× ours ({row.get('times_ours_min', 0):.2f} to "
            f"{row.get('times_ours_max', 0):.2f}); "
            f"of processors {row['median_cpu_s']:.2f} s, {row.get('times_ours_cpu', 0):.2f}×{part}"
        )
    mib = ", ".join(
        f"{name} {known[f'{name}_peak_bytes'] / 2**20:.0f}"
        for name in ("ours", "generate")
        if known.get(f"{name}_peak_bytes")
    )
    late = f", {known['late_programs']} more while measuring" if known.get("late_programs") else ""
    result.append(
        f"{'':12} {repeats(known)} repeats; compiles {known['compile_s']:.1f} s, "
        f"{known['programs']} programs{late}; "
        f"peak MiB: {mib}"
    )
    return result
