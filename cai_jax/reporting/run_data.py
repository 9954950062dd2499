"""A run directory as a report reads it: whatever is there, finished or not. Damage is told as a
caution, not raised."""

from __future__ import annotations

import dataclasses
import functools
import math

from etils import epath

from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.io.metrics import read_rows

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
    def dropped(self) -> dict[str, int]:
        return self.manifest.get("dropped") or {}


class Run:
    """`stages` by name in the order they ran; `problems` are files that could not be read; `part`:
    see `parts`."""

    part = ""

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
        order = sorted(
            manifests,
            key=lambda name: (
                known.index(name) if name in known else len(known),
                KINDS.index(manifests[name]["kind"]),
                name,
            ),
        )
        self.stages = {
            name: Stage(name, manifests[name]["kind"], self.path / name, manifests[name])
            for name in order
        }

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

    @functools.cached_property
    def _measured(self) -> dict[str, dict]:
        """evaluate stage → its metrics.json, where each row carries the stage's name."""
        found = {
            stage.name: self._json(stage.path / "metrics.json") or {}
            for stage in self.of_kind("evaluate")
        }
        return {
            name: {
                **value,
                "rows": [
                    {**_with_width(row), "stage": name}
                    for row in value.get("rows", ())
                    if isinstance(row, dict)
                ],
            }
            for name, value in found.items()
        }

    @functools.cached_property
    def main(self) -> str:
        """The evaluate stage whose answers the report is about: "evaluate" if it has some, else the
        one of most models."""
        counts = {name: len(_models(value["rows"])) for name, value in self._measured.items()}
        return "evaluate" if counts.get("evaluate") else max(counts, key=counts.get, default="")

    @functools.cached_property
    def evaluation(self) -> dict:
        """{"rows", "curves", "notes"} of the main evaluate stage and, after it, of the others what
        is not about answers of their own: judges, questions, revisions. What was measured twice
        with the same result stands once."""
        merged: dict = {"rows": [], "curves": {}, "notes": []}
        for name in sorted(self._measured, key=lambda name: name != self.main):
            found, own = (
                self._measured[name],
                set() if name == self.main else _places(self._measured[name]["rows"]),
            )
            seen = {
                (row["name"], row["value"])
                for row in merged["rows"]
                if row["on"].partition(":")[0] != "revisions"
            }
            merged["rows"] += [
                row
                for row in found["rows"]
                if row["on"] not in own and (row["name"], row["value"]) not in seen
            ]
            merged["curves"] = {**found.get("curves", {}), **merged["curves"]}
            merged["notes"] += found.get("notes", ()) if name == self.main else ()
        return merged

    def parts(self) -> list[Run]:
        """For each further evaluate stage with answers of its own the run as that stage sees it,
        `part` being its name."""
        found = []
        for name, value in self._measured.items():
            if name != self.main and (own := _places(value["rows"])):
                one = object.__new__(type(self))
                one.path, one.name, one.problems, one.info, one.part = (
                    self.path,
                    self.name,
                    [],
                    self.info,
                    name,
                )
                one.stages = {
                    key: stage
                    for key, stage in self.stages.items()
                    if stage.kind != "evaluate" or key == name
                }
                one.evaluation = {
                    "rows": [row for row in value["rows"] if row["on"] in own],
                    "curves": {},
                    "notes": [],
                }
                found.append(one)
        return found

    @functools.cached_property
    def scores(self) -> dict[str, float]:
        """PM scores by record id, of the main evaluate stage."""
        return {row["id"]: row["score"] for row in self.records(self.main, "scores")}

    @functools.cache  # noqa: B019
    def revision_scores(self, stage: str) -> dict[str, float]:
        """Of one revise stage, "<record id>#<number of revisions>" → score, by the evaluate stages
        that judged it: stages that revise the same responses share their records' ids."""
        judges = [
            one.name
            for one in self.of_kind("evaluate")
            if (one.fields.get("inputs") or {}).get("revisions") == stage
        ]
        return {row["id"]: row["score"] for name in judges for row in self.records(name, "scores")}

    @functools.cached_property
    def method(self) -> dict[str, Stage]:
        """kind → the stage that the report is about where there are several: the rl stage called
        "rl", or else the first, and the preference model, the policy and the revisions that it came
        from."""
        found: dict[str, Stage] = {}

        def pick(kind: str, name: str = "") -> dict:
            stages = self.of_kind(kind)
            wanted = (
                [one for one in stages if one.name == name]
                or [one for one in stages if one.name == kind]
                or stages
            )
            found.update({kind: wanted[0]} if wanted else {})
            return wanted[0].fields if wanted else {}

        rl = pick("rl")
        pick("pm", _stage_of(rl.get("reward")))
        sl = pick("sl", _stage_of(rl.get("policy")))
        pick("revise", (sl.get("inputs") or {}).get("revisions", ""))
        pick("harm")
        return found

    @functools.cached_property
    def shown(self) -> str | None:
        """Of the main evaluate stage's models the one that the verdict is about: the method's
        policy, or else the last."""
        models = self.stages[self.main].fields.get("models") if self.main else None
        policy = f"@{self.method['rl'].name}" if "rl" in self.method else ""
        named = [
            name
            for name in self.models[1:]
            if isinstance(models, dict) and models.get(name) == policy
        ]
        return (named or self.models)[-1] if self.models else None

    @functools.cached_property
    def answers(self) -> list[dict]:
        """The answers of the main evaluate stage's models to held-out prompts."""
        return list(self.records(self.main))

    @functools.cached_property
    def models(self) -> list[str]:
        """Names of the main evaluate stage's models, the first being what the others are compared
        with."""
        return _models(row for row in self.evaluation["rows"] if row["stage"] == self.main)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds or 0.0 for stage in self.stages.values())

    @property
    def cpu_seconds(self) -> float | None:
        """None where a stage has none."""
        found = [stage.cpu_seconds for stage in self.stages.values()]
        return None if None in found else sum(found)

    @property
    def peak_bytes(self) -> int:
        return max(
            [stage.manifest.get("peak_bytes") or 0 for stage in self.stages.values()], default=0
        )

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
        paths += [epath.Path(str(stage.fields.get("model →"))) for stage in self.of_kind("respond")]
        for path in (path / "config.json" for path in paths):
            try:
                if path.exists():
                    table = params.param_table(
                        ModelConfig.from_hf(self._json(path) or {}, str(path))
                    )
                    return sum(math.prod(spec.shape) for spec in table.values())
            except (UserError, ValueError, TypeError, KeyError) as error:
                self.problems.append(f"{path}: {error}")
        return None


def _with_width(row: dict) -> dict:
    """The row; without an interval where older versions wrote one of zero width, which claims to be
    certain."""
    certain = row.get("low") is not None and row.get("low") == row.get("high")
    return {**row, "low": None, "high": None} if certain else row


def _stage_of(model) -> str:
    """The stage of "@stage" or "@stage:step", "" where a model is none's."""
    return str(model)[1:].partition(":")[0] if str(model).startswith("@") else ""


def _models(rows) -> list[str]:
    return list(
        dict.fromkeys(
            row["model"]
            for row in rows
            if row["metric"] in ("pm_score", "num_tokens") and row["against"] is None
        )
    )


def _places(rows) -> set[str]:
    """The sets of prompts whose answers are counted in these rows."""
    return {row["on"] for row in rows if row["metric"] in ("num_tokens", "expected_harm")}
