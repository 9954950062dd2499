"""What a preference model says of the answers: mean score, Elo, and paired differences to the first
model, also at equal length (section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cai_jax.configuration.topic import Words
from cai_jax.core.intervals import net_wins
from cai_jax.evals import elo as elo_lib
from cai_jax.evals import figures, length
from cai_jax.evals.evaluator import Measured, Task, by_prompt, by_set
from cai_jax.evals.rows import Column, find
from cai_jax.rewards.reward import terms_of

SCORE = Column(
    "pm_score", "PM score", "PM score", "higher", figure="forest", title="Preference-model score"
)
LENGTH = "at equal length"
AT_EQUAL_LENGTH = Column("pm_score_at_equal_length", "PM score", "PM score", "higher", LENGTH)
NET_WINS = Column("net_wins", "Net wins, as they are", "share", "higher", LENGTH, compared=False)
NET_WINS_AT_EQUAL_LENGTH = Column("net_wins_at_equal_length", "Net wins", "share", "higher", LENGTH)
ELO = Column(
    "elo",
    "Elo",
    "Elo",
    "higher",
    figure="forest",
    caption="Bradley–Terry fit over all pairs of models; intervals by bootstrap over prompts.",
)
WIN_RATE = Column("win_rate", "Wins by PM score", "share", "higher", group="pairs", compared=False)
COLUMNS = (SCORE, AT_EQUAL_LENGTH, NET_WINS, NET_WINS_AT_EQUAL_LENGTH, ELO, WIN_RATE)


def run(task: Task) -> Measured:
    """Scores every answer; `reward` is "" for no scores."""
    fields = task.fields
    if not fields.reward:
        return Measured([], ())
    texts = {r["id"]: (r["dialogue"], r["response"], r.get("stop")) for r in task.answers}
    scores, names = task.scores(fields.reward, texts), list(task.models)
    out = rows(
        task.answers, scores, names, anchor=fields.anchor, ties=fields.elo_ties, seed=task.seed
    )
    drawn = figures.along_training(task, out, (SCORE, ELO))
    columns = task.judged(COLUMNS, fields.reward)
    topic = Words.of(task.ctx.run_config).name
    return Measured(out, columns, drawn, _notes(task), headline(out, names, topic))


def rows(
    records: Sequence[Mapping],
    scores: Mapping[str, float],
    models: Sequence[str],
    *,
    anchor: str | None = None,
    ties: str = "drop",
    seed: int = 0,
) -> list[dict]:
    """The rows of all sets of prompts.

    Args:
        records: answers of all models on all sets of prompts.
        scores: record id → score.
        models: names in the order of the run; differences are to the first.
        anchor: the model with Elo 0 (default: the first).
        ties: what Elo does with equal scores, see `elo.elo`.
        seed: of the bootstraps.

    Returns:
        Rows of COLUMNS.
    """
    out = []
    for on, by_model in by_set(records, models):
        means = {
            name: by_prompt(of, lambda r: scores.get(r["id"])) for name, of in by_model.items()
        }
        lengths = {name: by_prompt(of, lambda r: r["num_tokens"]) for name, of in by_model.items()}
        out += SCORE.compared_rows(on, means, seed=seed)
        # Preference models reward length by mistake: each difference is also given without it.
        first, *others = means
        for name in others:
            out += _at_equal_length(on, name, first, means, lengths, seed)
        scored = {name: values for name, values in means.items() if values}
        if len(scored) > 1:
            won = elo_lib.outcomes_from_scores(scored)
            matches = elo_lib.Matches("PM verdicts", (anchor, *scored), ties, seed)
            out += matches.rows((ELO, WIN_RATE), on, won)
    return out


def _at_equal_length(
    on: str, name: str, first: str, means: Mapping, lengths: Mapping, seed: int
) -> list[dict]:
    """Differences to the first model with what length explains taken out (`length.py`), and the
    plain net wins."""
    # Only prompts that both answered: a difference of means over other prompts says nothing.
    common = sorted(set(means[name]) & set(means[first]))
    if not common:
        return []
    scores = [means[name][p] - means[first][p] for p in common]
    tokens = [lengths[name][p] - lengths[first][p] for p in common]
    estimates = (
        (AT_EQUAL_LENGTH, length.score_difference(scores, tokens, seed=seed)),
        (NET_WINS, net_wins(scores)),
        (NET_WINS_AT_EQUAL_LENGTH, length.net_wins(scores, tokens, seed=seed)),
    )
    return [column.row(on, name, estimate, against=first) for column, estimate in estimates]


def _notes(task: Task) -> list[str]:
    """Whether a model was trained against this judge. One that judges pairs alone was not optimised
    to."""
    # A policy that was optimised against the judge may exploit it (Goodhart's law).
    trained = sorted(
        name
        for name, stage in task.ctx.run_config.graph.items()
        if stage.get("kind") == "rl" and task.fields.reward in _learned_from(stage)
    )
    if not trained or not task.models:
        return []
    return [
        f"the judge {task.fields.reward} is the preference model that {', '.join(trained)} was "
        "trained against: its score is expected to rise and is no independent evidence"
    ]


def _learned_from(stage: Mapping) -> set[str]:
    """The preference models and functions that an rl stage's reward is made of."""
    return {term.get("model") or term.get("function") for term in terms_of(stage).values()}


def headline(out: list[dict], models: Sequence[str], topic: str) -> str:
    """Mean score on the topic's prompts by model, and the difference of the last to the first."""
    scores = {r["model"]: r["value"] for r in find(out, "pm_score", "red_team")}
    if not scores:
        return ""
    shown = " → ".join(f"{name} {scores[name]:.2f}" for name in models if name in scores)
    text = f"PM score on {topic} prompts: {shown}"
    *_, last = [r for r in out if r["on"] == "red_team" and r["metric"] == "pm_score"]
    if last["against"] is None or last["value"] is None:
        return text
    low, high = last["low"], last["high"]
    interval = f"[{low:+.2f}, {high:+.2f}]" if low is not None else "(no interval)"
    difference = f"{last['model']} − {last['against']} = {last['value']:+.2f} {interval}"
    return f"{text}; {difference}" + " (null)" * last["null"]
