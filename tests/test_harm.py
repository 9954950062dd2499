"""Absolute harmfulness: ratings are read as they are, the regressor recovers a known score,
expected harm by hand."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.core import accuracy, sharding
from cai_jax.core.optim import adam, learning_rate
from cai_jax.data.ratings import load_ratings
from cai_jax.errors import UserError
from cai_jax.evals import harm
from cai_jax.evals.rows import find
from cai_jax.microworld import rated
from cai_jax.models import heads
from cai_jax.models.config import ModelConfig
from cai_jax.models.params import init_params
from cai_jax.pipeline import graph as pipeline
from cai_jax.stages import harm as stage
from cai_jax.structs import Message
from cai_jax.training import batching
from cai_jax.training import state as state_lib
from configs import default, microworld, tiny

CONFIG = ModelConfig(
    family="llama",
    vocab_size=24,
    width=32,
    ffw=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
)
TALK = "\n\nHuman: do {}\n\nAssistant: no\n\nHuman: please\n\nAssistant: well"


def write(path, rows, array=False):
    text = json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


# ---------------------------------------------------------------- the data


@pytest.mark.parametrize(
    "name,array", [("red_team_attempts.jsonl.gz", True), ("red_team_attempts.jsonl", False)]
)
def test_the_published_schema(tmp_path, name, array):
    """One JSON array in spite of its name, or JSON Lines; other annotations are left alone."""
    rows = [
        {"transcript": TALK.format(i), "rating": i % 5, "num_params": "52B", "tags": None}
        for i in range(6)
    ]
    rows += [
        {"transcript": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rating": 2.0},
        {"transcript": " ", "rating": 1.0},
    ]
    found, dropped = load_ratings(write(tmp_path / name, rows, array))
    assert [item.rating for item in found] == [0, 1, 2, 3, 4, 0, 2] and dropped == {"empty turn": 1}
    assert [message.text for message in found[0].dialogue] == ["do 0", "no", "please", "well"]
    assert found[-1].dialogue == (Message("human", "a"), Message("assistant", "b")), (
        "an open end is left out"
    )
    assert [item.id for item in load_ratings(str(tmp_path / name), offset=2, limit=2)[0]] == [
        found[2].id,
        found[3].id,
    ]


@pytest.mark.parametrize(
    "row,told",
    [
        ({"transcript": TALK, "rating": 5}, "from 0"),
        ({"transcript": TALK, "rating": "3"}, "a number"),
        ({"rating": 1}, "transcript"),
        ({"transcript": TALK, "rating": float("nan")}, "from 0"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, told):
    path = write(tmp_path / "r.jsonl", [{"transcript": TALK, "rating": 0}, row])
    with pytest.raises(UserError, match=f"r.jsonl:2: .*{told}"):
        load_ratings(path)


def test_the_microworlds_ratings_are_the_oracles():
    rows = [json.loads(line) for line in (rated.DATA / "ratings.jsonl").read_text().splitlines()]
    assert rows == rated.rated(), "the file is what the code writes"
    assert {row["rating"] for row in rows} == {0.0, 1.0, 2.0, 3.0, 4.0}
    found, dropped = load_ratings(str(rated.DATA / "ratings.jsonl"), split="heldout")
    assert len(found) == rated.COUNTS["heldout"] and not dropped


# ---------------------------------------------------------------- the regressor


def known_score(tokens) -> float:
    """Linear in how often each token comes: what a regression must find."""
    return float(np.clip(np.mean([(token - 2) * 4 / 21 for token in tokens]), 0, 4))


def test_it_recovers_a_known_linear_score():
    """On dialogues that it never saw the error is below a twentieth of the mean predictor's (and
    the mean is where it starts)."""
    rng = np.random.default_rng(0)
    rows = [
        tuple(int(t) for t in np.clip(rng.normal(c, 3, 6).round(), 2, 23))
        for c in rng.uniform(3, 22, 360)
    ]
    items = [
        stage.Rated(str(i), "ratings", str(i), row, known_score(row)) for i, row in enumerate(rows)
    ]
    train, held = items[:300], items[300:]
    mean = float(np.mean([item.rating for item in train]))
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    head = {**heads.zero_head(CONFIG), "bias": jnp.asarray(mean, jnp.float32)}
    params = state_lib.with_head(
        jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0)), head, mesh
    )
    abstract = {"params": state_lib.abstract_params(CONFIG, "harm", mesh)}
    tx = adam(learning_rate(3e-3, schedule="linear", num_steps=200))
    abstract["optimiser"] = state_lib.abstract_optimiser(tx, abstract["params"], mesh)
    update = state_lib.make_update(stage.make_loss(CONFIG, jnp.float32), tx, abstract, mesh, 2)
    state = {"params": params, "optimiser": state_lib.init_optimiser(tx, params, mesh)}
    losses = []
    for step in range(200):
        chosen = [train[i] for i in rng.integers(0, 300, 31)]  # one place stays empty
        state, scalars = update(
            state,
            stage.make_batch(
                chosen, {item.id: item.dialogue for item in chosen}, batching.Shape(16, 12, 2)
            ),
        )
        losses.append(float(scalars["loss"]))
        assert float(scalars["count"]) == 31
        if step == 0:
            assert losses[0] == pytest.approx(
                np.mean([(item.rating - mean) ** 2 for item in chosen]), rel=1e-5
            )
    tokens = np.array([item.dialogue for item in held], np.int32)
    predicted = np.asarray(
        heads.dialogue_scores(state["params"], tokens, np.ones(tokens.shape, bool), CONFIG)
    )
    found = accuracy.regression_errors(
        [
            {"rating": item.rating, "predicted": float(value), "source": "ratings"}
            for item, value in zip(held, predicted, strict=True)
        ],
        mean,
    )["ratings"]
    assert found["l2"]["value"] < 0.05 * found["mean_predictor"] and found["correlation"] > 0.97
    assert found["difference"]["high"] < 0


def test_held_out_error_by_hand():
    records = [
        {"source": "ratings", "rating": r, "predicted": p} for r, p in ((0, 1), (4, 3), (2, 2))
    ]
    found = accuracy.regression_errors(records, 1.0)["ratings"]
    assert found["l2"]["value"] == pytest.approx(2 / 3) and found[
        "mean_predictor"
    ] == pytest.approx((1 + 9 + 1) / 3)
    assert found["difference"]["value"] == pytest.approx(2 / 3 - 11 / 3) and found[
        "correlation"
    ] == pytest.approx(1.0)
    error, difference = harm.regressor_rows({"ratings": found}, "@harm")
    assert error["baseline"] == {"mean": pytest.approx(11 / 3)} and difference["against"] == "mean"


# ---------------------------------------------------------------- expected harm


def test_expected_harm_by_hand():
    """Samples of a prompt are averaged first; the difference is paired by prompt."""
    said = {
        ("a", "p"): (0.0, 2.0),
        ("a", "q"): (4.0, 4.0),
        ("b", "p"): (0.0, 0.0),
        ("b", "q"): (3.0, 3.0),
    }
    records = [
        {"id": f"{m}{p}{i}", "on": "T=1", "name": m, "prompt_id": p}
        for m, p in said
        for i in (0, 1)
    ]
    harms = {f"{m}{p}{i}": said[m, p][i] for m, p in said for i in (0, 1)}
    rows = harm.rows(records, harms, ["a", "b"])
    assert [r["value"] for r in find(rows, "expected_harm", "T=1")] == [2.5, 1.5]
    assert find(rows, "expected_harm", "T=1", "b", "a")[0]["value"] == -1.0
    assert (
        find(rows, "harmful_share", "T=1", "a")[0]["value"] == 0.5
        and find(rows, "expected_harm")[0]["samples"] == 2
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config, directory) of a run with a regressor, and what it says of two models, on a random
    model of two layers."""
    path, config = tmp_path_factory.mktemp("run"), tiny.get_config()
    none = {"source": "", "split": "", "offset": 0, "limit": None}
    steps = default.optimisation(learning_rate=1e-3, batch_size=16) | {
        "max_length": 512,
        "save_every_steps": 9,
    }
    ratings = {
        "source": str(rated.DATA / "ratings.jsonl"),
        "split": "train",
        "offset": 0,
        "limit": 36,
    }
    config.graph = {
        "harm": default.harm(
            ratings=ratings, heldout={**ratings, "split": "heldout", "limit": 8}, **steps
        ),
        "evaluate": default.evaluate(
            {"initial": "helpful", "again": "base"},
            reward="",
            feedback="",
            choices="",
            max_new_tokens=8,
            prompts_red_team=none,
            prompts_helpful=none,
            harm=default.absolute_harm("@harm", 3, source=microworld.RED_TEAM, limit=4),
        ),
    }
    config.stages = ("harm", "evaluate")
    pipeline.run(config, str(path))
    return config, path


def test_a_run(finished):
    _, path = finished
    held = json.loads((path / "harm" / "manifest.json").read_text())["summary"]["held_out"]
    assert set(held) == {"ratings", "heldout"} and held["heldout"]["l2"]["n"] == 8
    assert json.loads((path / "harm" / "model" / "role.json").read_text())["kind"] == "harm"
    rows = json.loads((path / "evaluate" / "metrics.json").read_text())["rows"]
    cold, warm = (find(rows, "expected_harm", on, "initial")[0] for on in ("T=0", "T=1"))
    assert (cold["n"], cold["samples"], warm["n"], warm["samples"]) == (4, 1, 4, 3)
    assert find(rows, "expected_harm", "T=0", "initial", "again")[0]["value"] == 0.0, (
        "the same model, the same harm"
    )
    (error,) = find(rows, "harm_l2", "held-out ratings", "@harm")
    assert error["baseline"]["mean"] == pytest.approx(held["ratings"]["mean_predictor"])
    answers = [
        json.loads(line) for line in (path / "evaluate" / "harm.jsonl").read_text().splitlines()
    ]
    assert len(answers) == 2 * 4 * (1 + 3)


def test_a_regressor_is_no_preference_model(finished):
    config, path = finished
    wrong = config.graph.evaluate.to_dict()
    wrong["evals"]["preference_scores"]["reward"] = "@harm"
    config.graph = {"harm": config.graph.harm.to_dict(), "wrong": wrong}
    config.stages = ("wrong",)
    with pytest.raises(UserError, match="a reward is needed here"):
        pipeline.run(config, str(path))
