"""Models answer the lettered questions of an evaluation: what is asked, kept in the stage's
journal, and counted.

`ctx` is the stage's context (`stages.context.StageContext`), which loads models, samples and
scores.
"""

from __future__ import annotations

import dataclasses
import functools

from cai_jax.constitution.loader import load_constitution
from cai_jax.data import fitting, sources
from cai_jax.data.evals import load_choices, split_by_big_bench
from cai_jax.evals import multiple_choice


def choice_sets(text: str, limit: int | None, big_bench: str = "") -> dict[str, list]:
    """Set name → items, for "a+b": every part is a source of its own, named by its file."""
    sets, parsed = {}, sources.parse(text)
    names = [
        source.stem.rpartition("/")[2].partition(".")[0].removeprefix("eval_") for source in parsed
    ]
    for source, name, longer in zip(parsed, names, sources.distinct_names(parsed), strict=True):
        items = load_choices(source)
        items = split_by_big_bench(items, big_bench) if big_bench else items
        count = len(items) if limit is None else min(limit, len(items))
        # evenly: files stand in order of subset
        sets[name if names.count(name) == 1 else longer] = [
            items[index * len(items) // count] for index in range(count)
        ]
    return sets


def rows(ctx, models: dict[str, str], on: str, items, journal, curves: dict) -> list[dict]:
    """Accuracy of each model (name → reference) on a set, in each mode that the config asks for,
    over all and by subset; of later ones also the paired difference to the first, in the journal,
    too, where only later ones' rows begin with their names."""
    config, out, first = ctx.config, [], {}
    shots = multiple_choice.draw_shots(items, config.num_few_shot, ctx.seed)
    modes = (
        ["zero_shot"]
        + ["few_shot"] * any(shots.values())
        + ["chain_of_thought"] * bool(config.num_chains)
    )
    for number, (name, reference) in enumerate(models.items()):
        head, plain = f"{name}/" if number else "", ()
        missing = {
            mode: [item for item in items if f"{head}{on}/{mode}/{item.id}" not in journal.finished]
            for mode in modes
        }
        if any(missing.values()):
            _ask(ctx, name, reference, head, on, items, missing, shots, journal)
        for mode in modes:
            done = [journal.finished.get(f"{head}{on}/{mode}/{item.id}") for item in items]
            found = [
                multiple_choice.ChoiceResult(
                    item.id,
                    item.subset,
                    tuple(row["probabilities"]),
                    item.correct,
                    by_chain=tuple(map(tuple, row.get("by_chain", ()))),
                )
                for item, row in zip(items, done, strict=True)
                if row
            ]
            if found:
                drawn: dict[str, list] = {}
                out += multiple_choice.rows(
                    name, on, mode, items, found, drawn, plain, tuple(config.clamp)
                )
                out += multiple_choice.against(
                    name, next(iter(models)), on, mode, found, first.setdefault(mode, found)
                )
                curves |= {f"{key}/{name}" if head else key: bins for key, bins in drawn.items()}
            plain = found if mode == "zero_shot" else plain
    return out


def examples_left_out(ctx, asked, sets: dict[str, list]) -> dict[str, int]:
    """How many worked examples and chains the questions in the journal lacked
    (`fitting.examples_left_out`); {} where none were wanted. `sets`: name → items."""
    chains, few_shot = len(_worked_chains(ctx)), ctx.config.num_few_shot
    requests = [
        (
            record["num_few_shot"],
            multiple_choice.num_shots_of(sets[record["on"]], few_shot)
            if record["mode"] == "few_shot"
            else chains,
        )
        for record in asked.finished.values()
        if record.get("num_few_shot") is not None and record["on"] in sets
    ]
    return fitting.examples_left_out(requests) if any(wanted for _, wanted in requests) else {}


def _worked_chains(ctx) -> list[tuple[str, str, str]]:
    if not ctx.config.num_few_shot_chains:
        return []
    constitution = load_constitution(ctx.config.constitution)
    return multiple_choice.chain_header(constitution, ctx.config.num_few_shot_chains, ctx.seed)


def _ask(
    ctx,
    name: str,
    reference: str,
    head: str,
    on: str,
    items,
    missing: dict[str, list],
    shots: dict,
    journal,
) -> None:
    """Lets a model answer those of the items that are not in the journal yet, mode → items. Without
    chains of thought they share forward passes with others of the set, in the same company always:
    a restart changes nothing."""
    config, model = ctx.config, ctx.load_model(reference, format=ctx.config.format)
    engine = ctx.engine(model)

    def score(requests, wanted=None):
        return ctx.score(engine, requests, f"{ctx.name}: {on}", wanted)

    def sample(requests, sampling):
        return ctx.sample(engine, requests, sampling, f"{ctx.name}: {on}, chains of thought")

    for mode, rest in missing.items():
        if mode == "chain_of_thought":
            found = multiple_choice.answer_with_chains(
                sample,
                score,
                rest,
                model.format,
                seed=ctx.seed,
                num_chains=config.num_chains,
                max_chain_tokens=config.max_chain_tokens,
                temperature=config.temperature,
                header=_worked_chains(ctx),
                max_length=engine.max_length,
            )
        else:
            found = multiple_choice.answer(
                functools.partial(score, wanted={item.id for item in rest}),
                items if rest else (),
                model.format,
                shots=shots if mode == "few_shot" else None,
                max_length=engine.max_length,
            )
        for result in found:
            journal.append(
                {
                    "on": on,
                    "mode": mode,
                    "name": name,
                    "model": model.name,
                    "item": result.id,
                    **dataclasses.asdict(result),
                    "id": f"{head}{on}/{mode}/{result.id}",
                }
            )
        journal.flush()
