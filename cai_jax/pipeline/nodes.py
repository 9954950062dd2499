"""What a config asks for, stage by stage: parents, and a fingerprint of everything that decides
what the stage computes (kind, fields, seed, contents of files, inputs, record schema)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import jax
import ml_collections

from cai_jax import references
from cai_jax.configuration import auto, endpoints, topic
from cai_jax.configuration.checks import check_values
from cai_jax.configuration.fields import Model, Records, Setting, Text, Word, nearest, walk_kind
from cai_jax.configuration.stages import STAGES, stage_module
from cai_jax.data import templates
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.models import lora
from cai_jax.pipeline import changes, identity, limits
from cai_jax.rewards.reward import judges_of
from cai_jax.training import profiling


@dataclasses.dataclass(frozen=True)
class Node:
    """One stage of the graph. `fields` is what its manifest shows: a reference is followed by
    "FIELD →" with what it means, "contents" has the files by field."""

    name: str
    kind: str
    fields: dict
    parents: tuple[str, ...]
    fingerprint: str


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config as the stages read it: references to the topic and fields that are "auto" replaced
    by what they mean."""
    return auto.resolve(topic.resolve(config))


def settings(config: ml_collections.ConfigDict, name: str) -> list[Setting]:
    """Every field of a stage with its declaration."""
    return list(walk_kind(STAGES, config.graph[name], f"config.graph.{name}"))


def build_graph(config: ml_collections.ConfigDict) -> dict[str, Node]:
    """The stages of `config.stages` and all that they depend on, parents first.

    Raises:
      UserError: a value out of range, a stage that is not in the graph, or stages that wait for
        each other.
    """
    check_values(config)  # before `resolve` copies values: the field that was set is named
    profiling.check(config)
    config = resolve(config)
    nodes: dict[str, Node] = {}
    for name, parents in _in_order(config).items():
        nodes[name] = _node(config, name, parents, nodes)
    return nodes


def _in_order(config) -> dict[str, tuple[str, ...]]:
    """Stage → the stages that it reads, parents first."""
    order: dict[str, tuple[str, ...]] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            cycle = " → ".join([*trail, name])
            raise UserError(f"config.graph: stages wait for each other: {cycle}")
        if name not in order:
            parents = _parents(config, name)
            for parent in parents:
                visit(parent, (*trail, name))
            order[name] = parents

    for name in config.stages:
        if name not in config.graph:
            raise UserError(
                f"config.stages: no stage '{name}' in config.graph; {nearest(name, config.graph)}"
            )
        visit(name, ())
    return order


def _parents(config, name: str) -> tuple[str, ...]:
    """The stages whose records or models a stage reads."""
    parents = []
    for setting in settings(config, name):
        if isinstance(setting.field.range, Records):
            parents.append(setting.value)
        elif isinstance(setting.field.range, Model):
            target = references.target(config.models, setting.value)
            if target.kind == references.STAGE and not target.name:
                raise UserError(
                    f"config.graph.{name}: '{target}' names no stage; expected '@stage' or "
                    "'@stage:step'"
                )
            parents.append(target.stage)
    if STAGES[config.graph[name].kind].reads_run:
        parents += config.stages[: config.stages.index(name)]
    for parent in filter(None, parents):
        if parent not in config.graph:
            raise UserError(
                f"config.graph.{name}: it reads '{parent}', which is not in config.graph; "
                f"{nearest(parent, config.graph)}"
            )
    return tuple(dict.fromkeys(filter(None, parents)))


def _node(config, name: str, parents: tuple[str, ...], nodes: Mapping[str, Node]) -> Node:
    stage = config.graph[name]
    kind = STAGES[stage.kind]
    fields = json.loads(json.dumps(stage.to_dict(), default=str))
    fields.pop("adapters", None)  # in `others`, where there are any
    by_content, shown = _identified(config, name)
    others = _others(config, name, [shown[key] for key in shown if key.endswith(" →")])
    # What a stage that reads the run has read is compared when it is its turn: a command may name
    # few of the stages.
    inputs = [] if kind.reads_run else [nodes[parent].fingerprint for parent in parents]
    schema = stage_module(stage.kind).SCHEMA
    mark = artefacts.fingerprint(stage.kind, by_content | others, inputs, schema)
    return Node(name, stage.kind, fields | shown | others, parents, mark)


def _identified(config, name: str) -> tuple[dict, dict]:
    """(the stage's fields with every reference replaced by what it names, what a manifest shows of
    that)."""
    by_content, shown, files = {}, {}, {}
    for setting in settings(config, name):
        field, value = setting.field, setting.value
        path = setting.where.removeprefix(f"config.graph.{name}.")
        # Of inputs the parents' fingerprints say what they hold.
        if isinstance(field.range, Records) or path.startswith("adapters."):
            continue
        is_model = isinstance(field.range, Model)
        if is_model and value:
            shown[f"{path} →"] = value = references.resolve(config.models, value)
        is_reference = isinstance(field.range, Text) and not isinstance(field.range, Word)
        content = identity.of(value, is_model) if is_reference else None
        if content:
            files[path] = content.to_json()
        by_content[path] = content.text if content else value
    return by_content, {**shown, "contents": files} if files else shown


def _others(config, name: str, models: list[str]) -> dict:
    """What decides a stage's records besides its own fields."""
    stage = config.graph[name]
    kind = STAGES[stage.kind]
    others = {"seed": config.seed, "dtype": config.model.dtype}
    where = f"config.graph.{name}.adapters"
    if adapters := lora.Adapters.from_fields(stage.get("adapters"), where):
        others["adapters"] = adapters.to_json()
    args = templates.Settings.of(config).args
    if served := _served(config, name):
        others["endpoints"] = served
    models = [each for each in models if references.parse(each).kind not in references.ANSWERING]
    if models and args != templates.DEFAULT_ARGS:
        others["template_args"] = dict(args)
    if kind.reads_run:
        others["topic"] = dataclasses.asdict(topic.Words.of(config))
    if config.date and any(map(identity.writes_date, models)):
        others["date"] = config.date
    if limit := limits.decisive_limit(config, name):
        others["sampling.max_length"] = limit
    # rl samples from the weights that it trains, and asks a judge as other stages ask models.
    rounded = judges_of(stage) if stage.kind == "rl" else kind.samples
    if config.sampling.int8 and rounded:
        others["int8"] = True
    return others


def _served(config, name: str) -> dict[str, dict]:
    """Field of a stage → what decides the answers of the server that it names."""
    served = {}
    for setting in settings(config, name):
        if not isinstance(setting.field.range, Model):
            continue
        target = references.target(config.models, setting.value)
        if target.kind in (references.OPENAI, references.BATCH):
            fields = endpoints.of(config, setting.value).to_dict()
            path = setting.where.removeprefix(f"config.graph.{name}.")
            served[path] = {key: fields[key] for key in endpoints.DECISIVE}
    return served


def require_same(nodes: Mapping[str, Node]) -> None:
    """UserError where processes see different configs or files: each would compute something
    else."""
    ours = {name: {"mark": node.fingerprint, "fields": node.fields} for name, node in nodes.items()}
    theirs = artefacts.from_writer(ours)
    differing = [
        name
        for name in {**ours, **theirs}
        if ours.get(name, {}).get("mark") != theirs.get(name, {}).get("mark")
    ]
    if others := artefacts.processes_where(bool(differing)):
        reasons = [
            f"{name}.{change}"
            for name in differing
            if name in ours and name in theirs
            for change in changes.changed_fields(theirs[name]["fields"], ours[name]["fields"])
        ]
        what = "; ".join(reasons) or "; ".join(differing) or "see their lines"
        raise UserError(
            f"process {jax.process_index()}: configs or files are others in process "
            f"{', '.join(map(str, others))} than in process 0 ({what}); give all processes the same"
        )
