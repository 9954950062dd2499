"""What is known before the first stage starts: checked in a second or two, before anything is
moved, loaded or compiled.

`CHECKS` at the end of this file lists all of it. Numbers and choices are checked even earlier
(`checks.py`), names of stages by `pipeline.build_graph`. A check reads only what the stages that
are going to run need: those that are done are skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import netrc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from cai_jax import references
from cai_jax.configuration import auto, topic
from cai_jax.configuration.fields import Field, Model, Records, walk_kind
from cai_jax.configuration.stages import STAGES
from cai_jax.constitution.loader import load_constitution
from cai_jax.data import answers, sources, templates
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.dialogue import load_format
from cai_jax.data.prompts import read_prompts
from cai_jax.data.ratings import load_ratings
from cai_jax.errors import UserError
from cai_jax.evals import collect
from cai_jax.evals.registry import KINDS as EVALUATIONS
from cai_jax.io import artefacts
from cai_jax.io.checkpoints import Checkpoints
from cai_jax.models import hf
from cai_jax.models.config import ModelConfig
from cai_jax.pipeline import limits
from cai_jax.rewards.functions import custom_reward
from cai_jax.stages.context import resolve_role

READ_BYTES = 32 * 2**20  # larger files, and data sets of the hub and TFDS, are read as far as ROWS
ROWS = 100
PYTHON, RESPONSES, RANDOM = "python:", "responses:", "random:"
# What a field that names a model needs.
WANTED = {
    "policy": "a policy: a stage of kind sl or rl, or a language model",
    "reward": "a preference model: a stage of kind pm, or a classifier with one label",
    "harm": "a regressor of harm: a stage of kind harm, or a classifier with one label",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a check sees: the config, the graph, the run directory, and the names of the stages that
    are going to run."""

    config: Any
    nodes: Mapping
    run_path: epath.Path
    running: tuple[str, ...]
    damaged: tuple[artefacts.Damaged, ...] = ()

    def stages(self, *kinds: str) -> Iterator[tuple[str, Any]]:
        """(where, fields) of the stages of these kinds that are going to run."""
        for name in self.running:
            if self.config.graph[name].kind in kinds:
                yield f"config.graph.{name}", self.config.graph[name]


@dataclasses.dataclass(frozen=True)
class Reference:
    """A field that names a model, with what it points at once roles are resolved."""

    where: str
    given: str
    target: str
    needs: str
    format: str


def check(
    config,
    nodes: Mapping,
    run_path: epath.Path,
    stale: Sequence[str] = (),
    damaged: Sequence[artefacts.Damaged] = (),
) -> None:
    """Raises UserError for the first thing that would stop a stage of this command.

    Args:
      config, nodes: the run's config and its graph, as `pipeline.build_graph` gives it.
      run_path: the run directory; nothing is written there.
      stale: stages that are going to be moved aside.
      damaged: stages whose files are not what they wrote.
    """
    again = {*stale, *(damage.stage for damage in damaged)}
    done = {
        name
        for name in nodes
        if name not in again and artefacts.StageDirectory(run_path / name).done
    }
    running = tuple(name for name in nodes if name in config.stages and name not in done)
    plan = Plan(auto.resolve(topic.resolve(config)), nodes, run_path, running, tuple(damaged))
    require_stages(plan, done)
    for one in CHECKS:
        one(plan)


def require_stages(plan: Plan, done: set[str]) -> None:
    """Every stage that another reads is done or among the stages of this command; all that are
    missing are named."""
    stages = plan.config.stages
    for damage in plan.damaged:
        if damage.stage not in stages:
            raise UserError(
                f"{damage}; add it to be made again: "
                f"--config.stages={','.join([damage.stage, *stages])}"
            )
    missing = [name for name in plan.nodes if name not in stages and name not in done]
    if missing:
        names = ", ".join(f"'{name}'" for name in missing)
        several = len(missing) > 1
        raise UserError(
            f"stage{'s' * several} {names} {'are' if several else 'is'} needed and not done in "
            f"{plan.run_path}; add {'them' if several else 'it'}: "
            f"--config.stages={','.join(name for name in plan.nodes if name in (*missing, *stages))}"
        )


def fields_of(plan: Plan, name: str) -> Iterator[tuple[str, Field, Any]]:
    """(name, declaration, value) of every field of a stage."""
    return walk_kind(STAGES, plan.config.graph[name], f"config.graph.{name}")


def stage_inputs(plan: Plan) -> None:
    """Inputs are stages that write what is read there, and a preference model's labels are those of
    its comparisons."""
    graph = plan.config.graph
    for name in plan.running:
        for where, field, given in fields_of(plan, name):
            if not isinstance(field.range, Records) or not given and field.range.empty:
                continue
            wanted = field.range.of
            makers = ", ".join(kind for kind, stage in STAGES.items() if stage.writes == wanted)
            expected = f"expected a stage that writes {wanted} (of kind {makers})"
            if not given:
                raise UserError(f"{where}: is empty; {expected}")
            made = STAGES[graph[given].kind].writes or "no records"
            if made != wanted:
                raise UserError(
                    f"{where}: '{given}' is of kind {graph[given].kind}, which writes "
                    f"{made}; {expected}"
                )
        inputs = graph[name].get("inputs") or {}
        if graph[name].kind == "pm" and (labels := inputs.get("labels")):
            judged = (graph[labels].get("inputs") or {}).get("comparisons", "")
            if judged != inputs.get("comparisons", ""):
                raise UserError(
                    f"config.graph.{name}.inputs: '{labels}' labels the comparisons of "
                    f"'{judged}', not of '{inputs.get('comparisons', '')}'; name the same stage in "
                    "both"
                )


# Models -------------------------------------------------------------------------------------------


def models_of(plan: Plan) -> Iterator[Reference]:
    """Every model that the stages of this command read."""
    for name in plan.running:
        stage = plan.config.graph[name]
        for where, field, given in fields_of(plan, name):
            if not isinstance(field.range, Model) or not given:
                continue
            target, needs = references.resolve(plan.config.models, given), field.range.needs
            if callable(needs):
                needs = needs(stage)
            if needs == "any":
                needs = "reward" if _kind(plan, target) == "pm" else "policy"
            form = stage.get("format", "auto") if needs == "policy" else "auto"
            yield Reference(where, given, target, needs, form)


def _kind(plan: Plan, target: str) -> str:
    """The kind of the stage that "@stage" or "@stage:step" names, "" for other models."""
    return plan.config.graph[target[1:].partition(":")[0]].kind if target.startswith("@") else ""


def stage_models(plan: Plan) -> None:
    """`@stage` trains a model of the kind that the field needs, and `@stage:step` is a checkpoint
    that is or will be there."""
    for reference in models_of(plan):
        if not reference.target.startswith("@"):
            continue
        kind = _kind(plan, reference.target)
        answers = ".models." in reference.where and kind in collect.ANSWERING_KINDS
        if not answers and STAGES[kind].makes != reference.needs:
            made = f"a {STAGES[kind].makes or f'stage of kind {kind}'}"
            raise UserError(
                f"{reference.where}: '{reference.given}' is {made}, a {reference.needs} is needed "
                f"here; expected {WANTED[reference.needs]}"
            )
        _require_step(plan, reference)


def _require_step(plan: Plan, reference: Reference) -> None:
    stage, colon, step = reference.target[1:].partition(":")
    if not colon:
        return
    fields = plan.config.graph[stage]
    if stage not in plan.running:
        steps = Checkpoints(plan.run_path / stage / "checkpoints").steps()
        if not step.isdigit() or int(step) not in steps:
            raise UserError(
                f"{reference.where}: '{reference.target}': no such checkpoint; steps: {list(steps)}"
            )
    elif not step.isdigit() or fields.kind == "rl" and int(step) not in _snapshots(fields):
        kept = ", ".join(map(str, _snapshots(fields))) if fields.kind == "rl" else "its last one"
        raise UserError(
            f"{reference.where}: '{reference.target}': '{stage}' is going to keep step {kept}; "
            f"config.graph.{stage}.snapshot_every_updates keeps more"
        )


def _snapshots(fields) -> list[int]:
    every = fields.snapshot_every_updates
    return sorted(
        {*(range(every, fields.num_updates + 1, every) if every else ()), fields.num_updates}
    )


def model_directories(plan: Plan) -> None:
    """Model directories are there: config.json, tokenizer and chat template read, weight files
    open, of the needed kind."""
    settings = templates.Settings.of(plan.config)
    for reference in models_of(plan):
        target = reference.target
        if target.startswith(("@", PYTHON)) or RESPONSES in target[: len(RESPONSES)]:
            continue
        try:
            _require_model(target, reference.needs, reference.format, settings)
        except UserError as error:
            given = "" if reference.given == target else f" ('{reference.given}')"
            raise UserError(f"{reference.where}{given}: {error}") from error


@functools.lru_cache(maxsize=64)
def _readable(target: str, format: str, args: str, date: str, stamp) -> None:
    directory = hf.resolve(target)
    config = ModelConfig.from_json(directory)
    load_format(directory, format, templates.Settings(json.loads(args), date))
    if target.startswith(RANDOM):
        return
    classifier = hf.is_classifier(directory)
    config = dataclasses.replace(config, tied_embeddings=config.tied_embeddings or classifier)
    hf.open_weights(directory, config, classifier)  # headers only: names and shapes


def _require_model(target: str, needs: str, format: str, settings: templates.Settings) -> None:
    directory = hf.resolve(target)
    if needs == "policy" and hf.is_classifier(directory):
        raise UserError(f"'{target}' is a preference model; expected {WANTED['policy']}")
    if needs != "policy" and not hf.is_classifier(directory):
        raise UserError(f"'{target}' is not a preference model; expected {WANTED[needs]}")
    files = sorted(epath.Path(directory).iterdir())
    stamp = tuple((path.name, path.stat().mtime) for path in files)
    _readable(target, format, json.dumps(dict(settings.args), default=str), settings.date, stamp)


def rewards(plan: Plan) -> None:
    """Rewards that are Python functions import."""
    for reference in models_of(plan):
        if not reference.given.startswith(PYTHON):
            continue
        if reference.needs != "reward" or ".reward" not in reference.where:
            raise UserError(
                f"{reference.where}: '{reference.given}': expected {WANTED[reference.needs]}"
            )
        if plan.config.graph[reference.where.split(".")[2]].kind == "best_of":
            raise UserError(f"{reference.where}: '{reference.given}': expected {WANTED['reward']}")
        custom_reward(reference.given)


# Data ---------------------------------------------------------------------------------------------


# Kinds of stages without which there is nothing to do where this field names no data.
NEEDED = {
    "respond": "prompts",
    "compare": "prompts",
    "rl": "prompts",
    "human": "human",
    "harm": "ratings",
}


def _require_some(where: str, fields: Mapping) -> None:
    """UserError where neither the source nor the fields ask for any row."""
    with _located(where):
        limits_of = [
            each.options(None, fields.get("limit")) for each in sources.parse(fields.source)
        ]
    if all(each["limit"] == 0 for each in limits_of):
        raise UserError(
            f"{where}: 0 rows left, none are asked for (source='{fields.source}', "
            f"limit={fields.get('limit')}); "
            "name a source, or leave the stage out of config.stages"
        )


def _read(load: Callable, where: str, fields: Mapping) -> None:
    """Reads a source as its stage will, or its first rows where it is large."""
    options = dict(fields)
    none = options.get("limit") == 0
    if not options["source"]:
        return
    if none and load is load_comparisons:  # a preference model can do without; prompts are needed
        return
    try:
        paths = sources.files(options["source"])
        whole = bool(paths) and all(
            path.is_file() and path.stat().st_size <= READ_BYTES for path in paths
        )
        if not whole and not none:
            options |= {"offset": 0, "limit": min(options.get("limit") or ROWS, ROWS)}
        load(options.pop("source"), **options)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def data(plan: Plan) -> None:
    """Every source of prompts, comparisons, ratings, choices and answers opens and its rows
    parse."""
    for where, fields in plan.stages(*NEEDED):
        _require_some(f"{where}.{NEEDED[fields.kind]}", fields[NEEDED[fields.kind]])
    for where, fields in plan.stages("respond", "compare", "rl"):
        _read(read_prompts, f"{where}.prompts", fields.prompts.to_dict())
    for where, fields in plan.stages("human", "pm"):
        _read(load_comparisons, f"{where}.human", fields.human.to_dict())
    for where, fields in plan.stages("harm"):
        for name in ("ratings", "heldout"):
            _read(load_ratings, f"{where}.{name}", fields[name].to_dict())
    for where, fields in plan.stages("evaluate"):
        for name in sorted(fields):
            if name.startswith(collect.PROMPT_FIELD):
                _read(read_prompts, f"{where}.{name}", fields[name].to_dict())
        for name, of in fields.evals.items():
            _evaluation(f"{where}.evals.{name}", of)
        _answer_files(plan, where, fields)


def _evaluation(where: str, fields: Mapping) -> None:
    """What an evaluation reads: prompts and comparisons, and what only itself can check."""
    if fields.get("comparisons") and fields.reward:
        _read(load_comparisons, f"{where}.comparisons", fields.comparisons.to_dict())
    if fields.get("prompts") and fields.model:
        _read(read_prompts, f"{where}.prompts", fields.prompts.to_dict())
    if check := getattr(EVALUATIONS[fields.kind], "check", None):
        with _located(where):
            check(fields)


def _answer_files(plan: Plan, where: str, fields: Mapping) -> None:
    """Answers in files are readable, and of the prompts that they are compared on."""
    written = {}
    for name, reference in fields.models.items():
        reference = resolve_role(plan.config, reference)
        if reference.startswith(answers.PREFIX):
            with _located(f"{where}.models.{name}"):
                written[name] = answers.from_file(reference)
    if written:
        sets = {
            name.removeprefix(collect.PROMPT_FIELD): read_prompts(**fields[name].to_dict())[0]
            for name in fields
            if name.startswith(collect.PROMPT_FIELD) and fields[name].source
        }
        answers.require_common(written, sets, where)


def constitutions(plan: Plan) -> None:
    """Constitutions load: those of the stages that draw principles, or show worked chains."""
    for where, fields in plan.stages("revise", "feedback"):
        if fields.get("mode") != "preference_model":
            with _located(f"{where}.constitution"):
                load_constitution(fields.constitution)


@contextlib.contextmanager
def _located(where: str):
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


# Sizes and credentials ----------------------------------------------------------------------------


def divisibility(plan: Plan) -> None:
    """An update's rollouts divide into its minibatches. Batches need not divide: they are padded to
    the mesh."""
    for where, fields in plan.stages("rl"):
        if fields.rollouts_per_update % fields.num_minibatches:
            raise UserError(
                f"{where}: rollouts_per_update {fields.rollouts_per_update} is not a multiple of "
                f"num_minibatches {fields.num_minibatches}"
            )


def credentials(plan: Plan) -> None:
    """Weights & Biases is installed and knows who is logged in. (A hub model that needs a token is
    asked for above.)"""
    project = (plan.config.get("logging") or {}).get("wandb", "")
    if not project or not any(
        True for _ in plan.stages(*(kind for kind, stage in STAGES.items() if stage.makes))
    ):
        return
    where = f"config.logging.wandb is '{project}'"
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"{where}, but wandb is not installed: pip install wandb, or leave it empty"
        ) from error
    if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
        return
    if not _wandb_key(wandb):
        raise UserError(
            f"{where}, but nobody is logged in: run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline to log without the service"
        )


def _wandb_key(wandb) -> bool:
    """Whether wandb will find a key: in the environment, in ~/.netrc, or wherever else it keeps
    one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("//")[2].split("/")[0]
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc().authenticators(host):
            return True
    try:
        return bool(wandb.api.api_key)
    except (
        Exception
    ):  # another version of wandb keeps it elsewhere: it will say itself what it misses
        return True


def contexts(plan: Plan) -> None:
    """The shortest request of every stage fits the context."""
    limits.check(plan.config, plan.running)


CHECKS: tuple[Callable[[Plan], None], ...] = (
    stage_inputs,
    stage_models,
    rewards,
    divisibility,
    constitutions,
    data,
    model_directories,
    contexts,
    credentials,
)
