"""A stage on an engine that writes down what it is asked and answers by a script: no weights, no compilation.

What is tested with it is the stage: which requests it makes, in which order, and what it records of the answers.
"""

import jax
import ml_collections
from etils import epath

from cai_jax import sharding
from cai_jax.data.dialogue import load_format
from cai_jax.io import artefacts
from cai_jax.models.config import ModelConfig
from cai_jax.sampling import engine as engine_lib
from cai_jax.stages.context import LoadedModel, StageContext
from cai_jax.structs import Completion, Score
from configs import default


class Engine:
    """`requests` and `scored` are those of every call, in order. `answer(request)` is the text of a completion."""

    fits = engine_lib.Engine.fits

    def __init__(self, format, max_length: int, answer=lambda request: "So be it."):
        self.format, self.max_length, self.answer = format, max_length, answer
        self.requests, self.scored, self.layout_seconds = [], [], 0.0

    def generate(self, requests, sampling):
        for request in requests:
            assert self.fits(request, sampling.max_new_tokens)
            self.requests.append(request)
            text = self.answer(request)
            tokens = tuple(self.format.tokenizer.encode(text))
            yield Completion(request.id, tokens, (-1.0,) * len(tokens), text, "eos")

    def score(self, requests, together=False, wanted=None):
        for request in requests:
            assert self.fits(request)
            self.scored.append(request)
            yield Score(request.id, tuple((-1.0,) * len(option) for option in request.options))

    def text(self, request) -> str:
        """The prompt of a request as text, control tokens included."""
        return self.format.tokenizer.hf.decode(sum(request.segments, ()))


def stage(path, directory, name: str, fields: dict, inputs: dict[str, list[dict]], **options):
    """(context, engine) of a stage in `path` whose model has the tokenizer of `directory`.

    Args:
      inputs: name of an input → its records.
      options: `max_length` of the engine (1024) and its `answer`.
    """
    format = load_format(directory)
    engine = Engine(format, options.pop("max_length", 1024), **options)
    run_path = epath.Path(path)
    given = {}
    for key, rows in inputs.items():
        given[key] = artefacts.StageDirectory(run_path / f"input_{key}")
        journal = given[key].journal()
        for row in rows:
            if row["id"] not in journal.finished:
                journal.append(row)
        journal.finish()
    ctx = StageContext(
        name,
        ml_collections.ConfigDict(fields),
        default.base_config(),
        run_path,
        artefacts.StageDirectory(run_path / name),
        given,
        sharding.make_mesh({}, jax.devices()[:1]),
    )
    config = ModelConfig.from_json(directory)
    ctx.load_model = lambda *_, **__: LoadedModel("scripted", config, {}, format)
    ctx.engine = lambda model: engine
    return ctx, engine


def response(name: str, prompt: str = "How do I do it?", answer: str = "Like this.") -> dict:
    """A record of a respond stage."""
    return {
        "id": f"{name}/00",
        "prompt_id": name,
        "kind": "test",
        "dialogue": [{"role": "human", "text": prompt}],
        "response": answer,
        "sample": 0,
        "stop": "eos",
    }
