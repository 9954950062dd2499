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


# ---- Three to open the page with -----------------------------------------------------------------


def opening(run: Run) -> tuple[str, list[list[Turn]]]:
    """(what is shown, the transcripts): of the method's revisions; of the answers of the models
    shown where nothing was revised."""
    stage = run.method.get("revise")
    if stage is not None and (shown := _revised(run, stage.name)):
        return f"Revisions of {stage.name}, first answer to last revision", shown
    shown = _answered(run)
    models = f"Answers of {model_name(run.models[0])} and {model_name(run.shown)}" if shown else ""
    return models, shown


def _first(prompts: dict[str, str]) -> list[str]:
    """The first COUNT names by their hash, one for each prompt."""
    names: dict[str, str] = {}
    for name in draw(list(prompts), len(prompts)):
        names.setdefault(prompts[name], name)
    return list(names.values())[:COUNT]


def _revised(run: Run, stage: str) -> list[list[Turn]]:
    scores = run.revision_scores(stage)
    records = {str(record["id"]): record for record in run.records(stage) if record.get("rounds")}
    out = []
    for name in _first({key: _prompt(record) for key, record in records.items()}):
        record, rounds = records[name], records[name]["rounds"]
        count, critique = len(rounds), rounds[0].get("critique")  # the one about this answer
        turns = [Turn("Prompt", _prompt(record), kind="human")]
        turns.append(Turn("Before", record["initial"], scores.get(f"{name}#0")))
        if critique is not None:
            which = f" 1 of {count}" if count > 1 else ""
            who = f"Critique{which}, by {rounds[0]['principle_id']}"
            turns.append(Turn(who, critique, kind="critique"))
        after = f"After {count} rounds" if count > 1 else "After"
        out.append([*turns, Turn(after, rounds[-1]["revision"], scores.get(f"{name}#{count}"))])
    return out


def _by_set(run: Run) -> dict[str, dict[str, dict[str, dict]]]:
    """set of prompts → model → prompt id → its first answer, of the main evaluation."""
    out: dict[str, dict] = {}
    for record in run.answers:
        if record.get("sample", 0) == 0:
            models = out.setdefault(record["on"], {})
            models.setdefault(record["name"], {})[record["prompt_id"]] = record
    return out


def _answered(run: Run) -> list[list[Turn]]:
    if len(run.models) < 2:
        return []
    both = {}  # of the first model and the one shown
    for on, models in _by_set(run).items():
        a, b = (models.get(name, {}) for name in (run.models[0], run.shown))
        both |= {f"{on}/{prompt}": (a[prompt], b[prompt]) for prompt in a if prompt in b}
    out = []
    for key in _first({key: a["prompt_id"] for key, (a, _) in both.items()}):
        record = both[key][0]
        turns = [Turn(f"Prompt, of {set_name(record['on'])}", _prompt(record), kind="human")]
        turns += [
            Turn(model_name(r["name"]), r["response"], run.scores.get(r["id"])) for r in both[key]
        ]
        out.append(turns)
    return out


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


def _moved(ends: dict[str, tuple]) -> dict[str, str]:
    """`ranked` of key → (score before, score after)."""
    return ranked({key: b - a for key, (a, b) in ends.items() if None not in (a, b)})


def selected(run: Run) -> list[Transcript]:
    """Of every model after the first the answer whose score moved most up, the middle one, and most
    down; likewise revisions."""
    return [*_of_answers(run), *_of_revisions(run)]


def _of_answers(run: Run) -> list[Transcript]:
    out, groups = [], _by_set(run)
    for on in sorted(groups, key=lambda on: (on != "red_team", on)):
        for name in run.models[1:]:
            a, b = (groups[on].get(model, {}) for model in (run.models[0], name))
            ends = {
                prompt: [run.scores.get(side[prompt]["id"]) for side in (a, b)]
                for prompt in sorted(a.keys() & b.keys())
            }
            for position, prompt in _moved(ends).items():
                turns = [
                    Turn(who, side[prompt]["response"], score,
                         num_tokens=side[prompt]["num_tokens"])
                    for who, score, side in zip((run.models[0], name), ends[prompt], (a, b),
                                                strict=True)
                ]  # fmt: skip
                title = f"{name}, {set_name(on)}: the {position}"
                out.append(Transcript(title, prompt, b[prompt]["dialogue"], turns))
    return out


def _of_revisions(run: Run) -> list[Transcript]:
    out = []
    for stage in run.of_kind("revise"):
        records = {r["id"]: r for r in run.records(stage.name) if r["rounds"]}
        scores = run.revision_scores(stage.name)
        ends = {
            key: [scores.get(f"{key}#{count}") for count in (0, len(record["rounds"]))]
            for key, record in records.items()
        }
        for position, key in _moved(ends).items():
            turns = [Turn("First answer", records[key]["initial"], ends[key][0])]
            for count, turn in enumerate(records[key]["rounds"], 1):
                if turn.get("critique") is not None:
                    who = f"Critique {count}, by {turn['principle_id']}"
                    turns.append(Turn(who, turn["critique"], kind="critique"))
                score = scores.get(f"{key}#{count}")
                turns.append(Turn(f"Revision {count}", turn["revision"], score))
            title = f"Revisions of {stage.name}: the {position}"
            out.append(Transcript(title, key, records[key]["dialogue"], turns))
    return out
