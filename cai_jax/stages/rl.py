"""Reinforcement learning against the preference model, with a KL penalty to the initial policy
(section 4.1; PPO unless the config names another algorithm).

An update: draw prompts, sample a response to each, score them, freeze log-probabilities and values,
then epochs of minibatches. "Same settings as 2204" where the paper says no more.
"""

from __future__ import annotations

import dataclasses
import time

import jax.numpy as jnp
import numpy as np

from cai_jax import seeds
from cai_jax.core import ppo, sharding
from cai_jax.core.algorithms import ALGORITHMS
from cai_jax.errors import UserError, require_finite
from cai_jax.io import artefacts, memory, progress
from cai_jax.io.metrics import read_rows
from cai_jax.models import heads, lora
from cai_jax.planning import throughput
from cai_jax.rewards import reward as rewards
from cai_jax.rewards.functions import Answer
from cai_jax.stages.context import StageContext
from cai_jax.structs import LENGTH, Sampling, dialogue_to_json, sampled_turn
from cai_jax.textmodels.loader import LoadedModel
from cai_jax.training import networks, rl_numbers, rollouts, train
from cai_jax.training import state as state_lib
from cai_jax.training.learner import Learner

SCHEMA = 2
MAX_RATIO_ERROR = 1e-4  # of the first minibatch, float32
MAX_START_KL = 1e-5  # nats a response between the policy and its copy, float32
MAX_SAMPLER_GAP = 1e-4  # nats a token between sampler and learner, float32
GROUPED = ("grpo", "rloo")
KL_ESTIMATORS = {"reward": ("k1",), "loss": ("k2", "k3")}
FROZEN = {"old": "policy", "ref": "reference", "values": "value model"}  # what gives which numbers
WATCHED = 8  # updates after the warm-up until the first word on whether the policy learns
NUM_SHOWN = 2  # rollouts an update that TensorBoard shows
TIMED = ("rollout_seconds", "score_seconds", "learn_seconds")


def kept_steps(fields) -> list[int]:
    """The updates whose checkpoints stay: snapshots, and the last."""
    every, last = fields.snapshot_every_updates, fields.num_updates
    return sorted({*(range(every, last + 1, every) if every else ()), last})


def run(ctx: StageContext) -> dict:
    """Trains the policy and publishes it as `@stage`; every rollout is a record, its token arrays
    are files in rollouts/."""
    config, models = ctx.config, load_models(ctx)
    policy, learner = models.policy, models.learner
    prompts = rollouts.fitting_prompts(ctx, policy, models.reward.preference_models)
    length = rollouts.longest(prompts, config.max_new_tokens)
    journal = ctx.directory.journal(light=True)

    with make_session(ctx, models) as session:
        state = session.restore(lambda: initial_state(ctx, models))
        for model in filter(None, (policy, models.value)):
            model.release()  # a preference model that scores as well keeps its own
        journal.discard(lambda row: row["step"] <= session.start)
        require_rollouts(ctx, journal, session.start)
        history = read_rows(ctx.directory.path / "metrics.jsonl")[: session.start]
        for update in session.steps():
            # ---- Sample a response to each prompt ------------------------------------------------
            clock = [time.monotonic()]
            drawn = rollouts.draw(prompts, update, config, ctx.seed, ctx.name)
            policy.params = learner.policy(state)
            completions, layout_seconds = sample(ctx, policy, drawn, update)
            batch = rollouts.assemble(drawn, completions, length)
            clock.append(time.monotonic())

            # ---- Score the responses, and freeze what the epochs need ----------------------------
            answers = [answer_of(name, prompt, completions[name]) for name, prompt in drawn]
            scores = models.reward.score(answers)
            _require_finite_scores(ctx, scores, batch)
            batch.scores = scores.total
            frozen = learner.freeze(state, models.reference, batch)
            _require_finite_frozen(ctx, frozen, batch, update)
            coefficient = float(sharding.fetch(state["controller"]["kl_coefficient"]))
            cut = np.array([answer.cut for answer in answers])
            numbers = rl_numbers.of_rollouts(batch, frozen, scores.reward, cut, coefficient)
            if len(scores.terms) > 1:
                numbers |= {f"reward_{name}": x.mean() for name, x in scores.terms.items()}
            if update == 0 and not config.reference:
                what = "the policy differs from its reference before any update"
                require_small(ctx, numbers["max_token_kl"], MAX_START_KL, what)
            clock.append(time.monotonic())

            # ---- Learn: epochs of minibatches, then the KL coefficient ---------------------------
            state, minibatches = learner.learn(state, batch, frozen, update)
            clock.append(time.monotonic())
            numbers |= rl_numbers.of_minibatches(minibatches)
            numbers["learning_rate"] = learner.rate(update * learner.settings.steps_per_update)
            check_ratios(ctx, numbers, update)
            state["controller"] = adapted_controller(ctx, numbers)

            # ---- Record --------------------------------------------------------------------------
            records = make_records(ctx, update, drawn, completions, scores, frozen)
            rollouts.save_arrays(arrays_path(ctx, update), batch, frozen)
            for record in records:
                journal.append(record)
            journal.flush()
            gap = (frozen["old"] - batch.sampled)[batch.actions]
            show(session.writer, update + 1, records, gap)
            history.append(numbers)
            warn_where_nothing_is_learned(ctx, history, update)
            timing = dict(zip(TIMED, np.diff(clock), strict=True), layout_seconds=layout_seconds)
            session.finish(update, state, {**numbers, **timing}, batch.ids)

    del state
    require_rollouts(ctx, journal, config.num_updates)
    ctx.publish(policy, "policy")
    journal.finish()
    return {**summary(ctx, config.num_updates), "rollouts": len(journal.finished)}


# ---- Models and state ----------------------------------------------------------------------------


@dataclasses.dataclass
class Models:
    """`value` is what the value model starts from, None without one; `reference` are parameters."""

    policy: LoadedModel
    reference: dict
    reward: rewards.Reward
    value: LoadedModel | None
    adapters: lora.Adapters | None
    learner: Learner


def load_models(ctx: StageContext) -> Models:
    """The models of the stage, and the learner of their shapes."""
    config, algorithm = ctx.config, ALGORITHMS[ctx.config.algorithm]
    policy = ctx.models.load(config.policy, format=config.format)
    reward = rewards.Reward(config, ctx.models, ctx)
    value = None
    if algorithm.needs_value:
        value = policy
        if source := value_source(config):
            value = ctx.models.load(source, "reward")
            if value.config.vocab_size != policy.config.vocab_size:
                raise UserError(
                    f"config.graph.{ctx.name}: the preference model has other tokens than the "
                    "policy; a value model reads the policy's: set value_init=policy"
                )
    own = [] if value in (None, policy) else [value]
    adapters = ctx.adapters(policy, *own)  # None: all weights are trained
    bases = None
    if adapters is None:
        policy.params = lora.merge(policy.params)
    else:
        base = lora.base_of(policy.params)
        bases = networks.Bases(adapters, base, lora.base_of(value.params) if own else base)
    reference = ctx.reference(policy)
    learner = Learner(
        policy.config,
        value and value.config,
        settings(config, ctx.run_config.model),
        ctx.mesh,
        ctx.dtype,
        algorithm=algorithm,
        seed=ctx.seed,
        stage=ctx.name,
        bases=bases,
        reference=reference.config,
    )
    return Models(policy, reference.params, reward, value, adapters, learner)


def value_source(config) -> str:
    """The preference model on whose trunk the value model starts; "": on the policy's."""
    if config.value_init != "reward" or config.value_model == "shared":
        return ""
    return config.value_from or next(iter(rewards.models_of(config)), "")


def settings(config, model_config) -> networks.Settings:
    """The learner's settings from the stage's fields of the same names and from config.model."""
    names = {field.name for field in dataclasses.fields(networks.Settings)}
    return networks.Settings(
        **{name: value for name, value in config.items() if name in names},
        shared=config["value_model"] == "shared",
        logprob_chunk=model_config.logprob_chunk,
        scan=model_config.scan_layers,
        remat=model_config.remat,
    )


def make_session(ctx: StageContext, models: Models) -> train.Session:
    """The session of the stage's updates."""
    config, learner = ctx.config, models.learner
    meter = throughput.ppo(
        ctx.mesh,
        models.policy.config,
        learner.value_config,
        [judge.config for judge in models.reward.preference_models],
        num_rollouts=config.rollouts_per_update,
        num_epochs=config.num_epochs,
        adapters=models.adapters,
    )
    return train.Session(
        ctx,
        config.num_updates,
        config.save_every_updates,
        learner.abstract,
        snapshot_every=config.snapshot_every_updates,
        unit="update",
        look_back=False,
        weights=tuple(name for name in ("params", "value") if name in learner.abstract),
        meter=meter,
    )


def initial_state(ctx: StageContext, models: Models) -> dict:
    """The state of update 0: policy and value model begin as copies of what they start from."""

    def start(model: LoadedModel, name: str):
        decoder = model.params.get("decoder", model.params)
        key = seeds.row_key(ctx.seed, ctx.name, name)
        return state_lib.start(model.config, decoder, ctx.mesh, key, models.adapters, model.trained)

    learner, source, value = models.learner, models.value, None
    if source is not None:
        # A preference model's own head was trained at the ends of answers only. Inside of them its
        # scores vary more than the rewards to come (explained variance -4 in the microworld).
        head = heads.zero_head(source.config)
        if learner.settings.shared:
            value = sharding.put(head, state_lib.shardings_of(learner.abstract["value"]))
        else:
            value = state_lib.with_head(start(source, "value adapters"), head, ctx.mesh)
    return learner.init(start(models.policy, "adapters"), value, ctx.config.kl_coefficient)


def adapted_controller(ctx: StageContext, numbers: dict) -> dict:
    """The state's item "controller" after an update of these numbers."""
    config = ctx.config
    adapted = ppo.adapt_kl_coefficient(
        numbers["kl_coefficient"],
        numbers["kl"],
        config.kl_target,
        config.kl_horizon,
        config.rollouts_per_update,
    )
    replicated = sharding.replicated(ctx.mesh)
    return {"kl_coefficient": sharding.put(np.float32(adapted), replicated)}


# ---- Responses -----------------------------------------------------------------------------------


def sampler(ctx: StageContext, policy: LoadedModel):
    """The engine that draws rollouts: of the policy's weights, or of rounded ones, whose answers
    are corrected for."""
    rounded = ctx.config.sampler_weights
    if rounded == "bfloat16":
        params = state_lib.cast(policy.params, jnp.bfloat16)
        policy = dataclasses.replace(policy, params=params)
    return ctx.models.engine(policy, int8=rounded == "int8")


def sample(ctx: StageContext, policy: LoadedModel, drawn, update: int) -> tuple[dict, float]:
    """Samples a response to each prompt. Tokens are counted, and a SIGTERM is answered between two
    completions.

    Args:
      ctx: the stage's context.
      policy: whose weights are freed as soon as the sampler has its copy.
      drawn: what `rollouts.draw` returned.
      update: its number, from 0.
    Returns:
      (completions by rollout id, seconds in which the sampler laid out its weights).
    """
    config, stop_strings = ctx.config, policy.format.stop_strings("assistant")
    sampling = Sampling(config.max_new_tokens, config.temperature, 0, 1.0, stop_strings)
    engine = sampler(ctx, policy)
    policy.release()  # the sampler has a copy of its own, in which adapters are merged
    asked = rollouts.requests(drawn, update, ctx.seed, ctx.name)
    completions, label = {}, f"{ctx.name}: rollouts"
    for done in ctx.watched(engine.generate(asked, sampling), len(asked), label):
        ctx.note(done, config.policy)
        # Spaces at either end belong to the format, which writes them again.
        completions[done.id] = dataclasses.replace(done, text=done.text.strip())
    layout_seconds = engine.layout_seconds
    del engine  # the sampler's weights are freed while the learner works
    memory.give_back()
    return completions, layout_seconds


def answer_of(name: str, prompt: rollouts.PromptTokens, done) -> Answer:
    """A response as rewards see it."""
    dialogue = (*prompt.dialogue, sampled_turn(done.text, done.stop))
    return Answer(dialogue, len(done.tokens), done.stop == LENGTH, name)


# ---- Records -------------------------------------------------------------------------------------


def make_records(ctx: StageContext, update: int, drawn, completions, scores, frozen) -> list[dict]:
    """The records of an update.

    Args:
      ctx: the stage's context.
      update: its number, from 0.
      drawn: (rollout id, prompt) of every response.
      completions: by rollout id.
      scores: of the responses.
      frozen: their log-probabilities under policy and reference.

    Returns:
      A record an answer, in their order.
    """
    kl = np.sum(frozen["old"] - frozen["ref"], axis=1)
    records = []
    for index, (name, prompt) in enumerate(drawn):
        done = completions[name]
        records.append(
            {
                "id": name,
                "prompt_id": prompt.id,
                "kind": prompt.kind,
                "model": f"@{ctx.name}",
                "seed": ctx.seed,
                "step": update + 1,
                "dialogue": dialogue_to_json(prompt.dialogue),
                "response": done.text,
                "stop": done.stop,
                "num_tokens": len(done.tokens),
                "logprob": float(sum(done.logprobs)),
                "reward": float(scores.reward[index]),
                "penalised": float(scores.total[index]),
                "kl": float(kl[index]),
            }
        )
    return records


def arrays_path(ctx: StageContext, update: int):
    """The file of an update's token arrays."""
    return ctx.directory.path / "rollouts" / f"{update + 1:06d}.npz"


def show(writer, step: int, records: list[dict], gap) -> None:
    """Shows an update in TensorBoard: some responses, the rewards and the sampler's gap.

    Args:
      writer: of metrics.
      step: the number of the update, from 1.
      records: of its responses.
      gap: learner less sampler, nats a token, of all actions [n].
    """
    for index, record in enumerate(records[:NUM_SHOWN]):
        text = (
            f"{record['dialogue'][-1]['text']}\n→ {record['response']}\nreward "
            f"{record['reward']:.3f}, KL {record['kl']:.3f}"
        )
        writer.text(step, f"rollout {index}", text)
    writer.histogram(step, "rewards", [record["reward"] for record in records])
    writer.histogram(step, "sampler gap, nats a token", gap)


def summary(ctx: StageContext, num_updates: int) -> dict:
    """Reward, KL and length of the first and the last update."""
    rows = read_rows(ctx.directory.path / "metrics.jsonl")
    ends, of = {"first": rows[0], "last": rows[-1]}, ctx.config.rollouts_per_update
    names = ("reward", "kl", "response_tokens", "truncated", "entropy")
    numbers = {f"{name}_{when}": row[name] for when, row in ends.items() for name in names}
    cut = {
        f"answers of the {when} update": {"cut": round(row["truncated"] * of), "of": of}
        for when, row in ends.items()
    }
    first, last = rows[0], rows[-1]
    headline = (
        f"reward {first['reward']:.3f} → {last['reward']:.3f}, KL {last['kl']:.3f} nats, length "
        f"{first['response_tokens']:.0f} → {last['response_tokens']:.0f}"
    )
    return {"steps": num_updates, **numbers, "cut": cut, "headline": headline}


# ---- Checks --------------------------------------------------------------------------------------


def check(fields, config, where: str) -> None:
    """UserError where fields do not go together, or a reward cannot be imported."""
    for name in ("num_minibatches", "group_size"):
        if fields.rollouts_per_update % fields[name]:
            raise UserError(
                f"{where}: rollouts_per_update {fields.rollouts_per_update} is not a multiple of "
                f"{name} {fields[name]}"
            )
    if fields.algorithm in GROUPED and fields.group_size < 2:
        raise UserError(
            f"{where}.group_size: {fields.algorithm} compares the answers to a prompt: expected at "
            f"least 2, not {fields.group_size}"
        )
    if fields.kl_estimator not in KL_ESTIMATORS[fields.kl_in]:
        raise UserError(
            f"{where}.kl_estimator: expected {' or '.join(KL_ESTIMATORS[fields.kl_in])} with "
            f"kl_in={fields.kl_in}, not {fields.kl_estimator} (docs/methods.md)"
        )
    if fields.algorithm == "rloo" and fields.correction == "token":
        raise UserError(
            f"{where}.correction: rloo needs correction=sequence: its ratio is of an answer"
        )
    if fields.kl_target is not None and fields.kl_in == "loss":
        raise UserError(f"{where}.kl_target: adapts a coefficient in the reward: set kl_in=reward")
    if fields.sampler_weights and fields.correction == "none":
        raise UserError(
            f"{where}.sampler_weights: {fields.sampler_weights} draws from another distribution "
            "than is learned: set correction=token or sequence"
        )
    if rewards.judges_of(fields) and fields.group_size < 2:
        raise UserError(
            f"{where}.group_size: a judge compares the answers to a prompt: expected at least 2, "
            f"not {fields.group_size}"
        )
    if fields.helpful_fraction is not None and not fields.helpful_prompts.source:
        raise UserError(f"{where}.helpful_fraction: of helpful_prompts, whose source is empty")
    rewards.check(fields)


def require_rollouts(ctx: StageContext, journal, num_updates: int) -> None:
    """Raises Damaged where the records or arrays of an update are lost: only training again
    replaces them."""
    missing = num_updates * ctx.config.rollouts_per_update - len(journal.finished)
    if missing:
        raise artefacts.Damaged(
            ctx.name, f"{ctx.directory.path}: {missing} rollout records are lost", restart=True
        )
    for update in range(num_updates):
        path = arrays_path(ctx, update)
        if not rollouts.intact(path):
            raise artefacts.Damaged(ctx.name, f"{path}: damaged or missing", restart=True)


def _require_finite_scores(ctx: StageContext, scores: rewards.Scores, batch) -> None:
    """Stops where a term of the reward is not finite, and names the responses."""
    for name, values in scores.terms.items():
        require_finite(values.tolist(), batch.ids, f"stage '{ctx.name}': reward '{name}'")


def _require_finite_frozen(ctx: StageContext, frozen: dict, batch, update: int) -> None:
    """Stops where a model's numbers of a response are not finite, and names both."""
    for key, model in FROZEN.items():
        if key in frozen:
            what = f"stage '{ctx.name}': the {model} at update {update + 1}"
            require_finite(frozen[key].sum(axis=1).tolist(), batch.ids, what)


def require_small(ctx: StageContext, value: float, limit: float, what: str) -> None:
    """Stops where sampler and learner, or learner and reference, are not the same model that they
    must be; with float32 only.

    Args:
      ctx: the stage's context.
      value, limit: the difference, and how large it may be.
      what: differs, for the message.
    Raises:
      UserError: the difference is larger.
    """
    if value > limit and ctx.dtype == jnp.float32:
        raise UserError(
            f"stage '{ctx.name}': {what} ({value:.2e} > {limit:.0e}): log-probabilities are not "
            "reproduced; is the reward or the model not deterministic on this device?"
        )


def check_ratios(ctx: StageContext, numbers: dict, update: int) -> None:
    """Stops where the learner does not reproduce its own log-probabilities, warns where the sampler
    has others."""
    what = "the ratio of the first minibatch is not 1"
    require_small(ctx, numbers.get("first_ratio_error", 0.0), MAX_RATIO_ERROR, what)
    exact = ctx.dtype == jnp.float32 and not ctx.config.sampler_weights
    if numbers["sampler_gap"] > MAX_SAMPLER_GAP and exact:
        gap = f"differ by {numbers['sampler_gap']:.1e} nats a token"
        progress.warn(f"[{ctx.name}] update {update + 1}: sampler and learner {gap}")


def warn_where_nothing_is_learned(ctx: StageContext, history: list[dict], update: int) -> None:
    """Warns of a policy that hardly moves, some updates after the warm-up and at the end; `history`
    are the numbers of all updates."""
    config = ctx.config
    if update + 1 in (config.warmup_updates + WATCHED, config.num_updates):
        if still := rl_numbers.not_learning(history[config.warmup_updates :]):
            progress.warn(f"[{ctx.name}] update {update + 1}: {still}")
