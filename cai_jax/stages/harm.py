"""Absolute harmfulness: a regressor of how harmful a dialogue is, from 0 to 4, learnt from rated
dialogues (section 4.5).

A head reads the dialogue as a preference model does; the loss is the squared error to the rating.
It starts as the mean of the training ratings, which is also the baseline that it is measured
against. `evaluate` asks it about every model's answers.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from cai_jax.core import accuracy, losses
from cai_jax.data.ratings import load_ratings
from cai_jax.models import heads
from cai_jax.planning import throughput
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.stages.context import StageContext
from cai_jax.structs import dialogue_to_json
from cai_jax.training import batching, examples, feed, supervised
from cai_jax.training import state as state_lib

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Rated:
    """A rated dialogue; `group` names its first human turn: attempts at the same thing stay on one
    side of the split."""

    id: str
    source: str
    group: str
    dialogue: tuple
    rating: float


def read(ctx: StageContext, field: str) -> list[Rated]:
    """The rated dialogues that the config's `field` names; [] where it names none."""
    if not ctx.config[field].source:
        return []
    return [
        Rated(
            f"{field} {item.id}",
            field,
            examples.group_of(opening(item.dialogue)),
            item.dialogue,
            item.rating,
        )
        for item in ctx.load(load_ratings, ctx.config[field], field)
    ]


def opening(dialogue):
    """The messages before the first answer."""
    roles = [message.role for message in dialogue]
    return dialogue[: roles.index("assistant")]


def make_batch(chosen: list[Rated], tokens: dict, shape: batching.Shape) -> dict:
    """Dialogues packed into sequences [R, T], N slots in each: `tokens` and `segments` [R, T];
    `ends` [R, N], the index of each dialogue's last token; `rating` [R, N]; `valid` [R, N], whether
    the slot holds a dialogue."""
    dialogues = [tokens[item.id] for item in chosen]
    packing = batching.pack(list(map(len, dialogues)), shape)
    return {
        "tokens": packing.spread(dialogues),
        "segments": packing.segments(),
        "ends": packing.by_slot(packing.starts + packing.lengths - 1, np.int32),
        "rating": packing.by_slot([item.rating for item in chosen], np.float32),
        "valid": packing.by_slot(True, bool),
    }


def make_loss(config, dtype, **options):
    """Squared error to the rating, as (sum, (count, sums))."""

    def loss(params, batch):
        params = state_lib.cast(params, dtype)
        scores_RxN = heads.packed_scores(
            params, batch["tokens"], batch["segments"], batch["ends"], config, **options
        )
        total, count = losses.masked_sum(jnp.square(scores_RxN - batch["rating"]), batch["valid"])
        return total, (count, {"tokens": jnp.sum(batch["segments"] > 0, dtype=jnp.float32)})

    return loss


def run(ctx: StageContext) -> dict:
    """Trains a head on `init` and publishes it as `@stage`; held-out dialogues with their
    predictions are records."""
    # ---- Data ------------------------------------------------------------------------------------
    config = ctx.config
    model = ctx.models.load(config.init, format=config.format)
    rated, extra = read(ctx, "ratings"), read(ctx, "heldout")
    encoded = feed.encode(model.format, [item.dialogue for item in (*rated, *extra)])
    tokens = {item.id: row.tokens for item, row in zip((*rated, *extra), encoded, strict=True)}
    lengths = [len(row) for row in tokens.values()]
    kept = examples.short_enough(ctx, lengths, model.config.max_length)
    fits = {name for name, fit in zip(tokens, kept, strict=True) if fit}
    rated, extra = ([item for item in items if item.id in fits] for items in (rated, extra))
    train, held = examples.split(rated, config.holdout_fraction, ctx.seed, ctx.name)
    # The same request in both files would be measured on what was learned.
    known = {item.group for item in train}
    ctx.drop("heldout: also a training prompt", sum(item.group in known for item in extra))
    held = [*held, *(item for item in extra if item.group not in known)]
    ctx.require_rows(train, "rated dialogues")
    mean = float(np.mean([item.rating for item in train]))
    ids = [item.id for item in train]
    steps = supervised.Steps.of(ctx, ids, [[len(tokens[name])] for name in ids])

    # ---- Training: from the mean of the ratings --------------------------------------------------
    def batch(indices):
        return make_batch([train[index] for index in indices], tokens, steps.shape)

    loss = make_loss(model.config, ctx.dtype, **state_lib.forward_options(ctx.run_config))
    # From the mean on, the first steps do not move the trunk just to reach the scale.
    head = {**heads.zero_head(model.config), "bias": jnp.asarray(mean, jnp.float32)}
    meter = throughput.training(
        ctx.mesh, model.config, steps.mean_length, ctx.adapters(model), head=False
    )
    params = supervised.fit(ctx, model, steps, batch, loss, kind="reward", head=head, meter=meter)

    # ---- Held-out dialogues ----------------------------------------------------------------------
    judge = RewardModel(state_lib.cast(params, ctx.dtype), model.config, model.format, ctx.mesh)
    predicted = judge.score_tokens([tokens[item.id] for item in held])
    ctx.publish(model, "harm")
    records = ctx.write_records(
        {
            "id": item.id,
            "source": item.source,
            "rating": item.rating,
            "predicted": float(value),
            "dialogue": dialogue_to_json(item.dialogue),
        }
        for item, value in zip(held, predicted, strict=True)
    )
    numbers = accuracy.regression_errors(records, mean, seed=ctx.seed)
    more = {"examples": len(train), "mean_rating": mean, "held_out": numbers}
    result = supervised.summary(ctx, steps.num_steps, more)
    shown = [
        f"L2 {n['l2']['value']:.2f}, the mean's {n['mean_predictor']:.2f} ({key}, {n['l2']['n']})"
        for key, n in numbers.items()
    ]
    headline = f"held out: {'; '.join(shown) or 'nothing'}; {result['headline']}"
    return {**result, "headline": headline}
