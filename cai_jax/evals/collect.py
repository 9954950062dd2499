"""The models' answers to sets of prompts: sampled, or taken from where they exist already."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cai_jax import references
from cai_jax.data import answers as answers_lib
from cai_jax.data.prompts import Prompt, read_prompts
from cai_jax.errors import Waits
from cai_jax.io import artefacts
from cai_jax.seeds import row_key
from cai_jax.structs import dialogue_to_json
from cai_jax.textmodels.protocol import Sampling, Turn

if TYPE_CHECKING:
    from cai_jax.stages.context import StageContext

PROMPT_FIELD = "prompts_"  # config.prompts_NAME is the set of prompts NAME
# Stages whose records are answers, named as "@stage" in place of a model.
ANSWERING_KINDS = ("respond", "best_of")


@dataclasses.dataclass(frozen=True)
class Draws:
    """What is asked: sets of prompts by name, and how many answers to each prompt, drawn at which
    temperature."""

    sets: Mapping[str, Sequence[Prompt]]
    num_samples: int
    temperature: float


def in_order(models: Mapping[str, str], run_config) -> dict[str, str]:
    """Name → reference: given models first, then those that stages trained, in the order of the
    stages. The first is what the others are compared with (a ConfigDict forgets the order in which
    it was written).

    Where a command runs a few stages only, the order is that in which stages need each other:
    config.stages does not give it."""
    targets = {
        name: references.parse(references.resolve(run_config.models, value))
        for name, value in models.items()
    }
    trained, stages = {target.stage for target in targets.values()} - {""}, list(run_config.stages)
    # config.stages gives the order only where it names all stages that trained a model here.
    in_command = trained <= set(stages)

    def position(name: str):
        stage, step = targets[name].stage, targets[name].step
        if not stage:
            return -1, 10**12, "", name
        number = stages.index(stage) if in_command else _depth(run_config, stage)
        return number, int(step) if step else 10**12, stage, name

    return {name: models[name] for name in sorted(models, key=position)}


def _depth(run_config, stage: str) -> int:
    """How many stages have to be done, one after the other, before this one."""
    fields = run_config.graph.get(stage) or {}
    texts = list(_texts(fields))
    roles = [references.resolve(run_config.models, text) for text in texts]
    parents = [value for value in (fields.get("inputs") or {}).values() if value]
    parents += [references.stage_of(role) for role in roles if references.stage_of(role)]
    return max((_depth(run_config, parent) + 1 for parent in parents), default=0)


def _texts(fields) -> Iterator[str]:
    """Every text among the fields, but the names of inputs."""
    for name, value in fields.items():
        if isinstance(value, str):
            yield value
        elif hasattr(value, "items") and name != "inputs":
            yield from _texts(value)


def prompt_sets(ctx: StageContext) -> dict[str, list[Prompt]]:
    """NAME → prompts, for every field prompts_NAME of the config."""
    names = [name for name in sorted(ctx.config) if name.startswith(PROMPT_FIELD)]
    return {
        name.removeprefix(PROMPT_FIELD): ctx.load(read_prompts, ctx.config[name])
        for name in names
        if ctx.config[name].source
    }


def written(ctx: StageContext, models: Mapping[str, str]) -> dict[str, answers_lib.Answers]:
    """Answers that exist already, in a file or as a stage's records, by the names of their
    models."""
    existing = {}
    for name, reference in models.items():
        target = references.parse(references.resolve(ctx.run_config.models, reference))
        if target.kind == references.RESPONSES:
            existing[name] = answers_lib.from_file(str(target))
        elif _kind(ctx, target.stage) in ANSWERING_KINDS:
            records = artefacts.StageDirectory(ctx.run_path / target.stage).records()
            existing[name] = answers_lib.read(enumerate(records, 1), str(target))
    for answers in existing.values():
        ctx.drop(f"null response in {answers.location}", answers.num_null)
    return existing


def drawn_at(ctx: StageContext, reference: str) -> float | None:
    """The temperature of answers that exist already; None where a model must answer. A file does
    not say: the paper's, 1."""
    target = references.parse(references.resolve(ctx.run_config.models, reference))
    if target.kind == references.RESPONSES:
        return 1.0
    kind, fields = _kind(ctx, target.stage), ctx.run_config.graph.get(target.stage)
    if kind == "best_of":  # of answers that a respond stage drew
        return drawn_at(ctx, f"@{fields.inputs.responses}")
    return float(fields.temperature) if kind == "respond" else None


def _kind(ctx: StageContext, stage: str) -> str:
    return (ctx.run_config.graph.get(stage) or {}).get("kind", "") if stage else ""


def answers(
    ctx: StageContext,
    models: Mapping[str, str],
    existing: Mapping[str, answers_lib.Answers],
    draws: Draws,
    journal,
) -> None:
    """Collects the answers that the journal lacks; a model is loaded only if some of its are
    missing.

    Args:
        ctx: of the evaluate stage, whose fields say how tokens are drawn.
        models: name → reference.
        existing: of `written`.
        draws: what is asked.
        journal: where answers are kept.
    """
    waits = Waits()
    for name, reference in models.items():
        wanted = {
            f"{on}/{name}/{prompt.id}/{sample:02d}": (on, prompt, sample)
            for on, of_set in draws.sets.items()
            for prompt in of_set
            for sample in range(draws.num_samples)
        }
        # What a killed run has answered is in the journal and is not drawn again.
        missing = {key: asked for key, asked in wanted.items() if key not in journal.finished}
        if not missing:
            continue
        if name in existing:
            answered = _copied(ctx, existing[name], reference, missing)
        else:
            answered = _sampled(ctx, name, reference, missing, draws.temperature)
        with waits.later():
            for key, model, answer in answered:
                on, prompt, sample = wanted[key]
                about = {"id": key, "prompt_id": prompt.id, "kind": prompt.kind, "on": on}
                about |= {"name": name, "model": model, "seed": ctx.seed, "sample": sample}
                journal.append(about | {"dialogue": dialogue_to_json(prompt.dialogue)} | answer)
        journal.flush()
    waits.check()
    if draws.sets and models:
        ctx.require_rows(journal.finished, "answers")


def _sampled(ctx: StageContext, name: str, reference: str, missing: Mapping, temperature: float):
    """(key, model, answer) of every turn as it is finished."""
    config = ctx.config
    model = ctx.models.text_model(reference, config.format)
    sampling = Sampling(config.max_new_tokens, temperature, config.top_k, config.top_p)
    # The random key names the prompt and the sample, not the model: all models see the same random
    # numbers.
    turns = [
        Turn(key, prompt.dialogue, row_key(ctx.seed, ctx.name, 0, prompt.id, sample))
        for key, (_, prompt, sample) in missing.items()
    ]
    for done in ctx.generate(model, turns, sampling, f"{ctx.name}: {name} answers"):
        answer = {"response": done.text, "stop": done.stop, "num_tokens": done.num_tokens}
        yield done.id, model.name, answer | {"logprob": done.logprob}


def _copied(ctx: StageContext, existing: answers_lib.Answers, reference: str, missing: Mapping):
    """(key, model, answer) of answers that exist already; those that do not are counted."""
    for key, (_, prompt, sample) in missing.items():
        given = existing.to(prompt)
        if sample >= len(given):
            ctx.drop(f"no answer in {existing.location}")
            continue
        answer = {"response": given[sample].text, "stop": given[sample].stop}
        yield key, reference, answer | {"num_tokens": given[sample].num_tokens, "logprob": None}
