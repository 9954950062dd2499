"""What can be known before the first stage starts: checked in a second or two, before anything is
moved, loaded or compiled.

`CHECKS` at the end of this file lists all of it. Single values are checked even earlier
(`configuration.checks`), names of stages by `nodes.build_graph`. A check reads only what the stages
need that are going to run; it asks their tables (`configuration.stages`) what the fields name, and
their modules (`stages.KIND.check`) what else must hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from cai_jax import references
from cai_jax.configuration import endpoints, topic
from cai_jax.configuration.fields import Constitution, Model, Records, RowSource, Setting
from cai_jax.configuration.stages import STAGES, stage_module
from cai_jax.constitution.loader import load_constitution
from cai_jax.data import sources, templates
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.dialogue import load_format
from cai_jax.data.prompts import read_prompts
from cai_jax.data.ratings import load_ratings
from cai_jax.errors import UserError, in_field
from cai_jax.io import artefacts
from cai_jax.io.checkpoints import Checkpoints
from cai_jax.models import hf
from cai_jax.models.config import ModelConfig
from cai_jax.pipeline import limits
from cai_jax.pipeline.nodes import resolve, settings
from cai_jax.rewards.functions import custom_reward
from cai_jax.textmodels import batch_files, endpoint
from cai_jax.textmodels.recorded import RecordedTextModel

READ_BYTES = 32 * 2**20  # larger files, and data sets of the hub and TFDS, are read as far as ROWS
ROWS = 100
READERS = {"prompts": read_prompts, "comparisons": load_comparisons, "ratings": load_ratings}
WANTED = {
    "policy": "a policy: a stage of kind sl or rl, or a language model",
    "reward": "a preference model: a stage of kind pm, or a classifier with one label",
    "harm": "a regressor of harm: a stage of kind harm, or a classifier with one label",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a check sees.

    Attributes:
      given: the config as the user gave it; `config`: as the stages read it.
      run_path: the run directory; nothing is written there.
      running: the stages that are going to run.
    """

    given: Any
    config: Any
    run_path: epath.Path
    running: tuple[str, ...]

    def settings(self, name: str, of: type) -> list[Setting]:
        """The fields of a stage whose ranges are of a type."""
        every = settings(self.config, name)
        return [setting for setting in every if isinstance(setting.field.range, of)]

    def topics(self, name: str) -> dict[str, str]:
        """Field of a stage → the field of config.topic that it refers to."""
        written = ((each.where, topic.origin(each.value)) for each in settings(self.given, name))
        return {where: origin for where, origin in written if origin}


def check(
    config,
    nodes: Mapping,
    run_path: epath.Path,
    stale: Sequence[str] = (),
    damaged: Sequence[artefacts.Damaged] = (),
) -> None:
    """Refuses the first thing that would stop a stage of this command.

    Args:
      config, nodes: the run's config and its graph, as `build_graph` gives it.
      run_path: the run directory; nothing is written there.
      stale: stages that are going to be moved aside.
      damaged: stages whose files are not what they wrote.

    Raises:
      UserError: it, with the field's name.
    """
    again = {*stale, *(damage.stage for damage in damaged)}
    done = {
        name
        for name in nodes
        if name not in again and artefacts.StageDirectory(run_path / name).done
    }
    for damage in damaged:
        if damage.stage not in config.stages:
            raise UserError(
                f"{damage}; add it, to recompute what is lost: "
                f"--config.stages={','.join([damage.stage, *config.stages])}"
            )
    missing = [name for name in nodes if name not in config.stages and name not in done]
    if missing:
        names = ", ".join(f"'{name}'" for name in missing)
        several = len(missing) > 1
        asked = ",".join(name for name in nodes if name in (*missing, *config.stages))
        raise UserError(
            f"stage{'s' * several} {names} {'are' if several else 'is'} needed and not done in "
            f"{run_path}; add {'them' if several else 'it'}: --config.stages={asked}"
        )
    running = tuple(name for name in nodes if name in config.stages and name not in done)
    plan = Plan(config, resolve(config), run_path, running)
    for check_stage in CHECKS:
        for name in running:
            check_stage(plan, name)
    if any(STAGES[plan.config.graph[name].kind].makes for name in running):
        require_wandb(config.logging.wandb)


def inputs(plan: Plan, name: str) -> None:
    """Inputs are stages that write what is read there."""
    for where, field, given, _ in plan.settings(name, Records):
        wanted = field.range.of
        if not given and field.range.empty:
            continue
        makers = ", ".join(kind for kind, stage in STAGES.items() if stage.writes == wanted)
        expected = f"expected a stage that writes {wanted} (of kind {makers})"
        if not given:
            raise UserError(f"{where}: is empty; {expected}")
        kind = plan.config.graph[given].kind
        if STAGES[kind].writes != wanted:
            made = STAGES[kind].writes or "no records"
            raise UserError(
                f"{where}: '{given}' is of kind {kind}, which writes {made}; {expected}"
            )


def fields(plan: Plan, name: str) -> None:
    """What the stage's own module asks of its fields together."""
    stage = plan.config.graph[name]
    if own := getattr(stage_module(stage.kind), "check", None):
        own(stage, plan.config, f"config.graph.{name}")


# Models -------------------------------------------------------------------------------------------


def models(plan: Plan, name: str) -> None:
    """Fields that name models name such as are needed, and they are there: stages train them,
    functions import, directories are readable."""
    stage, checked = plan.config.graph[name], set()
    for where, field, given, group in plan.settings(name, Model):
        target = references.target(plan.config.models, given)
        needs = field.range.needed(stage)
        format = stage.get("format", "auto") if needs in ("policy", "any") else "auto"
        if not given or (target, needs) in checked:
            continue
        checked.add((target, needs))
        if target.kind == references.PYTHON:
            if not field.range.python:
                raise UserError(f"{where}: '{given}': expected {WANTED.get(needs, 'a model')}")
            custom_reward(str(target))
        elif target.kind in references.ANSWERING:
            is_text = group.get("format", stage.get("format")) == "text"
            _require_served(plan, where, given, needs, STAGES[stage.kind], is_text)
        elif target.kind == references.STAGE:
            if not (field.range.answers and limits.has_answers(plan.config, given)):
                _require_trained(plan, where, given, needs)
            _require_step(plan, where, target)
        elif target.kind != references.RESPONSES or not field.range.answers:
            shown = where if given == str(target) else f"{where} ('{given}')"
            with in_field(shown):
                _require_directory(plan, str(target), needs, format)


def _require_served(plan: Plan, where: str, given: str, needs: str, kind, is_text: bool) -> None:
    """A model elsewhere only answers, and what asking it takes is there."""
    name = references.resolve(plan.config.models, given)
    if needs != "policy" or kind.makes:
        what = "all models of a stage that trains" if kind.makes else "what scores dialogues"
        raise UserError(
            f"{where}: '{name}' is elsewhere: it answers and chooses, but {what} must be in this "
            f"process; expected {WANTED.get(needs, WANTED['policy'])}"
        )
    if jax.process_count() > 1:
        raise UserError(
            f"{where}: '{name}' is elsewhere, where one process asks; run its stages in one "
            "process first (--config.stages), and the others with all"
        )
    target = references.parse(name)
    with in_field(where):
        if target.kind == references.RECORDED:
            RecordedTextModel(target.name).require()
            return
        fields = endpoints.of(plan.config, given)
        if target.kind == references.OPENAI:
            target.server()
            endpoint.require_package(name)
            endpoint.key_of(name, fields.key_env)
    if plan.config.max_cost and not (fields.input_price or fields.output_price):
        raise UserError(
            f"config.max_cost: '{name}' has no prices; set input_price and output_price of "
            "config.endpoints.all"
        )
    if target.kind == references.BATCH and fields.form == batch_files.ANTHROPIC and is_text:
        raise UserError(
            f"{where}: '{name}' is asked in Anthropic's form, which has messages only, and its "
            "format is text; expected format=chat, or config.endpoints.all.form=openai"
        )


def _require_trained(plan: Plan, where: str, given: str, needs: str) -> None:
    kind = plan.config.graph[
        references.stage_of(references.resolve(plan.config.models, given))
    ].kind
    made = STAGES[kind].makes
    if made != needs and not (needs == "any" and made in ("policy", "reward")):
        raise UserError(
            f"{where}: '{given}' is a {made or f'stage of kind {kind}'}, a {needs} is needed here; "
            f"expected {WANTED.get(needs, WANTED['policy'])}"
        )


def _require_step(plan: Plan, where: str, target: references.Reference) -> None:
    """`@stage:step` is a checkpoint that is or will be there."""
    if not target.step:
        return
    fields = plan.config.graph[target.stage]
    if target.stage not in plan.running:
        steps = Checkpoints(plan.run_path / target.stage / "checkpoints").steps()
        if not target.step.isdigit() or int(target.step) not in steps:
            raise UserError(f"{where}: '{target}': no such checkpoint; steps: {list(steps)}")
        return
    kept_steps = getattr(stage_module(fields.kind), "kept_steps", None)
    kept = kept_steps(fields) if kept_steps else None
    if not target.step.isdigit() or kept is not None and int(target.step) not in kept:
        shown = "its last one" if kept is None else ", ".join(map(str, kept))
        raise UserError(
            f"{where}: '{target}': '{target.stage}' is going to keep step {shown}; "
            f"config.graph.{target.stage}.snapshot_every_updates keeps more"
        )


def _require_directory(plan: Plan, target: str, needs: str, format: str) -> None:
    """config.json, tokenizer and chat template can be read, weight files opened, and it is a model
    of the kind that is needed."""
    directory = hf.resolve(target)
    classifier = hf.is_classifier(directory)
    if needs == "policy" and classifier:
        raise UserError(f"'{target}' is a preference model; expected {WANTED['policy']}")
    if needs in ("reward", "harm") and not classifier:
        raise UserError(f"'{target}' is not a preference model; expected {WANTED[needs]}")
    config = ModelConfig.from_json(directory)
    load_format(directory, format, templates.Settings.of(plan.config))
    if not target.startswith(references.RANDOM):
        tied = config.tied_embeddings or classifier
        config = dataclasses.replace(config, tied_embeddings=tied)
        hf.open_weights(directory, config, classifier)  # names and shapes only


# Data ---------------------------------------------------------------------------------------------


def data(plan: Plan, name: str) -> None:
    """Every source of prompts, comparisons and ratings opens and its rows parse; constitutions
    load."""
    topics = plan.topics(name)
    for where, _, given, _ in plan.settings(name, Constitution):
        with in_field(topics.get(where, where)):
            load_constitution(given)
    for where, field, given, group in plan.settings(name, RowSource):
        shown = where.removesuffix(".source") + (f" ({topics[where]})" if where in topics else "")
        with in_field(shown):
            _read(field.range, given, dict(group))


def _read(kind: RowSource, source: str, options: dict) -> None:
    """Reads a source as its stage will, or its first rows where it is large."""
    limit = options["limit"]
    asked = [each.options(None, limit)["limit"] != 0 for each in sources.parse(source)]
    if not any(asked):
        # Prompts that are named and none of which is asked for are a mistake; a preference model
        # can do without comparisons.
        if kind.required or source and kind.of == "prompts":
            raise UserError(
                f"0 rows left, none are asked for (source='{source}', limit={limit}); name a "
                "source, or leave the stage out of config.stages"
            )
        return
    files = sources.files(source)
    small = files and all(file.is_file() and file.stat().st_size <= READ_BYTES for file in files)
    if not small and limit != 0:
        options |= {"offset": 0, "limit": min(limit or ROWS, ROWS)}
    READERS[kind.of](**options)


# Sizes and credentials ----------------------------------------------------------------------------


def contexts(plan: Plan, name: str) -> None:
    """The shortest requests of the stage fit the context."""
    limits.check(plan.config, name)


def require_wandb(project: str) -> None:
    """Raises UserError where Weights & Biases is asked for and not installed, or does not know who
    is logged in."""
    if not project:
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
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("//")[2].split("/")[0]
    known = bool(os.environ.get("WANDB_API_KEY"))
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        known = known or bool(netrc.netrc().authenticators(host))
    with contextlib.suppress(Exception):  # other versions of wandb keep the key elsewhere
        known = known or bool(wandb.api.api_key)
    if not known:
        raise UserError(
            f"{where}, but nobody is logged in: run `wandb login`, set WANDB_API_KEY, or set "
            "WANDB_MODE=offline to log without the service"
        )


CHECKS: tuple[Callable[[Plan, str], None], ...] = (inputs, data, models, fields, contexts)
