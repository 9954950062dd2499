"""Bradley–Terry against closed forms, scipy, and its own coverage."""

import itertools
import math

import numpy as np
import pytest

from cai_jax.evals.elo import (
    ELO_PER_LOGIT,
    bradley_terry,
    elo,
    outcomes_from_scores,
)


def test_two_models_have_a_closed_form():
    theta = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]))
    np.testing.assert_allclose(theta, [0.0, math.log(10 / 30)], atol=1e-9)
    assert math.isclose(ELO_PER_LOGIT, 173.7, abs_tol=0.05)  # 2204: ΔElo ≈ 174 · ΔPM


def test_three_models_equal_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    wins = np.random.default_rng(0).integers(1, 40, (3, 3)) * (1 - np.eye(3))

    def loss(free):
        theta = np.array([0.0, *free])
        return np.sum(wins * np.log1p(np.exp(-(theta[:, None] - theta[None, :]))))

    expected = optimize.minimize(loss, np.zeros(2), tol=1e-12).x
    np.testing.assert_allclose(bradley_terry(wins)[1:], expected, atol=1e-5)


def test_batched_fit_equals_single_fits():
    wins = np.random.default_rng(1).integers(1, 9, (5, 4, 4)) * (1.0 - np.eye(4))
    np.testing.assert_allclose(
        bradley_terry(wins, anchor=2), [bradley_terry(w, anchor=2) for w in wins], atol=1e-8
    )


def test_models_that_never_met_have_no_rating():
    ratings = elo({("a", "b"): {"1": 1.0, "2": 0.0}, ("c", "d"): {"1": 1.0}}, "a")
    assert ratings["b"].value is not None and ratings["c"].value is ratings["d"].value is None


def test_winning_everything_stays_finite():
    scores = {"a": {str(i): 0.0 for i in range(20)}, "b": {str(i): 1.0 for i in range(20)}}
    rating = elo(outcomes_from_scores(scores), "a")["b"]
    assert math.isfinite(rating.value) and rating.low > 0 and rating.n == 20
    assert rating.low < rating.value - 100 and rating.high > rating.value + 100, "no zero width"


def test_one_prompt_and_the_anchor_have_no_interval():
    found = elo({("a", "b"): {"1": 0.0}}, "a")
    assert found["b"].value > 0 and found["b"].low is None and found["b"].high is None
    assert found["a"].value == 0.0 and found["a"].low is None


def test_models_that_only_tied_have_no_rating_where_ties_are_dropped():
    outcomes = {("a", "b"): {"1": 0.5, "2": 0.5}, ("a", "c"): {"1": 1.0, "2": 0.5}}
    outcomes["b", "c"] = {"1": 0.5}
    dropped, half = elo(outcomes, "a", ties="drop"), elo(outcomes, "a")
    assert dropped["b"].value is None and dropped["c"].value < 0
    assert dropped["c"].n == 1 and half["c"].n == 2 and half["b"].value is not None
    with pytest.raises(ValueError, match="ties"):
        elo(outcomes, "a", ties="lose")


@pytest.mark.parametrize("truth", [0.0, 150.0, 400.0])
def test_two_models_on_twelve_prompts_cover(truth):
    hits, trials, p = 0, 150, 1 / (1 + 10 ** (truth / 400))
    for trial in range(trials):
        rng = np.random.default_rng([3, trial])
        found = elo(
            {("a", "b"): {str(i): float(rng.random() < p) for i in range(12)}},
            "a",
            seed=trial,
            num_resamples=300,
        )["b"]
        hits += found.low <= truth <= found.high
    assert hits / trials >= 0.93


def test_ties_count_half_or_are_dropped():
    scores = {"a": {"1": 0.0, "2": 0.0, "3": 0.0}, "b": {"1": 0.0, "2": 1.0, "3": -1.0}}
    outcomes = outcomes_from_scores(scores)
    assert outcomes[("a", "b")] == {"1": 0.5, "2": 0.0, "3": 1.0}
    assert (
        abs(elo(outcomes, "a")["b"].value) < 1e-6
        and abs(elo(outcomes, "a", ties="drop")["b"].value) < 1e-6
    )


def coverage(trials: int, num_prompts: int = 80) -> float:
    """Share of true ratings inside their intervals, for three models in simulated matches."""
    truth = {"a": 0.0, "b": 120.0, "c": -60.0}
    hits = total = 0
    for trial in range(trials):
        rng = np.random.default_rng([7, trial])
        outcomes = {}
        for a, b in (("a", "b"), ("a", "c"), ("b", "c")):
            p = 1 / (1 + 10 ** (-(truth[a] - truth[b]) / 400))
            outcomes[a, b] = {str(i): float(rng.random() < p) for i in range(num_prompts)}
        ratings = elo(outcomes, "a", seed=trial, num_resamples=400)
        for name in ("b", "c"):
            hits += ratings[name].low <= truth[name] <= ratings[name].high
            total += 1
    return hits / total


def test_true_ratings_are_recovered():
    """In 200 trials; 0.97 when this was written."""
    assert coverage(200) >= 0.93


def test_ratings_come_in_the_order_of_the_outcomes():
    """A resumed run writes the same bytes: no order depends on the hashes of names."""
    names = [f"model {i}" for i in range(8)]
    won = {(a, b): {"p": 1.0, "q": 0.0} for a, b in itertools.combinations(names, 2)}
    assert list(elo(won, names[3], num_resamples=2)) == names
