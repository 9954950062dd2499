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
    COMPARISONS,
    CONSTITUTION,
    DRAW,
    HELD_OUT,
    MAX_NEW_TOKENS,
    MODEL_FORMAT,
    NUMBERS,
    OPTIMISATION,
    PROMPTS,
)

HARM_FIELDS: Table = {
    "init": model("base", '"a language model"; not said which'),
    # hh-rlhf's red-team-attempts {transcript, rating}: the file, or the data set that
    # `cai_jax.data.prepare` makes of it.
    "ratings": with_defaults(PROMPTS, source="tfds:cai_hh_rlhf/red_team_attempts", split=""),
    "heldout": with_defaults(PROMPTS, source="", split=""),  # measured on only; "" for none
    "holdout_fraction": share(0.1, "of the first human turns of ratings", open_high=True),
    **with_defaults(OPTIMISATION, batch_size=64),
    "adapters": ADAPTERS,
    "format": MODEL_FORMAT,
}

# Expected harm of every model's answers (section 4.5, Figure 10): 64 held-out prompts, 256 answers
# each, at both temperatures; greedy answers are all the same, so only one is drawn.
ABSOLUTE_HARM: Table = {
    "model": model("", "@harm; '' for none", "harm"),
    "num_samples": count(256, "answers to each prompt"),
    "temperatures": Field((0.0, 1.0), tuple, NUMBERS, "at which they are drawn"),
    "prompts": with_defaults(HELD_OUT, limit=64),
}

EVALUATION_FIELDS: Table = {
    "models": Named(
        {},
        model("", "what answers", answers=True),
        "name → model, responses:FILE.jsonl, or @stage of best_of or respond; the first is the "
        "baseline",
    ),
    "anchor": word("sl", "the model with Elo 0 (the paper: SL-CAI), else the first"),
    "reward": model("@pm", "what scores the answers; '' for none", "reward", python=True),
    # Matches with equal scores, or an undecided judge. drop: they say nothing (the paper).
    "elo_ties": choice("drop", ("drop", "half"), "of equal scores; half: half a win of each"),
    # It compares answers (Elo, both orders) and names evasive ones.
    "judge": model("", "a model that compares answers, e.g. judge; '' for none"),
    "judge_question": word("topic:question", "on prompts_red_team; '': which does less harm"),
    "feedback": model("feedback", "answers the HHH multiple choice; '' for none"),
    # Any field prompts_NAME is a set of prompts that every model answers.
    "prompts_*": HELD_OUT,
    "prompts_red_team": HELD_OUT,
    "prompts_helpful": with_defaults(HELD_OUT, source="topic:helpful"),
    "num_samples": count(1, "answers to each prompt"),
    **DRAW,
    "max_new_tokens": MAX_NEW_TOKENS,
    "choices": text("topic:choices", "or official files; a+b for several sets; '' for none"),
    # The 438 are then told apart into its 221 and the other 217.
    "big_bench": text("", "BIG-bench's folder hhh_alignment"),
    "choices_of_models": flag(False, "whether every one of models answers them, too"),
    "num_choices": count(None, "of each set, evenly spaced; empty: all", low=0),
    "num_few_shot": count(0, "items of the set as worked examples, never of themselves", low=0),
    "num_chains": count(0, "chains of thought an item, averaged (the paper: 1 and 5)", low=0),
    "max_chain_tokens": count(256, "of a chain of thought"),
    "num_few_shot_chains": count(0, "worked chains of constitution before each chain", low=0),
    "constitution": CONSTITUTION,
    # Calibration after chains of thought is also shown for probabilities clamped to this range.
    # auto: pm.clamp, of the preference model named as reward before others, or (0.4, 0.6).
    "clamp": Field(("auto",), tuple, CLAMP, "of probabilities after chains; () for none"),
    "comparisons": with_defaults(COMPARISONS, split="heldout"),
    "harm": ABSOLUTE_HARM,
    "format": MODEL_FORMAT,
}
