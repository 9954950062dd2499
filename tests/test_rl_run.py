"""Two updates of an rl stage with scripted answers: who moves, who does not, and what is rewarded.

The learner freezes log-probabilities, values and rewards as ever; its steps, which take long to
compile and have their own tests, are one step of a known size.
"""

import dataclasses
import json
import types

import jax
import ml_collections
import numpy as np
import pytest

from cai_jax.core import ppo
from cai_jax.models.params import abstract_params
from cai_jax.seeds import row_key
from cai_jax.stages import rl
from cai_jax.textmodels import loader as loader_lib
from cai_jax.textmodels.loader import LoadedModel
from cai_jax.training import learner as learner_lib
from cai_jax.training import rl_numbers
from configs import default
from tests.recording import Models, Recorder, stage
from tests.small_config import SMALL

CONFIG = dataclasses.replace(
    SMALL,
    vocab_size=768,
    width=16,
    ffw=24,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    max_length=256,
)
OF_REFERENCE = dataclasses.replace(CONFIG, rope_theta=10.0)
NORMALISATION = (3.0, 2.0)
FIELDS = {
    "num_updates": 2,
    "rollouts_per_update": 3,  # all prompts, so that both updates have the same shapes
    "num_epochs": 3,
    "num_minibatches": 1,
    "learning_rate": 3e-2,
    "schedule": "linear",
    "warmup_updates": 1,
    "kl_coefficient": 0.25,
    "kl_target": 1.0,
    "kl_horizon": 40,
    "missing_eos_penalty": 1.5,
    "temperature": 0.7,
    "max_new_tokens": 9,
    "max_prompt_tokens": 30,
}


class Stop(Exception):
    pass


def numpy(tree):
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def equal(a, b) -> bool:
    same = jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)
    return all(jax.tree.leaves(same))


class Watched(learner_lib.Learner):
    """A learner that keeps copies of what it was given and what it froze, and takes one known step
    an update."""

    seen: dict = {}

    def __init__(self, *given, reference, **how):
        self.seen["reference config"] = reference
        super().__init__(*given, reference=reference, **how)

    def init(self, policy, value, kl_coefficient):
        self.seen["init"] = numpy(policy), numpy(value), kl_coefficient
        return super().init(policy, value, kl_coefficient)

    def freeze(self, state, reference, batch):
        self.seen["reference"].append(numpy(reference))
        self.seen["policy"].append(numpy(state["params"]))
        self.seen["batch"].append(batch)
        if self.seen["stop"]:
            raise Stop
        frozen = super().freeze(state, reference, batch)
        self.seen["frozen"].append(frozen)
        return frozen

    def learn(self, state, batch, frozen, update):
        self.seen["updates"].append(update)
        assert batch is self.seen["batch"][-1] and frozen is self.seen["frozen"][-1]
        moved = jax.tree.map(lambda leaf: leaf * 1.5, state["params"])
        names = ("loss", "grad_norm", "clipped", "old_kl", "value_loss", "value_grad_norm")
        scalars = dict.fromkeys((*names, "value_clipped", "ratio_error"), 0.0)
        return {**state, "params": moved}, [{**scalars, "count": 1.0, "actions": 1.0}]


class Lengths:
    """The preference model's place: normalised number of letters of the answer."""

    def __init__(self, params, config, format, mesh, normalisation=None, name="", reads_cut=False):
        self.params, (self.mean, self.std) = params, normalisation

    def score(self, dialogues):
        letters = np.array([len(d[-1].text) for d in dialogues], np.float32)
        return (letters - np.float32(self.mean)) / np.float32(self.std)


class Unrounded(Models):
    """Samplers of the weights that are trained, or the first ratio would not be 1."""

    def engine(self, model, **options):
        assert options == {"int8": False}
        return super().engine(model)


def decoder(seed: int):
    """Random weights, without a program to draw them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(0.3 * rng.normal(size=leaf.shape), jax.numpy.float32),
        abstract_params(CONFIG),
    )


def answer(asked):
    """Answers of different lengths; those of prompt q1 run into the limit."""
    prompt = asked.id.split("/")[1]
    return "ab" * (1 + int(prompt[1])), "length" if prompt == "q1" else "eos"


def start(path, monkeypatch, stop=False, **fields):
    Watched.seen = {"reference": [], "policy": [], "batch": [], "frozen": [], "updates": []}
    Watched.seen |= {"stop": stop, "sampler": [], "adapted": [], "loaded": []}
    adapt = ppo.adapt_kl_coefficient
    monkeypatch.setattr(
        ppo,
        "adapt_kl_coefficient",
        lambda *given: Watched.seen["adapted"].append(given) or adapt(*given),
    )
    monkeypatch.setattr(rl, "Learner", Watched)
    monkeypatch.setattr(loader_lib, "RewardModel", Lengths)
    source, texts = path / "prompts.jsonl", ["One", "Two", "Three", "long " * 40]
    source.write_text(
        "".join(json.dumps({"id": f"q{i}", "prompt": text}) + "\n" for i, text in enumerate(texts))
    )
    prompts = default.prompts(str(source), "")
    ctx, asked = stage(path, "rl", default.rl(**{"prompts": prompts, **FIELDS, **fields}))
    format = ctx.models.load("x").format
    weights = {name: decoder(i) for i, name in enumerate(("@sl", "@pm", "x"))}
    head = {"weight": weights["x"]["embed"][0], "bias": weights["x"]["embed"][1, 0]}

    def load(reference, kind="policy", **how):
        params = weights[reference]
        params = {"decoder": params, "head": head} if kind == "reward" else params
        normalisation = NORMALISATION if kind == "reward" else None
        config = OF_REFERENCE if reference == "x" else CONFIG
        model = LoadedModel(reference, config, params, format, kind, normalisation)
        Watched.seen["loaded"].append(model)
        return model

    def engine(model):
        Watched.seen["sampler"].append(numpy(model.params))
        return Recorder(asked, model, answer, None, 1000)

    ctx.models = Unrounded(ctx, load, engine)
    artefact = types.SimpleNamespace(ctx=ctx, asked=asked, weights=numpy(weights), head=numpy(head))
    if stop:
        with pytest.raises(Stop):
            rl.run(ctx)
    else:
        artefact.summary = rl.run(ctx)
        lines = (path / "rl" / "metrics.jsonl").read_text().splitlines()
        artefact.metrics = [json.loads(line) for line in lines]
    artefact.seen = Watched.seen
    return artefact


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield start(tmp_path_factory.mktemp("rl"), patch)


def test_the_reference_stays_and_the_policy_moves(run):
    """The defect: a reference that moves with the policy, KL 0 for ever."""
    first, second = run.seen["reference"]
    assert equal(first, run.weights["@sl"]) and equal(second, run.weights["@sl"])
    before, after = run.seen["policy"]
    assert equal(before, run.weights["@sl"]) and not equal(after, before)
    assert [equal(*pair) for pair in zip(run.seen["sampler"], run.seen["policy"], strict=True)] == [
        True,
        True,
    ], "sampled with the weights that are trained"
    assert abs(run.metrics[0]["kl"]) < 1e-5 < 1e-3 < abs(run.metrics[1]["kl"])
    assert run.metrics[1]["kl_k3"] > 1e-3 and run.seen["updates"] == [0, 1]


def test_the_value_model_starts_as_the_preference_model_with_a_head_of_zeros(run):
    policy, value, coefficient = run.seen["init"]
    assert equal(policy, run.weights["@sl"]) and equal(value["decoder"], run.weights["@pm"])
    assert not value["head"]["weight"].any() and not value["head"]["bias"]
    assert coefficient == 0.25


def test_rollouts_are_asked_for_word_by_word(run):
    texts = {"q0": "One", "q1": "Two", "q2": "Three"}
    assert len(run.asked) == 6 and {request.id.split("/")[1] for request in run.asked} == set(texts)
    assert len({request.id for request in run.asked}) == len({request.key for request in run.asked})
    for number, request in enumerate(run.asked):
        update, prompt, epoch = request.id.split("/")
        assert int(update) == number // 3 + 1 and request.model == "@sl"
        assert request.prompt == f"\n\nHuman: {texts[prompt]}\n\nAssistant:"
        assert request.key == tuple(row_key(5, "rl", int(update) - 1, prompt, epoch))
        how = request.sampling
        assert (how.max_new_tokens, how.temperature, how.top_k, how.top_p) == (9, 0.7, 0, 1.0)
        assert how.stop_strings == ("\n\nHuman:", "\n\nAssistant:")
    assert run.ctx.dropped == {"prompt longer than max_prompt_tokens": 1}


def test_rewards_are_those_of_the_answers_less_the_penalty_of_cut_ones(run):
    records = {row["id"]: row for row in run.ctx.directory.records()}
    assert set(records) == {request.id for request in run.asked}
    for batch, frozen, metrics in zip(
        run.seen["batch"], run.seen["frozen"], run.metrics, strict=True
    ):
        for index, name in enumerate(batch.ids):
            row, actions = records[name], batch.actions[index]
            update, prompt, _ = name.split("/")
            reward = (2 * (1 + int(prompt[1])) - 3.0) / 2.0
            penalty = 1.5 * (prompt == "q1")
            assert row["reward"] == pytest.approx(reward) and row["step"] == int(update)
            assert row["penalised"] == pytest.approx(reward - penalty) == batch.scores[index]
            assert row["stop"] == ("length" if penalty else "eos")
            assert actions.sum() == row["num_tokens"]
            kl = (frozen["old"] - frozen["ref"])[index].sum()
            assert row["kl"] == pytest.approx(float(kl), abs=1e-6)
            # The score stands on the last action, and a KL penalty on every one.
            total = reward - penalty - metrics["kl_coefficient"] * kl
            assert frozen["rewards"][index].sum() == pytest.approx(total, abs=1e-4)
    assert run.metrics[0]["truncated"] == np.mean(["/q1/" in a.id for a in run.asked[:3]])


def test_the_kl_coefficient_is_adapted_from_update_to_update(run):
    first, second = run.metrics
    assert first["kl_coefficient"] == 0.25
    wanted = ppo.adapt_kl_coefficient(0.25, first["kl"], 1.0, 40, 3)
    assert second["kl_coefficient"] == pytest.approx(wanted) and wanted < 0.25
    for row, given in zip(run.metrics, run.seen["adapted"][:2], strict=True):
        assert given == (pytest.approx(row["kl_coefficient"]), pytest.approx(row["kl"]), 1.0, 40, 3)


def test_the_first_ratio_error_is_that_of_the_first_minibatch():
    names = ("count", "actions", "clipped", "old_kl", "value_clipped")
    history = [{**dict.fromkeys(names, 1.0), "ratio_error": error} for error in (0.3, 0.1, 0.2)]
    found = rl_numbers.of_minibatches(history)
    assert (found["first_ratio_error"], found["max_ratio_error"]) == (0.3, 0.3)


def test_the_learning_rate_that_is_told_is_that_of_the_updates_first_step(run):
    """Three steps an update: linear warm-up over the first one, then down."""
    first, second = (row["learning_rate"] for row in run.metrics)
    assert first == pytest.approx(3e-2 / 4) and second == pytest.approx(3e-2)


def test_the_trained_policy_is_published(run):
    role = json.loads((run.ctx.directory.path / "model" / "role.json").read_text())
    assert role["kind"] == "policy" and role["initialised_from"] == "@sl"
    assert run.summary["rollouts"] == 6 and run.summary["steps"] == 2
    assert run.summary["reward_first"] == run.metrics[0]["reward"]
    assert run.summary["kl_last"] == run.metrics[1]["kl"]


def test_another_reference_and_a_value_model_from_the_policy(tmp_path, monkeypatch):
    found = start(tmp_path, monkeypatch, stop=True, reference="x", value_init="policy")
    assert equal(found.seen["reference"][0], found.weights["x"])
    assert found.seen["reference config"] == OF_REFERENCE
    _, value, _ = found.seen["init"]
    assert equal(value["decoder"], found.weights["@sl"])
    assert not np.any(value["head"]["weight"]) and value["head"]["bias"] == 0


def test_the_weights_that_a_value_model_starts_from_are_freed(tmp_path, monkeypatch):
    """The defect: a preference model that scores nothing stayed on the device."""
    rewards = {"length": {"kind": "length"}}
    found = start(tmp_path, monkeypatch, stop=True, rewards=rewards, reward="", value_from="@pm")
    assert equal(found.seen["init"][1]["decoder"], found.weights["@pm"])
    assert {model.name for model in found.seen["loaded"]} == {"@sl", "@pm"}
    assert all(model.params is None for model in found.seen["loaded"])


def test_a_shared_value_model_is_a_head_that_starts_at_zero(tmp_path, monkeypatch):
    found = start(tmp_path, monkeypatch, stop=True, value_model="shared")
    _, value, _ = found.seen["init"]
    assert set(value) == {"weight", "bias"} and not np.any(value["weight"])


def test_a_field_of_the_graph_is_a_field_of_the_learner():
    """All of the learner's settings that the stage has under the same name arrive, whichever there
    are."""
    fields = default.rl()
    config = ml_collections.ConfigDict(fields)
    model = types.SimpleNamespace(logprob_chunk=7, scan_layers=False, remat="dots")
    found = rl.settings(config, model)
    same = {name for name in fields if hasattr(found, name)}
    assert {"clip", "lam", "gamma", "value_clip", "num_epochs", "max_grad_norm"} <= same
    assert all(getattr(found, name) == config[name] for name in same)
