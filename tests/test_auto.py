"""Fields that are "auto": what they become, that fingerprints and the run's record show that, and
nothing else."""

import pytest

from cai_jax import main
from cai_jax.configuration import auto
from cai_jax.errors import UserError
from cai_jax.pipeline import graph as pipeline


def config(*flags):
    return main.parse(["cai_jax", "--config=configs/tiny.py", *flags])[0]


CHAIN = "--config.graph.feedback.mode=chain_of_thought"


def chosen(run_config):
    graph = auto.resolve(run_config).graph
    return (
        graph.feedback.model,
        tuple(graph.pm.clamp),
        tuple(graph.evaluate.evals.multiple_choice.clamp),
    )


def test_a_chain_of_thought_brings_the_helpful_model_and_the_clamp():
    """The defect: mode=chain_of_thought left the pretrained model and unclamped labels, without a
    word."""
    assert chosen(config()) == ("feedback", (), (0.4, 0.6))
    assert chosen(config(CHAIN)) == ("helpful", (0.4, 0.6), (0.4, 0.6))
    assert auto.resolve(config()).graph.feedback_chain.model == "helpful"


@pytest.mark.parametrize(
    "flags,want",
    [
        (("--config.graph.feedback.model=base",), ("base", (0.4, 0.6), (0.4, 0.6))),
        (("--config.graph.pm.clamp=()",), ("helpful", (), (0.4, 0.6))),
        (("--config.graph.pm.clamp=(0.3,0.7)",), ("helpful", (0.3, 0.7), (0.3, 0.7))),
        (("--config.graph.pm.label_kind=hard",), ("helpful", (), (0.4, 0.6))),
        (("--config.graph.pm.inputs.labels=",), ("helpful", (), (0.4, 0.6))),
        (("--config.graph.evaluate.evals.multiple_choice.clamp=()",), ("helpful", (0.4, 0.6), ())),
    ],
)
def test_what_is_given_stays(flags, want):
    assert chosen(config(CHAIN, *flags)) == want


def test_fingerprints_have_the_values_and_a_line_says_so():
    plain, chain = (pipeline.build_graph(config(*flags)) for flags in ((), (CHAIN,)))
    given = pipeline.build_graph(
        config(CHAIN, "--config.graph.feedback.model=helpful", "--config.graph.pm.clamp=(0.4,0.6)")
    )
    assert chain["pm"].fields["clamp"] == [0.4, 0.6] and plain["pm"].fields["clamp"] == []
    assert chain["feedback"].fields["model"] == "helpful"
    assert [given[name].fingerprint for name in ("feedback", "pm")] == [
        chain[name].fingerprint for name in ("feedback", "pm")
    ]
    assert auto.notes(config("--config.stages=sl,rl")) == []
    assert auto.notes(config(CHAIN, "--config.stages=feedback,pm")) == [
        "config.graph.feedback.model: auto → 'helpful' (mode=chain_of_thought)",
        "config.graph.pm.clamp: auto → (0.4, 0.6) (soft labels with chains)",
    ]


@pytest.mark.parametrize(
    "field,value,only",
    [
        ("mode", "chain_of_thought", "'multiple_choice'"),
        ("mode", "preference_model", "'multiple_choice'"),
        ("principles_per_pair", 4, "1"),
    ],
)
def test_a_judge_as_reward_refuses_what_it_does_not_do(field, value, only):
    """The defect: the field was dropped without a word."""
    judged = "--config.graph.rl.reward=@feedback", "--config.graph.rl.group_size=2"
    assert set(auto.resolve(config(*judged)).graph.rl.rewards) == {"judge"}
    with pytest.raises(UserError) as error:
        auto.resolve(config(*judged, f"--config.graph.feedback.{field}={value}"))
    assert f"graph.feedback.{field}: " in str(error.value)
    assert f"{value!r}; expected {only}; or train a pm" in str(error.value)


def test_a_clamp_that_is_no_range_is_refused_by_the_name_of_the_field_that_was_set():
    """The defect: evaluate's clamp, which follows pm.clamp, was named though nobody set it."""
    with pytest.raises(UserError, match=r"graph\.pm\.clamp: expected two probabilities"):
        pipeline.build_graph(config("--config.graph.pm.clamp=(0.6,0.4)"))
