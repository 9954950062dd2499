"""Reinforcement learning against the preference model: PPO with a KL penalty to the initial policy
(section 4.1).

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
from cai_jax.data import fitting
from cai_jax.data.prompts import read_prompts
from cai_jax.errors import UserError, require_finite
from cai_jax.io import artefacts, memory, progress
from cai_jax.io.metrics import read_rows
from cai_jax.models import heads, lora
from cai_jax.planning import throughput
from cai_jax.reporting import png
from cai_jax.reporting.figure import Panel, Series
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.stages.context import StageContext
from cai_jax.structs import LENGTH, SamplingParams, dialogue_to_json, sampled_turn
from cai_jax.training import learner as learner_lib
from cai_jax.training import rollouts, train
from cai_jax.training import state as state_lib

SCHEMA = 2
MAX_RATIO_ERROR = 1e-4  # of the first minibatch, float32
MAX_START_KL = 1e-5  # nats a response between the policy and its copy, float32
MAX_SAMPLER_GAP = 1e-4  # nats a token between sampler and learner, float32
NUM_SHOWN = 2  # rollouts an update that TensorBoard shows


def settings(config, model_config, shared: bool) -> learner_lib.Settings:
    """The learner's settings from the stage's fields of the same names and from config.model."""
    names = {field.name for field in dataclasses.fields(learner_lib.Settings)}
    fields = {name: value for name, value in config.items() if name in names}
    return learner_lib.Settings(
        **fields,
        shared=shared,
        logprob_chunk=model_config.logprob_chunk,
        scan=model_config.scan_layers,
        remat=model_config.remat,
    )


def fitting_prompts(ctx: StageContext, policy, judge=None) -> list[rollouts.PromptTokens]:
    """The prompts of the stage. Left out and counted are those longer than max_prompt_tokens, and
    those whose answer might outgrow the sampler's context or the positions of the preference model
    `judge`: that is known before any update."""
    config, format = ctx.config, policy.format
    found, limit = [], ctx.context_limit(policy)
    prompts, dropped = read_prompts(**config.prompts.to_dict())
    for reason, count in dropped.items():
        ctx.drop(f"prompt: {reason}", count)
    for prompt in prompts:
        item = rollouts.PromptTokens(
            prompt.id, prompt.dialogue, prompt.kind, format.prompt(prompt.dialogue)
        )
        if len(item.tokens) > config.max_prompt_tokens:
            ctx.drop(fitting.MAX_PROMPT_TOKENS)
        elif len(item.tokens) + config.max_new_tokens > limit:
            ctx.drop(fitting.CONTEXT)
        elif judge and _read_by(judge, prompt) + config.max_new_tokens > judge.config.max_length:
            ctx.drop(fitting.POSITIONS)
        else:
            found.append(item)
    ctx.require_rows(found, "prompts")
    return found


def _read_by(judge, prompt) -> int:
    """Tokens of a prompt as a preference model reads it, with the one that ends the answer."""
    return fitting.num_tokens(judge.format.prompt(prompt.dialogue)) + 1


def run(ctx: StageContext) -> dict:
    """Trains the policy and publishes it as `@stage`; every rollout is a record, its token arrays
    stand in rollouts/."""
    # ---- Models: policy (trained), its frozen reference, preference model, value model (trained) -
    config = ctx.config
    if config.rollouts_per_update % config.num_minibatches:
        raise UserError(
            f"config.graph.{ctx.name}: rollouts_per_update {config.rollouts_per_update} is not "
            "a multiple "
            f"of num_minibatches {config.num_minibatches}"
        )
    policy = ctx.load_model(config.policy, format=config.format)
    custom = config.reward.startswith("python:")
    judge = None if custom else ctx.load_model(config.reward, "reward")
    shared = config.value_model == "shared"
    if config.value_model not in ("separate", "shared") or config.value_init not in (
        "reward",
        "policy",
    ):
        raise UserError(
            f"config.graph.{ctx.name}: value_model is separate or shared, value_init reward or "
            "policy"
        )
    from_reward = config.value_init == "reward" and not custom and not shared
    if from_reward and judge.config.vocab_size != policy.config.vocab_size:
        raise UserError(
            f"config.graph.{ctx.name}: the preference model has other tokens than the policy; "
            "a value model "
            f"reads the policy's: set value_init=policy"
        )
    value_config = judge.config if from_reward else policy.config
    adapters = ctx.adapters(policy, *[judge] * from_reward)  # None: all weights are trained
    if adapters is None:
        policy.params = lora.merge(policy.params)
    own_reference = not config.reference
    reference = policy.params if own_reference else ctx.load_model(config.reference).params
    bases = adapters and learner_lib.Bases(
        adapters,
        lora.base_of(policy.params),
        lora.base_of(judge.params if from_reward else policy.params),
    )
    score = (
        rollouts.custom_reward(config.reward)
        if custom
        else RewardModel(
            judge.params,
            judge.config,
            judge.format,
            ctx.mesh,
            judge.normalisation,
            reads_cut=judge.reads_cut,
        ).score
    )

    # ---- Data: prompts go round in epochs, one sequence length for the whole stage ---------------
    prompts = fitting_prompts(ctx, policy, judge)
    length = rollouts.longest(prompts, config.max_new_tokens)
    sampling = SamplingParams(
        config.max_new_tokens, config.temperature, 0, 1.0, policy.format.stop_strings("assistant")
    )

    # ---- Learner ---------------------------------------------------------------------------------
    learner = learner_lib.Learner(
        policy.config,
        value_config,
        settings(config, ctx.run_config.model, shared),
        ctx.mesh,
        ctx.dtype,
        seed=ctx.seed,
        stage=ctx.name,
        bases=bases,
    )

    def start(model, name):
        decoder, key = (
            model.params.get("decoder", model.params),
            seeds.row_key(ctx.seed, ctx.name, name),
        )
        return state_lib.start(model.config, decoder, ctx.mesh, key, adapters, model.trained)

    def init():
        # From the preference model: a value of the same scale as the reward that it predicts.
        head = (
            heads.normalised_head(state_lib.fresh(judge.params["head"]), judge.normalisation)
            if from_reward
            else (heads.zero_head(policy.config))
        )
        if shared:
            value = sharding.put(head, state_lib.shardings_of(learner.abstract["value"]))
        else:
            value = state_lib.with_head(
                start(judge if from_reward else policy, "value adapters"), head, ctx.mesh
            )
        return learner.init(start(policy, "adapters"), value, config.kl_coefficient)

    # ---- Updates ---------------------------------------------------------------------------------
    journal = ctx.directory.journal(light=True)

    def advance(state, update, writer):
        began = time.monotonic()
        drawn = rollouts.draw(prompts, update, config.rollouts_per_update, ctx.seed, ctx.name)
        policy.params = learner.policy(state)
        engine = ctx.engine(policy)
        policy.release()  # the sampler has a copy of its own, in which adapters are added up
        asked = rollouts.requests(drawn, update, ctx.seed, ctx.name)
        completions = {
            item.id: item for item in ctx.sample(engine, asked, sampling, f"{ctx.name}: rollouts")
        }
        layout_seconds = engine.layout_seconds
        del engine  # the sampler's copy of the weights is not kept while the learner works
        memory.give_back()
        batch = rollouts.assemble(drawn, completions, length)
        sampled = time.monotonic()
        raw = score(
            [
                (*prompt.dialogue, sampled_turn(completions[name].text, completions[name].stop))
                for name, prompt in drawn
            ]
        )
        require_finite(raw.tolist(), batch.ids, f"stage '{ctx.name}': reward '{config.reward}'")
        cut = np.array([completions[name].stop == LENGTH for name, _ in drawn])
        batch.scores = np.asarray(raw - np.float32(config.missing_eos_penalty) * cut, np.float32)

        frozen = learner.freeze(state, reference, batch)
        for key, model in (("old", "policy"), ("ref", "reference"), ("values", "value model")):
            what = f"stage '{ctx.name}': the {model} at update {update + 1}"
            require_finite(frozen[key].sum(axis=1).tolist(), batch.ids, what)
        coefficient = float(sharding.fetch(state["controller"]["kl_coefficient"]))
        scalars = describe(batch, frozen, raw, cut, coefficient)
        if update == 0 and own_reference:
            require(
                ctx,
                scalars["max_token_kl"],
                MAX_START_KL,
                "the policy differs from its reference before any update",
            )
        scored = time.monotonic()
        state, history = learner.learn(state, batch, frozen, update)
        scalars.update(
            learned(history),
            rollout_seconds=sampled - began,
            score_seconds=scored - sampled,
            learn_seconds=time.monotonic() - scored,
            layout_seconds=layout_seconds,
        )
        require(
            ctx,
            scalars["first_ratio_error"],
            MAX_RATIO_ERROR,
            "the ratio of the first minibatch is not 1",
        )
        if scalars["sampler_gap"] > MAX_SAMPLER_GAP and ctx.dtype == jnp.float32:
            progress.warn(
                f"[{ctx.name}] update {update + 1}: sampler and learner differ by "
                f"{scalars['sampler_gap']:.1e} nats a token"
            )
        scalars["learning_rate"] = learner.rates[0](
            update * config.num_epochs * config.num_minibatches
        )
        adapted = ppo.adapt_kl_coefficient(
            coefficient, scalars["kl"], config.kl_target, config.kl_horizon, len(drawn)
        )
        state["controller"] = {
            "kl_coefficient": sharding.put(np.float32(adapted), sharding.replicated(ctx.mesh))
        }
        write(writer, update, drawn, completions, batch, frozen, raw)
        return state, scalars, batch.ids

    def write(writer, update, drawn, completions, batch, frozen, raw):
        rollouts.save_arrays(
            ctx.directory.path / "rollouts" / f"{update + 1:06d}.npz", batch, frozen
        )
        kl = np.sum(frozen["old"] - frozen["ref"], axis=1)
        for index, (name, prompt) in enumerate(drawn):
            done = completions[name]
            journal.append(
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
                    "reward": float(raw[index]),
                    "penalised": float(batch.scores[index]),
                    "kl": float(kl[index]),
                }
            )
            if index < NUM_SHOWN:
                shown = (
                    f"{prompt.dialogue[-1].text}\n→ {done.text}\nreward {raw[index]:.3f}, "
                    f"KL {kl[index]:.3f}"
                )
                writer.text(update + 1, f"rollout {index}", shown)
        journal.flush()
        writer.histogram(update + 1, "rewards", raw)
        if update + 1 == config.num_updates:
            points = Series(
                "responses", [float(x) for x in kl], [float(x) for x in raw], mark="dots"
            )
            panel = Panel(
                "rewards", f"Responses of update {update + 1}", "KL, nats", "reward", [points]
            )
            writer.figure(update + 1, "reward against KL", png.draw(panel))

    meter = throughput.ppo(
        ctx.mesh,
        policy.config,
        value_config,
        judge and judge.config,
        num_rollouts=config.rollouts_per_update,
        num_epochs=config.num_epochs,
        shared=shared,
        adapters=adapters,
    )
    with train.Session(
        ctx,
        config.num_updates,
        config.save_every_updates,
        learner.abstract,
        snapshot_every=config.snapshot_every_updates,
        unit="update",
        look_back=False,
        weights=("params", "value"),
        meter=meter,
    ) as session:
        state = session.restore(init)
        policy.release()
        journal.discard(lambda row: row["step"] <= session.start)
        require_rollouts(ctx, journal, session.start)
        for update in session.steps():
            state, scalars, names = advance(state, update, session.writer)
            session.finish(update, state, scalars, names)
    del state
    require_rollouts(ctx, journal, config.num_updates)
    ctx.publish(policy, "policy")
    digest = journal.finish()
    return {
        **summary(ctx, config.num_updates),
        "rollouts": len(journal.finished),
        "sha256": {"records": digest},
    }


def require_rollouts(ctx: StageContext, journal, num_updates: int) -> None:
    """Raises Damaged where the records or arrays of an update are lost: only training again makes
    them again."""
    missing = num_updates * ctx.config.rollouts_per_update - len(journal.finished)
    if missing:
        raise artefacts.Damaged(
            ctx.name, f"{ctx.directory.path}: {missing} rollout records are lost", restart=True
        )
    for update in range(1, num_updates + 1):
        path = ctx.directory.path / "rollouts" / f"{update:06d}.npz"
        if not rollouts.intact(path):
            raise artefacts.Damaged(ctx.name, f"{path}: damaged or missing", restart=True)


def require(ctx: StageContext, value: float, limit: float, what: str) -> None:
    """Stops where sampler and learner, or learner and reference, are not the same model that they
    must be."""
    if value > limit and ctx.dtype == jnp.float32:
        raise UserError(
            f"stage '{ctx.name}': {what} ({value:.2e} > {limit:.0e}): log-probabilities are "
            "not reproduced; "
            f"is the reward or the model not deterministic on this device?"
        )


def describe(batch: learner_lib.Rollouts, frozen: dict, raw, cut, coefficient: float) -> dict:
    """Numbers on a rollout before it is learned from; means over responses unless the name says
    token."""
    actions = batch.actions
    kl, k3 = (np.asarray(x) for x in ppo.sequence_kl(frozen["old"], frozen["ref"], actions))
    count = actions.sum()
    return {
        "reward": raw.mean(),
        "reward_std": raw.std(),
        "penalised_reward": batch.scores.mean(),
        "objective": batch.scores.mean() - coefficient * kl.mean(),
        "kl": kl.mean(),
        "kl_k3": k3.mean(),
        "max_token_kl": np.abs(frozen["old"] - frozen["ref"]).max(),
        "kl_coefficient": coefficient,
        "entropy": frozen["entropy"].sum() / count,
        "response_tokens": actions.sum(axis=1).mean(),
        "truncated": cut.mean(),
        "sampler_gap": np.abs(np.where(actions, batch.sampled - frozen["old"], 0.0)).max(),
        "explained_variance": float(
            ppo.explained_variance(frozen["values"], frozen["returns"], actions)
        ),
        "value": frozen["values"].sum() / count,
        "return": frozen["returns"].sum() / count,
        "tokens": batch.mask.sum(),
    }


def learned(history: list[dict]) -> dict:
    """Numbers on the minibatches of an update: losses and norms averaged over them, shares over all
    actions."""
    total = {name: np.array([float(row[name]) for row in history]) for name in history[0]}
    count = total["count"].sum()
    averaged = {
        name: total[name].mean()
        for name in ("loss", "grad_norm", "value_loss", "value_grad_norm")
        if name in total
    }
    return {
        **averaged,
        "clip_fraction": total["clipped"].sum() / count,
        "old_kl": total["old_kl"].sum() / count,
        "value_clip_fraction": total["value_clipped"].sum() / count,
        "first_ratio_error": total["ratio_error"][0],
        "max_ratio_error": total["ratio_error"].max(),
    }


def summary(ctx: StageContext, num_updates: int) -> dict:
    """Reward, KL and length of the first and the last update."""
    rows = read_rows(ctx.directory.path / "metrics.jsonl")
    first, last = rows[0], rows[-1]
    names = ("reward", "kl", "response_tokens", "truncated", "entropy")
    ends = {
        f"{name}_{when}": row[name]
        for when, row in (("first", first), ("last", last))
        for name in names
    }
    headline = (
        f"reward {first['reward']:.3f} → {last['reward']:.3f}, KL {last['kl']:.3f} nats, length "
        f"{first['response_tokens']:.0f} → {last['response_tokens']:.0f}"
    )
    of = ctx.config.rollouts_per_update
    cut = {
        f"answers of the {when} update": {"cut": round(row["truncated"] * of), "of": of}
        for when, row in (("first", first), ("last", last))
    }
    return {"steps": num_updates, **ends, "cut": cut, "headline": headline}
