"""Values that no stage could work with, refused before anything is written."""

from __future__ import annotations

import datetime
import re

import ml_collections

from cai_jax.errors import UserError

# Last part of a field's name → smallest and largest value; an empty optional field is fine.
AT_LEAST_ONE = (
    "num_samples",
    "max_new_tokens",
    "max_critique_tokens",
    "max_revision_tokens",
    "max_chain_tokens",
    "num_principles",
    "num_rounds",
    "principles_per_pair",
    "num_epochs",
    "num_microbatches",
    "num_minibatches",
    "num_updates",
    "rollouts_per_update",
    "save_every_steps",
    "save_every_updates",
    "log_every_steps",
    "max_length",
    "max_prompt_tokens",
    "max_round",
    "chunk_steps",
    "logprob_chunk",
    "max_characters",
)
AT_LEAST_ZERO = (
    "offset",
    "limit",
    "temperature",
    "top_k",
    "num_few_shot",
    "num_few_shot_chains",
    "num_headers",
    "num_choices",
    "warmup_steps",
    "warmup_updates",
    "weight_decay",
    "max_grad_norm",
    "learning_rate",
    "value_learning_rate",
    "kl_coefficient",
    "snapshot_every_updates",
    "seed",
)
SHARES = ("top_p", "human_fraction", "helpful_fraction", "holdout_fraction", "gamma", "lam")
RANGES = {
    **dict.fromkeys(AT_LEAST_ONE, (1, None)),
    **dict.fromkeys(AT_LEAST_ZERO, (0, None)),
    **dict.fromkeys(SHARES, (0, 1)),
}
CHOICES = {
    "on_change": ("stop", "redo", "restore"),
    "dtype": ("float32", "bfloat16", "float16"),
    "remat": ("none", "dots", "full"),
    "format": ("auto", "text", "chat"),
    "targets": ("all", "final"),
    "mode": ("multiple_choice", "chain_of_thought", "preference_model"),
    "label_kind": ("soft", "hard"),
    "elo_ties": ("drop", "half"),
    "schedule": ("constant", "linear", "cosine"),
    "value_init": ("reward", "policy"),
    "value_model": ("separate", "shared"),
}


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for the first field of a run's config whose value is out of range, with its name and the range."""
    if not config.stages or not all(config.stages):
        raise UserError(f"config.stages: name at least one stage of {', '.join(config.graph)}")
    for name in config.graph:  # each is a folder of the run
        if not re.fullmatch(r"\w[\w.-]*", name) or name in (
            "aside",
            "config.json",
            "lock.json",
            "pinned.json",
            "status.json",
        ):
            raise UserError(
                f"config.graph: {name!r} cannot name a stage; use letters, digits, '_', '-' and '.'"
            )
    if date := config.get("date"):
        try:
            datetime.date.fromisoformat(date)
        except (TypeError, ValueError):
            raise UserError(f"config.date: expected YYYY-MM-DD or nothing, not {date!r}") from None
    _check(config, "config")


def _check(fields, path: str) -> None:
    for name, value in fields.items():
        where = f"{path}.{name}"
        if name == "adapters":  # `lora.Adapters.from_fields` reads them
            continue
        if isinstance(value, ml_collections.ConfigDict):
            _check(value, where)
        elif name == "batch_size" or where == "config.sampling.max_length":
            smallest = 0 if path == "config.sampling" else 1  # 0: the sampler chooses
            _within(where, value, smallest, None)
        elif name in RANGES and value is not None:
            _within(where, value, *RANGES[name])
        elif name in CHOICES and value not in CHOICES[name]:
            raise UserError(f"{where}: expected one of {', '.join(CHOICES[name])}, not '{value}'")


def _within(where: str, value, smallest, largest) -> None:
    if (
        not isinstance(value, (int, float))
        or not value >= smallest
        or (largest is not None and value > largest)
    ):
        wanted = (
            f"a number of at least {smallest}"
            if largest is None
            else f"a number from {smallest} to {largest}"
        )
        raise UserError(f"{where}: expected {wanted}, not {value!r}")
