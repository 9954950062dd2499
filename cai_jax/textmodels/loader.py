"""Models by reference: what a role, `@stage`, directory or hub name means, with its weights on the
mesh.

    models = ModelLoader(run_config, run_path, mesh)
    model = models.text_model("helpful")         # generates turns and chooses between options
    judge = models.preference_model("@pm")       # scores dialogues
    loaded = models.load("@sl:200")              # weights, config and format, to train or to export

A stage that trained a model published `model/` next to its checkpoints (`publish`): architecture,
tokenizer and role.json. Weights are the checkpoints'; adapters name the base that they need.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from cai_jax import references
from cai_jax.configuration import endpoints
from cai_jax.data import fitting, templates
from cai_jax.data.dialogue import DialogueFormat, load_format
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.errors import UserError
from cai_jax.io import artefacts, progress
from cai_jax.io.answers import AnswerFile
from cai_jax.io.checkpoints import Checkpoints
from cai_jax.models import hf, lora, rounding
from cai_jax.models.config import ModelConfig
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.textmodels import batch, chat, endpoint
from cai_jax.textmodels.answering import AnsweringModel
from cai_jax.textmodels.local import LocalTextModel
from cai_jax.textmodels.protocol import TextModel
from cai_jax.textmodels.recorded import RecordedTextModel
from cai_jax.training import state as state_lib


@dataclasses.dataclass
class Weights:
    """What several models may share; loaded once and kept as long as one of them keeps it."""

    name: str
    config: ModelConfig
    params: Any
    fingerprint: str


@dataclasses.dataclass
class LoadedModel:
    """Weights on the mesh with everything needed to use them. `params` is the decoder's tree for a
    policy and {"decoder", "head"} for a preference model, whose `normalisation` is (mean, std) of
    its raw scores or None, and whose `reads_cut` says where it scores an answer that was cut (see
    `RewardModel`).

    A model that was trained as `adapters` has them in `trained` as they were trained, and in
    `params` on the arrays of its base; such params work wherever complete ones do, but in the
    sampler, which adds them up.
    """

    name: str
    config: ModelConfig
    params: Any
    format: DialogueFormat
    kind: str = "policy"
    normalisation: tuple[float, float] | None = None
    adapters: lora.Adapters | None = None
    trained: Any = None
    weights: Weights | None = None
    reads_cut: bool = False

    def release(self, *_) -> None:
        """Frees the weights, once a training state holds its own copy."""
        self.params = self.trained = None
        if self.weights is not None:
            self.weights = dataclasses.replace(self.weights, params=None)


class ModelLoader:
    """Loads the models of a run. `user` names in messages who needs them; `int8`: matrices come in
    8 bits, but where adapters were trained on others; `answers` gives the file that keeps what
    servers answer."""

    def __init__(
        self,
        run_config: ml_collections.ConfigDict,
        run_path: epath.Path,
        mesh: jax.sharding.Mesh,
        user: str = "",
        int8: bool = False,
        answers: Callable[[], AnswerFile] | None = None,
    ):
        self._answers = answers or (lambda: AnswerFile(run_path))
        self.run_config, self.run_path, self.mesh = run_config, run_path, mesh
        self._user, self._int8 = f"{user}: " * bool(user), int8
        self._weights: Any = weakref.WeakValueDictionary()

    # Ready to use ---------------------------------------------------------------------------------

    def text_model(self, reference: str, format: str = "auto") -> TextModel:
        """A policy that generates and chooses: one on the mesh, or a server's."""
        target = references.target(self.run_config.models, reference)
        if target.kind == references.RECORDED:
            return RecordedTextModel(target.name)
        if target.kind in references.ANSWERING:
            return self._served_model(target, reference, format)
        model = self.load(reference, format=format)
        limit = fitting.smallest(self.run_config.sampling.max_length, model.config.max_length)
        return LocalTextModel(model.name, model.format, limit, lambda: self.engine(model))

    def _served_model(
        self, target: references.Reference, reference: str, format: str
    ) -> AnsweringModel:
        fields = endpoints.of(self.run_config, reference)
        directory, _, model = target.name.partition("#")
        is_batch = target.kind == references.BATCH
        url = batch.URL if model else f"{batch.URL}{directory}"
        if not is_batch:
            url, model = target.server()
        wire = chat.Wire(
            url,
            model,
            chat.TEXT if format == "text" else chat.CHAT,
            fields.continue_turns,
            fields.limit_field,
            1 if is_batch else fields.samples_per_request,
            fields.extra_body.to_dict(),
        )
        name, file, limit = str(target), self._answers(), self.run_config.max_cost
        if is_batch:
            carrier = batch.BatchFiles(name, self.run_path / directory, fields, file, limit)
        else:
            carrier = endpoint.Endpoint(name, wire, fields, file, limit)
        return AnsweringModel(carrier, wire, fields.num_samples)

    def preference_model(
        self, reference: str, kind: str = "reward", format: str = "auto", raw: bool = False
    ) -> RewardModel:
        """A preference model as a function of dialogues.

        Args:
          reference: see `load`.
          kind: "reward", or "harm" for a regressor of harm.
          format: "auto", "text" or "chat".
          raw: whether its scores stay as they were trained, not normalised.

        Returns:
          The model.
        """
        return self.scorer(self.load(reference, kind, format), raw)

    def scorer(self, model: LoadedModel, raw: bool = False) -> RewardModel:
        """A loaded preference model as a function of dialogues."""
        return RewardModel(
            model.params,
            model.config,
            model.format,
            self.mesh,
            None if raw else model.normalisation,
            model.name,
            reads_cut=model.reads_cut,
        )

    def engine(self, model: LoadedModel, **options) -> Engine:
        """The sampler of a loaded policy; `options` replace those of config.sampling."""
        chosen = EngineOptions(**{**self.run_config.sampling.to_dict(), **options})
        return Engine(model.params, model.config, model.format, self.mesh, chosen)

    # Weights and format ---------------------------------------------------------------------------

    def load(
        self,
        reference: str,
        kind: str = "policy",
        format: str = "auto",
        int8: bool | None = None,
    ) -> LoadedModel:
        """The model that a role or reference names (`cai_jax.references`).

        Args:
          reference: a preference model is a stage of kind pm, or a directory of a sequence
            classifier with one label.
          kind: "policy", "reward" or "harm".
          format: "auto", "text" or "chat".
          int8: whether matrices come in 8 bits; None for what the loader says.

        Returns:
          The model, with its weights on the mesh.

        Raises:
          UserError: there is no such model, or it is of another kind.
        """
        int8 = self._int8 if int8 is None else int8
        target = references.resolve(self.run_config.models, reference)
        if references.stage_of(target):
            return self._load_stage(references.parse(target), kind, format, int8)
        return self._load_directory(target, reference, kind, format, int8)

    def _load_directory(
        self, target: str, reference: str, kind: str, format: str, int8: bool
    ) -> LoadedModel:
        directory = hf.resolve(target)
        if kind != "policy" and not hf.is_classifier(directory):
            raise UserError(
                f"{self._user}'{reference}' is not a preference model; name a stage of kind pm as "
                "'@pm', or a directory of a …ForSequenceClassification model with one label"
            )
        if kind == "policy" and hf.is_classifier(directory):
            raise UserError(
                f"{self._user}'{reference}' is a preference model, a policy is needed here"
            )

        def weights() -> Weights:
            how = {"dtype": self._dtype, "mesh": self.mesh, "int8": int8}
            if kind == "policy":
                config, params = hf.load_params(target, seed=self.run_config.seed, **how)
            else:
                config, decoder, head = hf.load_classifier(directory, **how)
                params = state_lib.with_head(decoder, head, self.mesh)
            return Weights(target, config, params, hf.fingerprint(target, self.run_config.seed))

        ModelConfig.from_json(directory)  # reports what is wrong before gigabytes are read
        loaded = self._load_format(target, directory, format)
        shared = self._shared((target, int8), weights)
        return LoadedModel(target, shared.config, shared.params, loaded, kind, weights=shared)

    def _load_stage(
        self, target: references.Reference, kind: str, format: str, int8: bool
    ) -> LoadedModel:
        path = self.run_path / target.name / "model"
        role = artefacts.read_json(path / "role.json")
        if role is None:
            raise UserError(
                f"{path.parent}: no model there; '@{target.name}' must name a finished stage of "
                "kind sl, pm or rl"
            )
        if role["kind"] != kind:
            raise UserError(
                f"{self._user}'@{target.name}' is a {role['kind']}, a {kind} is needed here"
            )
        fields = artefacts.read_json(path / "config.json") or {}
        config = ModelConfig.from_hf(fields, str(path / "config.json"))
        adapters = lora.Adapters.from_fields(role.get("adapters"), f"{path}/role.json: adapters")
        model = LoadedModel(
            str(target),
            config,
            None,
            self._load_format(str(target), path, role["format"] if format == "auto" else format),
            kind,
            tuple(role["normalisation"]) if role.get("normalisation") else None,
            adapters,
            reads_cut=bool(role.get("reads_cut", False)),
        )
        # All weights were trained: they are the checkpoint's.
        if adapters is None:

            def weights() -> Weights:
                trained = self._restored(target, config, kind)
                params = state_lib.cast(trained.params, self._dtype)
                params = rounding.round_layers(params) if int8 else params
                return dataclasses.replace(trained, params=params)

            model.weights = self._shared((str(target), int8), weights)
            model.params = model.weights.params
            return model
        # Adapters were trained: they go on the arrays of their base, which models share.
        base = model.weights = self._base_of(target.name, role["adapters"], adapters.int8)
        trained = self._restored(target, config, kind, adapters).params
        model.params = lora.attach(lora.base_of(base.params), trained, adapters)
        model.trained = trained.get("decoder", trained)
        return model

    def _restored(
        self,
        target: references.Reference,
        config: ModelConfig,
        kind: str,
        adapters: lora.Adapters | None = None,
    ) -> Weights:
        """What a stage has trained, in float32: all weights, or the adapters."""
        stage = artefacts.StageDirectory(self.run_path / target.name)
        checkpoints = Checkpoints(self.run_path / target.name / "checkpoints")
        abstract = {"params": state_lib.abstract_params(config, kind, self.mesh, adapters=adapters)}
        if target.step:
            if not target.step.isdigit() or int(target.step) not in checkpoints.steps():
                raise UserError(f"'{target}': no such checkpoint; steps: {checkpoints.steps()}")
            restored = int(target.step), *checkpoints.restore(int(target.step), abstract)
        else:
            # The end of training is the step that the manifest names.
            restored = checkpoints.restore_latest(abstract)
            last = stage.manifest.get("summary", {}).get("steps", restored and restored[0])
            if restored is None or restored[0] != last:
                raise artefacts.Damaged(
                    target.name,
                    f"{checkpoints.path}: the last checkpoint is lost; '{target.name}' trains on "
                    "to it again",
                )
        step, trees, _ = restored
        fingerprint = checkpoints.fingerprint(step, "params")
        return Weights(str(target), config, trees["params"], fingerprint)

    def _base_of(self, stage: str, adapters: dict, int8: bool) -> Weights:
        """The weights that the adapters of `stage` were trained on; UserError where they are
        missing or not the same."""
        name, fingerprint = adapters["base"], adapters["base_fingerprint"]
        try:
            if base_stage := references.stage_of(name):
                path = self.run_path / base_stage / "model" / "role.json"
                kind = artefacts.read_json(path)["kind"]
            else:
                kind = "reward" if hf.is_classifier(hf.resolve(name)) else "policy"
            weights = self.load(name, kind, int8=int8).weights
        except UserError as error:
            raise UserError(
                f"'@{stage}' has adapters, which need the base they were trained on: {error}"
            ) from error
        if weights.fingerprint != fingerprint:
            raise UserError(
                f"'@{stage}' has adapters that were trained on other weights than those of "
                f"'{name}' now (fingerprint {fingerprint}, now {weights.fingerprint}); put the "
                f"base back, or train '{stage}' again"
            )
        return weights

    @property
    def _dtype(self):
        return jnp.dtype(self.run_config.model.dtype)

    def _load_format(self, name: str, directory, kind: str) -> DialogueFormat:
        """The format with the run's template arguments and date; logs once a process what a reader
        would not expect."""
        loaded = load_format(directory, kind, templates.Settings.of(self.run_config))
        for note in loaded.notes(kind):
            _log_once(f"{name}: {note}")
        return loaded

    def _shared(self, name: tuple[str, bool], load) -> Weights:
        """Those of that name that another model of this loader has; else loaded."""
        weights = self._weights.get(name)
        if weights is None:
            self._weights[name] = weights = load()
        return weights


def checked_adapters(fields, where: str, models) -> lora.Adapters | None:
    """A stage's adapters from its field, checked against the models that it trains: those that have
    adapters go on with them."""
    adapters = lora.Adapters.from_fields(fields, where)
    for model in models if adapters else ():
        adapters.names(model.config)
        if model.adapters not in (None, adapters):
            has = model.adapters
            numbers = f"rank={has.rank} alpha={has.alpha:g} targets={','.join(has.targets)}"
            raise UserError(
                f"{where}: '{model.name}' has adapters, which would be trained on: give their "
                f"numbers ({numbers}{has.int8 * ' base_dtype=int8'}), or rank=0 to train all "
                "weights"
            )
    return adapters


def publish(
    directory: epath.Path,
    model: LoadedModel,
    kind: str,
    adapters: lora.Adapters | None = None,
    normalisation: tuple[float, float] | None = None,
    reads_cut: bool = False,
) -> None:
    """Writes `model/` next to a stage's checkpoints, so that `@stage` can be loaded.

    Args:
      directory: the stage's.
      model: what training began with: its architecture, tokenizer and, under adapters, base.
      kind: "policy", "reward" or "harm".
      adapters: where they alone were trained; the role then names their base and its fingerprint
        instead of copying it.
      normalisation: (mean, std) of a preference model's raw scores.
      reads_cut: see `RewardModel`.
    """
    target = directory / "model"
    # Every process has the same; the first one writes.
    if artefacts.is_writer():
        target.mkdir(parents=True, exist_ok=True)
        for name in hf.TOKENIZER_FILES:
            source = epath.Path(model.format.directory) / name
            if source.exists():
                source.copy(target / name, overwrite=True)
        if model.format.tokenizer.has_named_templates:  # the one that was used
            text = model.format.tokenizer.template
            artefacts.write_text(target / "chat_template.jinja", text)
        artefacts.write_json(target / "config.json", model.config.to_hf())
        role = {
            "kind": kind,
            "normalisation": normalisation,
            "format": model.format.kind,
            "initialised_from": model.name,
        }
        if reads_cut:
            role["reads_cut"] = True
        if adapters:
            role["adapters"] = {
                **adapters.to_json(),
                "base": model.weights.name,
                "base_fingerprint": model.weights.fingerprint,
            }
        artefacts.write_json(target / "role.json", role)
    artefacts.barrier(f"published {target}")


@functools.cache
def _log_once(text: str) -> None:
    progress.say(text)
