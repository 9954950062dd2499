"""A text model that writes down all that it is asked and answers by a script, in place of the
engine of a real stage.

    ctx, asked = stage(tmp_path, "revise", default.revise(...), inputs={"responses": rows},
    answer=lambda request: "text") revise.run(ctx) assert asked.prompts() == [...]

The stage, its records, the format and the tokenizer are the real ones; only weights are missing.
Requests are answered in reverse, as an engine is free to do.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import ml_collections
from etils import epath

from cai_jax.core import sharding
from cai_jax.data.dialogue import load_format
from cai_jax.io import artefacts
from cai_jax.models.config import ModelConfig
from cai_jax.pipeline import graph as pipeline
from cai_jax.references import resolve
from cai_jax.stages.context import StageContext
from cai_jax.structs import Completion, Score
from cai_jax.textmodels.loader import LoadedModel, ModelLoader
from cai_jax.textmodels.local import LocalTextModel
from configs import default

TINY = str(pathlib.Path(__file__).resolve().parent.parent / "configs" / "models" / "tiny")
NORMALISATION = (0.5, 2.0)  # of every preference model
CONSTITUTION = {
    "critique_principles": [
        {"id": f"p{i}", "critique_request": f"Criticise {i} {{}}.", "revision_request": f"Fix {i}."}
        for i in range(4)
    ],
    "comparison_principles": [
        {"id": f"c{i}", "text": f"Which is better by {i}?"} for i in range(4)
    ],
    "critique_examples": [
        {
            "id": f"e{i}",
            "dialogue": [{"role": "human", "text": f"Asked {i}"}],
            "response": f"Said {i}",
            "critique_request": f"What is wrong {i}",
            "critique": f"All {i}",
            "revision_request": f"Mend {i}",
            "revision": f"Mended {i}",
        }
        for i in range(2)
    ],
    "comparison_examples": [
        {
            "id": f"x{i}",
            "dialogue": [{"role": "human", "text": f"Shown {i}"}],
            "chosen": f"Good {i}",
            "rejected": f"Bad {i}",
        }
        for i in range(2)
    ],
    "chain_examples": [
        {
            "id": f"t{i}",
            "dialogue": [{"role": "human", "text": f"Thought {i}"}],
            "options": [f"Left {i}", f"Right {i}"],
            "reasoning": f"Because {i}.",
            "answer": "B",
        }
        for i in range(2)
    ],
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request: the text of its segments, the rest as it came. `sampling` is None where options
    are scored."""

    id: str
    segments: tuple[str, ...]
    key: tuple[int, ...] | None
    sampling: object
    options: tuple[str, ...]
    model: str

    @property
    def prompt(self) -> str:
        return "".join(self.segments)


class Recorder:
    """What `Engine` offers to a stage. `answer(asked)` is the text of a completion or a whole
    (text, stop); `score(asked)` are the options' log-probabilities."""

    layout_seconds = 0.0

    def __init__(
        self, asked: list, model: LoadedModel, answer: Callable, score: Callable, limit: int
    ):
        self._asked, self._model, self._limit = asked, model, limit
        self._answer, self._score = answer, score
        self.max_length = limit

    def _note(self, request, sampling) -> Asked:
        text = self._model.format.tokenizer.hf.decode
        key = getattr(request, "key", None)
        asked = Asked(
            request.id,
            tuple(text(segment, skip_special_tokens=False) for segment in request.segments),
            None if key is None else tuple(map(int, key)),
            sampling,
            tuple(text(option) for option in getattr(request, "options", ())),
            self._model.name,
        )
        self._asked.append(asked)
        return asked

    def fits(self, request, new_tokens: int = 0) -> bool:
        options = getattr(request, "options", ())
        longest = max([new_tokens, *map(len, options)])
        return 0 < sum(map(len, request.segments)) <= self._limit - longest

    def generate(self, requests, sampling):
        noted = [self._note(request, sampling) for request in requests]
        for asked in reversed(noted):
            answer = self._answer(asked)
            text, stop = (answer, "eos") if isinstance(answer, str) else answer
            ids = self._model.format.tokenizer.encode(text)
            ids = (*ids, self._model.format.tokenizer.eos) if stop == "eos" else tuple(ids)
            yield Completion(asked.id, ids, (-0.5,) * len(ids), text, stop)

    def score(self, requests, together=False, wanted=None):
        noted = [
            self._note(request, None)
            for request in requests
            if wanted is None or request.id in wanted
        ]
        for asked in reversed(noted):
            values = self._score(asked)
            assert len(values) == len(asked.options)
            yield Score(asked.id, tuple((value,) for value in values))


class Models(ModelLoader):
    """A loader whose models are `load(…)` and whose samplers are `make_engine(model)`."""

    def __init__(self, ctx, load: Callable, make_engine: Callable):
        super().__init__(ctx.run_config, ctx.run_path, ctx.mesh, f"stage '{ctx.name}'")
        self.load, self._make_engine = load, make_engine

    def text_model(self, reference, format="auto"):
        model = self.load(reference, format=format)
        engine = self._make_engine(model)
        return LocalTextModel(model.name, model.format, engine.max_length, lambda: engine)

    def engine(self, model, **options):
        return self._make_engine(model)


def stage(
    tmp_path,
    kind: str,
    fields,
    *,
    inputs: dict[str, list] | None = None,
    answer: Callable = lambda asked: f"answer to {asked.id}",
    score: Callable = lambda asked: [-1.0 - index for index in range(len(asked.options))],
    limit: int = 100_000,
    format: str = "text",
    roles: dict | None = None,
    graph: dict | None = None,
):
    """(context, list of what is asked): a stage `kind` of these fields over records given by input
    name, seed 5."""
    run_config = default.base_config()
    run_config.seed = 5
    run_config.models.update(roles or {})
    run_config.graph = ml_collections.ConfigDict({kind: dict(fields), **(graph or {})})
    run_config.stages = tuple(run_config.graph)
    run_config = pipeline.resolve(run_config)
    directories = {}
    for name, rows in (inputs or {}).items():
        directories[name] = artefacts.StageDirectory(epath.Path(tmp_path) / name)
        journal = directories[name].journal()
        for row in rows:
            journal.append(row)
        journal.finish()
    ctx = StageContext(
        kind,
        run_config.graph[kind],
        run_config,
        epath.Path(tmp_path),
        artefacts.StageDirectory(epath.Path(tmp_path) / kind),
        directories,
        sharding.make_mesh({}, jax.devices()[:1]),
    )
    asked: list[Asked] = []
    loaded_format = load_format(TINY, format)
    config = ModelConfig.from_json(TINY)

    def load(reference, kind="policy", format="auto", int8=None):
        normalisation = NORMALISATION if kind == "reward" else None
        name = resolve(run_config.models, reference)
        return LoadedModel(name, config, None, loaded_format, kind, normalisation)

    ctx.models = Models(ctx, load, lambda model: Recorder(asked, model, answer, score, limit))
    return ctx, asked


def human(text: str) -> list[dict]:
    """A dialogue of one turn, as records hold it."""
    return [{"role": "human", "text": text}]
