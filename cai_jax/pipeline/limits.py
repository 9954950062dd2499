"""What can never fit, by the config and the models alone: refused before anything runs. The rest of
the rule of `cai_jax.data.fitting` acts on the data, inside the stages.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Iterator

from cai_jax.constitution.loader import load_constitution
from cai_jax.data import choices, dialogue, fitting, templates
from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig
from cai_jax.stages.context import resolve_role
from cai_jax.structs import Message

# Kind of stage → its field that names the model which generates; of `evaluate` there are several.
GENERATING = {
    "respond": "model",
    "compare": "model",
    "revise": "model",
    "feedback": "model",
    "rl": "policy",
}
TRAINED_FROM = {"sl": "init", "pm": "init", "harm": "init", "rl": "policy"}
TEMPLATE_BYTES = 512  # of a chat template around one turn, at most: a byte is at least a token
EMPTY = (Message("human", ""),)


def models_of(config, stage) -> list[str]:
    """References of the models that generate or score within the sampler's limit."""
    if stage.kind == "evaluate":
        named = [*stage.models.values()]
        named += [of.get(field) for of in stage.evals.values() for field in ("feedback", "judge")]
        named = [name for name in named if name]
        return [name for name in named if not has_answers(config, name)]
    if stage.get("mode") == "preference_model":
        return []
    reference = stage.get(GENERATING.get(stage.kind, ""))
    return [reference] if reference else []


def has_answers(config, reference: str) -> bool:
    """Whether it names answers that exist, in a file or of a stage, in place of a model."""
    reference = resolve_role(config, reference)
    stage = config.graph.get(reference.removeprefix("@"), {}) if reference[:1] == "@" else {}
    return reference.startswith("responses:") or stage.get("kind") in ("respond", "best_of")


def directory_of(config, reference: str) -> str | None:
    """The local directory that a model goes back to; None where it is on a hub, or no model."""
    target = resolve_role(config, reference)
    for _ in range(len(config.graph) + 1):
        if not target.startswith("@"):
            break
        stage = config.graph.get(target[1:].partition(":")[0], {})
        if stage.get("kind") not in TRAINED_FROM:
            return None
        target = resolve_role(config, stage[TRAINED_FROM[stage.kind]])
    path = pathlib.Path(target.removeprefix("random:")).expanduser()
    return str(path) if (path / "config.json").is_file() else None


def positions(config, reference: str) -> int | None:
    """The most tokens that a model was made for; None where that is not known before it is
    fetched."""
    directory = directory_of(config, reference)
    try:
        return ModelConfig.from_json(directory).max_length if directory else None
    except UserError:  # said where models are checked
        return None


def decisive_limit(config, stage) -> int | None:
    """What of the sampler's limit decides which rows of the stage exist, for its fingerprint:
    sampling.max_length, unless it is at least the positions of every model. None where the stage
    has no such limit."""
    models = models_of(config, stage)
    if not models:
        return None
    known = [positions(config, name) for name in models]
    return (
        fitting.smallest(config.sampling.max_length, max(known))
        if all(known)
        else config.sampling.max_length
    )


def check(config, names: Iterable[str]) -> None:
    """Raises UserError for the first of the stages whose shortest request does not fit.

    Reads constitutions and the config files of local models, a tokenizer only where a limit is
    close.
    """
    for name in names:
        stage = config.graph[name]
        for reference in models_of(config, stage):
            known = positions(config, reference)
            if limit := (config.sampling.max_length or known):
                limit = fitting.smallest(limit, known)
                for field, reply, messages in _shortest_requests(stage, reference):
                    _check_field(config, name, reference, limit, field, reply, messages)


def _shortest_requests(stage, reference: str) -> Iterator[tuple[str, str, tuple[Message, ...]]]:
    """(field with the limit of new tokens, whose turn, the shortest dialogue that a model is asked
    about)."""
    if stage.kind == "revise":
        principles = load_constitution(stage.constitution).critique_principles
        principles = principles[: stage.num_principles]
        asked = min((item.critique_request for item in principles), key=len)
        rewrite = min((item.revision_request for item in principles), key=len)
        start = (*EMPTY, Message("assistant", ""))
        if stage.critique:
            start += (Message("critique_request", asked),)
            yield "max_critique_tokens", "critique", start
            start += (Message("critique", ""),)
        yield "max_revision_tokens", "revision", (*start, Message("revision_request", rewrite))
    elif stage.kind == "feedback":
        principles = load_constitution(stage.constitution).comparison_principles
        shortest = min((item.text for item in principles), key=len)
        asked = (Message("human", choices.question(EMPTY, shortest, ("", ""))),)
        yield "max_chain_tokens" * (stage.mode == "chain_of_thought"), "assistant", asked
    elif (
        stage.kind == "evaluate"
    ):  # the judge only scores, the feedback model answers only questions
        answers = reference in stage.models.values()
        if answers:
            yield "max_new_tokens", "assistant", EMPTY
        for name, of in stage.evals.items():
            asked = reference == of.get("feedback") or answers and of.get("choices_of_models")
            if asked and of.num_chains:
                yield f"evals.{name}.max_chain_tokens", "assistant", EMPTY
    else:
        yield "max_new_tokens", "assistant", EMPTY


def _check_field(config, name, reference, limit, field, reply, messages) -> None:
    """Raises UserError where a request with so many new tokens is longer than `limit`."""
    stage = config.graph[name]
    new = functools.reduce(lambda of, key: of[key], field.split("."), stage) if field else 0
    shortest, text = 1, "".join(message.text for message in messages)
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
