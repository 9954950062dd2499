"""What a run is about: config.topic names prompts, constitution and words once, and the stages
refer to them.

A stage's field "topic:prompts" means config.topic.prompts, so that somebody with a topic of
their own changes one place and no stage goes on with the embedded red-team prompts. `resolve`
replaces the references before anything else reads the config.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator

import ml_collections

from cai_jax.configuration.fields import RowSource, Setting, walk_kind
from cai_jax.configuration.run import TOPIC
from cai_jax.configuration.stages import STAGES
from cai_jax.data import sources
from cai_jax.errors import UserError

MARK = "topic:"
# A source without named splits is divided by a hash of its first human turns (data/records.py).
PARTS = {"train": "0-7/10", "heldout": "8-9/10"}
ALL = "0/1"  # the only one of one part
SOURCES = ("prompts", "helpful", "comparisons")  # each has a counterpart heldout_NAME
DEFAULTS = {name: field.default for name, field in TOPIC.items()}
PLAIN = ("constitution", "choices", "question")  # fields that are replaced as they are


@dataclasses.dataclass(frozen=True)
class Words:
    """How the report calls the topic: "red-team prompts", "harmless", "harmlessness"."""

    name: str = DEFAULTS["name"]
    quality: str = DEFAULTS["quality"]

    @property
    def noun(self) -> str:
        """The quality as a noun: harmless → harmlessness; quoted where the suffix is not
        English."""
        return f"{self.quality}ness" if self.quality.replace("-", "").isalpha() else self.quality

    @classmethod
    def of(cls, config: dict) -> Words:
        """The words of a run's config as JSON; the defaults where an older run has none."""
        topic = config.get("topic") or {}
        return cls(topic.get("name") or cls.name, topic.get("quality") or cls.quality)


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy of `config` in which no stage refers to config.topic any more; the same config where
    it has no topic.

    Raises UserError for a name that config.topic does not have, and for a stage to be run whose
    source is empty.
    """
    topic = config.get("topic")
    if topic is None:
        return config
    copy = ml_collections.ConfigDict(config.to_dict())
    for setting in _references(copy, copy.graph):
        group, where = setting.group, setting.where
        key = where.rpartition(".")[2]
        if isinstance(setting.field.range, RowSource):
            group[key] = _source(setting.value, group.get("split", ""), topic, where)
            stage, _, field = where.removeprefix("config.graph.").partition(".")
            if not group[key] and stage in config.stages and field == "prompts.source":
                raise UserError(
                    f"{where}: '{setting.value}' is empty in config.topic; name a source there, or "
                    f"leave '{stage}' out of config.stages and of the inputs of other stages"
                )
        else:
            group[key] = topic[_known(setting.value.removeprefix(MARK), PLAIN, where)]
    copy.lock()
    return copy


def _references(config, stages: Iterable[str]) -> Iterator[Setting]:
    """The fields of stages that refer to config.topic: sources in one of their parts; other texts,
    which may hold the same words, from their beginning on."""
    for name in stages:
        stage = config.graph.get(name)
        for each in walk_kind(STAGES, stage, f"config.graph.{name}") if stage is not None else ():
            is_source = isinstance(each.field.range, RowSource)
            if isinstance(each.value, str) and MARK in each.value:
                if is_source or each.value.startswith(MARK):
                    yield each


def origin(written) -> str:
    """The field of config.topic that alone a written value refers to, else ""."""
    if isinstance(written, str) and written.startswith(MARK) and "+" not in written:
        return f"config.topic.{written.removeprefix(MARK)}"
    return ""


def _known(name: str, known: tuple[str, ...], where: str) -> str:
    if name not in known:
        raise UserError(
            f"{where}: '{MARK}{name}' is not a part of config.topic that it can name; expected "
            f"{', '.join(MARK + part for part in known)}"
        )
    return name


def _source(value: str, split: str, topic, where: str) -> str:
    """The source behind "topic:a+topic:b" for the named split; parts that are empty are left
    out."""
    parts = []
    for part in (source.written for source in sources.parse(value)):
        if not part.startswith(MARK):
            parts.append(part)
            continue
        role = part.removeprefix(MARK)
        source = topic[_known(role, SOURCES, where)]
        heldout = topic[f"heldout_{role}"]
        if split == "heldout" and heldout:
            source = _all_of_files(heldout, source)
        elif source and source != DEFAULTS[role] and not heldout and split in PARTS:
            source = _with_split(source, PARTS[split], split, f"config.topic.{role}", role)
        if source:
            parts.append(source)
    return "+".join(parts)


def _with_split(text: str, parts: str, split: str, where: str, role: str) -> str:
    """Every source of "a+b" with the parts of the split; one that names its own split is for
    training only."""
    named = []
    for source in sources.parse(text):
        written = source.written
        if source.split is not None and split == "heldout":
            raise UserError(
                f"{where}: '{written}' names a split of its own; say what is held out: "
                f"config.topic.heldout_{role}"
            )
        if source.split is not None or source.kind == sources.EMBEDDED:
            named.append(written)
        else:
            named.append(_in_parts(source, parts))
    return "+".join(named)


def _in_parts(source: sources.Source, parts: str) -> str:
    if source.limit is not None:
        return f"{source.written.rpartition('[')[0]}[{parts}:{source.limit}]"
    return f"{source.written}[{parts}]"


def _all_of_files(heldout: str, trained: str) -> str:
    """Held-out sources in which a file that names no split means all its rows. One that is
    trained on as well keeps to those of its split "heldout", and so do data sets, whose splits have
    names."""
    known = {os.path.realpath(path) for path in sources.files(trained)}
    named = []
    for source in sources.parse(heldout):
        apart = source.kind == sources.FILE and source.split is None
        apart = apart and os.path.realpath(source.path) not in known
        named.append(_in_parts(source, ALL) if apart else source.written)
    return "+".join(named)


def notes(config: ml_collections.ConfigDict, missing_examples: dict[str, list[str]]) -> list[str]:
    """Sentences on what is still the default where a part of the topic is one's own; none where
    nothing is, or all is.

    Args:
        config: as the user gave it, before `resolve`.
        missing_examples: constitution → the kinds of worked examples that it lacks, for which the
            embedded ones are taken.
    """
    lines = []
    topic = config.get("topic")
    if topic is not None:
        own = [name for name in DEFAULTS if topic[name] != DEFAULTS[name]]
        parts = [
            part for each in _references(config, config.stages) for part in each.value.split("+")
        ]
        used = {part.removeprefix(MARK) for part in parts if part.startswith(MARK)}
        left = [
            name
            for name in ("prompts", "helpful", "comparisons", "choices", "constitution")
            if name not in own and name in used
        ]
        left += [name for name in ("question", "name", "quality") if own and name not in own]
        if own and left:
            shown = ", ".join(f"{name}={topic[name]!r}" for name in left)
            lines.append(
                f"config.topic has its own {', '.join(own)}; still the defaults, which are "
                f"about harm and help: {shown}"
            )
    lines += _differing_sources(resolve(config))
    for source, kinds in sorted(missing_examples.items()):
        lines.append(
            f"{source}: it has no {', '.join(kinds)}; the embedded worked examples, which are "
            "about harm, precede every "
            "request. Bring examples of your own, or [] for none"
        )
    return lines


def _differing_sources(config) -> list[str]:
    """A sentence where a stage has prompts of its own and others still ask the embedded red-team
    prompts."""
    own, default = [], []
    for name in config.stages:
        stage = config.graph.get(name)
        for key, fields in stage.items() if stage is not None else ():
            if key == "prompts" or key.startswith("prompts_"):
                source = fields.get("source") or ""
                parts = [part.strip() for part in source.split("+")]
                if DEFAULTS["prompts"] in parts:
                    default.append(f"{name}.{key}")
                elif source and not any(part.startswith("embedded:") for part in parts):
                    own.append(f"{name}.{key}")
    if own and default:
        return [
            f"{', '.join(own)}: prompts of your own; {', '.join(default)} still ask "
            f"{DEFAULTS['prompts']}. "
            "config.topic.prompts sets them all"
        ]
    return []
