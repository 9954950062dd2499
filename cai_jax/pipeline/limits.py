"""What can never fit, by the config and the models alone: refused before anything runs. The rest of
the rule of `cai_jax.data.fitting` acts on the data, inside the stages.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator

from cai_jax import references
from cai_jax.configuration.fields import Model, walk_kind
from cai_jax.configuration.stages import STAGES, stage_module
from cai_jax.data import dialogue, fitting, templates
from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig
from cai_jax.structs import Dialogue, Message

TEMPLATE_BYTES = 512  # of a chat template around one turn, at most: a byte is at least a token
# A request of a stage: the model, the field with its limit of new tokens ("" where it writes none),
# whose turn it is, the shortest dialogue that the model is asked about.
Request = tuple[str, str, str, Dialogue]
EMPTY = (Message("human", ""),)


def models_of(config, name: str) -> list[str]:
    """References of the models that a stage asks by the sampler, within its limit."""
    stage = config.graph[name]
    if not STAGES[stage.kind].samples:
        return []
    asked = []
    for setting in walk_kind(STAGES, stage, f"config.graph.{name}"):
        kind = setting.field.range
        if isinstance(kind, Model) and setting.value and kind.needed(stage) == "policy":
            target = references.target(config.models, setting.value)
            elsewhere = target.kind in references.ANSWERING
            if not elsewhere and not (kind.answers and has_answers(config, setting.value)):
                asked.append(setting.value)
    return asked


def has_answers(config, reference: str) -> bool:
    """Whether it names answers that exist, in a file or of a stage, in place of a model."""
    target = references.target(config.models, reference)
    kind = config.graph[target.stage].kind if target.stage in config.graph else ""
    return target.kind == references.RESPONSES or kind in ("respond", "best_of")


def directory_of(config, reference: str) -> str | None:
    """The local directory that a model goes back to; None where it is on a hub, or no model."""
    target = references.target(config.models, reference)
    for _ in config.graph:
        if target.stage not in config.graph:
            break
        fields = config.graph[target.stage]
        origin = fields.get("init") or fields.get("policy")
        if not STAGES[fields.kind].makes or not origin:
            return None
        target = references.target(config.models, origin)
    path = pathlib.Path(target.name).expanduser()
    return str(path) if (path / "config.json").is_file() else None


def positions(config, reference: str) -> int | None:
    """The most tokens that a model was made for; None where that is not known before it is
    fetched."""
    directory = directory_of(config, reference)
    try:
        return ModelConfig.from_json(directory).max_length if directory else None
    except UserError:  # reported where models are checked
        return None


def decisive_limit(config, name: str) -> int | None:
    """What of the sampler's limit decides which rows of a stage exist, for its fingerprint:
    sampling.max_length, unless it is at least the positions of every model. None where the stage
    has no such limit."""
    known = [positions(config, reference) for reference in models_of(config, name)]
    if not known:
        return None
    limit = config.sampling.max_length
    return fitting.smallest(limit, max(known)) if all(known) else limit


def check(config, name: str) -> None:
    """Raises UserError where one of a stage's shortest requests does not fit."""
    fields = config.graph[name]
    shortest = getattr(stage_module(fields.kind), "shortest", drawn)
    for reference, field, reply, messages in shortest(fields):
        if references.target(config.models, reference).kind in references.ANSWERING:
            continue  # a server says itself what is too long
        known = positions(config, reference)
        limit = config.sampling.max_length or known
        if limit and not has_answers(config, reference):
            limit = fitting.smallest(limit, known)
            _check_request(config, name, (reference, field, reply, messages), limit)


def drawn(fields) -> Iterator[Request]:
    """The shortest request of a stage that draws answers by its `model`, or its `policy`."""
    if "max_new_tokens" in fields:
        yield fields.get("model") or fields.get("policy"), "max_new_tokens", "assistant", EMPTY


def _check_request(config, name: str, request: Request, limit: int) -> None:
    """Raises UserError where a request with its new tokens is longer than `limit`. A tokenizer is
    read only where it is close."""
    reference, field, reply, messages = request
    stage = config.graph[name]
    new = functools.reduce(lambda group, key: group[key], field.split("."), stage) if field else 0
    shortest, text = 1, "".join(message.text for message in messages)
    # A token has at least a byte, so most requests are known to fit without a tokenizer.
    if new + len(text.encode()) + TEMPLATE_BYTES <= limit:
        return
    directory = directory_of(config, reference)
    if directory and new < limit:
        settings = templates.Settings.of(config)
        format = dialogue.load_format(directory, stage.get("format", "auto"), settings)
        shortest = fitting.num_tokens(format.prompt(messages, reply=reply))
    if shortest + new > limit:
        asked = f"a prompt of at least {shortest} tokens" if shortest > 1 else "a prompt"
        more = f" and {field}={new} new ones" if field else ""
        raise UserError(
            f"config.graph.{name}: {asked}{more} cannot fit the {limit} tokens of "
            f"'{reference}' (config.sampling.max_length={config.sampling.max_length}, the "
            "model's positions: "
            f"{positions(config, reference) or 'not known yet'})"
        )
