"""The graph of stages: what depends on what, what is done, what changed, what runs next.

A stage is done for good once its manifest says so under the same fingerprint (kind, fields, seed,
inputs, record schema).
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import importlib
import json
import resource
import time
from collections.abc import Callable

import jax
import ml_collections
from etils import epath

from cai_jax.configuration import auto, topic
from cai_jax.configuration.checks import check_values
from cai_jax.configuration.fields import nearest
from cai_jax.configuration.stages import STAGES
from cai_jax.constitution.loader import missing_examples
from cai_jax.core import sharding
from cai_jax.data import templates
from cai_jax.errors import UserError
from cai_jax.io import artefacts, lock, memory, preemption, progress, where
from cai_jax.models import lora
from cai_jax.pipeline import changes, identity, limits, preflight
from cai_jax.stages.context import StageContext, resolve_role
from cai_jax.training import profiling


@dataclasses.dataclass(frozen=True)
class Node:
    """One stage of the graph with everything that decides what it computes."""

    name: str
    kind: str
    fields: dict
    parents: tuple[str, ...]
    fingerprint: str


def stage_module(kind: str):
    return importlib.import_module(f"cai_jax.stages.{kind}")


def _strings(value, path=()):
    """All (path, string) pairs inside nested dicts and sequences."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _strings(item, (*path, str(index)))


def reads_whole_run(kind: str) -> bool:
    """Whether stages of that kind read every stage of the run, whatever a command names."""
    return STAGES[kind].reads_run


def _stages_read(node: Node, run_path: epath.Path) -> dict[str, str] | None:
    """Stage → fingerprint of every finished stage of the run; None for a stage that reads its
    inputs only."""
    if not reads_whole_run(node.kind):
        return None
    read = {}
    for path in sorted(run_path.glob("*/manifest.json")):
        manifest = artefacts.StageDirectory(path.parent).manifest
        if path.parent.name != node.name and manifest.get("done"):
            read[path.parent.name] = manifest["fingerprint"]
    return read


def build_graph(config: ml_collections.ConfigDict) -> dict[str, Node]:
    """The stages of `config.stages` and all they rest on, parents first. UserError for unknown
    names, kinds and cycles."""
    check_values(config)  # before `resolve` copies values: the field that was set is named
    profiling.check(config)
    config = topic.resolve(auto.resolve(config))
    graph, nodes, visiting = config.graph, {}, []
    for name in config.stages:
        if name not in graph:
            raise UserError(
                f"config.stages: no stage '{name}' in config.graph; {nearest(name, graph.keys())}"
            )

    def visit(name: str) -> Node:
        if name in nodes:
            return nodes[name]
        if name in visiting:
            raise UserError(
                f"config.graph: stages wait for each other: {' → '.join([*visiting, name])}"
            )
        visiting.append(name)
        stage = graph[name]
        kind = stage.get("kind", "")
        fields = json.loads(json.dumps(stage.to_dict(), default=str))
        adapters = lora.Adapters.from_fields(
            fields.pop("adapters", None), f"config.graph.{name}.adapters"
        )
        if adapters is not None:  # where they are off there is no field: as before there were any
            fields["adapters"] = adapters.to_json()
        if fields.get("helpful_fraction", 0) is None:
            del fields["helpful_fraction"]
        parents = dict.fromkeys(_inputs(stage))
        canonical, shown = _identified(config, fields)
        for value in shown.values():
            if isinstance(value, str) and value.startswith("@"):
                parents[value[1:].partition(":")[0]] = None
        module = stage_module(kind)
        if reads_whole_run(kind):
            parents.update(
                dict.fromkeys(other for other in config.stages[: config.stages.index(name)])
            )
        for parent in parents:
            if parent not in graph:
                raise UserError(
                    f"config.graph.{name}: it reads '{parent}', which is not in config.graph; "
                    f"{nearest(parent, graph.keys())}"
                )
        others = {"seed": config.seed, "dtype": config.model.dtype}
        models = [value for key, value in shown.items() if key.endswith(" →")]
        args = templates.Settings.of(config).args
        if args != templates.DEFAULT_ARGS and models:
            others["template_args"] = dict(args)
        words = topic.Words.of(config)
        if reads_whole_run(kind) and words != topic.Words():
            others["topic"] = dataclasses.asdict(words)
        if config.get("date") and any(map(identity.writes_date, models)):
            others["date"] = config.date
        if limit := limits.decisive_limit(config, stage):  # decides which rows fit
            others["sampling.max_length"] = limit
        if (
            config.sampling.get("int8", False) and STAGES[kind].samples
        ):  # off is no field: older runs stay as they are
            others["int8"] = True
        inputs = [visit(parent).fingerprint for parent in parents]
        if reads_whole_run(kind):
            # a command may run it with few stages named: `_run_stage` compares what it read
            inputs = []
        visiting.pop()
        mark = artefacts.fingerprint(kind, canonical | others, inputs, module.SCHEMA)
        nodes[name] = Node(name, kind, fields | shown | others, tuple(parents), mark)
        return nodes[name]

    for name in config.stages:
        visit(name)
    return nodes


def _identified(config: ml_collections.ConfigDict, fields: dict) -> tuple[dict, dict]:
    """(the fields with every reference replaced by what it names, what a manifest shows of that).

    Shown are "FIELD →" for roles and models, and under "contents" the files by field.
    """
    canonical, shown, files = copy.deepcopy(fields), {}, {}
    for path, value in _strings(fields):
        if path[0] == "inputs" or identity.is_plain(path):
            continue
        is_model, name = identity.is_model_field(path), ".".join(path)
        if is_model:
            value = resolve_role(config, value)
            shown[f"{name} →"] = value
        found = identity.of(value, is_model)
        if found:
            files[name] = found.to_json()
        parent = canonical
        for key in path[:-1]:
            parent = parent[int(key) if isinstance(parent, list) else key]
        parent[int(path[-1]) if isinstance(parent, list) else path[-1]] = (
            found.text if found else value
        )
    return canonical, {**shown, "contents": files} if files else shown


def _inputs(stage) -> dict[str, None]:
    return {value: None for value in (stage.get("inputs") or {}).values() if value}


def require_same(nodes: dict[str, Node]) -> None:
    """UserError where processes see different configs or files: each would compute something
    else."""
    ours = {name: {"mark": node.fingerprint, "fields": node.fields} for name, node in nodes.items()}
    theirs = artefacts.from_writer(ours)
    reasons = [
        f"{name}.{change}"
        for name in ours
        if name in theirs and ours[name]["mark"] != theirs[name]["mark"]
        for change in changes.changed_fields(theirs[name]["fields"], ours[name]["fields"])
    ]
    differs = {name: item["mark"] for name, item in ours.items()} != {
        name: item["mark"] for name, item in theirs.items()
    }
    if others := artefacts.processes_where(differs):
        what = "; ".join(reasons) or "; ".join(sorted(set(ours) ^ set(theirs))) or "see their lines"
        raise UserError(
            f"process {jax.process_index()}: configs or files are others in process "
            f"{', '.join(map(str, others))} than in "
            f"process 0 ({what}); give all processes the same"
        )


def mend(run_path: epath.Path, damage: artefacts.Damaged) -> None:
    """Tells of a damaged stage and opens it again, so that it makes what is lost; or moves it
    aside, to be run anew."""
    progress.warn(
        f"{damage}; {'the stage is run anew' if damage.restart else 'what is lost is made again'}"
    )
    if damage.restart:
        changes.move_aside(run_path, [damage.stage])
    else:
        artefacts.barrier(f"found damaged {damage.stage}")
        artefacts.StageDirectory(run_path / damage.stage).update_manifest(done=False)
        artefacts.barrier(f"opened {damage.stage}")


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config as the stages read it: references to the topic and fields that are "auto" replaced
    by what they mean."""
    return auto.resolve(topic.resolve(config))


def topic_notes(config: ml_collections.ConfigDict) -> list[str]:
    """What of the run's topic is still the default while other parts are the user's own
    (`topic.notes`)."""
    resolved, missing = topic.resolve(config), {}
    for name in config.stages:
        source = resolved.graph[name].get("constitution")
        if source and (kinds := missing_examples(source)):
            missing[source] = kinds
    return topic.notes(config, missing)


def run(
    config: ml_collections.ConfigDict, workdir: str, describe: Callable[[], dict] | None = None
) -> list[dict]:
    """Runs `config.stages` in order under `workdir`; returns a summary row a stage. Done stages are
    skipped.

    `describe`: what RUN/config.json is to hold; it is written once the run is known to be ours and
    unchanged.
    """
    check_values(config)
    run_path = epath.Path(workdir)
    pinned = identity.pin(config, run_path)
    nodes, given = build_graph(config), config
    require_same(nodes)
    config = resolve(config)
    mesh = sharding.make_mesh(config.mesh)
    with lock.held(run_path):
        if config.on_change == "restore":
            changes.restore(nodes, run_path, config.stages)
        changed = changes.find(nodes, run_path)
        changes.require_allowed(changed, config.stages, config.on_change)
        damaged = [artefacts.StageDirectory(run_path / name).damage() for name in nodes]
        damaged = [damage for damage in damaged if damage]
        preflight.check(config, nodes, run_path, changed.stages, damaged)
        # Only on_change=restore has moved anything before this line; nothing that can be known
        # stops the run after it.
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
                mend(run_path, damage)
        identity.save_pins(pinned, run_path)
        if describe and artefacts.is_writer():
            artefacts.write_json(run_path / "config.json", describe())
        rows, names = [], sorted(config.stages, key=list(nodes).index)
        with where.reported(run_path, names) as begin:
            for name in names:
                if rows and not rows[-1]["skipped"] and preemption.requested():
                    raise preemption.Preempted(f"before stage '{name}'")
                begin(name)
                rows.append(_run_mended(nodes[name], nodes, config, run_path, mesh))
                release_memory()
    return rows


def release_memory() -> None:
    """Gives what a stage has freed back to the system: the C library would keep it, and stages
    would add up."""
    gc.collect()
    memory.give_back()


def _run_mended(node: Node, nodes: dict[str, Node], config, run_path: epath.Path, mesh) -> dict:
    """Runs a stage; where it finds that a stage before it, or what it left itself, is damaged, that
    is made again first."""
    for _ in range(3):
        try:
            return _run_stage(node, config, run_path, mesh)
        except artefacts.Damaged as damage:
            if damage.restart and damage.stage not in config.stages:
                raise UserError(
                    f"{damage}; add '{damage.stage}' to --config.stages to run it anew"
                ) from damage
            mend(run_path, damage)
            if damage.stage != node.name:
                _run_mended(nodes[damage.stage], nodes, config, run_path, mesh)
    raise UserError(f"{run_path / node.name}: damaged again and again; is the disk failing?")


def _run_stage(node: Node, config, run_path: epath.Path, mesh) -> dict:
    directory = artefacts.StageDirectory(run_path / node.name)
    manifest, stages_read = directory.manifest, _stages_read(node, run_path)
    if manifest.get("done") and manifest.get("stages_read") == stages_read:
        progress.say(f"[{node.name}] done before: {manifest['summary'].get('headline', '')}")
        return {
            "stage": node.name,
            "skipped": True,
            "seconds": manifest["seconds"],
            **manifest["summary"],
        }
    stage = config.graph[node.name]
    inputs = {
        key: artefacts.StageDirectory(run_path / value)
        for key, value in (stage.get("inputs") or {}).items()
        if value
    }
    ctx = StageContext(node.name, stage, config, run_path, directory, inputs, mesh)
    spent, spent_cpu = manifest.get("seconds", 0.0), manifest.get("cpu_seconds", 0.0)
    directory.update_manifest(
        kind=node.kind,
        fingerprint=node.fingerprint,
        fields=node.fields,
        parents=list(node.parents),
        done=False,
    )
    artefacts.barrier(f"start {node.name}")
    progress.say(f"[{node.name}] {node.kind} …")
    start, start_cpu = time.monotonic(), time.process_time()
    try:
        summary = stage_module(node.kind).run(ctx)
        directory.flush()
    except (UserError, preemption.Preempted, KeyboardInterrupt):
        directory.flush()
        raise
    finally:
        seconds = spent + time.monotonic() - start
        cpu_seconds = (
            spent_cpu + time.process_time() - start_cpu
        )  # what a busy machine does not lengthen
        directory.update_manifest(seconds=round(seconds, 2), cpu_seconds=round(cpu_seconds, 2))
    summary.pop("sha256", None)  # in the manifest's files
    # By the writer, whose files they are: another process would meet some that are being written or
    # taken away.
    files = artefacts.digests(directory.path) if artefacts.is_writer() else {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    directory.update_manifest(
        summary=summary,
        files=files,
        dropped=ctx.dropped,
        tokens=ctx.tokens,
        peak_bytes=peak,
        done=True,
        **({} if stages_read is None else {"stages_read": stages_read}),
    )
    artefacts.barrier(f"done {node.name}")
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(ctx.dropped.items()))
    progress.say(
        f"[{node.name}] {seconds:.0f} s: {summary.get('headline', '')}"
        + (f"; left out: {left_out}" if left_out else "")
    )
    return {"stage": node.name, "skipped": False, "seconds": seconds, **summary}


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
