"""What a stage is given: its config, its directory, its inputs, the mesh, and models by
reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from cai_jax.data import fitting
from cai_jax.data.prompts import Prompt, read_prompts
from cai_jax.errors import UserError, require_finite
from cai_jax.io import artefacts, preemption, progress
from cai_jax.io.metrics import MetricsWriter
from cai_jax.models import lora
from cai_jax.references import resolve
from cai_jax.structs import LENGTH, Dialogue
from cai_jax.textmodels import loader
from cai_jax.textmodels.loader import LoadedModel, ModelLoader
from cai_jax.textmodels.protocol import Choice, Completion, Question, Sampling, TextModel, Turn

__all__ = ["LoadedModel", "StageContext", "resolve_role"]


@dataclasses.dataclass
class StageContext:
    name: str
    config: ml_collections.ConfigDict
    run_config: ml_collections.ConfigDict
    run_path: epath.Path
    directory: artefacts.StageDirectory
    inputs: dict[str, artefacts.StageDirectory]
    mesh: jax.sharding.Mesh
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)

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
        return ModelLoader(self.run_config, self.run_path, self.mesh, f"stage '{self.name}'", int8)

    # Data and counts ------------------------------------------------------------------------------

    def prompts(self) -> list[Prompt]:
        """The prompts that `config.prompts` names; those that are left out are counted."""
        prompts, dropped = read_prompts(**self.config.prompts.to_dict())
        for reason, count in dropped.items():
            self.drop(reason, count)
        return prompts

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts rows that the stage leaves out; the manifest and the summary name the reasons."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + int(count)

    def count_tokens(self, kind: str, count: int) -> None:
        """Adds to the manifest's token counts: "sampled", "scored", "trained", and where there is
        any "reasoning"."""
        if count or kind != "reasoning":
            self.tokens[kind] = self.tokens.get(kind, 0) + int(count)

    def require_rows(self, rows: Sequence, what: str) -> None:
        """Stops with one line where nothing is left to work on."""
        if not rows:
            reasons = ", ".join(f"{name}: {count}" for name, count in sorted(self.dropped.items()))
            raise UserError(
                f"stage '{self.name}': 0 {what} left ({reasons or 'none was given'}); check the "
                "stage's inputs and limits"
            )

    def metrics(self, resume_step: int = 0, written: str = "") -> MetricsWriter:
        project = (self.run_config.get("logging") or {}).get("wandb", "")
        about = artefacts.read_json(self.run_path / "config.json")
        return MetricsWriter(self.directory.path, resume_step, written, wandb=project, about=about)

    def progress(self, total: int, label: str = "", initial: int = 0, unit: str = "row"):
        return progress.bar(total, label or self.name, initial, unit)

    def watched(self, results: Iterable, total: int, label: str = "") -> Iterator:
        """Results with a progress bar; a SIGTERM ends the stage between two of them."""
        with self.progress(total, label) as bar:
            for result in results:
                yield result
                bar.update()
                if preemption.requested():
                    raise preemption.Preempted(f"stage '{self.name}': finished rows are saved")

    # What models answer ---------------------------------------------------------------------------

    def generate(
        self,
        model: TextModel,
        turns: Sequence[Turn],
        sampling: Sampling,
        label: str = "",
        wanted: Container[str] | None = None,
        count: bool = True,
    ) -> Iterator[Completion]:
        """The turns that fit the model's context, as they are finished; tokens are counted.

        Args:
          model: who answers.
          turns: what is asked.
          sampling: how tokens are drawn.
          label: of the progress bar; by default the stage's name.
          wanted: ids of the turns that are to be answered, None for all.
          count: whether turns that do not fit are counted here; a stage whose records are not its
            requests counts them itself.
        Raises:
          UserError: a log-probability is not finite.
        """
        label, total = label or self.name, _num_wanted(turns, wanted)
        done = model.generate(turns, sampling, wanted) if total else ()
        unfinished = 0
        for completion in self.watched(done, total, label):
            if not completion.fits:
                self.drop(fitting.CONTEXT, count)
                continue
            unfinished += self.note(completion, model.name)
            yield completion
        if unfinished:
            progress.warn(
                f"{label}: {unfinished} of {total} answers were cut in their reasoning and are "
                "empty; give them more tokens, or switch the reasoning off "
                "(config.model.template_args)"
            )

    def note(self, completion: Completion, model: str) -> bool:
        """Counts the tokens of a completion; whether it was cut before its answer began."""
        thoughts = completion.reasoning_tokens
        unfinished = 0 < thoughts == len(completion.tokens) and completion.stop == LENGTH
        self.count_tokens("sampled", len(completion.tokens))
        self.count_tokens("reasoning", thoughts)
        if unfinished:
            self.count_tokens("answers cut in their reasoning", 1)
        self._require_finite(sum(completion.logprobs), completion.id, f"the logits of '{model}'")
        return unfinished

    def choose(
        self,
        model: TextModel,
        questions: Sequence[Question],
        label: str = "",
        wanted: Container[str] | None = None,
        together: bool = False,
        count: bool = True,
    ) -> Iterator[Choice]:
        """The choices of the questions that fit the model's context; arguments as in `generate`
        and `TextModel.choose`."""
        total = _num_wanted(questions, wanted)
        done = model.choose(questions, wanted, together) if total else ()
        for choice in self.watched(done, total, label):
            if not choice.fits:
                self.drop(fitting.CONTEXT, count)
                continue
            self.count_tokens("scored", choice.num_tokens)
            self._require_finite(sum(choice.logprobs), choice.id, f"the logits of '{model.name}'")
            yield choice

    def score_each(
        self, model, dialogues: Sequence[Dialogue], label: str, ids: Sequence[str] | None = None
    ) -> Iterator[tuple[int, float]]:
        """(index, score) of every dialogue by a preference model, or what else has `score_each`.

        Args:
          model: a `RewardModel`, or a function's stand-in for it.
          dialogues: each ends in an answer.
          label: of the progress bar.
          ids: name the dialogues where a score is not finite; by default their numbers from 1 do.
        Raises:
          UserError: a score is not finite.
        """
        name = getattr(model, "name", "")
        scored = model.score_each(dialogues)
        if beyond := getattr(model, "num_beyond", 0):
            progress.warn(
                f"[{self.name}] {beyond} of {len(dialogues)} dialogues are {fitting.POSITIONS}: "
                f"their scores by '{name}' are guesses"
            )
        for index, score in self.watched(scored, len(dialogues), label):
            self._require_finite(score, ids[index] if ids else f"{index + 1}", f"'{name}'")
            yield index, score

    def _require_finite(self, value: float, name: str, what: str) -> None:
        require_finite([value], [name], f"stage '{self.name}': {what}")

    # Training: until the trainer has these itself -------------------------------------------------

    def load_model(self, reference: str, kind: str = "policy", format: str = "auto", int8=None):
        return self.models.load(reference, kind, format, int8)

    def adapters(self, *models: LoadedModel) -> lora.Adapters | None:
        """The stage's field `adapters`, checked against the models that it trains: those that have
        adapters go on with them."""
        where = f"config.graph.{self.name}.adapters"
        found = lora.Adapters.from_fields(self.config.get("adapters"), where)
        for model in models if found else ():
            found.names(model.config)
            if model.adapters not in (None, found):
                has = model.adapters
                numbers = (
                    f"rank={has.rank} alpha={has.alpha:g} targets={','.join(has.targets)}"
                    + has.int8 * " base_dtype=int8"
                )
                raise UserError(
                    f"{where}: '{model.name}' has adapters, which would be trained on: give "
                    f"their numbers ({numbers}), or rank=0 to train all weights"
                )
        return found

    def publish(self, model: LoadedModel, kind: str, normalisation=None, reads_cut=False) -> None:
        loader.publish(
            self.directory.path, model, kind, self.adapters(model), normalisation, reads_cut
        )

    def context_limit(self, model: LoadedModel) -> int:
        """Tokens of prompt and answer together: sampling.max_length, at most the model's
        positions."""
        return fitting.smallest(self.run_config.sampling.max_length, model.config.max_length)

    def engine(self, model: LoadedModel):
        options = {"int8": False} if self.config.get("kind") == "rl" else {}
        made = self.models.engine(model, **options)
        made.name = model.name
        return made

    def sample(self, engine, requests, sampling, label, count=True) -> Iterator[Completion]:
        fits = [r for r in requests if engine.fits(r, sampling.max_new_tokens)]
        if count:
            self.drop(fitting.CONTEXT, len(requests) - len(fits))
        for completion in self.watched(engine.generate(fits, sampling), len(fits), label):
            self.note(completion, getattr(engine, "name", ""))
            yield dataclasses.replace(completion, text=completion.text.strip())

    def score(self, engine, requests, label, wanted=None, count=True):
        longest = [max(len(option) for option in request.options) for request in requests]
        fits = [r for r, n in zip(requests, longest, strict=True) if engine.fits(r, n)]
        if count:
            self.drop(fitting.CONTEXT, len(requests) - len(fits))
        asked = [request for request in fits if wanted is None or request.id in wanted]
        self.count_tokens("scored", sum(sum(map(len, request.segments)) for request in asked))
        how = {} if wanted is None else {"together": True, "wanted": wanted}
        for scored in self.watched(engine.score(fits, **how), len(asked), label):
            name = getattr(engine, "name", "")
            self._require_finite(sum(scored.logprobs), scored.id, f"the logits of '{name}'")
            yield scored


def _num_wanted(requests: Sequence, wanted: Container[str] | None) -> int:
    return sum(wanted is None or request.id in wanted for request in requests)


def resolve_role(run_config, reference: str) -> str:
    """A role of config.models becomes what it points at; anything else stays as it is."""
    return resolve(run_config.models, reference)
