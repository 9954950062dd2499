"""The graph of stages: what depends on what, what is done, what changed, what runs next.

A stage is done for good once its manifest says so under the same fingerprint (kind, fields, seed, inputs, record schema).
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

import ml_collections
from etils import epath

from cai_jax import identity, sharding, topic
from cai_jax.checks import check_values
from cai_jax.constitution.loader import missing_examples
from cai_jax.errors import UserError
from cai_jax.io import artefacts, integrity, lock, memory, preemption, progress, where
from cai_jax.models import lora
from cai_jax.stages.context import StageContext, resolve_role
from cai_jax.training import feed, profiling

KINDS = (
    "respond",
    "revise",
    "sl",
    "compare",
    "human",
    "feedback",
    "pm",
    "rl",
    "best_of",
    "harm",
    "evaluate",
    "report",
)
SAMPLING_KINDS = (
    "respond",
    "revise",
    "compare",
    "feedback",
    "evaluate",
)  # of rl the rollouts never use int8


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


def nearest(name: str, names) -> str:
    """ "; did you mean 'x'?" where a known name is close, else the list of known names."""
    import difflib

    close = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(names))}"


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


def build_graph(config: ml_collections.ConfigDict) -> dict[str, Node]:
    """The stages of `config.stages` and all they rest on, parents first. UserError for unknown names, kinds and cycles."""
    check_values(config)
    profiling.check(config)
    config = topic.resolve(config)
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
        if kind not in KINDS:
            raise UserError(
                f"config.graph.{name}.kind: '{kind}' is not a kind of stage; {nearest(kind, KINDS)}"
            )
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
        if getattr(module, "READS_WHOLE_RUN", False):
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
        if (
            config.sampling.get("int8", False) and kind in SAMPLING_KINDS
        ):  # off is no field: older runs stay as they are
            others["int8"] = True
        inputs = [visit(parent).fingerprint for parent in parents]
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
        if path[0] == "inputs" or path[-1] in identity.PLAIN_FIELDS:
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


def changed_fields(old: dict, new: dict) -> list[str]:
    """What differs between two stages' fields: dotted names with both values, and files whose contents differ."""
    files = [value.get("contents", {}) for value in (old, new)]
    flat = [
        {key: item for key, item in _flatten(value) if not key.startswith("contents.")}
        for value in (old, new)
    ]
    changes = {}
    for key in sorted(set(flat[0]) | set(flat[1])):
        before, after = (value.get(key) for value in flat)
        field = key.removesuffix(" →")
        known = files[0].get(field, {}).get("text")
        same = known and known == files[1].get(field, {}).get("text")  # only spelled otherwise
        if before != after and not same and not key.endswith(" contents"):
            changes[f"{field}: {before!r} → {after!r}"] = None
    changes.update(dict.fromkeys(identity.changed_files(*files)))
    if files[1] and "contents" not in old:
        changes["files, which an earlier version identified otherwise"] = None
    return list(changes)


def _flatten(value, path=""):
    for key, item in value.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(item, dict) and item:
            yield from _flatten(item, name)
        else:
            yield name, item


def check_changes(nodes: dict[str, Node], run_path: epath.Path, on_change: str) -> None:
    """Compares what is on disk with what is asked for. Stops with one line, or moves the old directories aside."""
    stale, reasons = [], []
    for node in nodes.values():
        directory = artefacts.StageDirectory(run_path / node.name)
        manifest = directory.manifest
        if manifest and directory.holds_work and manifest.get("fingerprint") != node.fingerprint:
            stale.append(node.name)
            reasons += [
                f"{node.name}.{change}"
                for change in changed_fields(manifest.get("fields", {}), node.fields)
            ]
            if manifest.get("kind") != node.kind:
                reasons.append(f"{node.name}.kind: {manifest.get('kind')} → {node.kind}")
    if not stale:
        return
    told = f"{run_path}: changed since it ran: {'; '.join(reasons) or 'an input'}. Stages touched: {', '.join(stale)}"
    if on_change != "redo":
        raise UserError(
            f"{told}. Run with --config.on_change=redo to move them aside and run them again, or use another --workdir"
        )
    progress.say(told)
    move_aside(run_path, stale)


def move_aside(run_path: epath.Path, stages: list[str]) -> None:
    """Moves stage directories to RUN/aside: what a week has computed is not deleted."""
    artefacts.barrier(
        f"found changed {stages}"
    )  # a process that looked only now would find nothing there
    if artefacts.is_writer():
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for name in stages:
            number = 0
            while (
                target := run_path / "aside" / f"{name}-{stamp}{f'.{number}' if number else ''}"
            ).exists():
                number += 1
            target.parent.mkdir(parents=True, exist_ok=True)
            (run_path / name).rename(target)
            progress.say(f"moved {run_path / name} to {target}")
    artefacts.barrier(f"moved aside {stages}")


def mend(run_path: epath.Path, damage: artefacts.Damaged) -> None:
    """Tells of a damaged stage and opens it again, so that it makes what is lost; or moves it aside, to be run anew."""
    progress.warn(
        f"{damage}; {'the stage is run anew' if damage.restart else 'what is lost is made again'}"
    )
    if damage.restart:
        move_aside(run_path, [damage.stage])
    else:
        artefacts.barrier(f"found damaged {damage.stage}")
        artefacts.StageDirectory(run_path / damage.stage).update_manifest(done=False)
        artefacts.barrier(f"opened {damage.stage}")


def topic_notes(config: ml_collections.ConfigDict) -> list[str]:
    """What of the run's topic is still the default while other parts are the user's own (`topic.notes`)."""
    resolved, missing = topic.resolve(config), {}
    for name in config.stages:
        source = resolved.graph[name].get("constitution")
        if source and (kinds := missing_examples(source)):
            missing[source] = kinds
    return topic.notes(config, missing)


def run(
    config: ml_collections.ConfigDict, workdir: str, describe: Callable[[], dict] | None = None
) -> list[dict]:
    """Runs `config.stages` in order under `workdir`; returns a summary row a stage. Done stages are skipped.

    `describe`: what RUN/config.json is to hold; it is written once the run is known to be ours and unchanged.
    """
    nodes = build_graph(config)
    for note in topic_notes(config):
        progress.warn(note)
    config = topic.resolve(config)
    run_path = epath.Path(workdir)
    mesh = sharding.make_mesh(config.mesh)
    with lock.held(run_path):
        check_changes(nodes, run_path, config.on_change)
        found = [integrity.check(artefacts.StageDirectory(run_path / name)) for name in nodes]
        artefacts.barrier("checked")
        for damage in found:
            if damage:
                mend(run_path, damage)
        for name in nodes:
            if name not in config.stages and not artefacts.StageDirectory(run_path / name).done:
                raise UserError(
                    f"stage '{name}' is needed and not done in {run_path}; add it to --config.stages"
                )
        if describe and artefacts.is_writer():
            artefacts.write_json(run_path / "config.json", describe())
        rows, names = [], sorted(config.stages, key=list(nodes).index)
        with where.told(run_path, names) as begin:
            for name in names:
                if rows and not rows[-1]["skipped"] and preemption.requested():
                    raise preemption.Preempted(f"before stage '{name}'")
                begin(name)
                rows.append(_run_mended(nodes[name], nodes, config, run_path, mesh))
                release_memory()
    return rows


def release_memory() -> None:
    """Gives what a stage has freed back to the system: the C library would keep it, and stages would add up."""
    gc.collect()
    memory.give_back()


def _run_mended(node: Node, nodes: dict[str, Node], config, run_path: epath.Path, mesh) -> dict:
    """Runs a stage; where it finds that a stage before it, or what it left itself, is damaged, that is made again first."""
    for _ in range(3):
        try:
            return _run_stage(node, config, run_path, mesh)
        except artefacts.Damaged as damage:
            mend(run_path, damage)
            if damage.stage != node.name:
                _run_mended(nodes[damage.stage], nodes, config, run_path, mesh)
    raise UserError(f"{run_path / node.name}: damaged again and again; is the disk failing?")


def _run_stage(node: Node, config, run_path: epath.Path, mesh) -> dict:
    directory = artefacts.StageDirectory(run_path / node.name)
    manifest = directory.manifest
    if manifest.get("done"):
        directory.mirror_manifest()
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
        if artefacts.is_writer():
            (directory.path / feed.TOKENS).unlink(missing_ok=True)
    except (UserError, preemption.Preempted, KeyboardInterrupt):
        directory.flush()
        raise
    finally:
        seconds = spent + time.monotonic() - start
        cpu_seconds = (
            spent_cpu + time.process_time() - start_cpu
        )  # what a busy machine does not lengthen
        directory.update_manifest(seconds=round(seconds, 2), cpu_seconds=round(cpu_seconds, 2))
    digests = summary.pop("sha256", {})
    # By the writer, whose files they are: another process would meet some that are being written or taken away.
    files = integrity.file_digests(directory) if artefacts.is_writer() else {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    directory.update_manifest(
        summary=summary,
        sha256=digests,
        files=files,
        dropped=ctx.dropped,
        tokens=ctx.tokens,
        peak_bytes=peak,
        done=True,
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
