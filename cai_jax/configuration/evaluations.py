"""The fields of `evaluate`, and of the regressor of harm that it may ask."""

from __future__ import annotations

from cai_jax.configuration.fields import (
    Field,
    Named,
    Table,
    choice,
    count,
    flag,
    model,
    share,
    text,
    with_defaults,
    word,
)
from cai_jax.configuration.groups import (
    ADAPTERS,
    CLAMP,
    CONSTITUTION,
    DRAW,
    HELD_OUT,
    MAX_NEW_TOKENS,
    MODEL_FORMAT,
    NUMBERS,
    OPTIMISATION,
    rows,
)

HARM_FIELDS: Table = {
    "init": model("base", '"a language model"; the paper does not name it'),
    # hh-rlhf's red-team-attempts {transcript, rating}: the file, or the data set that
    # `cai_jax.data.prepare` makes of it.
    "ratings": rows("ratings", True, source="tfds:cai_hh_rlhf/red_team_attempts", split=""),
    "heldout": rows("ratings", source="", split=""),  # measured on only; "" for none
    "holdout_fraction": share(0.1, "of the first human turns of ratings", open_high=True),
    **with_defaults(OPTIMISATION, batch_size=64),
    "adapters": ADAPTERS,
    "format": MODEL_FORMAT,
}

REWARD = model("@pm", "what scores; '' for none", "reward", python=True)
ANCHOR = word("sl", "the model with Elo 0 (the paper: SL-CAI), else the first")
# Matches with equal scores, or an undecided judge. drop: they say nothing (the paper).
TIES = choice("drop", ("drop", "half"), "of equal scores; half: half a win of each")
QUESTIONS: Table = {
    "choices": text("topic:choices", "or official files; a+b for several sets; '' for none"),
    # The 438 are then divided into its 221 and the other 217.
    "big_bench": text("", "BIG-bench's folder hhh_alignment"),
    "num_choices": count(None, "of each set, evenly spaced; empty: all", low=0),
}

# The kinds of evaluations: `cai_jax/evals/KIND.py` has the evaluation itself.
EVALS: dict[str, Table] = {
    # Length, refusals, repetition and stock phrases.
    "answer_statistics": {},
    # Mean score, Elo and paired differences (section 4.3).
    "preference_scores": {"reward": REWARD, "anchor": ANCHOR, "elo_ties": TIES},
    # Scores of the input revisions, by round (Figure 5) and by principle.
    "revisions": {"reward": REWARD},
    # A language model compares answers (Elo, both orders) and names evasive ones.
    "judge": {
        "judge": model("", "what compares answers, e.g. judge; '' for none"),
        "judge_question": word("topic:question", "on prompts_red_team; '': which does less harm"),
        "anchor": ANCHOR,
        "elo_ties": TIES,
    },
    # A language model rates each answer by itself: harm and help from 0 to 4, refusals.
    "ratings": {"judge": model("", "what rates answers, e.g. judge; '' for none")},
    # Lettered questions, zero-shot, few-shot and after chains of thought (Figures 4 and 11).
    "multiple_choice": {
        "feedback": model("feedback", "what answers; '' for none"),
        "choices_of_models": flag(False, "whether every one of models answers, too"),
        **QUESTIONS,
        "num_few_shot": count(0, "items of the set as worked examples, never of themselves", low=0),
        "num_chains": count(0, "chains of thought an item, averaged (the paper: 1 and 5)", low=0),
        "max_chain_tokens": count(256, "of a chain of thought"),
        "num_few_shot_chains": count(0, "worked chains of constitution before each chain", low=0),
        "constitution": CONSTITUTION,
        # Calibration after chains of thought is also shown for probabilities clamped to this
        # range. auto: pm.clamp, of the preference model named as reward before others, or
        # (0.4, 0.6).
        "clamp": Field(("auto",), tuple, CLAMP, "of probabilities after chains; () for none"),
    },
    # The preference model ranks those questions' dialogues, and people's comparisons.
    "preference_pairs": {
        "reward": REWARD,
        **QUESTIONS,
        "comparisons": rows("comparisons", source="topic:comparisons", split="heldout"),
    },
    # Expected harm of every model's answers (section 4.5, Figure 10): 64 held-out prompts, 256
    # answers each, at both temperatures; greedy answers are all the same, so only one is drawn.
    "harm": {
        "model": model("", "@harm; '' for none", "harm"),
        "num_samples": count(256, "answers to each prompt"),
        "temperatures": Field((0.0, 1.0), tuple, NUMBERS, "at which they are drawn"),
        "prompts": rows(split="heldout", limit=64),
    },
}

EVALUATION_FIELDS: Table = {
    "models": Named(
        {},
        model("", "what answers", answers=True),
        "name → model, responses:FILE.jsonl, or @stage of best_of or respond; the first is the "
        "baseline",
    ),
    # Any field prompts_NAME is a set of prompts that every model answers.
    "prompts_*": HELD_OUT,
    "prompts_red_team": HELD_OUT,
    "prompts_helpful": rows(source="topic:helpful", split="heldout"),
    "num_samples": count(1, "answers to each prompt"),
    **DRAW,
    "max_new_tokens": MAX_NEW_TOKENS,
    "format": MODEL_FORMAT,
    "evals": Named({kind: {"kind": kind} for kind in EVALS}, EVALS, "name → kind and its fields"),
}
