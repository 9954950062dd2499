"""A run directory as a report reads it: whatever is there, finished or not. Damage becomes a
caution, not an error."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import pandas as pd
from etils import epath

from cai_jax import references
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.io.metrics import read_rows
from cai_jax.report import numbers


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage's manifest. `fields` are its config fields; a field "x →" holds what the role in x
    points at. `cpu_seconds`: of all processors, of the process that writes; None in runs of older
    versions. `served`: requests to servers by outcome, their tokens and cost; {} without any."""

    name: str
    path: epath.Path
    manifest: dict
    kind: str = ""
    done: bool = False
    fields: dict = dataclasses.field(default_factory=dict)
    summary: dict = dataclasses.field(default_factory=dict)
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    served: dict = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int = 0

    @staticmethod
    def read(name: str, path: epath.Path, manifest: dict) -> Stage:
        known = {field.name for field in dataclasses.fields(Stage)} - {"name", "path", "manifest"}
        given = {key: value for key, value in manifest.items() if key in known and value}
        return Stage(name, path, manifest, **given)

    @property
    def inputs(self) -> dict:
        return self.fields.get("inputs") or {}

    def values(self, field: str) -> list:
        """What the field says in the stage and, of an evaluate stage, in each of its
        evaluations."""
        groups = [self.fields, *(self.fields.get("evals") or {}).values()]
        return [group[field] for group in groups if group.get(field)]

    @property
    def scorers(self) -> dict[str, str]:
        """The models and functions that score answers here, as the config names them → what a name
        points at. An rl stage with `rewards` does not read `reward`."""
        terms = self.fields.get("rewards") or {}
        given = {} if terms else {"reward": self.fields.get("reward")}
        for name, term in terms.items():
            given |= {f"rewards.{name}.{key}": term.get(key) for key in ("model", "function")}
        for name, own in (self.fields.get("evals") or {}).items():
            given[f"evals.{name}.reward"] = own.get("reward")
        return {
            str(name): str(self.fields.get(f"{path} →") or name)
            for path, name in given.items()
            if name
        }


@dataclasses.dataclass
class Evaluation:
    """What one evaluate stage measured, or several merged: metrics.json as Python values."""

    stage: str = ""
    rows: list[dict] = dataclasses.field(default_factory=list)
    columns: dict[str, numbers.Column] = dataclasses.field(default_factory=dict)
    figures: list[dict] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    values: dict[str, dict] = dataclasses.field(default_factory=dict)  # as `Run.values_of`

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        return numbers.frame(self.rows, self.columns)

    @property
    def models(self) -> list[str]:
        """The models whose answers were measured, the first being what the others are compared
        with."""
        answered = ("pm_score", "num_tokens")
        rows = [r for r in self.rows if r["metric"] in answered and r["against"] is None]
        return list(dict.fromkeys(r["model"] for r in rows))

    @property
    def prompt_sets(self) -> list[str]:
        """The sets of prompts whose answers were measured, the topic's own first."""
        answered = ("num_tokens", "expected_harm")
        measured = {row["on"] for row in self.rows if row["metric"] in answered}
        return sorted(measured, key=lambda on: (on != "red_team", on))


class Run:
    """A run directory.

    Attributes: `stages` by name in the order they ran; `problems`, files that could not be read;
    `name`, the directory's.
    """

    def __init__(self, path):
        self.path = epath.Path(path)
        self.name = self.path.name or str(path)
        self.problems: list[str] = []
        if not self.path.is_dir():
            raise UserError(
                f"{path}: no such run directory; give one that `python -m cai_jax.main` wrote"
            )
        self.info = self._json(self.path / "config.json") or {}
        stages = {}
        for child in sorted(self.path.iterdir(), key=lambda c: c.name):
            manifest = self._json(child / "manifest.json") if child.is_dir() else None
            if manifest and manifest.get("kind") not in (None, "report"):  # not on itself
                stages[child.name] = Stage.read(child.name, child, manifest)
        if not stages:
            raise UserError(
                f"{path}: no stage has begun there (no manifest.json); run `python -m "
                "cai_jax.main` first"
            )
        listed = [name for name in self.config.get("stages") or () if name in stages]
        self.stages = {name: stages[name] for name in dict.fromkeys([*listed, *stages])}

    # ---- Files -----------------------------------------------------------------------------------

    def _json(self, path) -> dict | None:
        try:
            return artefacts.read_json(path)
        except UserError as error:
            self.problems.append(str(error))
            return None

    @property
    def config(self) -> dict:
        return self.info.get("config") or {}

    def of_kind(self, kind: str) -> list[Stage]:
        return [stage for stage in self.stages.values() if stage.kind == kind]

    @functools.cache  # noqa: B019 (a Run lives as long as its report)
    def records(self, stage: str, name: str = "records") -> tuple[dict, ...]:
        """A stage's records, sorted by id; those on disk so far where it has not finished; () where
        there are none."""
        if stage not in self.stages:
            return ()
        directory = artefacts.StageDirectory(self.stages[stage].path)
        try:
            if (directory.path / f"{name}.jsonl").exists():
                return tuple(directory.records(name))
            rows = artefacts.read_parts(directory.path / f"{name}.parts")
            return tuple(rows[key] for key in sorted(rows))
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            self.problems.append(f"{directory.path / name}: {error}")
            return ()

    @functools.cache  # noqa: B019
    def training(self, stage: str) -> tuple[dict, ...]:
        """Rows of a training stage's metrics.jsonl: {step, name: value or None}."""
        path = self.stages[stage].path / "metrics.jsonl"
        return tuple(row for row in read_rows(path) if isinstance(row, dict) and "step" in row)

    # ---- Evaluations -----------------------------------------------------------------------------

    @functools.cached_property
    def measured(self) -> dict[str, Evaluation]:
        """evaluate stage → what it measured, where each row carries the stage's name."""
        out = {}
        for stage in self.of_kind("evaluate"):
            path = stage.path / "metrics.json"
            value = self._json(path) or {}
            if value and "columns" not in value:
                self.problems.append(f"{path}: of an older version; evaluate again")
            value = value if "columns" in value else {}
            rows = [{**row, "stage": stage.name} for row in value.get("rows", ())]
            columns = numbers.columns(value.get("columns", ()), rows)
            figures = [{**f, "stage": stage.name} for f in value.get("figures", ())]
            notes = value.get("notes") or []
            out[stage.name] = Evaluation(stage.name, rows, columns, figures, notes)
        return out

    @functools.cached_property
    def main(self) -> str:
        """The evaluate stage whose answers the report is about: "evaluate" if it has some, else the
        one of most models."""
        counts = {name: len(measured.models) for name, measured in self.measured.items()}
        return "evaluate" if counts.get("evaluate") else max(counts, key=counts.get, default="")

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """The main evaluate stage's numbers and, after them, the others' that are not about answers
        of their own: judges, questions, revisions. Equal numbers are kept once."""
        merged = Evaluation(self.main)
        for name in sorted(self.measured, key=lambda name: name != self.main):
            measured = self.measured[name]  # the main one first
            own = [] if name == self.main else measured.prompt_sets
            seen = {(r["name"], r["value"]) for r in merged.rows if r["on"] != "revisions"}
            merged.rows += [
                row
                for row in measured.rows
                if row["on"] not in own and (row["name"], row["value"]) not in seen
            ]
            merged.columns |= {k: c for k, c in measured.columns.items() if k not in merged.columns}
            merged.figures += [
                figure
                for figure in measured.figures
                if name == self.main or figure.get("group") not in ("answers", "harm")
            ]
        merged.notes = list(self.measured[self.main].notes) if self.main else []
        return merged

    @functools.cached_property
    def further(self) -> list[Evaluation]:
        """The other evaluate stages that have answers of their own, with the rows about these."""
        out = []
        for name, measured in self.measured.items():
            if name != self.main and (own := measured.prompt_sets):
                rows = [row for row in measured.rows if row["on"] in own]
                figures = [f for f in measured.figures if f.get("group") in ("answers", "harm")]
                out.append(Evaluation(name, rows, measured.columns, figures))
        return out

    @functools.cache  # noqa: B019
    def scores_of(self, stage: str) -> dict[str, float]:
        """PM scores by record id, of one evaluate stage."""
        return {row["id"]: row["score"] for row in self.records(stage, "scores")}

    @functools.cache  # noqa: B019
    def values_of(self, stage: str) -> dict[str, dict[str, float]]:
        """Name of a row → prompt or item id → value, where the stage kept them."""
        path = self.stages[stage].path / "values.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        try:
            return {row["name"]: row["values"] for row in map(json.loads, lines)}
        except (ValueError, KeyError, TypeError) as error:
            self.problems.append(f"{path}: {error}")
            return {}

    def revised_by(self, stage: str) -> Stage | None:
        """The revise stage whose revisions an evaluate stage scored."""
        evaluated = self.stages.get(stage)
        return self.stages.get(evaluated.inputs.get("revisions") or "") if evaluated else None

    @functools.cache  # noqa: B019
    def revision_scores(self, stage: str) -> dict[str, list[float | None]]:
        """Of one revise stage, record id → scores of the first answer and of every revision of it
        (None where there is none), by the evaluate stages that judged this stage: stages that
        revise the same responses share their records' ids."""
        judges = [s for s in self.of_kind("evaluate") if s.inputs.get("revisions") == stage]
        scores = {name: s for judge in judges for name, s in self.scores_of(judge.name).items()}
        return {
            r["id"]: [scores.get(f"{r['id']}#{n}") for n in range(1 + len(r.get("rounds") or ()))]
            for r in self.records(stage)
        }

    @functools.cached_property
    def method(self) -> dict[str, Stage]:
        """kind → the stage that the report is about where there are several: the rl stage called
        "rl", or else the first, and the preference model, the policy and the revisions that it came
        from."""
        out: dict[str, Stage] = {}

        def pick(kind: str, name: str = "") -> Stage | None:
            stages = self.of_kind(kind)
            wanted = [s for s in stages if s.name == name] or [s for s in stages if s.name == kind]
            if stages:
                out[kind] = (wanted or stages)[0]
            return out.get(kind)

        rl = pick("rl")
        judges = map(references.stage_of, rl.scorers.values() if rl else ())
        pick("pm", next(filter(None, judges), ""))
        sl = pick("sl", references.stage_of(str(rl.fields.get("policy"))) if rl else "")
        pick("revise", sl.inputs.get("revisions", "") if sl else "")
        pick("dpo")
        pick("harm")
        return out

    @functools.cached_property
    def shown(self) -> str | None:
        """Of the main evaluate stage's models the one that the verdict is about: the method's
        policy, or else the last."""
        given = self.stages[self.main].fields.get("models") if self.main else None
        trained = self.method.get("rl") or self.method.get("dpo")
        policy = f"@{trained.name}" if trained else ""
        models = given if isinstance(given, dict) else {}
        named = [name for name in self.models[1:] if models.get(name) == policy]
        return (named or self.models)[-1] if self.models else None

    @property
    def rows(self) -> list[dict]:
        return self.evaluation.rows

    @property
    def answers(self) -> tuple[dict, ...]:
        """The answers of the main evaluate stage's models to held-out prompts."""
        return self.records(self.main)

    @property
    def scores(self) -> dict[str, float]:
        return self.scores_of(self.main)

    @functools.cached_property
    def models(self) -> list[str]:
        """Names of the main evaluate stage's models."""
        return self.measured[self.main].models if self.main else []

    # ---- Cost ------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        return sum(stage.seconds or 0.0 for stage in self.stages.values())

    @property
    def cpu_seconds(self) -> float | None:
        """None where a stage has none."""
        counts = [stage.cpu_seconds for stage in self.stages.values()]
        return None if None in counts else sum(counts)

    @property
    def peak_bytes(self) -> int:
        return max(stage.peak_bytes for stage in self.stages.values())

    def tokens(self, kind: str) -> int:
        return sum(stage.tokens.get(kind, 0) for stage in self.stages.values())

    @property
    def flops(self) -> float | None:
        """What the counted tokens cost at least: 2N each for sampled and scored ones, 6N for
        trained ones. Attention, prompts before sampling, and recomputation come on top. None where
        the model's size is unknown."""
        if not self.num_parameters:
            return None
        forward = self.tokens("sampled") + self.tokens("scored")
        return self.num_parameters * (2.0 * forward + 6.0 * self.tokens("trained"))

    @functools.cached_property
    def num_parameters(self) -> int | None:
        """Of the first trained policy, or of the model that answered first; None where no
        config.json of theirs is here."""
        from cai_jax.models import params
        from cai_jax.models.config import ModelConfig

        paths = [
            stage.path / "model"
            for kind in ("sl", "dpo", "rl", "pm")
            for stage in self.of_kind(kind)
        ]
        answering = [str(stage.fields.get("model →")) for stage in self.of_kind("respond")]
        here = (name for name in answering if references.parse(name).kind == references.MODEL)
        paths += map(epath.Path, here)
        for path in (path / "config.json" for path in paths):
            try:
                if path.exists():
                    config = ModelConfig.from_hf(self._json(path) or {}, str(path))
                    specs = params.param_table(config).values()
                    return sum(math.prod(spec.shape) for spec in specs)
            except (UserError, ValueError, TypeError, KeyError) as error:
                self.problems.append(f"{path}: {error}")
        return None
