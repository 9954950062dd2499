"""Supervised finetuning on the revisions, with helpful answers mixed in → SL-CAI (section 3.2)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from cai_jax.core import losses
from cai_jax.errors import UserError
from cai_jax.models import heads
from cai_jax.planning import throughput
from cai_jax.stages.context import StageContext
from cai_jax.structs import Dialogue, dialogue_from_json, sampled_turn
from cai_jax.training import batching, feed, supervised
from cai_jax.training import examples as selection
from cai_jax.training import state as state_lib

SCHEMA = 2
TARGETS = ("all", "final")


@dataclasses.dataclass(frozen=True)
class Example:
    """tokens int32 [T]; target bool [T], True on the answer and its end token. `cut`: the answer
    has no end token."""

    id: str
    tokens: np.ndarray
    target: np.ndarray
    cut: bool = False


def answers(
    revisions, helpful, targets: str = "all", max_round: int | None = None
) -> list[tuple[str, Dialogue]]:
    """Everything that is learned from.

    Args:
      revisions: revision records, whose initial response is never learned.
      helpful: response records, of which the response is learned.
      targets: "all" revisions of a record, or only the "final" one.
      max_round: revisions up to that round (SL-CAI-n); None: all.
    Returns:
      (id, dialogue that ends in the answer) of each.
    """
    result = []

    def add(name, dialogue, text, stop):
        result.append((name, (*dialogue_from_json(dialogue), sampled_turn(text, stop))))

    for row in revisions:
        rounds = list(enumerate(row["rounds"], 1))[: max_round or None]
        for number, item in rounds if targets == "all" else rounds[-1:]:
            name = f"revision {row['id']}#{number}"
            add(name, row["dialogue"], item["revision"], item.get("revision_stop"))
    for row in helpful:
        add(f"response {row['id']}", row["dialogue"], row["response"], row.get("stop"))
    return result


def examples(ctx: StageContext, format, positions: int | None = None) -> list[Example]:
    """The training set in order of id; what is empty or too long, for `max_length` or for the
    model's positions, is counted and left out."""
    config = ctx.config
    if config.targets not in TARGETS:
        raise UserError(
            f"config.graph.{ctx.name}.targets: expected all or final, not '{config.targets}'"
        )
    records = {
        name: ctx.inputs[name].records() if name in ctx.inputs else []
        for name in ("revisions", "helpful")
    }
    learned = answers(**records, targets=config.targets, max_round=config.max_round)
    full = [item for item in learned if item[1][-1].text.strip()]
    ctx.drop("empty answer", len(learned) - len(full))
    if config.cut_answers == "drop":
        ended = [item for item in full if not item[1][-1].cut]
        ctx.drop("cut at the limit of tokens", len(full) - len(ended))
        full = ended
    encoded = feed.encode(format, [dialogue for _, dialogue in full])
    kept = selection.short_enough(ctx, [len(item.tokens) for item in encoded], positions)
    fitting = [
        Example(name, item.tokens, item.target_mask, dialogue[-1].cut)
        for (name, dialogue), item, fits in zip(full, encoded, kept, strict=True)
        if fits
    ]
    helpful = [example for example in fitting if example.id.startswith("response ")]
    revised = [example for example in fitting if example.id.startswith("revision ")]
    mixed = selection.mix(helpful, revised, config.helpful_fraction, ctx.seed, ctx.name)
    ctx.drop("beyond helpful_fraction", len(fitting) - len(mixed))
    ctx.require_rows(mixed, "training examples")
    return sorted(mixed, key=lambda example: example.id)


def make_batch(chosen: list[Example], shape: batching.Shape, count: int = 0) -> dict:
    """Examples packed into sequences: `tokens` and `segments` int32 [R, T], `target` bool [R, T],
    and `positions` int32 [R, count] of the targets (count 0: as few as hold them)."""
    packing = batching.pack([len(example.tokens) for example in chosen], shape)
    target = packing.spread([example.target for example in chosen], bool)
    return {
        "tokens": packing.spread([example.tokens for example in chosen]),
        "segments": packing.segments(),
        "target": target,
        "positions": batching.positions(target, count),
    }


def make_loss(config, dtype, **options):
    """Negative log-likelihood of the target tokens, as (sum, (count, sums)). `options`: scan,
    remat, chunk."""

    def loss(params, batch):
        params = state_lib.cast(params, dtype)
        seen = batch["segments"] > 0
        logprobs = heads.dialogue_logprobs(
            params,
            batch["tokens"],
            seen,
            config,
            segments_BxT=batch["segments"],
            places=batch["positions"],
            **options,
        )
        total, count = losses.response_loss(logprobs, batch["target"])
        return total, (count, {"tokens": jnp.sum(seen, dtype=jnp.float32)})

    return loss


def run(ctx: StageContext) -> dict:
    """Trains `init` for `num_epochs` over all examples and publishes the weights as `@stage`."""
    # ---- Data: every answer is an example --------------------------------------------------------
    config = ctx.config
    model = ctx.models.load(config.init, format=config.format)
    data = examples(ctx, model.format, model.config.max_length)
    ids, lengths = [example.id for example in data], [[len(example.tokens)] for example in data]
    steps = supervised.Steps.of(ctx, ids, lengths)
    count = steps.most([[int(example.target.sum())] for example in data])

    # ---- Training --------------------------------------------------------------------------------
    def batch(indices):
        return make_batch([data[index] for index in indices], steps.shape, count)

    options = state_lib.forward_options(ctx.run_config)
    loss = make_loss(model.config, ctx.dtype, chunk=ctx.run_config.model.logprob_chunk, **options)
    meter = throughput.training(ctx.mesh, model.config, steps.mean_length, ctx.adapters(model))
    supervised.fit(ctx, model, steps, batch, loss, meter=meter)
    ctx.publish(model, "policy")
    cut = {"cut": sum(example.cut for example in data), "of": len(data)}
    more = {"examples": len(data), "cut": {"examples": cut}}
    return supervised.summary(ctx, steps.num_steps, more)
