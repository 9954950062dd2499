"""Fields whose default is "auto", and `rl.reward` next to `rl.rewards`: what they mean follows from
other fields of the run's config.

`resolve` puts the values in their place before anything else reads the config, so that
fingerprints, RUN/config.json and the stages see them and never the word; `notes` says which ones
were chosen and why.
"""

from __future__ import annotations

import functools

import ml_collections

from cai_jax import references
from cai_jax.configuration import fields
from cai_jax.configuration.stages import REWARD_TERMS
from cai_jax.errors import UserError

AUTO = "auto"
CHAIN = "chain_of_thought"
CLAMP = (0.4, 0.6)  # of labels after a chain of thought (section 4.1)
NO_CLAMP = ()
ASKED_ONCE = {"mode": "multiple_choice", "principles_per_pair": 1}  # of a judge as reward
QUIET = (("model", "feedback"), ("clamp", ()), ("reward", ""))  # the usual; no line is written


def _choices(config) -> list[tuple[str, str, object, str]]:
    """(stage, field, value, reason) of every field that is "auto", those first that others follow
    from."""
    stages = {
        name: stage
        for name, stage in config.graph.items()
        if isinstance(stage, ml_collections.ConfigDict)
    }
    kinds = {name: stage.get("kind") for name, stage in stages.items()}
    chosen, clamps = [], {}
    for name, stage in stages.items():
        if kinds[name] == "rl" and stage.get("rewards") and stage.get("reward"):
            chosen.append((name, "reward", "", "rewards are given"))
            continue
        judge_name = references.stage_of(str(stage.get("reward") or ""))
        if kinds[name] == "rl" and kinds.get(judge_name) == "feedback":
            why = f"'{stage.reward}' is a judge"
            judge = _judge(judge_name, stages[judge_name], f"config.graph.{name}.reward")
            chosen.append((name, "rewards", {"judge": judge}, why))
            chosen.append((name, "reward", "", why))
    for name, stage in stages.items():
        if kinds[name] == "feedback" and stage.get("model") == AUTO:
            model = "helpful" if stage.get("mode") == CHAIN else "feedback"
            chosen.append((name, "model", model, f"mode={stage.get('mode')}"))
    for name, stage in stages.items():
        if kinds[name] in ("pm", "dpo"):
            clamp = stage.get("clamp")
            if _is_auto(clamp):
                clamp = CLAMP if after_chains(config, stage) else NO_CLAMP
                chains = "with" if clamp else "without"
                chosen.append((name, "clamp", clamp, f"soft labels {chains} chains"))
            if kinds[name] == "pm":
                clamps[name] = clamp
    for name, stage in stages.items():
        for key, of in (stage.get("evals") or {}).items():
            if not _is_auto(of.get("clamp")):
                continue
            rewards = [str(other.get("reward") or "") for other in stage.evals.values()]
            asked = [*map(references.stage_of, rewards), *sorted(clamps)]
            clamp = next((clamps[pm] for pm in asked if clamps.get(pm)), CLAMP)
            why = "that of the preference models, or the paper's"
            chosen.append((name, f"evals.{key}.clamp", clamp, why))
    return chosen


def _judge(name: str, stage, where: str) -> dict:
    """The term of a reward that asks as a feedback stage does, both orders of every pair."""
    for field, only in ASKED_ONCE.items():
        if stage[field] != only:
            raise UserError(
                f"config.graph.{name}.{field}: a judge as reward ({where}=@{name}) does not do "
                f"{stage[field]!r}; expected {only!r}; or train a pm on these labels and set "
                f"{where}=@pm"
            )
    model = "feedback" if stage.model == AUTO else stage.model
    names = ("constitution", "num_few_shot", "num_headers", "format")
    given = {name: stage[name] for name in names} | {"kind": "judge", "model": model}
    return fields.build_kind(REWARD_TERMS, given, "judge")


def _is_auto(value) -> bool:
    return value == AUTO or (isinstance(value, (tuple, list)) and tuple(value) == (AUTO,))


def after_chains(config, stage) -> bool:
    """Whether a pm or dpo stage learns from soft labels given after a chain of thought."""
    labels = config.graph.get((stage.get("inputs") or {}).get("labels") or "") or {}
    chains = labels.get("kind") == "feedback" and labels.get("mode") == CHAIN
    return chains and stage.get("label_kind") == "soft"


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy of `config` in which no field is "auto" any more; the same config where none is."""
    chosen = _choices(config)
    if not chosen:
        return config
    copy = ml_collections.ConfigDict(config.to_dict())
    for stage, field, value, _ in chosen:
        *groups, last = field.split(".")
        functools.reduce(lambda of, key: of[key], groups, copy.graph[stage])[last] = value
    copy.lock()
    return copy


def notes(config: ml_collections.ConfigDict) -> list[str]:
    """A line for every field of a stage to be run that is not what it is without chains of
    thought."""
    return [
        f"config.graph.{stage}.{field}: auto → {value!r} ({reason})"
        for stage, field, value, reason in _choices(config)
        if stage in config.stages and (field, value) not in QUIET
    ]
