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

from cai_jax.core import losses
from cai_jax.data.ratings import load_ratings
from cai_jax.evals import harm as harm_evals
from cai_jax.models import heads
from cai_jax.planning import throughput
from cai_jax.rewards.preference_model import RewardModel
from cai_jax.stages.context import StageContext, fits_training
from cai_jax.structs import dialogue_to_json
from cai_jax.training import batching, loop, scalar
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
    options = ctx.config[field].to_dict()
    if not options["source"]:
        return []
    found, dropped = load_ratings(**options)
    for reason, count in dropped.items():
        ctx.drop(f"{field}: {reason}", count)
    return [
        Rated(
            f"{field} {item.id}",
            field,
            scalar.group_of(opening(item.dialogue)),
            item.dialogue,
            item.rating,
        )
        for item in found
    ]


def opening(dialogue):
    """What stands before the first answer."""
    return dialogue[
        : next(place for place, message in enumerate(dialogue) if message.role == "assistant")
    ]


def make_batch(chosen: list[Rated], tokens_of, shape: batching.Shape) -> dict:
    """tokens, segments [R, T], several dialogues a row; of its N places: ends [R, N], where each
    one's last token is, rating [R, N], and valid [R, N], whether there is a dialogue."""
    rows = [tokens_of(item) for item in chosen]
    packing = batching.pack(list(map(len, rows)), shape)
    return {
        "tokens": packing.spread(rows),
        "segments": packing.segments(),
        "ends": packing.by_slot(packing.starts + packing.lengths - 1, np.int32),
        "rating": packing.by_slot([item.rating for item in chosen], np.float32),
        "valid": packing.by_slot(True, bool),
    }


def make_loss(config, dtype, **options):
    """Squared error to the rating, as (sum, (count, sums))."""

    def loss(params, batch):
        params = state_lib.cast(params, dtype)
        found_RxN = heads.packed_scores(
            params, batch["tokens"], batch["segments"], batch["ends"], config, **options
        )
        total, count = losses.masked_sum(jnp.square(found_RxN - batch["rating"]), batch["valid"])
        return total, (count, {"tokens": jnp.sum(batch["segments"] > 0, dtype=jnp.float32)})

    return loss


def run(ctx: StageContext) -> dict:
    """Trains a head on `init` and publishes it as `@stage`; held-out dialogues with their
    predictions are records."""
    # ---- Data ------------------------------------------------------------------------------------
    config = ctx.config
    model = ctx.load_model(config.init, format=config.format)
    rated, apart = read(ctx, "ratings"), read(ctx, "heldout")
    tokens = ctx.encode(model.format, [item.dialogue for item in (*rated, *apart)])
    encoded = {item.id: row.tokens for item, row in zip((*rated, *apart), tokens, strict=True)}
    lengths = [len(tokens) for tokens in encoded.values()]
    kept = fits_training(ctx, lengths, model.config.max_length)
    fits = {name for name, fit in zip(encoded, kept, strict=True) if fit}
    rated, apart = ([item for item in items if item.id in fits] for items in (rated, apart))
    train, held = scalar.split(rated, config.holdout_fraction, ctx.seed, ctx.name)
    known = {item.group for item in train}
    ctx.drop("heldout: also a training prompt", sum(item.group in known for item in apart))
    held = [*held, *(item for item in apart if item.group not in known)]
    ctx.require_rows(train, "rated dialogues")
    mean = float(np.mean([item.rating for item in train]))

    # ---- Training: from the mean of the ratings --------------------------------------------------
    def batch(indices, shape):
        return make_batch([train[index] for index in indices], lambda item: encoded[item.id], shape)

    options = state_lib.forward_options(ctx.run_config)
    head = {**heads.zero_head(model.config), "bias": jnp.asarray(mean, jnp.float32)}
    lengths = {item.id: [len(encoded[item.id])] for item in train}
    meter = throughput.training(
        ctx.mesh,
        model.config,
        float(np.mean(list(lengths.values()))),
        ctx.adapters(model),
        head=False,
    )
    params, num_steps = scalar.fit(
        ctx, model, lengths, make_loss(model.config, ctx.dtype, **options), batch, head, meter=meter
    )

    # ---- Held-out dialogues ----------------------------------------------------------------------
    judge = RewardModel(state_lib.cast(params, ctx.dtype), model.config, model.format, ctx.mesh)
    predicted = judge.score_tokens([encoded[item.id] for item in held])
    ctx.publish(model, "harm")
    journal = ctx.directory.journal()
    journal.discard(lambda row: False)
    for item, value in zip(held, predicted, strict=True):
        journal.append(
            {
                "id": item.id,
                "source": item.source,
                "rating": item.rating,
                "predicted": float(value),
                "dialogue": dialogue_to_json(item.dialogue),
            }
        )
    digest = journal.finish()
    found = harm_evals.held_out(journal.finished.values(), mean, seed=ctx.seed)
    result = loop.summary(
        ctx, num_steps, {"examples": len(train), "mean_rating": mean, "held_out": found}
    )
    told = (
        "; ".join(
            (
                f"L2 {e['l2']['value']:.2f}, the mean's {e['mean_predictor']:.2f} ({source}, "
                f"{e['l2']['n']})"
            )
            for source, e in found.items()
        )
        or "nothing"
    )
    return {
        **result,
        "sha256": {"records": digest},
        "headline": f"held out: {told}; {result['headline']}",
    }
