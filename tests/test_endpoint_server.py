"""A model behind this project's own server gives what it gives in this process: the microworld's
as text, SmolLM2 as a chat."""

import math
import pathlib
import subprocess
import sys

import ml_collections
import pytest
from etils import epath

from cai_jax import seeds
from cai_jax.configuration import fields as fields_lib
from cai_jax.configuration.run import RUN
from cai_jax.constitution.loader import load_constitution
from cai_jax.core import sharding
from cai_jax.core.intervals import wilson
from cai_jax.core.labels import probability_first
from cai_jax.data import choices
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.prompts import read_prompts
from cai_jax.structs import Message, Sampling
from cai_jax.textmodels import questions
from cai_jax.textmodels.loader import ModelLoader
from cai_jax.textmodels.protocol import Turn
from configs import microworld

ROOT = pathlib.Path(__file__).parent.parent
SMOLLM2 = ROOT / "models" / "smollm2-135m-instruct"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (ROOT / "cai_jax" / "serve.py").exists(), reason="no server"),
]


class Served:
    """A model here and behind a server; `format` of its dialogues; prompts, comparisons and a
    constitution that it knows."""

    def __init__(self, directory, format, prompts, comparisons, constitution):
        self.directory, self.format, self.prompts = str(directory), format, prompts
        self.comparisons, self.constitution = comparisons, load_constitution(constitution)
        command = [sys.executable, "-m", "cai_jax.serve", self.directory, "--port=0", "--name=m"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        line = next(line for line in self.process.stdout if line.startswith("serving"))
        self.url = line.split()[-1]
        self.local = self._model("/nowhere", self.directory)

    def remote(self, path, **given):
        """The model behind the server, whose answers go to `path`."""
        return self._model(path, f"openai:{self.url}#m", **given)

    def _model(self, path, reference, **given):
        config = ml_collections.ConfigDict(fields_lib.build(RUN))
        config.models.base, config.sampling.batch_size = reference, 32
        config.sampling.max_length = 0
        given = {"continue_turns": "fields", "timeout": 3000.0, "patience": 3000.0, **given}
        config.endpoints.all.update(given)
        models = ModelLoader(config, epath.Path(path), sharding.make_mesh(config.mesh))
        return models.text_model("base", self.format)

    def questions(self):
        """Questions about 64 pairs of people's answers."""
        principle = self.constitution.comparison_principles[0].text
        for pair in load_comparisons(self.comparisons, split="", limit=64)[0]:
            asked = choices.question(pair.dialogue, principle, (pair.chosen, pair.rejected))
            yield questions.choice(pair.id, asked)


@pytest.fixture(scope="module", params=["microworld", "smollm2"])
def served(request):
    if request.param == "microworld":
        comparisons = str(microworld.DATA / "comparisons.jsonl")
        about = microworld.RED_TEAM, comparisons, microworld.CONSTITUTION
        model = Served(microworld.BASE, "text", *about)
    elif not (SMOLLM2 / "config.json").exists():
        pytest.skip("`make model` fetches it")
    else:
        about = "embedded:red_team", "embedded:helpful_comparisons", "embedded"
        model = Served(SMOLLM2, "chat", *about)
    yield model
    model.process.terminate()
    model.process.wait()


def test_greedy_critiques_are_the_local_engines(served, tmp_path):
    principles = served.constitution.critique_principles
    turns = []
    for number, prompt in enumerate(read_prompts(served.prompts, split="", limit=32)[0]):
        request = principles[number % len(principles)].critique_request
        answered = (*prompt.dialogue, Message("assistant", "I will help you."))
        dialogue = (*answered, Message("critique_request", request))
        turns.append(Turn(prompt.id, dialogue, seeds.row_key(0, prompt.id), "critique"))
    sampling = Sampling(32, temperature=0.0)
    ours = {done.id: done.text for done in served.local.generate(turns, sampling)}
    remote = served.remote(tmp_path)
    assert len(ours) == 32
    assert ours == {done.id: done.text for done in remote.generate(turns, sampling)}


@pytest.mark.parametrize("tier", ["scored", "top"])
def test_log_probabilities_are_the_local_ones(tier, served, tmp_path):
    """Of top, those of the options against each other, where both are among the likeliest."""
    asked = list(served.questions())
    ours = {choice.id: choice.logprobs for choice in served.local.choose(asked)}
    given = {"tier": "auto" if tier == "scored" else tier}
    theirs = [c for c in served.remote(tmp_path, **given).choose(asked) if c.how == tier]
    if tier == "scored":
        assert len(theirs) == 64
        gaps = [abs(a - b) for c in theirs for a, b in zip(ours[c.id], c.logprobs, strict=True)]
    else:
        gaps = [abs(_first(ours[c.id]) - _first(c.logprobs)) for c in theirs if c.outside < 0.1]
    print(f"{tier}: {len(gaps)} compared, largest difference {max(gaps, default=0):.2g}")
    assert max(gaps, default=0) <= (1e-4 if tier == "scored" else 0.1)


def test_counted_labels_hold_the_scored_ones_in_their_intervals(served, tmp_path):
    asked, given = list(served.questions()), {"num_samples": 64, "samples_per_request": 64}
    scored = {choice.id: _first(choice.logprobs) for choice in served.local.choose(asked)}
    held, parsed = 0, 0
    for choice in served.remote(tmp_path, tier="counted", **given).choose(asked):
        if choice.answered:
            interval = wilson(choice.counts[0], sum(choice.counts))
            held += interval.low <= scored[choice.id] <= interval.high
            parsed += sum(choice.counts)
    print(f"held {held} of 64; parsed {parsed / 64**2:.2f}")
    assert held >= math.ceil(0.9 * 64)


def _first(logprobs) -> float:
    """The probability of the first option."""
    return probability_first({"order": "ab", "a": logprobs[0], "b": logprobs[1]})
