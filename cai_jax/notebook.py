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
from cai_jax.structs import Dialogue, Message
from cai_jax.textmodels.loader import ModelLoader
from cai_jax.textmodels.protocol import Sampling, Turn


class Run:
    """A run directory; nothing is written there but what servers answer. Models are named as in a
    config: a role, `@stage`, `@stage:step`, a directory or a hub name. Raises UserError where there
    is no run."""

    def __init__(self, path):
        self.path = epath.Path(path)
        saved = artefacts.read_json(self.path / "config.json")
        if saved is None:
            raise UserError(
                f"{path}: no run there (config.json is missing); make one with python -m "
                f"cai_jax.main --workdir={path}"
            )
        self.config = ml_collections.ConfigDict(saved["config"])
        mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})  # of this machine
        self.models = ModelLoader(self.config, self.path, mesh)

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
        return self.models.preference_model(reference)

    def sample(
        self,
        reference: str,
        prompts: Sequence[str | Dialogue],
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """One answer a prompt, in their order; "" where a prompt does not fit the context. Random
        numbers depend on prompt and seed only, so that models can be compared.

        Args:
          reference: the model.
          prompts: dialogues, or texts of a human turn.
          max_new_tokens: of an answer.
          temperature: 0 is greedy.
          seed: of the random numbers.

        Returns:
          The answers' texts.
        """
        turns = []
        for number, prompt in enumerate(map(as_dialogue, prompts)):
            key = row_key(seed, "notebook", 0, stable_id(prompt), 0)
            turns.append(Turn(str(number), prompt, key))
        model = self.models.text_model(reference)
        answers = model.generate(turns, Sampling(max_new_tokens, temperature))
        texts = {answer.id: answer.text for answer in answers}
        return [texts[turn.id] for turn in turns]


def as_dialogue(prompt: str | Dialogue) -> Dialogue:
    return (Message("human", prompt),) if isinstance(prompt, str) else tuple(prompt)


def answered(prompt: str | Dialogue, answer: str) -> Dialogue:
    """The dialogue of a prompt and its answer, as a reward model reads it."""
    return (*as_dialogue(prompt), Message("assistant", answer))


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's r; 0 where one of them does not vary."""
    a, b = np.asarray(a, np.float64) - np.mean(a), np.asarray(b, np.float64) - np.mean(b)
    scale = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / scale if scale else 0.0
