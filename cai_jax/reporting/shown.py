"""Three texts for the head of the page, drawn by a rule that nobody can turn: prompt, before,
critique, after."""

from __future__ import annotations

import dataclasses

from cai_jax.reporting.run_data import Run
from cai_jax.reporting.text import model_name, place_name
from cai_jax.reporting.transcripts import draw

COUNT = 3
RULE = "The first three prompts by a hash of the records' ids: nobody chose them."


@dataclasses.dataclass(frozen=True)
class Turn:
    """One text of a transcript: who it is by, and what it scored, if anything did."""

    who: str
    text: str
    score: float | None = None
    kind: str = ""  # "human", "critique" or ""


def transcripts(run: Run) -> tuple[str, list[list[Turn]]]:
    """(what is shown, the transcripts): of the method's revisions; of the answers of the models
    shown where nothing was revised."""
    stage = run.method.get("revise")
    if stage is not None and (found := _revised(run, stage.name)):
        return f"Revisions of {stage.name}, first answer to last revision", found
    found = _answered(run)
    return (
        f"Answers of {model_name(run.models[0])} and {model_name(run.shown)}" if found else ""
    ), found


def _drawn(prompts: dict[str, str]) -> list[str]:
    """The first COUNT names by their hash, of each prompt one."""
    found: dict[str, str] = {}
    for name in draw(list(prompts), len(prompts)):
        found.setdefault(prompts[name], name)
    return list(found.values())[:COUNT]


def _revised(run: Run, stage: str) -> list[list[Turn]]:
    scores = run.revision_scores(stage)
    records = {str(record["id"]): record for record in run.records(stage) if record.get("rounds")}
    found = []
    for name in _drawn({key: _prompt(record) for key, record in records.items()}):
        record, rounds = records[name], records[name]["rounds"]
        turns = [
            Turn("Prompt", _prompt(record), kind="human"),
            Turn("Before", record["initial"], scores.get(f"{name}#0")),
        ]
        critique, count = (
            rounds[0].get("critique"),
            len(rounds),
        )  # the one that is about this answer
        if critique is not None:
            which = f" 1 of {count}" if count > 1 else ""
            turns.append(
                Turn(f"Critique{which}, by {rounds[0]['principle_id']}", critique, kind="critique")
            )
        after = f"After {count} rounds" if count > 1 else "After"
        found.append([*turns, Turn(after, rounds[-1]["revision"], scores.get(f"{name}#{count}"))])
    return found


def _answered(run: Run) -> list[list[Turn]]:
    if len(run.models) < 2:
        return []
    answers = {
        (row["on"], row["prompt_id"], row["name"]): row
        for row in run.answers
        if row.get("sample", 0) == 0
    }
    both = [
        (on, prompt)
        for on, prompt, name in answers
        if name == run.models[0] and (on, prompt, run.shown) in answers
    ]
    by_name = {f"{on}/{prompt}": (on, prompt) for on, prompt in both}
    found = []
    for name in _drawn({key: prompt for key, (_, prompt) in by_name.items()}):
        rows = [answers[(*by_name[name], model)] for model in (run.models[0], run.shown)]
        turns = [
            Turn(model_name(row["name"]), row["response"], run.scores.get(row["id"]))
            for row in rows
        ]
        where = f"Prompt, of {place_name(by_name[name][0])}"
        found.append([Turn(where, _prompt(rows[0]), kind="human"), *turns])
    return found


def _prompt(record: dict) -> str:
    dialogue = record.get("dialogue") or [{}]
    return str(dialogue[-1].get("text", ""))
