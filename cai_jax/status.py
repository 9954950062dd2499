"""Where a run is: `python -m cai_jax.status WORKDIR`. Reads RUN/status.json, manifests and metrics,
touches nothing."""

from __future__ import annotations

import sys

from etils import epath

from cai_jax.errors import Parser, UserError, command
from cai_jax.io import artefacts, lock, where
from cai_jax.io.metrics import read_rows

USAGE = "python -m cai_jax.status WORKDIR"


def describe(run_path) -> list[str]:
    """One line a stage of the run's graph: done, begun at a step or row, waiting, or not asked for.
    UserError where no run is."""
    run_path = epath.Path(run_path)
    config = artefacts.read_json(run_path / "config.json")
    if config is None:
        raise UserError(f"{run_path}: no config.json there, so no run; usage: {USAGE}")
    owner = lock.owner(run_path)
    held = f"held by process {owner['pid']} on {owner['host']}" if owner else "no process holds it"
    if owner and not lock.alive(owner, lock.path_of(run_path)):
        held = f"process {owner['pid']} on {owner['host']} is gone: the same command goes on"
    lines = [f"{run_path}: {_shown(where.read(run_path))}{held}"]
    asked, graph = list(config["config"]["stages"]), list(config["config"].get("graph") or {})
    graph = [*asked, *(name for name in graph if name not in asked)]
    stages = {name: _stage(run_path / name, name in asked) for name in graph}
    done = sum(finished for finished, _ in stages.values())
    lines.append(f"  {done} of {len(graph)} stages of the graph done")
    return lines + [f"  {name:20} {state}" for name, (_, state) in stages.items()]


def _stage(path: epath.Path, asked: bool) -> tuple[bool, str]:
    """(whether the stage is done, what its line shows); a damaged manifest is named there."""
    try:
        manifest = artefacts.StageDirectory(path).manifest
    except UserError as error:
        return False, str(error)
    if manifest.get("done"):
        headline = manifest["summary"].get("headline", "")
        return True, f"done in {manifest['seconds']:.0f} s: {headline}"
    if not manifest:
        return False, "waiting" if asked else "not among the stages of the last command"
    if steps := read_rows(path / "metrics.jsonl"):
        return False, f"begun, step {steps[-1]['step']}"
    shards = path.glob("*.parts/[0-9]*.jsonl")
    rows = sum(shard.read_bytes().count(b"\n") for shard in shards)
    return False, f"begun, {rows} rows on disk"


def _shown(status: dict | None) -> str:
    """What the run itself reported last."""
    if not status:
        return ""
    place = (
        f" at {status['stage']}, {status['number']} of {len(status['stages'])},"
        if status["state"] != "done"
        else ""
    )
    why = f" ({status['message']})" if status["message"] else ""
    return f"{status['state']}{place} since {status['time']}{why}; "


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error."""
    parser = Parser(prog="cai_jax.status", usage=USAGE, description=__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", help="a run directory")
    arguments = parser.parse_args((sys.argv if argv is None else argv)[1:])
    print("\n".join(describe(arguments.workdir)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
