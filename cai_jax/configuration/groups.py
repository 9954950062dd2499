"""Groups of fields that several kinds of stages have."""

from __future__ import annotations

import dataclasses

from cai_jax.configuration.fields import (
    Constitution,
    Field,
    Range,
    RowSource,
    Rule,
    Table,
    choice,
    count,
    number,
    positive,
    with_defaults,
    word,
)

# Prompts: embedded:red_team, embedded:helpful, a .jsonl[.gz] or .parquet file with a field
# "prompt", tfds:NAME or hf:ORG/NAME, several joined by "+"; `data/sources.py` has the grammar. All
# fields but `source` hold for every source that says nothing else: a.jsonl[0-8/10]+b.jsonl[:100].
PROMPTS: Table = {
    "source": Field(
        "topic:prompts",
        str,
        RowSource(),
        "embedded:NAME, a file, tfds:NAME or hf:ORG/NAME; a+b for several; '' for none",
    ),
    # '' takes all rows; 2-5/10 those whose first human turn falls into shards 2 to 5 of ten, the
    # same in every file (`data/records.py`).
    "split": word("train", "rows of that field split; a file without the field is all train"),
    "offset": count(0, "rows of the split that are passed over", low=0),
    "limit": count(None, "rows after that; empty: all", low=0),
    "max_characters": count(None, "longer ones are left out before offset and limit; empty: none"),
    "max_bad_rows": count(0, "so many rows that cannot be read are left out and counted", low=0),
}


def rows(of: str = "prompts", required: bool = False, **defaults) -> Table:
    """The fields of prompts, comparisons or ratings: `PROMPTS` with other defaults.

    Args:
      of, required: see `fields.RowSource`.
      defaults: source, split, …
    """
    table = with_defaults(PROMPTS, **defaults)
    table["source"] = dataclasses.replace(table["source"], range=RowSource(of, required))
    return table


# People's comparisons, as hh-rlhf, TRL and UltraFeedback publish them (`data/comparisons.py`). The
# characters are those of the dialogue and the longer answer.
COMPARISONS = rows("comparisons", source="topic:comparisons")
HELD_OUT = rows(split="heldout")

MODEL_FORMAT = choice(
    "auto", ("auto", "text", "chat"), "chat template, Human/Assistant text; auto: what there is"
)
TEMPERATURE = number(1.0, "of the tokens that are drawn; 0 is greedy")
# The paper samples at temperature 1 with nothing cut off.
DRAW: Table = {
    "temperature": TEMPERATURE,
    "top_k": count(0, "the k likeliest tokens; 0: all", low=0),
    "top_p": number(1.0, "the likeliest tokens of that mass", 0, 1, open_low=True),
}
MAX_NEW_TOKENS = count(256, "of an answer; not stated: 128 in 2204's RL, 256 leaves room")
CONSTITUTION = Field(
    "topic:constitution",
    str,
    Constitution(),
    "embedded, the folder of the paper's files, or a JSON file of our schema",
)

# Low-rank adapters (LoRA, arXiv 2106.09685) on frozen weights; the paper trains all weights. With
# them, a stage's state and checkpoints hold adapters and head only, and all models of an rl stage
# that go back to one base share its weights. A stage that starts from a model with adapters trains
# those on, and then needs the same numbers. Their usual learning rate is 10 × that of full
# finetuning.
ADAPTERS: Table = {
    "rank": count(0, "0: none, all weights are trained", low=0),
    "alpha": positive(16.0, "a matrix W acts as W + alpha / rank · A·B"),
    "targets": Field(("all",), tuple, None, "all, or some of q, k, v, o, gate, up, down"),
    "base_dtype": word("", "int8: the frozen matrices in 8 bits; '': in model.dtype"),
}

SCHEDULES = ("constant", "linear", "cosine")
# Adam(W). The paper: one epoch, constant learning rate. Its pretraining rate is not published, so
# the rates here are 2204's ratios (0.5, 0.01) of 2e-5, a usual rate for finetuning open models.
OPTIMISATION: Table = {
    "num_epochs": count(1, "passes over the examples"),
    "batch_size": count(256, "examples (sl, harm) or comparisons (pm) a step, over all devices"),
    "num_microbatches": count(1, "a step is computed in so many, exactly"),
    "learning_rate": number(1e-5, "after the warm-up"),
    "schedule": choice("constant", SCHEDULES, "after the warm-up; linear and cosine end at zero"),
    "warmup_steps": count(0, "steps up to the learning rate", low=0),
    "weight_decay": number(0.0, "of AdamW"),
    "max_grad_norm": number(1.0, "not stated in the paper; 0: no clipping"),
    "max_length": count(1024, "tokens; longer examples are left out and counted (2204: 1024)"),
    "save_every_steps": count(100, "steps between checkpoints"),
    "log_every_steps": count(1, "steps between rows of metrics.jsonl"),
}

SHARE = Range(0, 1)
CLAMP = Rule(
    lambda value: (
        tuple(value) in ((), ("auto",))
        or len(value) == 2
        and all(isinstance(end, (int, float)) and SHARE.accepts(end) for end in value)
        and value[0] < value[1]
        and value[0] <= 0.5 <= value[1]
    ),
    "two probabilities, the lower one first, with 0.5 between them, such as (0.4, 0.6); () for "
    "none; or auto",
)
NUMBERS = Rule(
    lambda value: (
        bool(value)
        and all(isinstance(item, (int, float)) and Range(0).accepts(item) for item in value)
    ),
    "numbers of at least 0, such as (0, 1)",
)
# Answers that ran into the limit of tokens; the paper is silent.
CUT_ANSWERS = ("keep", "drop")
