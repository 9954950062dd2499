"""Texts of a run, drawn by rules that nobody can turn: three to open the page with, the best, the
middle and the worst of each model, and critiques to be marked by hand."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Sequence

from cai_jax.core.intervals import wilson
from cai_jax.errors import UserError
from cai_jax.evals.rows import row
from cai_jax.report.run import Run
from cai_jax.report.text import model_name, set_name

COUNT = 3  # transcripts that open the page
POSITIONS = {"best": 0.0, "middle": 0.5, "worst": 1.0}  # in the order of the judge's differences
COLUMNS = ("id", "fault", "names", "note")  # of the table of critiques
MARKS = {"y": True, "n": False}


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


def _answered(run: Run) -> list[list[Turn]]:
    if len(run.models) < 2:
        return []
    answers = {
        (row["on"], row["prompt_id"], row["name"]): row
        for row in run.answers
        if row.get("sample", 0) == 0
    }
    pair = (run.models[0], run.shown)
    both = {
        f"{on}/{prompt}": (on, prompt)
        for on, prompt, name in answers
        if name == pair[0] and (on, prompt, pair[1]) in answers
    }
    out = []
    for key in _first({key: prompt for key, (_, prompt) in both.items()}):
        on, prompt = both[key]
        rows = [answers[on, prompt, model] for model in pair]
        turns = [Turn(f"Prompt, of {set_name(on)}", _prompt(rows[0]), kind="human")]
        turns += [Turn(model_name(r["name"]), r["response"], run.scores.get(r["id"])) for r in rows]
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


def selected(run: Run) -> list[Transcript]:
    """Of every model after the first the answer whose score moved most up, the middle one, and most
    down; likewise revisions."""
    return [*_of_answers(run), *_of_revisions(run)]


def _of_answers(run: Run) -> list[Transcript]:
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for record in run.answers:
        if record["sample"] == 0:
            groups.setdefault((record["on"], record["name"]), {})[record["prompt_id"]] = record
    out = []
    for on in sorted({on for on, _ in groups}, key=lambda on: (on != "red_team", on)):
        for name in run.models[1:]:
            sides = [groups.get((on, model), {}) for model in (run.models[0], name)]
            scores = {
                prompt: [run.scores.get(side[prompt]["id"]) for side in sides]
                for prompt in set(sides[0]) & set(sides[1])
            }
            moved = {prompt: b - a for prompt, (a, b) in scores.items() if None not in (a, b)}
            for position, prompt in ranked(moved).items():
                turns = [
                    Turn(who, side[prompt]["response"], score,
                         num_tokens=side[prompt]["num_tokens"])
                    for who, score, side in zip((run.models[0], name), scores[prompt], sides,
                                                strict=True)
                ]  # fmt: skip
                title = f"{name}, {set_name(on)}: the {position}"
                out.append(Transcript(title, prompt, sides[1][prompt]["dialogue"], turns))
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
        moved = {key: b - a for key, (a, b) in ends.items() if None not in (a, b)}
        for position, key in ranked(moved).items():
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


# ---- Critiques to be read by hand ----------------------------------------------------------------


def critiques(run: Run, stage: str, count: int) -> list[dict]:
    """`count` critiques of a revise stage: {"id", "dialogue", "answer", "request", "principle",
    "critique"}, in the order they were drawn."""
    every = {}
    for record in run.records(stage):
        answer = record["initial"]
        for number, turn in enumerate(record["rounds"], 1):
            if turn.get("critique"):
                every[f"{record['id']}#{number}"] = {
                    "dialogue": record["dialogue"],
                    "answer": answer,
                    "critique": turn["critique"],
                    "request": turn["critique_request"],
                    "principle": turn["principle_id"],
                }
            answer = turn["revision"]
    return [{"id": name, **every[name]} for name in draw(list(every), count)]


def blank(drawn: Sequence[dict]) -> str:
    """The table to be filled in, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([item["id"], "", "", ""] for item in drawn)
    return text.getvalue()


def count_marks(text: str, drawn: Sequence[dict], where: str) -> list[dict]:
    """Rows of the filled-in table's shares; [] while nothing is filled in.

    Raises:
        UserError: for other marks than y and n, and where the table is not that of the critiques
        drawn.
    """
    lines = list(csv.DictReader(io.StringIO(text)))
    if [line.get("id") for line in lines] != [item["id"] for item in drawn]:
        raise UserError(
            f"{where}: its ids are not those of the critiques drawn from this run; move it "
            "aside to get a new one"
        )
    marks = []
    for number, line in enumerate(lines, 2):
        pair = [(line.get(column) or "").strip().lower() for column in ("fault", "names")]
        if any(pair) and not all(mark in MARKS for mark in pair):
            raise UserError(
                f"{where}:{number}: fault and names are both y or n once a critique is read, "
                f"not {pair}"
            )
        marks += [tuple(MARKS[mark] for mark in pair)] if any(pair) else []
    if not marks:
        return []
    shares = {
        "names a real problem": [names for _, names in marks],
        "its answer has a fault": [fault for fault, _ in marks],
        "names it, where there is one": [names for fault, names in marks if fault],
    }
    return [
        row("critiques_read", note, "critic", wilson(sum(values), len(values)), unit="share",
            note=note)
        for note, values in shares.items()
    ]  # fmt: skip
