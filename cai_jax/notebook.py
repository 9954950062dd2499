"""A run opened from Python, for notebooks and scripts: its records and numbers, its models to
sample and to score with."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
import numpy as np
from etils import epath

from cai_jax.core import sharding
from cai_jax.data.prompts import stable_id
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.io.checkpoints import Checkpoints
from cai_jax.io.metrics import read_rows
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.seeds import row_key
from cai_jax.stages.context import StageContext
from cai_jax.structs import Dialogue, Message, SampleRequest, SamplingParams


class Run:
    """A run directory, read and never written. Models are named as in a config: a role, `@stage`,
    `@stage:step`, a directory or a hub name. Raises UserError where there is no run."""

    def __init__(self, path):
        self.path = epath.Path(path)
        saved = artefacts.read_json(self.path / "config.json")
        if saved is None:
            raise UserError(
                f"{path}: no run there (config.json is missing); make one with python -m "
                f"cai_jax.main --workdir={path}"
            )
        self.config = ml_collections.ConfigDict(saved["config"])
        mesh = sharding.make_mesh(
            {"data": -1, "fsdp": 1, "tensor": 1}
        )  # of this machine, not of the run's
        self.context = StageContext(
            "notebook",
            ml_collections.ConfigDict(),
            self.config,
            self.path,
            artefacts.StageDirectory(self.path),
            {},
            mesh,
        )

    def records(self, stage: str, name: str = "records") -> list[dict]:
        """The finished records of a stage, sorted by id."""
        return artefacts.StageDirectory(self.path / stage).records(name)

    def metrics(self, stage: str) -> list[dict]:
        """The rows of a training stage's metrics.jsonl, one a step."""
        return read_rows(self.path / stage / "metrics.jsonl")

    def steps(self, stage: str) -> list[int]:
        """Steps whose checkpoints are there: `@stage:step` can be loaded."""
        return list(Checkpoints(self.path / stage / "checkpoints").steps())

    def reward_model(self, reference: str = "@pm") -> RewardModel:
        """Its `score(dialogues)` gives float32 [n]; every dialogue ends in an answer."""
        model = self.context.load_model(reference, "reward")
        return RewardModel(
            model.params,
            model.config,
            model.format,
            self.context.mesh,
            model.normalisation,
            reads_cut=model.reads_cut,
        )

    def sample(
        self,
        reference: str,
        prompts: Sequence[str | Dialogue],
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """One answer a prompt, in their order. The random numbers depend on prompt and seed only,
        so that models can be compared; a prompt that does not fit the context is answered with
        ""."""
        model = self.context.load_model(reference)
        engine = self.context.engine(model)
        requests = []
        for number, prompt in enumerate(prompts):
            dialogue = (Message("human", prompt),) if isinstance(prompt, str) else tuple(prompt)
            key = row_key(seed, "notebook", 0, stable_id(dialogue), 0)
            requests.append(SampleRequest(str(number), model.format.prompt(dialogue), key))
        fitting = [request for request in requests if engine.fits(request, max_new_tokens)]
        sampling = SamplingParams(
            max_new_tokens, temperature, stop_strings=model.format.stop_strings("assistant")
        )
        texts = {done.id: done.text.strip() for done in engine.generate(fitting, sampling)}
        return [texts.get(request.id, "") for request in requests]


def answered(prompt: str | Dialogue, answer: str) -> Dialogue:
    """The dialogue of a prompt and its answer, as a reward model reads it."""
    return (
        *((Message("human", prompt),) if isinstance(prompt, str) else tuple(prompt)),
        Message("assistant", answer),
    )


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's r; 0 where one of them does not vary."""
    a, b = np.asarray(a, np.float64) - np.mean(a), np.asarray(b, np.float64) - np.mean(b)
    scale = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / scale if scale else 0.0
