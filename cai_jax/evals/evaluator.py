"""What an evaluation is: a module with COLUMNS, `run(task)` and, where it reads data of its own,
`check(fields)`, which refuses what cannot be read before anything runs. `registry.KINDS` has all of
them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cai_jax import references
from cai_jax.core.intervals import cluster_means
from cai_jax.evals.rows import Column
from cai_jax.io import artefacts
from cai_jax.rewards.functions import custom_reward
from cai_jax.structs import Dialogue, dialogue_from_json, sampled_turn

if TYPE_CHECKING:
    from cai_jax.stages.context import StageContext

# Kinds of prompts like "safe:homonyms" (the XSTest schema) are counted apart: a refusal of a safe
# prompt is over-refusal.
LABELS = ("safe", "unsafe")
# Kind of model → the journal that keeps its scores, and their field there.
SCORES = {"reward": ("scores", "score"), "harm": ("harm_scores", "harm")}


@dataclasses.dataclass
class Measured:
    """What an evaluation gives.

    Attributes:
        rows: made by its columns.
        columns: of the metrics of those rows.
        figures: {"name", "title", "x_label", "y_label", "series", …} of what is no row.
        notes: what a reader must know.
        headline: a clause for the stage's line in the summary.
        few_shot: counts of `fitting.examples_left_out`.
    """

    rows: list[dict]
    columns: Sequence[Column]
    figures: list[dict] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    headline: str = ""
    few_shot: dict[str, int] = dataclasses.field(default_factory=dict)

    def named(self, task: Task) -> Measured:
        """The metrics and the series of figures of a second evaluation of a kind, which has a name
        of its own, end in it."""
        name = task.name
        if name == task.fields["kind"]:
            return self
        for row in self.rows:
            metric = row["metric"]
            row["name"] = row["name"].replace(metric, f"{metric}:{name}", 1)
            row["metric"] = f"{metric}:{name}"
        columns = [
            dataclasses.replace(each, name=f"{each.name}:{name}", label=f"{each.label}, {name}")
            for each in self.columns
        ]
        for figure in self.figures:
            for series in figure["series"]:
                series["label"] = f"{series['label']}, {name}"
        return dataclasses.replace(self, columns=columns)


@dataclasses.dataclass
class Task:
    """What an evaluation is given.

    Attributes:
        ctx: of the evaluate stage.
        name: of the evaluation in `evaluate.evals`.
        fields: its fields there.
        models: name → reference, in the order of the run; the first is what others are compared
            with.
        written: names of the models whose answers existed before, which answer nothing else.
        answers: response records with `on` (the set of prompts) and `name` (the model).
        journals: file name → journal of the stage; several evaluations may share one.
        judges: (reference, kind) → preference model, loaded once for all evaluations.
    """

    ctx: StageContext
    name: str
    fields: Mapping
    models: dict[str, str]
    written: Mapping
    answers: list[dict]
    journals: dict[str, object]
    judges: dict[tuple[str, str], object]

    @property
    def seed(self) -> int:
        return self.ctx.seed

    def journal(self, name: str):
        """The stage's journal NAME.jsonl, or NAME-EVALUATION.jsonl of a second evaluation of a
        kind."""
        name += "" if self.name == self.fields["kind"] else f"-{self.name}"
        if name not in self.journals:
            self.journals[name] = self.ctx.directory.journal(name)
        return self.journals[name]

    def judge(self, reference: str, kind: str = "reward"):
        """A preference model, a regressor (kind "harm") or "python:module.function", with
        `score_each` and `scale`."""
        if (reference, kind) not in self.judges:
            python = references.parse(reference).kind == references.PYTHON
            models = self.ctx.models
            self.judges[reference, kind] = (
                Function(reference) if python else models.preference_model(reference, kind)
            )
        return self.judges[reference, kind]

    def scores(self, reference: str, texts: Mapping[str, tuple], kind: str = "reward") -> dict:
        """Id → score of an answer by a model, from the journal where it has one. `texts`: id →
        (dialogue as JSON, answer, how it ended)."""
        name, field = SCORES[kind]
        journal = self.journal(name)
        # Evaluations share the journal: an answer is scored once by a model.
        missing = [key for key in texts if key not in journal.finished]
        if missing:
            dialogues = [
                (*dialogue_from_json(dialogue), sampled_turn(text, stop))
                for dialogue, text, stop in map(texts.__getitem__, missing)
            ]
            model, label = self.judge(reference, kind), f"{self.ctx.name}: {name}"
            for index, score in self.ctx.score_each(model, dialogues, label, missing):
                journal.append({"id": missing[index], field: score})
        return {key: journal.finished[key][field] for key in texts}

    def judged(self, columns: Sequence[Column], reference: str) -> list[Column]:
        """The columns as the opinion of this model: two runs have a common scale where it has the
        same fingerprint."""
        scale = references.resolve(self.ctx.run_config.models, reference)
        if stage := references.stage_of(scale):
            manifest = artefacts.StageDirectory(self.ctx.run_path / stage).manifest
            scale += f" {manifest.get('fingerprint', '')}"
        return [dataclasses.replace(column, judge=reference, scale=scale) for column in columns]


class Function:
    """A Python function of dialogues as a judge."""

    scale = 1.0

    def __init__(self, reference: str):
        self.name, self._score = reference, custom_reward(reference)

    def score_each(self, dialogues: Sequence[Dialogue]) -> Iterator[tuple[int, float]]:
        return enumerate(self._score(dialogues).tolist())


def by_set(records: Sequence[Mapping], models: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """(set of prompts, model → its records) of every set, and of its prompts that are labelled safe
    or unsafe; models in the order of the run."""
    groups = collections.defaultdict(lambda: collections.defaultdict(list))
    for record in records:
        groups[record["on"]][record["name"]].append(record)
        label = str(record.get("kind") or "").partition(":")[0]
        if label in LABELS:
            groups[f"{record['on']}:{label}"][record["name"]].append(record)
    for on, by_model in sorted(groups.items()):
        yield on, {name: by_model[name] for name in models if name in by_model}


def by_prompt(
    records: Sequence[Mapping], value: Callable[[Mapping], float | None]
) -> dict[str, float]:
    """Prompt id → the mean of `value(record)` over its samples, without those that are None."""
    values = [(record["prompt_id"], value(record)) for record in records]
    known = [(prompt, v) for prompt, v in values if v is not None]
    return cluster_means([v for _, v in known], [prompt for prompt, _ in known])
