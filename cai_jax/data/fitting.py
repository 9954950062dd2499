"""What does not fit a context: the one rule of all stages. Pure host arithmetic on token counts.

1. Complete worked examples are left out of a request until it fits, the last ones first, so that
   requests still share the examples that they begin with (`textmodels.local`). No example is cut.
2. What does not fit without any example is left out and counted under one of the reasons below
  (`StageContext.drop`).
3. What can never fit, whatever the data, is refused before anything runs (`pipeline.limits`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Segments = tuple[tuple[int, ...], ...]

# Reasons in manifests and summaries.
CONTEXT = "longer than the context"  # of the sampler: prompt and answer together
POSITIONS = "longer than the model's positions"  # of a model that is trained or that scores
OUTGROWN = "outgrew the context in a later round (finished rounds are kept)"  # of revisions
MAX_LENGTH = "longer than max_length"
MAX_PROMPT_TOKENS = "prompt longer than max_prompt_tokens"


def smallest(*limits: int | None) -> int:
    """The smallest of the limits that are given; 0 and None are no limit."""
    return min(limit for limit in limits if limit)


def num_tokens(segments: Segments) -> int:
    return sum(map(len, segments))


def examples_left_out(requests: Iterable[tuple[int, int]]) -> dict[str, int]:
    """Counts over requests, each (worked examples shown, worked examples wanted): how many requests
    there were ("of"), how many had fewer examples than wanted ("requests"), and how many examples
    they lacked together ("examples")."""
    lacking = [wanted - shown for shown, wanted in requests]
    return {
        "examples": sum(lacking),
        "requests": sum(count > 0 for count in lacking),
        "of": len(lacking),
    }


def describe_left_out(counts: dict[str, int]) -> str:
    """A clause for a headline; "" where every request had all its worked examples."""
    if not counts.get("examples"):
        return ""
    return (
        f"; worked examples left out: {counts['examples']}, in {counts['requests']} of "
        f"{counts['of']} requests that were too long with them"
    )


def training_examples(
    lengths: Sequence[int], max_length: int, positions: int | None
) -> tuple[list[bool], dict[str, int]]:
    """(whether each training example of so many tokens is kept, reason → how many are not).

    Args:
      max_length: the stage's limit.
      positions: the most tokens that the model was made for; None where that is not asked.
    """
    beyond = [length > max_length for length in lengths]
    outside = [bool(positions) and length > positions for length in lengths]
    kept = [not (a or b) for a, b in zip(beyond, outside, strict=True)]
    return kept, {MAX_LENGTH: sum(beyond), POSITIONS: len(lengths) - sum(kept) - sum(beyond)}
