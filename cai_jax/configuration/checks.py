"""Values that no stage could work with, refused before anything is written."""

from __future__ import annotations

import datetime
import math
import re
from typing import NamedTuple

import ml_collections

from cai_jax.errors import UserError, require_utf8


class Range(NamedTuple):
    """Which numbers a field takes: from `low` to `high` (None: no bound), the ends themselves only
    where they are not open."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    whole: bool = False

    def holds(self, value) -> bool:
        """Whether `value` is a finite number in the range; True and False are none."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if not math.isfinite(value) or self.whole and not isinstance(value, int):
            return False
        above = self.low is None or value > self.low or value == self.low and not self.open_low
        below = self.high is None or value < self.high or value == self.high and not self.open_high
        return above and below

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        least = f"more than {self.low}" if self.open_low else f"at least {self.low}"
        most = f"less than {self.high}" if self.open_high else f"at most {self.high}"
        if self.low is None and self.high is None:
            return f"{kind} that is finite"
        if self.low is None or self.high is None:
            return f"{kind}{' of' * (not self.open_low)} {most if self.low is None else least}"
        if not self.open_low and not self.open_high:
            return f"{kind} from {self.low} to {self.high}"
        return f"{kind} of {least} and {most}"


COUNT, COUNT_OR_NONE = Range(1, whole=True), Range(0, whole=True)
ANY, POSITIVE, NOT_NEGATIVE = Range(), Range(0, open_low=True), Range(0)
SHARE = Range(0, 1)
# Last part of a field's name → the numbers that it takes; an empty optional field is fine.
RANGES = {
    # Counts of things
    "num_samples": COUNT,
    "max_new_tokens": COUNT,
    "max_critique_tokens": COUNT,
    "max_revision_tokens": COUNT,
    "max_chain_tokens": COUNT,
    "num_principles": COUNT,
    "num_rounds": COUNT,
    "principles_per_pair": COUNT,
    "num_epochs": COUNT,
    "batch_size": COUNT,
    "num_microbatches": COUNT,
    "num_minibatches": COUNT,
    "num_updates": COUNT,
    "rollouts_per_update": COUNT,
    "save_every_steps": COUNT,
    "save_every_updates": COUNT,
    "log_every_steps": COUNT,
    "max_length": COUNT,
    "max_prompt_tokens": COUNT,
    "max_round": COUNT,
    "chunk_steps": COUNT,
    "logprob_chunk": COUNT,
    "max_characters": COUNT,
    "offset": COUNT_OR_NONE,
    "limit": COUNT_OR_NONE,
    "max_bad_rows": COUNT_OR_NONE,
    "top_k": COUNT_OR_NONE,
    "num_few_shot": COUNT_OR_NONE,
    "num_few_shot_chains": COUNT_OR_NONE,
    "num_headers": COUNT_OR_NONE,
    "num_chains": COUNT_OR_NONE,
    "num_choices": COUNT_OR_NONE,
    "warmup_steps": COUNT_OR_NONE,
    "warmup_updates": COUNT_OR_NONE,
    "snapshot_every_updates": COUNT_OR_NONE,
    "rank": COUNT_OR_NONE,
    # Of sampling and of learning
    "temperature": NOT_NEGATIVE,
    "top_p": Range(0, 1, open_low=True),
    "learning_rate": NOT_NEGATIVE,
    "value_learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "alpha": POSITIVE,
    "kl_coefficient": NOT_NEGATIVE,
    "kl_target": POSITIVE,
    "kl_horizon": POSITIVE,
    "clip": POSITIVE,
    "value_clip": POSITIVE,
    "value_coefficient": NOT_NEGATIVE,
    "missing_eos_penalty": NOT_NEGATIVE,
    # Shares
    "human_fraction": SHARE,
    "helpful_fraction": SHARE,
    "holdout_fraction": Range(0, 1, open_high=True),
    "gamma": SHARE,
    "lam": SHARE,
    # Of the run
    "seed": Range(0, 2**63 - 1, whole=True),
    "data": Range(-1, whole=True),
    "fsdp": Range(-1, whole=True),
    "tensor": Range(-1, whole=True),
}
# What a kind of stage, or a section of the config, wants otherwise.
OWN_RANGES = {
    ("rl", "temperature"): POSITIVE,  # a log-probability at temperature 0 is infinite
    ("feedback", "num_chains"): COUNT,
    ("compare", "num_samples"): Range(2, whole=True),  # one answer is no pair
    ("sampling", "batch_size"): COUNT_OR_NONE,  # 0: the sampler chooses
    ("sampling", "max_length"): COUNT_OR_NONE,  # 0: the model's positions
}
NO_FLOAT16 = (
    "float16 has too few exponents for gradients and scores without loss scaling, which is not "
    "done here: take bfloat16"
)
CHOICES = {
    "on_change": ("stop", "redo", "restore"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "full"),
    "format": ("auto", "text", "chat"),
    "targets": ("all", "final"),
    "cut_answers": ("keep", "drop"),
    "mode": ("multiple_choice", "chain_of_thought", "preference_model"),
    "label_kind": ("soft", "hard"),
    "elo_ties": ("drop", "half"),
    "schedule": ("constant", "linear", "cosine"),
    "value_init": ("reward", "policy"),
    "value_model": ("separate", "shared"),
}


GROUPS = ("models", "mesh", "model", "sampling", "graph")  # what no run can do without


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for the first field of a run's config whose value is out of range, with its
    name and the range."""
    for name in GROUPS:
        if not isinstance(config.get(name), ml_collections.ConfigDict):
            raise UserError(
                f"config.{name}: expected a group of fields as in configs/default.py, not "
                f"{config.get(name)!r}"
            )
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
        if not isinstance(config.graph[name], ml_collections.ConfigDict):
            raise UserError(
                f"config.graph.{name}: expected the fields of a stage, not {config.graph[name]!r}"
            )
    if date := config.get("date"):
        try:
            datetime.date.fromisoformat(date)
        except (TypeError, ValueError):
            raise UserError(f"config.date: expected YYYY-MM-DD or nothing, not {date!r}") from None
    _check(config, "config")


def range_of(path: str, kind: str, name: str) -> Range | None:
    """The numbers that field `name` of the section `path` takes, in a stage of that kind; None
    where none is declared."""
    return OWN_RANGES.get((kind or path.rpartition(".")[2], name), RANGES.get(name))


def _check(fields, path: str, kind: str = "") -> None:
    for name, value in fields.items():
        where = f"{path}.{name}"
        if isinstance(value, str):
            require_utf8(value, where)
        if isinstance(value, ml_collections.ConfigDict):
            _check(value, where, value.get("kind", "") if path == "config.graph" else "")
        elif name == "clamp":
            _check_clamp(where, value)
        elif name == "temperatures":
            _check_temperatures(where, value)
        elif name in CHOICES and not path.endswith(".adapters"):  # `lora.Adapters` reads those
            if value not in CHOICES[name]:
                why = f"; {NO_FLOAT16}" if value == "float16" else ""
                raise UserError(
                    f"{where}: expected one of {', '.join(CHOICES[name])}, not '{value}'{why}"
                )
        elif allowed := range_of(path, kind, name):
            if value is not None and not allowed.holds(value):
                raise UserError(f"{where}: expected {allowed}, not {value!r}")
        else:
            _check_finite(where, value)


def _check_finite(where: str, value) -> None:
    """Refuses NaN and infinity in a field that this module does not know."""
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"{where}: expected {ANY}, not {value!r}")


def _check_clamp(where: str, value) -> None:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    if values == ["auto"]:  # `auto.resolve` puts one of the others there
        return
    if not values and isinstance(value, (tuple, list)):
        return
    if len(values) != 2 or not all(map(SHARE.holds, values)) or not values[0] < values[1]:
        raise UserError(
            f"{where}: expected two probabilities, the lower one first, such as (0.4, 0.6), () "
            f"for none, or auto, not {value!r}"
        )
    if not values[0] <= 0.5 <= values[1]:
        raise UserError(
            f"{where}: {value!r} leaves out 0.5, so that the first answer of every pair would be "
            "better, or worse, whatever the label; expected (0.4, 0.6) or the like"
        )


def _check_temperatures(where: str, value) -> None:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    if not values or not all(map(NOT_NEGATIVE.holds, values)):
        raise UserError(f"{where}: expected numbers of at least 0, such as (0, 1), not {value!r}")
