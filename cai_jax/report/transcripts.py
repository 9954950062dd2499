"""Texts of a run, drawn by rules that nobody can turn: three to open the page with, and the best,
the middle and the worst of each model."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from cai_jax.report.run import Run
from cai_jax.report.text import model_name, set_name

COUNT = 3  # transcripts that open the page
POSITIONS = {"best": 0.0, "middle": 0.5, "worst": 1.0}  # in the order of the judge's differences


@dataclasses.dataclass(frozen=True)
class Turn:
    """One text of a transcript: who wrote it, and what it scored, if anything did."""

    who: str
    text: str
    score: float | None = None
    kind: str = ""  # "human", "critique" or ""
    num_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Transcript:
    title: str
    prompt_id: str
    dialogue: list[dict]
    turns: list[Turn]


def draw(names: Sequence[str], count: int) -> list[str]:
    """The first `count` by a hash of the name: the same for everybody, and nobody's choice."""
    return sorted(
        names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    )[:count]


def _prompt(record: dict) -> str:
    dialogue = record.get("dialogue") or [{}]
    return str(dialogue[-1].get("text", ""))


def _way(record: dict, scores: Sequence[float | None]) -> list[Turn]:
    """The first answer, and every critique and revision of it, with the answers' scores."""
    turns = [Turn("First answer", record["initial"], scores[0])]
    for count, (turn, score) in enumerate(zip(record["rounds"], scores[1:], strict=True), 1):
        if turn.get("critique") is not None:
            who = f"Critique {count}, by {turn['principle_id']}"
            turns.append(Turn(who, turn["critique"], kind="critique"))
        turns.append(Turn(f"Revision {count}", turn["revision"], score))
    return turns


def _revised(run: Run, stage: str) -> dict[str, dict]:
    """id → record of a revise stage, where there is a revision."""
    return {str(record["id"]): record for record in run.records(stage) if record.get("rounds")}


def _pairs(run: Run, model: str) -> dict[tuple[str, str], list[dict]]:
    """(set, prompt id) → the first answers of the first model and of `model`, where both are, in
    the main evaluation; the topic's own prompts first."""
    answers = {
        (record["on"], record["prompt_id"], record["name"]): record
        for record in run.answers
        if record.get("sample", 0) == 0
    }
    out = {}
    for on, prompt, name in sorted(answers, key=lambda key: (key[0] != "red_team", key)):
        if name == model and (first := answers.get((on, prompt, run.models[0]))):
            out[on, prompt] = [first, answers[on, prompt, name]]
    return out


# ---- Three to open the page with -----------------------------------------------------------------


def opening(run: Run) -> tuple[str, list[list[Turn]]]:
    """(what is shown, the transcripts): of the method's revisions the first answer, its first
    critique, and the last revision; of the answers of the models shown where nothing was
    revised."""
    stage = run.method.get("revise")
    if stage is not None and (records := _revised(run, stage.name)):
        scores, out = run.revision_scores(stage.name), []
        for key in _first({key: _prompt(record) for key, record in records.items()}):
            first, *between, last = _way(records[key], scores[records[key]["id"]])
            critique = [turn for turn in between if turn.kind][:1]
            prompt = Turn("Prompt", _prompt(records[key]), kind="human")
            out.append([prompt, first, *critique, last])
        return f"Revisions of {stage.name}, first answer to last revision", out
    if len(run.models) < 2:
        return "", []
    pairs, out = {f"{on}/{p}": pair for (on, p), pair in _pairs(run, run.shown).items()}, []
    for key in _first({key: pair[0]["prompt_id"] for key, pair in pairs.items()}):
        on = set_name(pairs[key][0]["on"])
        prompt = Turn(f"Prompt, of {on}", _prompt(pairs[key][0]), kind="human")
        both = [(model_name(r["name"]), r["response"], run.scores.get(r["id"])) for r in pairs[key]]
        out.append([prompt, *(Turn(*turn) for turn in both)])
    models = f"Answers of {model_name(run.models[0])} and {model_name(run.shown)}"
    return models if out else "", out


def _first(prompts: dict[str, str]) -> list[str]:
    """The first COUNT names by their hash, one for each prompt."""
    names: dict[str, str] = {}
    for name in draw(list(prompts), len(prompts)):
        names.setdefault(prompts[name], name)
    return list(names.values())[:COUNT]


# ---- Best, middle and worst ----------------------------------------------------------------------


def ranked(differences: dict[str, float]) -> dict[str, str]:
    """best, middle, worst → key, by difference (ties by key); fewer where there are fewer than
    three."""
    order = sorted(differences, key=lambda key: (-differences[key], key))
    out: dict[str, str] = {}
    for name, share in POSITIONS.items() if order else ():
        key = order[round(share * (len(order) - 1))]
        if key not in out.values():
            out[name] = key
    return out


def selected(run: Run) -> list[Transcript]:
    """Of every model after the first the answer whose score moved most up, the middle one, and most
    down; likewise revisions."""
    out = []
    pairs = {name: _pairs(run, name) for name in run.models[1:]}
    sets = dict.fromkeys(on for of_model in pairs.values() for on, _ in of_model)
    for on in sorted(sets, key=lambda on: (on != "red_team", on)):
        for name, of_model in pairs.items():
            ways = {}
            for (_, prompt), both in ((k, v) for k, v in of_model.items() if k[0] == on):
                ways[prompt] = both[1]["dialogue"], [
                    Turn(r["name"], r["response"], run.scores.get(r["id"]),
                         num_tokens=r["num_tokens"]) for r in both
                ]  # fmt: skip
            out += _extremes(f"{name}, {set_name(on)}", ways)
    for stage in run.of_kind("revise"):
        scores, records = run.revision_scores(stage.name), _revised(run, stage.name)
        ways = {
            key: (record["dialogue"], _way(record, scores[record["id"]]))
            for key, record in records.items()
        }
        out += _extremes(f"Revisions of {stage.name}", ways)
    return out


def _extremes(title: str, ways: dict[str, tuple[list, list[Turn]]]) -> list[Transcript]:
    """Of id → (dialogue, turns), by the last turn's score less the first's."""
    ends = {key: (turns[0].score, turns[-1].score) for key, (_, turns) in ways.items()}
    moved = {key: b - a for key, (a, b) in ends.items() if None not in (a, b)}
    return [
        Transcript(f"{title}: the {position}", key, *ways[key])
        for position, key in ranked(moved).items()
    ]
