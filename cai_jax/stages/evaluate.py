"""What changed? Every model answers held-out prompts, the preference model judges, and the judges
are judged.

1. Every model answers the red-team and the helpful prompts; each answer is a record, journalled as
  it finishes.
2. The preference model scores them: mean with interval, Elo, and paired differences to the first
   model, with length, repetition, boilerplate and refusals beside (section 4.3, and the Goodhart
   watch).
3. The revisions are scored round by round, if given (Figure 5), and by principle.
4. The feedback model, and every model if wanted, answers the multiple-choice items (Figures 4 and
   11); the preference model ranks their dialogues and held-out human comparisons. Baselines stand
   beside every accuracy.
5. A regressor of harm, if given, says how harmful the models' answers are on the scale from 0 to 4
  (Figure 10).
"""

from __future__ import annotations

import collections
import dataclasses
import types

from cai_jax.configuration.topic import Words
from cai_jax.data import answers as answers_lib
from cai_jax.data import fitting
from cai_jax.data.prompts import read_prompts
from cai_jax.evals import harm, judged, multiple_choice, pairs, questions, samples
from cai_jax.evals.rows import SCHEMA as ROW_SCHEMA
from cai_jax.evals.rows import find
from cai_jax.io import artefacts
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.seeds import row_key
from cai_jax.stages.context import StageContext, resolve_role
from cai_jax.structs import (
    SampleRequest,
    SamplingParams,
    count_cut,
    dialogue_from_json,
    dialogue_to_json,
    sampled_turn,
)
from cai_jax.training.rollouts import custom_reward

SCHEMA = 3
PROMPT_FIELD = "prompts_"  # config.prompts_NAME is the set of prompts NAME
FILE_REFERENCE = answers_lib.PREFIX  # a model whose answers are in a file
ANSWERING_KINDS = (
    "respond",
    "best_of",
)  # stages whose records are answers, named as "@stage" in place of a model


def run(ctx: StageContext) -> dict:
    """Writes records.jsonl (answers), scores.jsonl (id, score), choices.jsonl (answered questions),
    pairs.jsonl (what the preference model ranked), verdicts.jsonl (the judge's), harm.jsonl and
    harm_scores.jsonl (absolute harmfulness), and metrics.json ({rows, curves, notes})."""
    config = ctx.config
    models = in_order(config.models, ctx.run_config)
    answers, prompts = ctx.directory.journal(), _prompt_sets(ctx)
    written = _written(ctx, models)
    answers_lib.require_common(written, prompts, f"config.graph.{ctx.name}")
    _answers(ctx, models, written, prompts, answers, config.num_samples, config.temperature)
    revisions = ctx.inputs["revisions"].records() if "revisions" in ctx.inputs else []
    reward = _reward_model(ctx, config.reward) if config.reward else None
    scores = _scores(ctx, reward, answers, revisions)

    rows = samples.rows(
        list(answers.finished.values()),
        scores.finished_scores,
        list(models),
        anchor=config.anchor,
        ties=config.elo_ties,
        seed=ctx.seed,
    )
    rows += samples.revision_rows(revisions, scores.finished_scores, seed=ctx.seed)
    verdicts = ctx.directory.journal("verdicts")
    if config.judge:
        rows += _judged(ctx, list(answers.finished.values()), list(models), verdicts)
    curves: dict[str, list] = {}
    sets = questions.choice_sets(config.choices, config.num_choices, config.big_bench)
    asked, digests = ctx.directory.journal("choices"), {}
    answering = {config.feedback: config.feedback} if config.feedback else {}
    if config.choices_of_models:
        answering |= {name: reference for name, reference in models.items() if name not in written}
    for on, items in sets.items() if answering else ():
        rows += questions.rows(ctx, answering, on, items, asked, curves)
    if reward is not None:
        ranked = ctx.directory.journal("pairs")
        rows += pairs.rows(ctx, reward, sets, ranked, curves)
        digests["pairs"] = ranked.finish()
    if config.harm.model:
        rows += _harm(ctx, models, written, digests)
    notes = _notes(ctx, written)
    few_shot = questions.examples_left_out(ctx, asked, sets)
    digests |= {
        "records": answers.finish(),
        "scores": scores.journal.finish(),
        "choices": asked.finish(),
        "verdicts": verdicts.finish(),
    }
    if artefacts.is_writer():
        value = {"schema": ROW_SCHEMA, "rows": rows, "curves": curves, "notes": notes}
        artefacts.write_json(ctx.directory.path / "metrics.json", value)
    return {
        "rows": len(rows),
        "sha256": digests,
        "answers": len(answers.finished),
        "cut": cut_answers(answers.finished.values()),
        "few_shot": few_shot,
        "headline": headline(rows, list(models), Words.of(ctx.run_config).name)
        + fitting.describe_left_out(few_shot),
    }


def cut_answers(records) -> dict[str, dict[str, int]]:
    """ "answers of sl", … → how many were cut at the limit of tokens, of how many."""
    stops = collections.defaultdict(list)
    for record in records:
        stops[f"answers of {record['name']}"].append(record.get("stop"))
    return {name: count_cut(found) for name, found in sorted(stops.items())}


def in_order(models, run_config) -> dict[str, str]:
    """name → reference: given models first, then those that stages trained, in the order of the
    stages. The first is what the others are compared with (a ConfigDict forgets the order in which
    it was written).

    Where a command runs a few stages only, the order is that in which stages need each other:
    config.stages does not say."""
    targets = {name: resolve_role(run_config, value) for name, value in models.items()}
    trained = {
        target.removeprefix("@").partition(":")[0]
        for target in targets.values()
        if target.startswith("@")
    }
    stages = list(run_config.stages)
    if trained <= set(stages):
        numbers = {stage: stages.index(stage) for stage in trained}
    else:
        numbers = {stage: _depth(run_config, stage) for stage in trained}

    def place(item):
        target = targets[item[0]]
        stage, _, step = target.removeprefix("@").partition(":")
        number = numbers[stage] if target.startswith("@") else -1
        return number, int(step) if target.startswith("@") and step else 10**12, stage, item[0]

    return dict(sorted(models.items(), key=place))


def _depth(run_config, stage: str) -> int:
    """How many stages have to be done, one after the other, before this one."""
    fields = run_config.graph.get(stage) or {}
    roles = [resolve_role(run_config, value) for value in fields.values() if isinstance(value, str)]
    parents = [value for value in (fields.get("inputs") or {}).values() if value]
    parents += [role[1:].partition(":")[0] for role in roles if role.startswith("@")]
    return max((_depth(run_config, parent) + 1 for parent in parents), default=0)


def _prompt_sets(ctx: StageContext) -> dict[str, list]:
    """NAME → prompts, for every field prompts_NAME of the config."""
    sets = {}
    for name in sorted(ctx.config):
        if name.startswith(PROMPT_FIELD) and ctx.config[name].source:
            sets[name.removeprefix(PROMPT_FIELD)] = _prompts(ctx, ctx.config[name])
    return sets


def _prompts(ctx: StageContext, fields) -> list:
    prompts, dropped = read_prompts(**fields.to_dict())
    for reason, count in dropped.items():
        ctx.drop(reason, count)
    return prompts


def _answers(
    ctx: StageContext,
    models: dict[str, str],
    written: dict[str, answers_lib.Answers],
    sets: dict[str, list],
    journal,
    num_samples: int,
    temperature: float,
):
    """Samples what is not in the journal yet; a model is loaded only if something of it is
    missing."""
    config = ctx.config
    for name, reference in models.items():
        wanted = {
            f"{on}/{name}/{prompt.id}/{sample:02d}": (on, prompt, sample)
            for on, prompts in sets.items()
            for prompt in prompts
            for sample in range(num_samples)
        }
        missing = [key for key in wanted if key not in journal.finished]
        if not missing:
            continue
        if name in written:
            _copy_answers(ctx, name, reference, written[name], wanted, missing, journal)
            continue
        model = ctx.load_model(reference, format=config.format)
        sampling = SamplingParams(
            config.max_new_tokens,
            temperature,
            config.top_k,
            config.top_p,
            model.format.stop_strings("assistant"),
        )
        # The key names the prompt and the sample, not the model: all models see the same random
        # numbers.
        requests = [
            SampleRequest(
                key,
                model.format.prompt(prompt.dialogue),
                row_key(ctx.seed, ctx.name, 0, prompt.id, sample),
            )
            for key in missing
            for _, prompt, sample in [wanted[key]]
        ]
        for completion in ctx.sample(
            ctx.engine(model), requests, sampling, f"{ctx.name}: {name} answers"
        ):
            on, prompt, sample = wanted[completion.id]
            journal.append(
                {
                    "id": completion.id,
                    "prompt_id": prompt.id,
                    "kind": prompt.kind,
                    "on": on,
                    "name": name,
                    "model": model.name,
                    "seed": ctx.seed,
                    "dialogue": dialogue_to_json(prompt.dialogue),
                    "sample": sample,
                    "response": completion.text,
                    "stop": completion.stop,
                    "num_tokens": len(completion.tokens),
                    "logprob": float(sum(completion.logprobs)),
                }
            )
        journal.flush()
        del model
    if sets and models:
        ctx.require_rows(journal.finished, "answers")


def _written(ctx: StageContext, models: dict[str, str]) -> dict[str, answers_lib.Answers]:
    """Answers that exist already, in a file or as a stage's records, by the names of their
    models."""
    found = {}
    for name, reference in models.items():
        reference = resolve_role(ctx.run_config, reference)
        stage = reference.removeprefix("@")
        kind = ctx.run_config.graph.get(stage, {}).get("kind")
        if reference.startswith(FILE_REFERENCE):
            found[name] = answers_lib.from_file(reference)
        elif reference.startswith("@") and kind in ANSWERING_KINDS:
            records = artefacts.StageDirectory(ctx.run_path / stage).records()
            found[name] = answers_lib.read(enumerate(records, 1), reference)
    for answers in found.values():
        ctx.drop(f"null response in {answers.location}", answers.num_null)
    return found


def _drawn_at(ctx: StageContext, reference: str) -> float | None:
    """The temperature of answers that exist already; None where a model must answer. A file does
    not say: the paper's, 1."""
    reference = resolve_role(ctx.run_config, reference)
    if reference.startswith(FILE_REFERENCE):
        return 1.0
    fields = ctx.run_config.graph.get(reference.removeprefix("@"), {})
    if not reference.startswith("@") or fields.get("kind") not in ANSWERING_KINDS:
        return None
    if fields["kind"] == "best_of":  # of answers that a respond stage drew
        return _drawn_at(ctx, f"@{fields.inputs.responses}")
    return float(fields.temperature)


def _copy_answers(
    ctx: StageContext,
    name: str,
    reference: str,
    answers: answers_lib.Answers,
    wanted: dict,
    missing: list[str],
    journal,
) -> None:
    """Answers that exist already, as records; those of `missing` that do not are counted."""
    for key in missing:
        on, prompt, sample = wanted[key]
        given = answers.to(prompt)
        if sample >= len(given):
            ctx.drop(f"no answer in {answers.location}")
            continue
        journal.append(
            {
                "id": key,
                "prompt_id": prompt.id,
                "kind": prompt.kind,
                "on": on,
                "name": name,
                "model": reference,
                "seed": ctx.seed,
                "dialogue": dialogue_to_json(prompt.dialogue),
                "sample": sample,
                "response": given[sample].text,
                "logprob": None,
                "stop": given[sample].stop,
                "num_tokens": given[sample].num_tokens,
            }
        )
    journal.flush()


def _reward_model(ctx: StageContext, reference: str, kind: str = "reward"):
    """The judge: a stage with a head, or a function of dialogues
    ("python:package.module.function")."""
    if reference.startswith("python:"):
        score = custom_reward(reference)
        return types.SimpleNamespace(
            score_each=lambda dialogues: enumerate(score(dialogues).tolist()),
            scale=1.0,
            name=reference,
        )
    model = ctx.load_model(reference, kind=kind)
    return RewardModel(
        model.params,
        model.config,
        model.format,
        ctx.mesh,
        model.normalisation,
        model.name,
        reads_cut=model.reads_cut,
    )


class _scores:
    """Scores of answers ("<record id>") and of every revision step ("<record id>#<round>"),
    journalled as "scores"."""

    def __init__(self, ctx: StageContext, reward: RewardModel | None, answers, revisions):
        self.journal = ctx.directory.journal("scores")
        wanted = {}
        for record in answers.finished.values():
            wanted[record["id"]] = record["dialogue"], record["response"], record.get("stop")
        for record in revisions:
            steps = [(record["initial"], record.get("initial_stop"))]
            steps += [(item["revision"], item.get("revision_stop")) for item in record["rounds"]]
            for number, (text, stop) in enumerate(steps):
                wanted[f"{record['id']}#{number}"] = record["dialogue"], text, stop
        missing = [key for key in wanted if key not in self.journal.finished]
        if reward is not None and missing:
            dialogues = [
                (*dialogue_from_json(dialogue), sampled_turn(text, stop))
                for dialogue, text, stop in map(wanted.__getitem__, missing)
            ]
            for index, score in ctx.score_each(reward, dialogues, f"{ctx.name}: scores", missing):
                self.journal.append({"id": missing[index], "score": score})
        self.finished_scores = {key: value["score"] for key, value in self.journal.finished.items()}


def _harm(
    ctx: StageContext,
    models: dict[str, str],
    written: dict[str, answers_lib.Answers],
    digests: dict[str, str],
) -> list[dict]:
    """Expected harm of every model's answers at each temperature, and the regressor's error on
    held-out ratings. Greedy answers are all the same, so one a prompt is drawn. Answers that exist
    already are counted under the temperature that they were drawn at, and under no other."""
    fields, regressor = ctx.config.harm, resolve_role(ctx.run_config, ctx.config.harm.model)
    prompts, answers, harms = (
        _prompts(ctx, fields.prompts),
        ctx.directory.journal("harm"),
        ctx.directory.journal("harm_scores"),
    )
    for temperature in fields.temperatures:
        able = {
            name: ref for name, ref in models.items() if _drawn_at(ctx, ref) in (None, temperature)
        }
        samples_each = fields.num_samples if temperature > 0 else 1
        sets = {harm.place(temperature): prompts}
        _answers(ctx, able, written, sets, answers, samples_each, temperature)
    missing = [record for key, record in answers.finished.items() if key not in harms.finished]
    if missing:
        judge = _reward_model(ctx, regressor, "harm")
        dialogues = [
            (*dialogue_from_json(r["dialogue"]), sampled_turn(r["response"], r.get("stop")))
            for r in missing
        ]
        ids = [record["id"] for record in missing]
        for index, value in ctx.score_each(judge, dialogues, f"{ctx.name}: harm", ids):
            harms.append({"id": missing[index]["id"], "harm": value})
    digests |= {"harm": answers.finish(), "harm_scores": harms.finish()}
    values = {key: value["harm"] for key, value in harms.finished.items()}
    trained = artefacts.StageDirectory(
        ctx.run_path / regressor.removeprefix("@").partition(":")[0]
    ).manifest
    return harm.regressor_rows(
        (trained.get("summary") or {}).get("held_out", {}), ctx.config.harm.model
    ) + harm.rows(list(answers.finished.values()), values, list(models), seed=ctx.seed)


def _judged(ctx: StageContext, records, models: list[str], journal) -> list[dict]:
    """Elo by a language model's verdicts on pairs of answers, and its verdict on evasiveness beside
    the rule's."""
    config, anchor = ctx.config, ctx.config.anchor if ctx.config.anchor in models else models[0]
    pairs = judged.matches(records, models)
    evasive = {
        f"evasive/{record['id']}": record for record in records if record["response"].strip()
    }
    for name, match in pairs.items():
        if match["texts"][0] == match["texts"][1] and name not in journal.finished:
            journal.append(
                {"id": name, **{key: match[key] for key in ("on", "a", "b", "prompt_id")}, "p": 0.5}
            )
    if any(name not in journal.finished for name in (*pairs, *evasive)):
        model = ctx.load_model(config.judge, format=config.format)
        requests = [
            r
            for name, match in pairs.items()
            if name not in journal.finished
            for r in judged.match_requests(
                match, name, model.format, config.get("judge_question") or ""
            )
        ]
        requests += [
            dataclasses.replace(r, id=f"evasive/{r.id}")
            for name, record in evasive.items()
            if name not in journal.finished
            for r in judged.evasive_requests(record, model.format)
        ]
        half: dict[str, dict[str, float]] = {}
        for score in ctx.score(ctx.engine(model), requests, f"{ctx.name}: verdicts"):
            name, _, order = score.id.rpartition("#")
            p = multiple_choice.normalise(score.logprobs)
            half.setdefault(name, {})[order] = p[0] if order == "ab" else p[1]
            if len(half[name]) == len(judged.ORDERS):
                source = (
                    {key: pairs[name][key] for key in ("on", "a", "b", "prompt_id")}
                    if name in pairs
                    else {
                        "on": evasive[name]["on"],
                        "name": evasive[name]["name"],
                        "prompt_id": evasive[name]["prompt_id"],
                    }
                )
                orders = half.pop(name)
                journal.append({"id": name, **source, "p": sum(orders.values()) / 2, **orders})
        journal.flush()
    return judged.rows(
        records,
        pairs,
        journal.finished,
        models,
        anchor,
        config.judge,
        ties=config.elo_ties,
        seed=ctx.seed,
    )


def _notes(ctx: StageContext, written: dict[str, answers_lib.Answers]) -> list[str]:
    """What a reader must know about the judge, and about answers that were not sampled here."""
    notes = [
        f"lengths of {name} are in words: {answers.location} has no 'num_tokens' for some answers"
        for name, answers in written.items()
        if answers.in_words
    ]
    trained = sorted(
        name
        for name, stage in ctx.run_config.graph.items()
        if stage.get("kind") == "rl" and stage.get("reward") == ctx.config.reward
    )
    if (
        ctx.config.reward and trained and ctx.config.models
    ):  # who judges pairs alone was not optimised to
        notes.append(
            f"the judge {ctx.config.reward} is the preference model that {', '.join(trained)} "
            "was trained against: "
            "its score is expected to rise and is no independent evidence"
        )
    return notes


def headline(rows: list[dict], models: list[str], topic: str = Words.name) -> str:
    """PM score on the topic's prompts by model, the difference of the last to the first; or
    accuracies, of PM and questions."""
    scores = {r["model"]: r for r in find(rows, "pm_score", on="red_team")}
    if not scores:
        found = [f"PM accuracy {r['value']:.2f}" for r in find(rows, "pm_accuracy")[:1]]
        found += [
            f"{r['on']} {r['value']:.0%} {mode.replace('_', '-')}"
            for mode in ("zero_shot", "few_shot")
            for r in find(rows, f"choice_{mode}")
            if ":" not in r["on"]
        ]
        return ", ".join(found) or f"{len(rows)} numbers"
    shown = " → ".join(f"{name} {scores[name]['value']:.2f}" for name in models if name in scores)
    last = [r for r in rows if r["metric"] == "pm_score" and r["on"] == "red_team" and r["against"]]
    if not last or last[-1]["value"] is None:
        return f"PM score on {topic} prompts: {shown}"
    r = last[-1]
    interval = f"[{r['low']:+.2f}, {r['high']:+.2f}]" if r["low"] is not None else "(no interval)"
    return (
        f"PM score on {topic} prompts: {shown}; {r['model']} − {r['against']} = {r['value']:+.2f} "
        f"{interval}" + (" (null)" if r["null"] else "")
    )
