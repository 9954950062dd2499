"""Every jitted program of a run with abstract arguments: the stages' own step functions, nothing
written a second time."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.configuration.stages import STAGES
from cai_jax.core import sharding
from cai_jax.core.algorithms import ALGORITHMS
from cai_jax.data import fitting
from cai_jax.engine import cached, flash, plan
from cai_jax.engine import weights as sampling_weights
from cai_jax.errors import UserError
from cai_jax.models import lora, rounding
from cai_jax.models.config import ModelConfig
from cai_jax.planning.arithmetic import Work, trained_share
from cai_jax.references import ANSWERING, parse, resolve, stage_of
from cai_jax.rewards import preference_model as rewards
from cai_jax.rewards.reward import judges_of, models_of
from cai_jax.stages import dpo, harm, pm, rl, sl
from cai_jax.structs import Sampling
from cai_jax.training import batching, networks, pairs, rollouts
from cai_jax.training import learner as learner_lib
from cai_jax.training import state as state_lib

ARCHITECTURES = pathlib.Path(__file__).with_name("architectures.json")


@dataclasses.dataclass
class Program:
    """One compiled program. resident: bytes a chip kept next to its arguments while it runs;
    calls: in one step of its stage; microbatched: whether its stage's num_microbatches cuts it."""

    stage: str
    name: str
    function: Callable
    arguments: tuple
    static: dict
    work: Work
    resident: float = 0.0
    calls: float = 1.0
    microbatched: bool = False

    def lower(self, mesh):
        with jax.set_mesh(mesh):
            return self.function.lower(*self.arguments, **self.static)


def chip_bytes(*trees) -> float:
    """Bytes that abstract arrays take on one chip."""
    leaves = [leaf for tree in trees for leaf in jax.tree.leaves(tree)]
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in leaves
        )
    )


# ---------------------------------------------------------------- models


@functools.lru_cache
def known_architectures() -> dict[str, dict]:
    return json.loads(ARCHITECTURES.read_text(encoding="utf-8"))


def model_of(run_config, reference: str) -> ModelConfig:
    """The architecture that a role, "@stage", directory or well-known hub name means; no
    weights are looked at."""
    parsed = parse(resolve(run_config.models, reference))
    if parsed.stage:
        stage = run_config.graph[parsed.stage]
        if stage.kind == "best_of":  # of answers that a stage of kind respond has drawn
            stage = run_config.graph[stage.inputs.responses]
        return model_of(
            run_config, stage[{"rl": "policy", "respond": "model"}.get(stage.kind, "init")]
        )
    target = parsed.name
    if (pathlib.Path(target) / "config.json").exists():
        return ModelConfig.from_json(target)
    known = {name.lower(): value for name, value in known_architectures().items()}
    base = target.lower().removesuffix("-instruct")  # the same numbers as its pretrained model
    if base in known:
        return ModelConfig.from_hf(known[base], target)
    raise UserError(
        f"model '{target}': no config.json there, and not one of "
        f"{', '.join(known_architectures())}; give a directory "
        "with the model's config.json"
    )


# ---------------------------------------------------------------- training


def adapters_of(stage) -> lora.Adapters | None:
    return lora.Adapters.from_fields(stage.get("adapters"), "adapters")


def of_sl(run_config, name: str, mesh) -> list[Program]:
    config, model = run_config.graph[name], model_of(run_config, run_config.graph[name].init)
    example = sl.Example(
        "", np.zeros(config.max_length, np.int32), np.zeros(config.max_length, bool)
    )
    rows = batching.round_up(config.batch_size, sharding.batch_ways(mesh) * config.num_microbatches)
    loss = sl.make_loss(
        model,
        jnp.dtype(run_config.model.dtype),
        chunk=run_config.model.logprob_chunk,
        **state_lib.forward_options(run_config),
    )
    shape = batching.Shape(
        rows, batching.bucket(config.max_length)
    )  # packed, there are fewer rows, and not all are targets
    batch = sl.make_batch([example], shape, shape.length)
    work = Work("train", model, *batch["tokens"].shape, config.num_microbatches)
    return [_update(run_config, name, mesh, "policy", loss, batch, work)]


def of_pm(run_config, name: str, mesh) -> list[Program]:
    config, model = run_config.graph[name], model_of(run_config, run_config.graph[name].init)
    rows = batching.round_up(config.batch_size, sharding.batch_ways(mesh) * config.num_microbatches)
    pair = pairs.Pair("", "", "", (), ("", ""), 0.0)
    tokens = {("", side): np.zeros(config.max_length, np.int32) for side in (0, 1)}
    shape = batching.Shape(rows, 2 * batching.bucket(config.max_length))
    batch = pairs.make_batch([pair], tokens, shape)
    loss = pm.make_loss(
        model, jnp.dtype(run_config.model.dtype), **state_lib.forward_options(run_config)
    )
    work = Work(
        "train", model, 2 * rows, batch["tokens"].shape[-1] // 2, config.num_microbatches, head=0
    )
    return [_update(run_config, name, mesh, "reward", loss, batch, work)]


def of_dpo(run_config, name: str, mesh) -> list[Program]:
    config, model = run_config.graph[name], model_of(run_config, run_config.graph[name].init)
    rows = batching.round_up(config.batch_size, sharding.batch_ways(mesh) * config.num_microbatches)
    pair = pairs.Pair("", "", "", (), ("", ""), 0.0)
    tokens = {("", side): np.zeros(config.max_length, np.int32) for side in (0, 1)}
    answers = {side: np.zeros(config.max_length, bool) for side in tokens}
    shape = batching.Shape(rows, 2 * batching.bucket(config.max_length))
    data = pairs.PairSet([pair], [], tokens, answers, False)
    batch = dpo.make_batch([pair], data, shape, shape.length, {"": (0.0, 0.0)})
    options = {"chunk": run_config.model.logprob_chunk, **state_lib.forward_options(run_config)}
    loss = dpo.make_loss(model, jnp.dtype(run_config.model.dtype), config, **options)
    work = Work("train", model, 2 * rows, batch["tokens"].shape[-1] // 2, config.num_microbatches)
    return [_update(run_config, name, mesh, "policy", loss, batch, work)]


def of_harm(run_config, name: str, mesh) -> list[Program]:
    config, model = run_config.graph[name], model_of(run_config, run_config.graph[name].init)
    rows = batching.round_up(config.batch_size, sharding.batch_ways(mesh) * config.num_microbatches)
    shape = batching.Shape(rows, batching.bucket(config.max_length))
    tokens = {"": np.zeros(config.max_length, np.int32)}
    batch = harm.make_batch([harm.Rated("", "", "", (), 0.0)], tokens, shape)
    loss = harm.make_loss(
        model, jnp.dtype(run_config.model.dtype), **state_lib.forward_options(run_config)
    )
    work = Work("train", model, *batch["tokens"].shape, config.num_microbatches, head=0)
    return [_update(run_config, name, mesh, "reward", loss, batch, work)]


def _update(run_config, name, mesh, kind, loss, batch, work: Work) -> Program:
    config = run_config.graph[name]
    _, tx = state_lib.make_optimiser(config, f"config.graph.{name}", 1000)
    adapters = adapters_of(config)
    params = state_lib.abstract_params(work.model, kind, mesh, adapters=adapters)
    optimiser = state_lib.abstract_optimiser(tx, params, mesh)
    step = state_lib.jit_step(loss, tx, params, mesh, config.num_microbatches, adapters)
    base = adapters and state_lib.abstract_params(
        work.model, "policy", mesh, jnp.dtype(run_config.model.dtype)
    )
    if adapters and adapters.int8:
        base = rounding.rounded_shapes(base)
    work = dataclasses.replace(work, trained=trained_share(work.model, adapters))
    return Program(
        name,
        "step",
        step,
        (params, optimiser, sharding.abstract_batch(batch, mesh), base),
        {},
        work,
        microbatched=True,
    )


def loaded(run_config, reference: str, kind: str, mesh, held: dict, int8: bool = False):
    """What a stage has of a model; adapters on their base as it was when they were trained.

    Args:
        run_config: of the run.
        reference: of the model, as in a config.
        kind: "policy" or "reward".
        mesh: over the chips.
        held: takes what is loaded by name, so that a base is counted once.
        int8: the matrices are in 8 bits.

    Returns:
        Abstract parameters in the run's dtype.
    """
    target = resolve(run_config.models, reference)
    dtype = jnp.dtype(run_config.model.dtype)
    model = model_of(run_config, target)
    name = stage_of(target)
    stage = run_config.graph[name] if name else {}
    adapters = adapters_of(stage)
    if adapters is None:
        if (target, int8) not in held:
            unrounded = _cast(state_lib.abstract_params(model, kind, mesh), dtype)
            held[target, int8] = rounding.rounded_shapes(unrounded) if int8 else unrounded
        return held[target, int8]
    base = loaded(
        run_config,
        stage.policy if stage.kind == "rl" else stage.init,
        "policy",
        mesh,
        held,
        adapters.int8,
    )
    trained = held.setdefault(
        target, state_lib.abstract_params(model, kind, mesh, adapters=adapters)
    )
    return lora.attached_shapes(lora.base_of(base), trained, adapters)


# ---------------------------------------------------------------- reinforcement learning


def of_rl(run_config, name: str, mesh) -> list[Program]:
    """Sampling, scoring and learning of one update, each next to everything that the stage keeps on
    the chips meanwhile."""
    config, dtype = run_config.graph[name], jnp.dtype(run_config.model.dtype)
    policy, names = model_of(run_config, config.policy), list(dict.fromkeys(models_of(config)))
    judges = [model_of(run_config, each) for each in names]
    algorithm = ALGORITHMS[config.algorithm]
    source = rl.value_source(config) if algorithm.needs_value else ""
    value = model_of(run_config, source) if source else policy
    held: dict = {}
    adapters, bases = adapters_of(config), None
    int8 = adapters is not None and adapters.int8
    reference = loaded(run_config, config.policy, "policy", mesh, held, int8)
    scorers = [loaded(run_config, each, "reward", mesh, held, int8) for each in names]
    for each in (*judges_of(config), *filter(None, [config.reference])):
        loaded(run_config, each, "policy", mesh, held, int8)
    if adapters is not None:
        value_base = loaded(run_config, source, "reward", mesh, held, int8) if source else reference
        bases = networks.Bases(adapters, lora.base_of(reference), lora.base_of(value_base))
    settings, how = rl.settings(config, run_config.model), {"algorithm": algorithm, "bases": bases}
    how["reference"] = model_of(run_config, config.reference or config.policy)
    learner = learner_lib.Learner(policy, value, settings, mesh, dtype, **how)
    kept = chip_bytes(learner.abstract, *held.values())

    programs = of_sampling(
        run_config,
        name,
        mesh,
        policy,
        kept,
        config.max_prompt_tokens,
        config.max_new_tokens,
        config.rollouts_per_update,
        config.temperature,
    )
    count = config.rollouts_per_update
    length = rollouts.rounded(config.max_prompt_tokens + config.max_new_tokens)
    for judge, scorer in zip(judges, scorers, strict=True):
        programs.append(_scoring(run_config, name, mesh, judge, scorer, kept, length, count))
    steps, minibatch = config.num_epochs * config.num_minibatches, count // config.num_minibatches
    for label, (function, arguments) in learner.programs(count, length).items():
        once = label.endswith(("log-probs", "values"))
        model = value if label.startswith("value") else policy
        resident = kept - chip_bytes(*arguments[:1] if once else (*arguments[:2], arguments[3]))
        parts = config.num_microbatches * (config.num_minibatches if once else 1)
        work = Work(
            "forward" if once else "train",
            model,
            count if once else minibatch,
            length,
            parts,
            head=float(not label.startswith("value")),
            trained=trained_share(model, adapters),
        )
        programs.append(
            Program(
                name, label, function, arguments, {}, work, resident, 1 if once else steps, True
            )
        )
    return programs


def _cast(params, dtype):
    """Abstract parameters as `state_lib.cast` makes them: heads stay float32."""
    shapes = jax.eval_shape(lambda tree: state_lib.cast(tree, dtype), params)
    return state_lib.with_shardings(shapes, state_lib.shardings_of(params))


def _scoring(run_config, name, mesh, model, params, kept, length, count) -> Program:
    length = batching.bucket(length, rewards.LENGTH_MULTIPLE)
    rows = rewards.batch_size(length, mesh)
    seen = sharding.abstract_batch(
        [jax.ShapeDtypeStruct((rows, length), kind) for kind in (jnp.int32, jnp.bool_)], mesh
    )
    arguments = (params, *seen, model)
    work = Work("forward", model, rows, length, head=0)
    return Program(
        name,
        "reward scores",
        rewards.scores,
        arguments,
        {},
        work,
        kept - chip_bytes(params),
        -(-count // rows),
    )


# ---------------------------------------------------------------- sampling


def decode_weights(model: ModelConfig, mesh, dtype):
    """(parameters in the training layout, the engine's copy of them) as abstract arrays."""
    params = state_lib.abstract_params(model, "policy", mesh, dtype)
    layers = jax.eval_shape(
        lambda tree: sampling_weights.prepare(tree, model, sampling_weights.fuses(mesh)), params
    )["layers"]
    placed = [
        state_lib.with_shardings(layer, sampling_weights.layer_shardings(layer, model, mesh))
        for layer in layers
    ]
    head = params["embed"] if model.tied_embeddings else params["unembed"]
    return params, {
        "embed": params["embed"],
        "unembed": head,
        "final_norm": params["final_norm"],
        "layers": placed,
    }


def key_values(model: ModelConfig, mesh, shape: tuple[int, int], dtype):
    """Abstract keys and values of all layers.

    Args:
        model, mesh: of the sampler.
        shape: (sequences, positions).
        dtype: of the cache.

    Returns:
        (keys, values), a tuple of arrays each.
    """
    shape = (shape[0], model.num_kv_heads, shape[1], model.head_dim)
    place = jax.sharding.NamedSharding(mesh, sharding.spec(cached.CACHE_AXES, shape, mesh))
    layer = jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    return (layer,) * model.num_layers, (layer,) * model.num_layers


def of_sampling(
    run_config,
    name: str,
    mesh,
    model: ModelConfig,
    kept: float,
    prompt: int,
    new: int,
    count: int,
    temperature: float,
) -> list[Program]:
    """Prefill of a prompt's last chunk and a decode call, at the longest lengths of the stage.

    Args:
        run_config, name, mesh: the run, the stage and the chips.
        model: what samples.
        kept: bytes a chip of everything else that the stage keeps.
        prompt, new: tokens of a prompt and of an answer, at most.
        count: answers.
        temperature: of the draws.

    Returns:
        The two programs.
    """
    # --- Weights and cache
    dtype, options = jnp.dtype(run_config.model.dtype), run_config.sampling
    params, weights = decode_weights(model, mesh, dtype)
    ways = sharding.batch_ways(mesh)
    rows = -(-options.batch_size // ways) * ways
    size = plan.round_size(min(prompt + new, longest(options, model)))
    cache = key_values(model, mesh, (rows, size), dtype)
    kept += chip_bytes(params["layers"])  # the engine's layers are a copy

    # --- Prefill: one prompt's last chunk behind the chunks before it
    chunks = plan.cut(max(prompt - 1, 1))
    chunk, before = chunks[-1][1], sum(length for length, _ in chunks[:-1])
    replicated, past = sharding.replicated(mesh), None
    if before:
        length = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=replicated)
        shape = (1, plan.round_size(before))
        past = cached.KeyValues(*key_values(model, mesh, shape, dtype), length)
    tokens = jax.ShapeDtypeStruct((1, chunk), jnp.int32, sharding=replicated)
    on_tpu = mesh.devices.flat[0].platform == "tpu"  # GPUs are planned without a compiler
    kernel = flash.choose("tpu", dtype, model) if on_tpu and options.flash else ""
    prefill = Program(
        name,
        f"prefill 1×{chunk}",
        cached.prefill,
        (weights, None, past, tokens),
        {"config": model, "kernel": kernel},
        Work("forward", model, 1, chunk, head=0, past=before),
        kept + chip_bytes(cache),
        count * len(chunks),
    )

    # --- Decoding: `chunk_steps` tokens of all sequences
    fields = [jax.ShapeDtypeStruct((rows,), jnp.int32)] * 4
    fields += [jax.ShapeDtypeStruct((rows, 2), jnp.uint32)]
    slots, steps = sharding.abstract_batch(cached.Slots(*fields), mesh), options.chunk_steps
    sampling = Sampling(0, temperature)
    decode = Program(
        name,
        f"decode {rows}×{steps}",
        cached.decode,
        (weights, None, cache, slots),
        {"config": model, "sampling": sampling, "steps": steps, "eos_ids": (2,), "block": 0},
        Work("decode", model, rows, 1, past=size, steps=steps),
        kept,
        -(-count // rows) * -(-new // steps),
    )
    return [prefill, decode]


# ---------------------------------------------------------------- runs


TRAINING_KINDS = {"sl": of_sl, "pm": of_pm, "dpo": of_dpo, "rl": of_rl, "harm": of_harm}


def of_run(run_config, mesh) -> list[Program]:
    """The programs of all stages, in their order. Stages that sample with the same model and
    lengths share theirs."""
    programs: list[Program] = []
    sampled: dict = {}
    for name in run_config.stages:
        config = run_config.graph[name]
        if config.kind in TRAINING_KINDS:
            programs += TRAINING_KINDS[config.kind](run_config, name, mesh)
        elif STAGES[config.kind].samples:
            for reference in _sampled_models(run_config, config):
                sampled.setdefault(model_of(run_config, reference), []).append(name)
    for model, names in sampled.items():
        prompt = longest(run_config.sampling, model) // 2
        label = names[0] if len(set(names)) == 1 else f"{names[0]} …"
        programs = (
            of_sampling(
                run_config,
                label,
                mesh,
                model,
                0.0,
                prompt,
                prompt,
                run_config.sampling.batch_size,
                1.0,
            )
            + programs
        )
    return programs


def longest(sampling, model: ModelConfig) -> int:
    """Tokens of prompt and answer together, as the engine limits them."""
    return fitting.smallest(sampling.max_length, model.max_length)


def _sampled_models(run_config, config) -> list[str]:
    """References of the models that a stage samples with on the chips."""
    named = list(config.models.values()) if config.kind == "evaluate" else [config.model]
    targets = {name: parse(resolve(run_config.models, name)) for name in named}
    return [name for name, target in targets.items() if target.kind not in ANSWERING]
