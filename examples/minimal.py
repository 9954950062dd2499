"""Constitutional AI in one file: the method of Bai et al. 2022 on the library's own parts.

    python -m examples.minimal                                          # a tiny random model
    python -m examples.minimal --model models/smollm2-135m-instruct --prompts 32 --tokens 64

Each section of `main` is a step of the paper and names the stage that does the same with resume,
records, checks and all options. Models that are trained here are loaded as `@sl`, `@pm` and `@rl`
from the work directory, as in a run.
"""

from __future__ import annotations

import argparse
import tempfile

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cai_jax.constitution.loader import load_constitution
from cai_jax.core import labels, sharding
from cai_jax.data import choices
from cai_jax.data.prompts import read_prompts
from cai_jax.io.artefacts import StageDirectory
from cai_jax.io.checkpoints import Checkpoints
from cai_jax.models import heads
from cai_jax.seeds import row_key, row_rng
from cai_jax.stages import pm, sl
from cai_jax.stages.context import StageContext
from cai_jax.structs import Message, Sampling, sampled_turn
from cai_jax.textmodels import loader, questions
from cai_jax.textmodels.protocol import Turn
from cai_jax.training import feed, networks, pairs, rollouts, supervised
from cai_jax.training import state as state_lib
from cai_jax.training.learner import Learner
from configs import default, tiny

SEED = 0


def main(arguments=None) -> dict[str, float]:
    """Runs the method; returns the mean preference-model score of each policy."""
    options = parse(arguments)
    constitution = load_constitution("embedded")
    prompts = read_prompts("embedded:red_team", limit=options.prompts)[0]
    setup = Setup(options)
    models, sampling = setup.models, Sampling(options.tokens, temperature=1.0)

    # --- Section 3.1: answers, critiques and revisions (stages respond, revise) ------------------
    helpful, asked = models.text_model("helpful"), {p.id: p.dialogue for p in prompts}
    answers = ask(helpful, asked, sampling, "respond")
    drawn = {p.id: draw(constitution.critique_principles, "revise", p.id) for p in prompts}
    turns = {
        name: (
            *asked[name],
            Message("assistant", answers[name].text),
            Message("critique_request", principle.critique_request),
        )
        for name, principle in drawn.items()
    }
    critiques = ask(helpful, turns, sampling, "critique", "critique")
    turns = {
        name: (
            *turns[name],
            Message("critique", critiques[name].text),
            Message("revision_request", principle.revision_request),
        )
        for name, principle in drawn.items()
    }
    revisions = ask(helpful, turns, sampling, "revision", "revision")

    # --- Section 3.2: finetuning on the revisions → SL-CAI (stage sl) ----------------------------
    learned = [answered(p.dialogue, revisions[p.id]) for p in prompts if revisions[p.id].text]
    train_policy(setup.stage("sl", **setup.adam()), learned)

    # --- Section 4.1: pairs of answers, labelled by the model itself (stages compare, feedback) --
    twice = {f"{p.id}#{n}": p.dialogue for p in prompts for n in (0, 1)}
    samples = ask(models.text_model("@sl"), twice, sampling, "compare")
    compared = {p.id: (samples[f"{p.id}#0"], samples[f"{p.id}#1"]) for p in prompts}
    judged = [p for p in prompts if compared[p.id][0].text != compared[p.id][1].text]
    targets = label(helpful, judged, compared, constitution.comparison_principles)

    # --- Section 4.1: a preference model of the labels (stage pm) --------------------------------
    labelled = []
    for p in judged:
        texts, stops = zip(*((done.text, done.stop) for done in compared[p.id]), strict=True)
        labelled.append(pairs.Pair(p.id, "ai", p.id, p.dialogue, texts, targets[p.id], stops))
    train_preference_model(setup.stage("pm", **setup.adam()), labelled)

    # --- Section 4.1: PPO against it → RL-CAI (stage rl) -----------------------------------------
    train_rl(setup, prompts, sampling, options.updates)

    # --- Section 4.3: how the preference model scores the policies (stage evaluate) --------------
    judge, scores = models.preference_model("@pm"), {}
    for reference in ("helpful", "@sl", "@rl"):
        done = ask(models.text_model(reference), asked, sampling, "evaluate")
        dialogues = [answered(p.dialogue, done[p.id]) for p in prompts]
        scores[reference] = float(judge.score(dialogues).mean())
        print(f"{reference:8} {scores[reference]:+.3f}   {dialogues[0][-1].text[:60]!r}")
    return scores


# --- Asking a model ------------------------------------------------------------------------------


def ask(model, dialogues: dict, sampling: Sampling, stage: str, role: str = "assistant") -> dict:
    """Name → completion of the next turn of each dialogue.

    Args:
        model: a text model.
        dialogues: by name.
        sampling: how tokens are drawn.
        stage: what the random keys are named by, with the dialogue's name.
        role: who speaks.

    Returns:
        Completions by name.
    """
    turns = [
        Turn(name, dialogue, row_key(SEED, stage, name), role)
        for name, dialogue in dialogues.items()
    ]
    return {done.id: done for done in model.generate(turns, sampling)}


def answered(dialogue, done):
    return (*dialogue, sampled_turn(done.text, done.stop))


def draw(principles, stage: str, name: str):
    return principles[int(row_rng(SEED, stage, name).integers(len(principles)))]


def label(model, prompts, compared, principles) -> dict[str, float]:
    """Prompt id → P(the first answer is better), the model's own by a drawn principle.

    Args:
        model: the text model that judges.
        prompts: those that have two different answers.
        compared: prompt id → two completions.
        principles: of which one is drawn for a comparison.

    Returns:
        Soft labels, averaged over both orders of the options.
    """
    asked = []
    for prompt in prompts:
        principle = draw(principles, "feedback", prompt.id)
        texts = [done.text for done in compared[prompt.id]]
        for order, shown in (("ab", texts), ("ba", texts[::-1])):
            text = choices.question(prompt.dialogue, principle.text, shown)
            asked.append(questions.choice(f"{prompt.id}#{order}", text))
    entries: dict[str, list] = {prompt.id: [] for prompt in prompts}
    for choice in model.choose(asked):
        name, _, order = choice.id.rpartition("#")
        a, b = choice.logprobs
        entries[name].append({"order": order, "chain": 0, "a": a, "b": b})
    return {name: labels.target([{"logprobs": logprobs}]) for name, logprobs in entries.items()}


# --- Training ------------------------------------------------------------------------------------


def train_policy(ctx: StageContext, dialogues) -> None:
    """Finetunes the base on the last turn of each dialogue, and publishes it as `@sl`."""
    model = ctx.models.load("base")
    encoded = feed.encode(model.format, dialogues)
    data = [sl.Example(f"{i}", item.tokens, item.target_mask) for i, item in enumerate(encoded)]
    ids, lengths = [example.id for example in data], [[len(example.tokens)] for example in data]
    steps = supervised.Steps.of(ctx, ids, lengths)

    def batch(indices):
        return sl.make_batch([data[index] for index in indices], steps.shape)

    loss = sl.make_loss(model.config, ctx.dtype, **state_lib.forward_options(ctx.run_config))
    supervised.fit(ctx, model, steps, batch, loss)
    loader.publish(ctx.directory.path, model, "policy")


def train_preference_model(ctx: StageContext, labelled: list[pairs.Pair]) -> None:
    """Trains a head and the base below it on the pairs, and publishes them as `@pm`."""
    model = ctx.models.load("base")
    sides = [(pair, side) for pair in labelled for side in (0, 1)]
    encoded = feed.encode(model.format, [pair.answered(side) for pair, side in sides])
    tokens = {
        (pair.id, side): item.tokens for (pair, side), item in zip(sides, encoded, strict=True)
    }
    lengths = [[len(tokens[pair.id, side]) for side in (0, 1)] for pair in labelled]
    steps = supervised.Steps.of(ctx, [pair.id for pair in labelled], lengths)

    def batch(indices):
        return pairs.make_batch([labelled[index] for index in indices], tokens, steps.shape)

    loss = pm.make_loss(model.config, ctx.dtype, **state_lib.forward_options(ctx.run_config))
    head = heads.init_head(model.config, jax.random.key(SEED))
    supervised.fit(ctx, model, steps, batch, loss, kind="reward", head=head, means=("agreement",))
    loader.publish(ctx.directory.path, model, "reward", reads_cut=True)


def train_rl(setup: Setup, prompts, sampling: Sampling, num_updates: int) -> None:
    """PPO from `@sl` against `@pm`, published as `@rl`. The value model starts as `@pm`.

    Args:
        setup: models and mesh.
        prompts: those of every update, each answered once.
        sampling: of the rollouts.
        num_updates: how many.
    """
    ctx = setup.stage("rl", rollouts_per_update=len(prompts))
    models, mesh = setup.models, setup.mesh
    policy, judge = models.load("@sl"), models.load("@pm", "reward")
    reference, reward = policy.params, models.scorer(judge)
    settings = networks.Settings(num_minibatches=2, learning_rate=1e-4, value_learning_rate=1e-4)
    learner = Learner(policy.config, judge.config, settings, mesh, ctx.dtype, seed=SEED)
    key = row_key(SEED, "rl", "adapters")  # not used: all weights are trained
    value = state_lib.start(judge.config, judge.params["decoder"], mesh, key)
    value = state_lib.with_head(value, state_lib.copy(judge.params["head"]), mesh)
    state = learner.init(
        state_lib.start(policy.config, policy.params, mesh, key), value, kl_coefficient=0.001
    )
    asked = [
        rollouts.PromptTokens(p.id, p.dialogue, p.kind, policy.format.prompt(p.dialogue))
        for p in prompts
    ]
    length = rollouts.longest(asked, sampling.max_new_tokens)
    stop_strings = policy.format.stop_strings("assistant")
    sampling = Sampling(sampling.max_new_tokens, sampling.temperature, stop_strings=stop_strings)

    for update in range(num_updates):
        # Sample a response to each prompt.
        policy.params = learner.policy(state)
        engine = models.engine(policy)
        drawn = rollouts.draw(asked, update, ctx.config, SEED, "rl")
        requests = rollouts.requests(drawn, update, SEED, "rl")
        done = {completion.id: completion for completion in engine.generate(requests, sampling)}
        batch = rollouts.assemble(drawn, done, length)
        # Score the responses.
        batch.scores = reward.score([answered(p.dialogue, done[name]) for name, p in drawn])
        # Freeze log-probabilities and values, then learn in minibatches.
        frozen = learner.freeze(state, reference, batch)
        state, history = learner.learn(state, batch, frozen, update)
        kl = np.sum(frozen["old"] - frozen["ref"], axis=1).mean()
        print(f"update {update + 1}: reward {batch.scores.mean():+.3f}, KL {kl:.4f} nats")

    Checkpoints(ctx.directory.path / "checkpoints").save(
        num_updates, {"params": state["params"]}, {}
    )
    loader.publish(ctx.directory.path, policy, "policy")


# --- Settings ------------------------------------------------------------------------------------


class Setup:
    """The run's config, mesh and models, and a context for each stage that trains."""

    def __init__(self, options):
        self.config = default.base_config()
        self.config.models.base = options.model
        self.config.sampling.update({"batch_size": 16, "max_length": 1024})
        self.path, self.rate = epath.Path(options.workdir or tempfile.mkdtemp()), options.rate
        self.mesh = sharding.make_mesh({"data": 1, "fsdp": -1, "tensor": 1})
        self.models = loader.ModelLoader(self.config, self.path, self.mesh)

    def adam(self) -> dict:
        return default.optimisation(learning_rate=self.rate, batch_size=8, num_epochs=2)

    def stage(self, kind: str, **fields) -> StageContext:
        """A context with the default fields of a kind of stage; its checkpoints go below
        `path`."""
        config, directory = (
            ConfigDict(default.stage(kind, **fields)),
            StageDirectory(self.path / kind),
        )
        return StageContext(kind, config, self.config, self.path, directory, {}, self.mesh)


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=tiny.MODEL, help="a Hugging Face directory or hub name")
    parser.add_argument("--workdir", default="", help="for checkpoints; by default a temporary one")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=12, help="of an answer")
    parser.add_argument("--updates", type=int, default=2, help="of PPO")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate of sl and pm")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
