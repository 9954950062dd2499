"""What a stage is given: its config, its directory, its inputs, the mesh, and models by
reference."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Container, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from cai_jax.data import dialogue as dialogue_lib
from cai_jax.data import fitting, templates
from cai_jax.data.prompts import Prompt, read_prompts
from cai_jax.engine import engine as engine_lib
from cai_jax.errors import UserError, require_finite
from cai_jax.io import artefacts, preemption, progress
from cai_jax.io.checkpoints import Checkpoints
from cai_jax.io.metrics import MetricsWriter
from cai_jax.models import hf, lora, rounding
from cai_jax.models.config import ModelConfig
from cai_jax.structs import Completion, Dialogue, SampleRequest, SamplingParams, Score, ScoreRequest
from cai_jax.training import feed
from cai_jax.training import state as state_lib

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@functools.cache
def _say_once(text: str) -> None:
    progress.say(text)


@dataclasses.dataclass
class Weights:
    """What several models of a stage may rest on; loaded once and kept as long as one of them keeps
    it."""

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
    `params` on the arrays of its base; such params work wherever whole ones do, but in the sampler
    (`StageContext.engine` adds them up).
    """

    name: str
    config: ModelConfig
    params: Any
    format: dialogue_lib.DialogueFormat
    kind: str = "policy"
    normalisation: tuple[float, float] | None = None
    adapters: lora.Adapters | None = None
    trained: Any = None
    weights: Weights | None = None
    reads_cut: bool = False

    def release(self, *_) -> None:
        """Lets go of the weights, once a training state holds its own copy."""
        self.params = self.trained = None
        if self.weights is not None:
            self.weights = dataclasses.replace(self.weights, params=None)


def resolve_role(run_config, reference: str) -> str:
    """A role of config.models becomes what it points at; anything else stays as it is."""
    roles = run_config.models
    for _ in range(len(roles) + 1):
        if reference not in roles:
            return reference
        reference = roles[reference]
    raise UserError(
        f"config.models: the role '{reference}' points at itself; give it a directory, a hub "
        "name or '@stage'"
    )


def fits_training(ctx, lengths: Sequence[int], positions: int | None) -> list[bool]:
    """Whether each training example of so many tokens fits the stage's max_length and the model's
    positions; those that do not are counted by reason."""
    kept, reasons = fitting.training_examples(lengths, ctx.config.max_length, positions)
    for reason, count in reasons.items():
        ctx.drop(reason, count)
    return kept


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
    _weights: Any = dataclasses.field(default_factory=weakref.WeakValueDictionary)

    @property
    def seed(self) -> int:
        return self.run_config.seed

    @property
    def dtype(self):
        return jnp.dtype(self.run_config.model.dtype)

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
            reasons = (
                ", ".join(f"{reason}: {count}" for reason, count in sorted(self.dropped.items()))
                or "none was given"
            )
            raise UserError(
                f"stage '{self.name}': 0 {what} left ({reasons}); check the stage's inputs and "
                "limits"
            )

    def metrics(self, resume_step: int = 0, written: str = "") -> MetricsWriter:
        project = (self.run_config.get("logging") or {}).get("wandb", "")
        about = artefacts.read_json(self.run_path / "config.json")
        return MetricsWriter(self.directory.path, resume_step, written, wandb=project, about=about)

    def progress(self, total: int, label: str = "", initial: int = 0, unit: str = "row"):
        return progress.bar(total, label or self.name, initial, unit)

    # Models ---------------------------------------------------------------------------------------

    def load_model(
        self, reference: str, kind: str = "policy", format: str = "auto", int8: bool | None = None
    ) -> LoadedModel:
        """Loads a role, `@stage`, `@stage:step`, a Hugging Face directory or hub name, or
        `random:DIRECTORY`.

        A preference model (kind "reward") is a stage of kind pm, or a directory of a sequence
        classifier with one label. `int8`: whether matrices come in 8 bits; None: where the stage's
        own adapters want that. Under adapters that were trained before, they are what they were
        then.
        """
        target = resolve_role(self.run_config, reference)
        if int8 is None:
            own = lora.Adapters.from_fields(
                self.config.get("adapters"), f"config.graph.{self.name}.adapters"
            )
            int8 = own is not None and own.int8
        if target.startswith("@"):
            return self._load_stage(target[1:], kind, format, int8)
        directory = hf.resolve(target)
        if kind != "policy" and not hf.is_classifier(directory):
            raise UserError(
                f"stage '{self.name}': '{reference}' is not a preference model; name a stage "
                "of kind pm as '@pm', or a "
                "directory of a …ForSequenceClassification model with one label"
            )
        if kind == "policy" and hf.is_classifier(directory):
            raise UserError(
                f"stage '{self.name}': '{reference}' is a preference model, a policy is needed here"
            )

        def load():
            if kind == "policy":
                return hf.load_params(
                    target, seed=self.seed, dtype=self.dtype, mesh=self.mesh, int8=int8
                )
            config, decoder, head = hf.load_classifier(
                directory, dtype=self.dtype, mesh=self.mesh, int8=int8
            )
            return config, state_lib.with_head(decoder, head, self.mesh)

        ModelConfig.from_json(
            directory
        )  # what can be wrong there is told before gigabytes are read
        loaded = self._load_format(target, directory, format)
        weights = self._shared(
            (target, int8), lambda: Weights(target, *load(), hf.fingerprint(target, self.seed))
        )
        return LoadedModel(target, weights.config, weights.params, loaded, kind, weights=weights)

    def _load_format(self, name: str, directory, kind: str) -> dialogue_lib.DialogueFormat:
        """The format with the run's template arguments and date; says once a process what a reader
        would not expect."""
        loaded = dialogue_lib.load_format(directory, kind, templates.Settings.of(self.run_config))
        for note in loaded.notes(kind):
            _say_once(f"{name}: {note}")
        return loaded

    def _shared(self, name: tuple[str, bool], load) -> Weights:
        """Those of that name that another model of this stage has; else loaded."""
        weights = self._weights.get(name)
        if weights is None:
            self._weights[name] = weights = load()
        return weights

    def _load_stage(self, target: str, kind: str, format: str, int8: bool) -> LoadedModel:
        stage = target.partition(":")[0]
        path = self.run_path / stage / "model"
        role = artefacts.read_json(path / "role.json")
        if role is None:
            raise UserError(
                f"{path.parent}: no model there; '@{stage}' must name a finished stage of kind "
                "sl, pm or rl"
            )
        if role["kind"] != kind:
            raise UserError(
                f"stage '{self.name}': '@{stage}' is a {role['kind']}, a {kind} is needed here"
            )
        config = ModelConfig.from_hf(
            artefacts.read_json(path / "config.json") or {}, str(path / "config.json")
        )
        kind_of_format = role["format"] if format == "auto" else format
        loaded = self._load_format("@" + target, path, kind_of_format)
        normalisation = tuple(role["normalisation"]) if role.get("normalisation") else None
        reads_cut = bool(role.get("reads_cut", False))
        adapters = lora.Adapters.from_fields(
            role.get("adapters"), f"{path / 'role.json'}: adapters"
        )
        if adapters is None:
            weights = self._shared(
                ("@" + target, int8), lambda: self._restored(target, config, kind, int8=int8)
            )
            return LoadedModel(
                "@" + target,
                config,
                weights.params,
                loaded,
                kind,
                normalisation,
                weights=weights,
                reads_cut=reads_cut,
            )
        base = self._base(
            stage, role["adapters"]["base"], role["adapters"]["base_fingerprint"], adapters.int8
        )
        trained = self._restored(target, config, kind, adapters).params
        params = lora.attach(lora.base_of(base.params), trained, adapters)
        trained = trained.get("decoder", trained)
        return LoadedModel(
            "@" + target,
            config,
            params,
            loaded,
            kind,
            normalisation,
            adapters,
            trained,
            base,
            reads_cut,
        )

    def _restored(
        self,
        target: str,
        config: ModelConfig,
        kind: str,
        adapters: lora.Adapters | None = None,
        int8: bool = False,
    ) -> Weights:
        """What "stage" (at its end) or "stage:step" has trained: whole weights in the run's dtype,
        adapters in float32."""
        stage, _, step = target.partition(":")
        checkpoints = Checkpoints(self.run_path / stage / "checkpoints")
        targets = {
            "params": state_lib.abstract_params(config, kind, self.mesh, adapters=adapters)
        }  # trained in float32
        if step:
            if not step.isdigit() or int(step) not in checkpoints.steps():
                raise UserError(f"'@{target}': no such checkpoint; steps: {checkpoints.steps()}")
            found = int(step), *checkpoints.restore(int(step), targets)
        else:
            found = checkpoints.restore_latest(targets)
            last = (
                artefacts.StageDirectory(self.run_path / stage)
                .manifest.get("summary", {})
                .get("steps", found and found[0])
            )
            if found is None or found[0] != last:
                raise artefacts.Damaged(
                    stage,
                    (
                        f"{checkpoints.path}: the last checkpoint is lost; '{stage}' trains on to "
                        "it again"
                    ),
                )
        number, trees, _ = found
        params = trees["params"] if adapters else state_lib.cast(trees["params"], self.dtype)
        if int8:
            params = rounding.round_layers(params)
        return Weights("@" + target, config, params, checkpoints.fingerprint(number, "params"))

    def _base(self, stage: str, name: str, fingerprint: str, int8: bool) -> Weights:
        """The weights that the adapters of `stage` were trained on; UserError where they are not
        there or not the same."""
        try:
            kind = (
                "reward"
                if not name.startswith("@") and hf.is_classifier(hf.resolve(name))
                else "policy"
            )
            if name.startswith("@"):
                kind = artefacts.read_json(
                    self.run_path / name[1:].partition(":")[0] / "model" / "role.json"
                )["kind"]
            weights = self.load_model(name, kind, int8=int8).weights
        except UserError as error:
            raise UserError(
                f"'@{stage}' has adapters, which need the base they were trained on: {error}"
            ) from error
        if weights.fingerprint != fingerprint:
            raise UserError(
                f"'@{stage}' has adapters that were trained on other weights than those of "
                f"'{name}' now (fingerprint "
                f"{fingerprint}, now {weights.fingerprint}); put the base back, or train "
                f"'{stage}' again"
            )
        return weights

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
                    f"their numbers ({numbers}), "
                    "or rank=0 to train all weights"
                )
        return found

    def encode(
        self, format: dialogue_lib.DialogueFormat, dialogues: Sequence[Dialogue]
    ) -> list[dialogue_lib.Encoded]:
        """`format.example` of every dialogue; a training stage that is started again finds the
        tokens in its directory."""
        return feed.encode(format, dialogues, self.directory.path / feed.TOKENS)

    def publish(
        self,
        model: LoadedModel,
        kind: str,
        normalisation: tuple[float, float] | None = None,
        reads_cut: bool = False,
    ) -> None:
        """Writes `model/` beside the stage's checkpoints: architecture, tokenizer and role, so that
        `@stage` can be loaded.

        Where adapters on `model` were trained, the role names their base and its fingerprint
        instead of copying it.
        """
        target = self.directory.path / "model"
        if artefacts.is_writer():
            target.mkdir(parents=True, exist_ok=True)
            for name in TOKENIZER_FILES:
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
            if adapters := self.adapters(model):
                role["adapters"] = {
                    **adapters.to_json(),
                    "base": model.weights.name,
                    "base_fingerprint": model.weights.fingerprint,
                }
            artefacts.write_json(target / "role.json", role)
        artefacts.barrier(f"published {target}")

    # Prompts, sampling and scoring ----------------------------------------------------------------

    def prompts(self) -> list[Prompt]:
        """The prompts that `config.prompts` names; rows that are left out are counted."""
        found, dropped = read_prompts(**self.config.prompts.to_dict())
        for reason, count in dropped.items():
            self.drop(reason, count)
        return found

    def answering(self, model: LoadedModel) -> SamplingParams:
        """How the stage's fields say that an assistant's turn is drawn."""
        config = self.config
        return SamplingParams(
            config.max_new_tokens,
            config.temperature,
            config.top_k,
            config.top_p,
            model.format.stop_strings("assistant"),
        )

    def context_limit(self, model: LoadedModel) -> int:
        """Tokens of prompt and answer together: sampling.max_length, at most the model's
        positions."""
        return fitting.smallest(self.run_config.sampling.max_length, model.config.max_length)

    def engine(self, model: LoadedModel) -> engine_lib.Engine:
        options = engine_lib.EngineOptions(**self.run_config.sampling.to_dict())
        if (
            self.config.get("kind") == "rl"
        ):  # PPO's first ratio is 1 only where sampler and learner have the same weights
            options = dataclasses.replace(options, int8=False)
        made = engine_lib.Engine(model.params, model.config, model.format, self.mesh, options)
        made.name = model.name
        return made

    def sample(
        self,
        engine,
        requests: Sequence[SampleRequest],
        sampling: SamplingParams,
        label: str,
        count: bool = True,
    ) -> Iterator[Completion]:
        """Completions as they finish. Requests that do not fit the context are left out, never cut,
        and counted; with `count` False the stage counts them itself, where its rows are not its
        requests."""
        fits = self._fitting(engine, requests, [sampling.max_new_tokens] * len(requests), count)
        unfinished = 0
        for completion in self._watched(engine.generate(fits, sampling), len(fits), label):
            self.count_tokens("sampled", len(completion.tokens))
            self._require_finite(sum(completion.logprobs), completion.id, engine)
            self.count_tokens("reasoning", completion.reasoning_tokens)
            thoughts_only = completion.reasoning_tokens == len(completion.tokens)
            if thoughts_only and completion.tokens and completion.stop == "length":
                self.count_tokens("answers cut in their reasoning", 1)
                unfinished += 1
            # The space after a heading and line ends before a stop belong to the format, which
            # writes them again.
            yield dataclasses.replace(completion, text=completion.text.strip())
        if unfinished:
            progress.warn(
                f"{label}: {unfinished} of {len(fits)} answers were cut in their reasoning and "
                "are empty; give them more "
                "tokens, or switch the reasoning off (config.model.template_args)"
            )

    def score(
        self,
        engine,
        requests: Sequence[ScoreRequest],
        label: str,
        wanted: Container[str] | None = None,
        count: bool = True,
    ) -> Iterator[Score]:
        """Scores of the requests that fit the context; for the others see `sample`. With `wanted`,
        the ids of those that are still to be scored, short ones share forward passes: `requests` is
        then always the whole list (see Engine.score)."""
        longest = [max(len(option) for option in request.options) for request in requests]
        fits = self._fitting(engine, requests, longest, count)
        asked = [request for request in fits if wanted is None or request.id in wanted]
        self.count_tokens("scored", sum(sum(map(len, request.segments)) for request in asked))
        found = (
            engine.score(fits)
            if wanted is None
            else engine.score(fits, together=True, wanted=wanted)
        )
        for scored in self._watched(found, len(asked), label):
            self._require_finite(sum(scored.logprobs), scored.id, engine)
            yield scored

    def score_each(
        self, model, dialogues: Sequence[Dialogue], label: str, ids: Sequence[str] | None = None
    ) -> Iterator[tuple[int, float]]:
        """(index, score) of every dialogue by a preference model, or what else has `score_each`, as
        it is there.

        `ids` name the dialogues where a score is NaN or infinite; without them their numbers from 1
        do.
        """
        what = f"stage '{self.name}': '{getattr(model, 'name', '')}'"
        scored = model.score_each(dialogues)
        if beyond := getattr(model, "num_beyond", 0):
            progress.warn(
                f"[{self.name}] {beyond} of {len(dialogues)} dialogues are "
                f"{fitting.POSITIONS}: their scores by "
                f"'{getattr(model, 'name', '')}' are guesses"
            )
        for index, score in self._watched(scored, len(dialogues), label):
            require_finite([score], [ids[index] if ids else f"{index + 1}"], what)
            yield index, score

    def _require_finite(self, logprob: float, name: str, engine) -> None:
        model = getattr(engine, "name", "")
        require_finite([logprob], [name], f"stage '{self.name}': the logits of '{model}'")

    def _fitting(self, engine, requests, new_tokens, count: bool):
        fits = [
            request
            for request, num_new in zip(requests, new_tokens, strict=True)
            if engine.fits(request, num_new)
        ]
        if count:
            self.drop(fitting.CONTEXT, len(requests) - len(fits))
        return fits

    def _watched(self, results, total: int, label: str):
        """Results with a progress bar; a SIGTERM ends the stage between two of them."""
        with self.progress(total, label) as bar:
            for result in results:
                yield result
                bar.update()
                if preemption.requested():
                    raise preemption.Preempted(f"stage '{self.name}': finished rows are saved")
