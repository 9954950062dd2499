"""SmolLM2 behind this project's own server gives what it gives in this process."""

import math
import os
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
from cai_jax.data import choices
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.prompts import read_prompts
from cai_jax.evals.multiple_choice import normalise
from cai_jax.stages.revise import worked_examples
from cai_jax.structs import Message, Sampling
from cai_jax.textmodels import questions
from cai_jax.textmodels.loader import ModelLoader
from cai_jax.textmodels.protocol import Turn

ROOT = pathlib.Path(__file__).parent.parent
MODEL = ROOT / "models" / "smollm2-135m-instruct"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (MODEL / "config.json").exists(), reason="`make model` fetches it"),
    pytest.mark.skipif(not (ROOT / "cai_jax" / "serve.py").exists(), reason="no server"),
]


@pytest.fixture(scope="module")
def url():
    """Of a server in a process of its own."""
    command = [sys.executable, "-m", "cai_jax.serve", str(MODEL), "--port=0", "--name=m"]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ, **pipes)
    line = next(line for line in process.stdout if line.startswith("serving"))
    yield line.split()[-1]
    process.terminate()
    process.wait()


def loader(path, reference=str(MODEL), **given):
    config = ml_collections.ConfigDict(fields_lib.build(RUN))
    config.models.base, config.sampling.batch_size = reference, 32
    given = {"continue_turns": "fields", "timeout": 3000.0, "patience": 3000.0, **given}
    config.endpoints.all.update(given)
    return ModelLoader(config, epath.Path(path), sharding.make_mesh(config.mesh))


@pytest.fixture(scope="module")
def local():
    return loader("/nowhere").text_model("base")


def test_greedy_critiques_are_the_local_engines(url, local, tmp_path):
    constitution = load_constitution("embedded")
    examples = worked_examples(constitution.critique_examples[:1], True)
    prompts, _ = read_prompts("embedded:red_team", split="", limit=32)
    principles = constitution.critique_principles
    turns = [
        Turn(
            prompt.id,
            (
                *prompt.dialogue,
                Message("assistant", "Sure, here is how."),
                Message("critique_request", principles[n % len(principles)].critique_request),
            ),
            seeds.row_key(0, prompt.id),
            "critique",
            examples,
        )
        for n, prompt in enumerate(prompts)
    ]
    sampling = Sampling(48, temperature=0.0)
    served = loader(tmp_path, f"openai:{url}#m").text_model("base")
    ours = {done.id: done.text for done in local.generate(turns, sampling)}
    theirs = {done.id: done.text for done in served.generate(turns, sampling)}
    assert len(ours) == 32 and ours == theirs


def pairs():
    """64 questions about people's comparisons."""
    principle = load_constitution("embedded").comparison_principles[0].text
    pairs, _ = load_comparisons("embedded:helpful_comparisons", split="", limit=64)
    asked = []
    for pair in pairs:
        text = choices.question(pair.dialogue, principle, (pair.chosen, pair.rejected))
        asked.append(questions.choice(pair.id, text))
    assert len(asked) == 64
    return asked


def test_scored_labels_are_the_local_ones(url, local, tmp_path):
    served = loader(tmp_path, f"openai:{url}#m").text_model("base")
    ours = {choice.id: choice.logprobs for choice in local.choose(pairs())}
    theirs = {choice.id: choice for choice in served.choose(pairs())}
    assert all(choice.how == "scored" for choice in theirs.values()) and len(theirs) == 64
    gaps = [abs(a - b) for n in ours for a, b in zip(ours[n], theirs[n].logprobs, strict=True)]
    print("largest difference of log-probabilities:", max(gaps))
    assert max(gaps) <= 1e-4


def test_counted_labels_hold_the_scored_ones_in_their_intervals(url, local, tmp_path):
    given = {"tier": "counted", "num_samples": 64, "samples_per_request": 64}
    served = loader(tmp_path, f"openai:{url}#m", **given).text_model("base")
    scored = {choice.id: normalise(choice.logprobs)[0] for choice in local.choose(pairs())}
    held, parsed = 0, []
    for choice in served.choose(pairs()):
        if not sum(choice.counts):
            continue
        interval = wilson(choice.counts[0], sum(choice.counts))
        held += interval.low <= scored[choice.id] <= interval.high
        parsed.append(sum(choice.counts) / choice.num_samples)
    print(f"held {held} of 64; parsed {sum(parsed) / len(parsed):.2f}")
    assert held >= math.ceil(0.9 * 64)
