"""What a stage is given: its config, its directory, its inputs, the mesh, and models by
reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from cai_jax.errors import UserError
from cai_jax.io import answers, artefacts
from cai_jax.io.answers import AnswerFile
from cai_jax.io.metrics import MetricsWriter
from cai_jax.models import lora
from cai_jax.textmodels import loader, recorded
from cai_jax.textmodels.answering import AnsweringModel
from cai_jax.textmodels.asking import Asking
from cai_jax.textmodels.loader import LoadedModel, ModelLoader


@dataclasses.dataclass
class StageContext(Asking):
    """A stage asks models by `generate`, `choose` and `score_each` (see `Asking`). `dropped` and
    `tokens` are what its manifest says was left out, and computed."""

    name: str
    config: ml_collections.ConfigDict
    run_config: ml_collections.ConfigDict
    run_path: epath.Path
    directory: artefacts.StageDirectory
    inputs: dict[str, artefacts.StageDirectory]
    mesh: jax.sharding.Mesh
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    unanswered: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.run_config.seed

    @property
    def dtype(self):
        return jnp.dtype(self.run_config.model.dtype)

    @functools.cached_property
    def models(self) -> ModelLoader:
        """The models of the run; in 8 bits where the stage's own adapters want that."""
        own = self.adapters()
        int8 = own is not None and own.int8
        user = f"stage '{self.name}'"
        return ModelLoader(
            self.run_config, self.run_path, self.mesh, user, int8, lambda: self.answers
        )

    @functools.cached_property
    def answers(self) -> AnswerFile:
        """What servers have answered this stage; what they have answered others serves as well."""
        own = self.directory.path / answers.NAME
        files = [*self.run_path.glob(f"*/{own.name}"), *self.run_path.glob(f"aside/*/{own.name}")]
        others = (AnswerFile(path.parent) for path in sorted(files) if path != own)
        return AnswerFile(own.parent, others)

    def served(self) -> dict:
        """For the manifest: requests to servers by outcome, tokens and cost; {} without any."""
        if not (self.directory.path / answers.NAME).exists():
            return {}
        return self.answers.to_json()

    def load(self, read: Callable, fields, what: str = "") -> list:
        """What a reader such as `read_prompts` makes of a group of fields (source, split, …). Rows
        that it leaves out are counted, the reason after `what`."""
        rows, dropped = read(**fields.to_dict())
        for reason, count in dropped.items():
            self.drop(f"{what}: {reason}" if what else reason, count)
        return rows

    def write_records(self, records: Iterable[dict]) -> list[dict]:
        """Writes records.jsonl of a stage that makes all its records at once; an earlier start's
        are replaced. Returns them, sorted by id."""
        journal = self.directory.journal()
        journal.discard(lambda row: False)
        for record in records:
            journal.append(record)
        journal.finish()
        return list(journal.finished.values())

    def recording(self, model) -> artefacts.Journal | None:
        """See `Asking.recording`: answers from outside, and with config.record all others."""
        is_outside = isinstance(model, AnsweringModel)
        return self._recorded if is_outside or self.run_config.record else None

    @functools.cached_property
    def _recorded(self) -> artefacts.Journal:
        # Before the records that are made from it: they would have no answers after a kill.
        return self.directory.journal(recorded.RECORDED, light=True, first=True)

    def finish_recording(self) -> None:
        """Writes recorded.jsonl where answers were kept, in this start or before a kill."""
        parts = self.directory.path / f"{recorded.RECORDED}.parts"
        if "_recorded" in vars(self) or parts.exists():
            self._recorded.finish()

    def require_rows(self, rows: Sequence, what: str) -> None:
        """Stops with one line where nothing is left to work on."""
        if not rows:
            reasons = ", ".join(f"{name}: {count}" for name, count in sorted(self.dropped.items()))
            raise UserError(
                f"stage '{self.name}': 0 {what} left ({reasons or 'none was given'}); check the "
                "stage's inputs and limits"
            )

    # Training -------------------------------------------------------------------------------------

    def metrics(self, resume_step: int = 0, written: str = "") -> MetricsWriter:
        project = (self.run_config.get("logging") or {}).get("wandb", "")
        about = artefacts.read_json(self.run_path / "config.json")
        return MetricsWriter(self.directory.path, resume_step, written, wandb=project, about=about)

    def reference(self, model: LoadedModel) -> LoadedModel:
        """The model of the stage's field `reference`; `model`, which is trained, where that is "".
        UserError where its tokens are others."""
        if not self.config.reference:
            return model
        reference = self.models.load(self.config.reference)
        theirs, ours = (each.format.tokenizer.hf.get_vocab() for each in (reference, model))
        if theirs != ours:
            raise UserError(
                f"config.graph.{self.name}.reference: '{reference.name}' has other tokens than "
                f"'{model.name}'; expected a model with its tokenizer"
            )
        return reference

    def adapters(self, *models: LoadedModel) -> lora.Adapters | None:
        """The stage's field `adapters`, checked against the models that it trains."""
        where = f"config.graph.{self.name}.adapters"
        return loader.checked_adapters(self.config.get("adapters"), where, models)

    def publish(self, model: LoadedModel, kind: str, **how) -> None:
        """Writes `model/`. `how`: normalisation and reads_cut, see `loader.publish`."""
        loader.publish(self.directory.path, model, kind, self.adapters(model), **how)
