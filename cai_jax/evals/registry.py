"""The kinds of evaluations, in the order in which they run: `evaluate.evals` is a dict of them."""

from cai_jax.evals import (
    answer_statistics,
    harm,
    judge,
    multiple_choice,
    preference_pairs,
    preference_scores,
    ratings,
    revisions,
)

KINDS = {
    "preference_scores": preference_scores,
    "answer_statistics": answer_statistics,
    "revisions": revisions,
    "judge": judge,
    "ratings": ratings,
    "multiple_choice": multiple_choice,
    "preference_pairs": preference_pairs,
    "harm": harm,
}
