"""Where a run is: `python -m cai_jax.status WORKDIR`. Reads RUN/status.json, manifests and metrics, touches nothing."""

from __future__ import annotations

import json
import sys

from etils import epath

from cai_jax.errors import UserError
from cai_jax.io import artefacts, lock, where
from cai_jax.io.metrics import read_rows

USAGE = "usage: python -m cai_jax.status WORKDIR"


def describe(run_path) -> list[str]:
    """One line a stage of the run's last command: done, running at a step or row, or waiting. UserError where no run is."""
    run_path = epath.Path(run_path)
    config = artefacts.read_json(run_path / "config.json")
    if config is None:
        raise UserError(f"{run_path}: no config.json there, so no run; {USAGE}")
    owner = lock.owner(run_path)
    held = f"held by process {owner['pid']} on {owner['host']}" if owner else "no process holds it"
    if owner and not lock.alive(owner, lock.path_of(run_path)):
        held = f"process {owner['pid']} on {owner['host']} is gone: the same command goes on"
    lines = [f"{run_path}: {_shown(where.read(run_path))}{held}"]
    for name in config["config"]["stages"]:
        directory = artefacts.StageDirectory(run_path / name)
        manifest = directory.manifest
        if manifest.get("done"):
            told = f"done in {manifest['seconds']:.0f} s: {manifest['summary'].get('headline', '')}"
        elif manifest:
            steps = read_rows(directory.path / "metrics.jsonl")
            rows = sum(
                part.read_text().count("\n") for part in directory.path.glob("*.parts/[0-9]*.jsonl")
            )
            told = f"begun, step {steps[-1]['step']}" if steps else f"begun, {rows} rows on disk"
        else:
            told = "waiting"
        lines.append(f"  {name:20} {told}")
    return lines


def _shown(status: dict | None) -> str:
    """What the run itself said last."""
    if not status:
        return ""
    place = (
        f" at {status['stage']}, {status['number']} of {len(status['stages'])},"
        if status["state"] != "done"
        else ""
    )
    why = f" ({status['message']})" if status["message"] else ""
    return f"{status['state']}{place} since {status['time']}{why}; "


def main(argv: list[str] | None = None) -> int:
    arguments = (sys.argv if argv is None else argv)[1:]
    try:
        if len(arguments) != 1 or arguments[0].startswith("-"):
            raise UserError(USAGE)
        print("\n".join(describe(arguments[0])))
    except (UserError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
