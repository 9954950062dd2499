"""A preference model ranks pairs whose better side is known: dialogues of lettered questions, and
human comparisons.

`ctx` is the stage's context (`stages.context.StageContext`), which counts what is left out and
shows progress.
"""

from __future__ import annotations

from cai_jax.data.comparisons import load_comparisons
from cai_jax.evals import calibration, preference
from cai_jax.evals.intervals import Estimate, paired_difference
from cai_jax.evals.rows import row
from cai_jax.rewards.preference_model import collected
from cai_jax.structs import Message


def rows(ctx, reward, choices: dict, journal, curves: dict) -> list[dict]:
    """Accuracy of the preference model on the items' dialogues and on human comparisons, over all
    and by part."""
    config = ctx.config
    sets = {
        on: [(item.id, item.subset, *item.dialogues) for item in items if item.dialogues]
        for on, items in choices.items()
    }
    if config.comparisons.source:
        pairs, dropped = load_comparisons(**config.comparisons.to_dict())
        for reason, count in dropped.items():
            ctx.drop(f"comparison: {reason}", count)
        sets["comparisons"] = [
            (
                pair.id,
                pair.source,
                (*pair.dialogue, Message("assistant", pair.chosen)),
                (*pair.dialogue, Message("assistant", pair.rejected)),
            )
            for pair in pairs
        ]
    out = []
    for on, pairs in sets.items():
        missing = [pair for pair in pairs if f"{on}/{pair[0]}" not in journal.finished]
        sides = [side for *_, better, worse in missing for side in (better, worse)]
        ids = [f"{on}/{name}" for name, *_ in missing for _ in range(2)]
        scored = (
            collected(ctx.score_each(reward, sides, f"{ctx.name}: {on}", ids), len(sides))
            .reshape(-1, 2)
            .tolist()
        )
        for (name, subset, *_), (better, worse) in zip(missing, scored, strict=True):
            journal.append(
                {"id": f"{on}/{name}", "on": on, "subset": subset, "better": better, "worse": worse}
            )
        parts = {on: pairs}
        if len({subset for _, subset, *_ in pairs}) > 1:
            for pair in sorted(pairs, key=lambda pair: str(pair[1])):
                parts.setdefault(f"{on}:{pair[1]}", []).append(pair)
        for part, chosen in parts.items():
            if not chosen:
                continue
            kept = [journal.finished[f"{on}/{pair[0]}"] for pair in chosen]
            found = preference.pair_accuracy(
                [r["better"] for r in kept],
                [r["worse"] for r in kept],
                [pair[2][-1].text for pair in chosen],
                [pair[3][-1].text for pair in chosen],
                scale=reward.scale,
            )
            out.append(
                row(
                    "pm_accuracy",
                    part,
                    config.reward,
                    found.accuracy,
                    unit="accuracy",
                    good="higher",
                    baseline={"chance": 0.5, "longer": found.longer.value},
                )
            )
            ids = [pair[0] for pair in chosen]
            against = (
                dict(zip(ids, values, strict=True)) for values in (found.longer_wins, found.wins)
            )
            out.append(
                row(
                    "pm_accuracy",
                    part,
                    config.reward,
                    paired_difference(*against, shares=True),
                    against="longer",
                    unit="accuracy",
                    good="higher",
                )
            )
            if part == on:
                curves[f"pm/{on}"] = calibration.points(found.bins)
                out.append(
                    row(
                        "pm_ece",
                        on,
                        config.reward,
                        Estimate(found.ece, None, None, len(chosen)),
                        unit="ECE",
                        good="lower",
                    )
                )
    return out
