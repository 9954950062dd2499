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
from cai_jax.report import numbers, schema1

# In the order of the paper; a graph may hold several stages of a kind. A report does not report on
# itself.
KINDS = (
    "respond",
    "revise",
    "sl",
    "compare",
    "human",
    "feedback",
    "pm",
    "rl",
    "best_of",
    "harm",
    "evaluate",
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage's manifest. `fields` are its config fields; a field "x →" holds what the role in x
    points at."""

    name: str
    kind: str
    path: epath.Path
    manifest: dict

    @property
    def done(self) -> bool:
        return bool(self.manifest.get("done"))

    @property
    def fields(self) -> dict:
        return self.manifest.get("fields") or {}

    @property
    def inputs(self) -> dict:
        return self.fields.get("inputs") or {}

    def values(self, field: str) -> list:
        """What the field says in the stage and, of an evaluate stage, in each of its
        evaluations."""
        places = [self.fields, *(self.fields.get("evals") or {}).values()]
        return [place[field] for place in places if place.get(field)]

    @property
    def scorers(self) -> dict[str, str]:
        """The models and functions that score answers here, as the config names them → what a name
        points at. An rl stage with `rewards` does not read `reward`."""
        terms = self.fields.get("rewards") or {}
        evals = self.fields.get("evals") or {}
        given = {} if terms else {"reward": self.fields.get("reward")}
        given |= {f"rewards.{n}.model": term.get("model") for n, term in terms.items()}
        given |= {f"rewards.{n}.function": term.get("function") for n, term in terms.items()}
        given |= {f"evals.{n}.reward": own.get("reward") for n, own in evals.items()}
        return {
            str(name): str(self.fields.get(f"{path} →") or name)
            for path, name in given.items()
            if name
        }

    @property
    def summary(self) -> dict:
        return self.manifest.get("summary") or {}

    @property
    def seconds(self) -> float | None:
        return self.manifest.get("seconds")

    @property
    def cpu_seconds(self) -> float | None:
        """Of all processors, of the process that writes; None in runs of older versions."""
        return self.manifest.get("cpu_seconds")

    @property
    def tokens(self) -> dict[str, int]:
        return self.manifest.get("tokens") or {}

    @property
    def served(self) -> dict:
        """Requests to servers by outcome, their tokens and cost; {} without any."""
        return self.manifest.get("served") or {}

    @property
    def dropped(self) -> dict[str, int]:
        return self.manifest.get("dropped") or {}


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
        manifests = {}
        for child in sorted(self.path.iterdir(), key=lambda c: c.name):
            manifest = self._json(child / "manifest.json") if child.is_dir() else None
            if manifest and manifest.get("kind") in KINDS:
                manifests[child.name] = manifest
        if not manifests:
            raise UserError(
                f"{path}: no stage has begun there (no manifest.json); run `python -m "
                "cai_jax.main` first"
            )
        known = list(self.config.get("stages") or ())

        def position(name: str) -> tuple:
            listed = known.index(name) if name in known else len(known)
            return listed, KINDS.index(manifests[name]["kind"]), name

        self.stages = {
            name: Stage(name, manifests[name]["kind"], self.path / name, manifests[name])
            for name in sorted(manifests, key=position)
        }

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

    def model_of(self, stage: Stage, field: str) -> tuple[str, str]:
        """(the model in a field as the config names it, what the name points at with the
        fingerprint of its stage)."""
        value = stage.fields.get(field)
        name = value.get("model") if isinstance(value, dict) else value
        target = str(stage.fields.get(f"{field} →") or name or "")
        trained = self.stages.get(references.stage_of(target))
        mark = trained.manifest.get("fingerprint") if trained else None
        return str(name or ""), f"{target} {mark}" if mark else target

    @functools.cached_property
    def measured(self) -> dict[str, Evaluation]:
        """evaluate stage → what it measured, where each row carries the stage's name."""
        out = {}
        for stage in self.of_kind("evaluate"):
            value = self._json(stage.path / "metrics.json") or {}
            if "columns" not in value:
                value = schema1.upgraded(value, functools.partial(self.model_of, stage))
            rows = [{**_with_width(row), "stage": stage.name} for row in value["rows"]]
            columns = numbers.columns(value["columns"], rows)
            figures = [{**f, "stage": stage.name} for f in value.get("figures", ())]
            out[stage.name] = Evaluation(stage.name, rows, columns, figures, value["notes"])
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
            measured = self.measured[name]
            own = [] if name == self.main else measured.prompt_sets
            seen = {(r["name"], r["value"]) for r in merged.rows if r["on"] != "revisions"}
            merged.rows += [
                row
                for row in measured.rows
                if row["on"] not in own and (row["name"], row["value"]) not in seen
            ]
            merged.columns = {**measured.columns, **merged.columns}
            merged.figures += [
                figure
                for figure in measured.figures
                if name == self.main or figure.get("group") not in ("answers", "harm")
            ]
        merged.notes = list(self.measured[self.main].notes) if self.main else []
        order = [*self.measured[self.main].columns] if self.main else []
        later = [metric for metric in merged.columns if metric not in order]
        merged.columns = {metric: merged.columns[metric] for metric in (*order, *later)}
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

    @functools.cache  # noqa: B019
    def revision_scores(self, stage: str) -> dict[str, float]:
        """Of one revise stage, "<record id>#<number of revisions>" → score, by the evaluate stages
        that judged it: stages that revise the same responses share their records' ids."""
        judges = [s for s in self.of_kind("evaluate") if s.inputs.get("revisions") == stage]
        return {name: s for judge in judges for name, s in self.scores_of(judge.name).items()}

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
        pick("harm")
        return out

    @functools.cached_property
    def shown(self) -> str | None:
        """Of the main evaluate stage's models the one that the verdict is about: the method's
        policy, or else the last."""
        given = self.stages[self.main].fields.get("models") if self.main else None
        policy = f"@{self.method['rl'].name}" if "rl" in self.method else ""
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
        peaks = [stage.manifest.get("peak_bytes") or 0 for stage in self.stages.values()]
        return max(peaks, default=0)

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
            stage.path / "model" for kind in ("sl", "rl", "pm") for stage in self.of_kind(kind)
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


def _with_width(row: dict) -> dict:
    """The row; without an interval where older versions wrote one of zero width, which claims to be
    certain."""
    certain = row.get("low") is not None and row.get("low") == row.get("high")
    return {**row, "low": None, "high": None} if certain else row
