"""Runs the graph of stages: what is done is skipped, what changed is named, what is damaged is
made anew.

A stage is done for good once its manifest says so under the same fingerprint (`nodes.py`).
"""

from __future__ import annotations

import collections
import contextlib
import gc
import resource
import time
from collections.abc import Callable, Iterator, Mapping

import ml_collections
from etils import epath

from cai_jax.configuration import auto, topic
from cai_jax.configuration.checks import check_values
from cai_jax.configuration.stages import STAGES, stage_module
from cai_jax.constitution.loader import missing_examples
from cai_jax.core import sharding
from cai_jax.errors import UserError, Waiting
from cai_jax.io import artefacts, lock, memory, preemption, progress, where
from cai_jax.pipeline import changes, identity, preflight
from cai_jax.pipeline.nodes import Node, build_graph, require_same, resolve
from cai_jax.stages.context import StageContext


def run(
    config: ml_collections.ConfigDict, workdir: str, describe: Callable[[], dict] | None = None
) -> list[dict]:
    """Runs `config.stages` in order under `workdir`; done stages are skipped.

    Args:
      config: the run's config; commits and the date are put into it (`identity.pin`).
      workdir: the run directory.
      describe: gives what RUN/config.json is to hold; it is written once the run is known to be
        ours and unchanged.

    Returns:
      A summary row a stage.

    Raises:
      UserError: something is wrong that can be known before the first stage; nothing has been
        written then, and nothing moved but by on_change=restore.
      Waiting: stages wait for answers in files; those that do not depend on them are done.
    """
    # --- What is asked for
    check_values(config)
    run_path = epath.Path(workdir)
    pinned = identity.pin(config, run_path)
    nodes, given = build_graph(config), config
    require_same(nodes)
    config = resolve(config)
    mesh = sharding.make_mesh(config.mesh)
    with lock.held(run_path):
        # --- What is there, and whether it can go on
        if config.on_change == "restore":
            changes.restore(nodes, run_path, config.stages)
        changed = changes.find(nodes, run_path)
        changes.require_allowed(changed, config.stages, config.on_change)
        damaged = [artefacts.StageDirectory(run_path / name).damage() for name in nodes]
        damaged = [damage for damage in damaged if damage]
        preflight.check(given, nodes, run_path, changed.stages, damaged)

        # --- Make room; nothing that can be known stops the run from here on
        for note in topic_notes(given):
            progress.warn(note)
        for note in auto.notes(given):
            progress.say(note)
        if changed.stages:
            progress.say(changed.text)
            changes.move_aside(run_path, changed.stages)
        artefacts.barrier("checked")
        for damage in damaged:
            if damage.stage not in changed.stages:
                reopen(run_path, damage)
        identity.save_pins(pinned, run_path)
        if describe and artefacts.is_writer():
            artefacts.write_json(run_path / "config.json", describe())

        # --- Stage after stage
        rows, names = [], sorted(config.stages, key=list(nodes).index)
        waiting, files = set(), collections.Counter()  # stages, and what they wait for
        with where.reported(run_path, names) as begin, memory.imported_objects_frozen():
            for name in names:
                if rows and not rows[-1]["skipped"] and preemption.requested():
                    raise preemption.Preempted(f"before stage '{name}'")
                if waiting & set(nodes[name].parents):
                    waiting.add(name)
                    continue
                begin(name)
                try:
                    rows.append(_run_repaired(nodes[name], nodes, config, run_path, mesh))
                except Waiting as wait:
                    progress.say(f"[{name}] waits for answers")
                    waiting.add(name)
                    files.update(wait.files)
                # The C library would keep what a stage has freed, and stages would add up.
                gc.collect()
                memory.give_back()
            if waiting:
                raise Waiting(files)
    return rows


def topic_notes(config: ml_collections.ConfigDict) -> list[str]:
    """What of the run's topic is still the default while others of it are the user's own
    (`topic.notes`)."""
    resolved = topic.resolve(config)
    sources = {resolved.graph[name].get("constitution") for name in config.stages} - {None}
    missing = {source: missing_examples(source) for source in sources}
    return topic.notes(config, {source: kinds for source, kinds in missing.items() if kinds})


def reopen(run_path: epath.Path, damage: artefacts.Damaged) -> None:
    """Warns of a damaged stage and opens it again, so that it recomputes what is lost; or moves it
    aside, to be run anew."""
    progress.warn(
        f"{damage}; {'the stage is run anew' if damage.restart else 'what is lost is recomputed'}"
    )
    if damage.restart:
        changes.move_aside(run_path, [damage.stage])
    else:
        artefacts.barrier(f"damaged {damage.stage}")
        artefacts.StageDirectory(run_path / damage.stage).update_manifest(done=False)
        artefacts.barrier(f"opened {damage.stage}")


def _run_repaired(
    node: Node, nodes: Mapping[str, Node], config, run_path: epath.Path, mesh
) -> dict:
    """Runs a stage; where it reports that a stage before it, or what it left itself, is damaged,
    that is run first."""
    for _ in range(3):
        try:
            return _run_stage(node, config, run_path, mesh)
        except artefacts.Damaged as damage:
            if damage.restart and damage.stage not in config.stages:
                raise UserError(
                    f"{damage}; add '{damage.stage}' to --config.stages to run it anew"
                ) from damage
            reopen(run_path, damage)
            if damage.stage != node.name:
                _run_repaired(nodes[damage.stage], nodes, config, run_path, mesh)
    raise UserError(f"{run_path / node.name}: damaged again and again; is the disk failing?")


def _run_stage(node: Node, config, run_path: epath.Path, mesh) -> dict:
    directory = artefacts.StageDirectory(run_path / node.name)
    manifest, stages_read = directory.manifest, _stages_read(node, run_path)
    if manifest.get("done") and manifest.get("stages_read") == stages_read:
        progress.say(f"[{node.name}] done before: {manifest['summary'].get('headline', '')}")
        seconds = manifest["seconds"]
        return {"stage": node.name, "skipped": True, "seconds": seconds, **manifest["summary"]}

    stage = config.graph[node.name]
    inputs = {
        key: artefacts.StageDirectory(run_path / value)
        for key, value in stage.inputs.items()
        if value
    }
    ctx = StageContext(node.name, stage, config, run_path, directory, inputs, mesh)
    directory.update_manifest(
        kind=node.kind,
        fingerprint=node.fingerprint,
        fields=node.fields,
        parents=list(node.parents),
        done=False,
    )
    artefacts.barrier(f"start {node.name}")
    progress.say(f"[{node.name}] {node.kind} …")
    with _timed(directory):
        summary = _outcome(node, ctx)
    _finish(directory, summary, ctx, stages_read)
    seconds = directory.manifest["seconds"]
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(ctx.dropped.items()))
    progress.say(
        f"[{node.name}] {seconds:.0f} s: {summary.get('headline', '')}"
        + f"; left out: {left_out}" * bool(left_out)
    )
    return {"stage": node.name, "skipped": False, "seconds": seconds, **summary}


def _outcome(node: Node, ctx: StageContext) -> dict:
    """What the stage's own `run` returns; what it has written is on disk also where it stops."""
    try:
        summary = stage_module(node.kind).run(ctx)
        ctx.finish_recording()
    except (UserError, Waiting, preemption.Preempted, KeyboardInterrupt):
        ctx.directory.flush()
        raise
    ctx.directory.flush()
    if ctx.served():
        summary["headline"] = f"{summary.get('headline', '')}; {ctx.answers.describe()}"
    return summary


@contextlib.contextmanager
def _timed(directory: artefacts.StageDirectory) -> Iterator[None]:
    """Adds the block's seconds, and those of the CPU, which a busy machine does not lengthen, to
    what earlier starts of the stage took."""
    before = directory.manifest
    start, start_cpu = time.monotonic(), time.process_time()
    try:
        yield
    finally:
        seconds = before.get("seconds", 0.0) + time.monotonic() - start
        cpu = before.get("cpu_seconds", 0.0) + time.process_time() - start_cpu
        directory.update_manifest(seconds=round(seconds, 2), cpu_seconds=round(cpu, 2))


def _finish(
    directory: artefacts.StageDirectory, summary: dict, ctx: StageContext, stages_read: dict | None
) -> None:
    """Writes into the manifest that the stage is done, and what its files hold."""
    # By the writer, whose files they are: another process would meet some that are being written.
    files = artefacts.digests(directory.path) if artefacts.is_writer() else {}
    served = ctx.served()
    directory.update_manifest(
        summary=summary,
        files=files,
        dropped=ctx.dropped,
        tokens=ctx.tokens,
        **({"served": served} if served else {}),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        done=True,
        **({} if stages_read is None else {"stages_read": stages_read}),
    )
    artefacts.barrier(f"done {ctx.name}")


def _stages_read(node: Node, run_path: epath.Path) -> dict[str, str] | None:
    """Stage → fingerprint of every finished stage of the run; None for a stage that reads its
    inputs only."""
    if not STAGES[node.kind].reads_run:
        return None
    read = {}
    for path in sorted(run_path.glob("*/manifest.json")):
        manifest = artefacts.StageDirectory(path.parent).manifest
        if path.parent.name != node.name and manifest.get("done"):
            read[path.parent.name] = manifest["fingerprint"]
    return read


def table(rows: list[dict]) -> str:
    """The closing summary: stage, rows or steps, seconds, key number."""
    lines = [("stage", "rows/steps", "seconds", "result")]
    for row in rows:
        count = row.get("rows", row.get("steps", ""))
        seconds = f"{row['seconds']:.0f}" + (" (before)" if row["skipped"] else "")
        lines.append((row["stage"], str(count), seconds, row.get("headline", "")))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join([*(line[column].ljust(widths[column]) for column in range(3)), line[3]]).rstrip()
        for line in lines
    )
