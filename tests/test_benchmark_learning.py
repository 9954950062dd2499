"""The benchmark of reward curves: its rewards, its configs, and the table that it writes."""

import pytest

from benchmarks import answer_rewards, learning, learning_config
from cai_jax.pipeline import graph as pipeline
from cai_jax.structs import Message

TEXTS = ("No.", "Why? Because.", "Why?", "Why? Or why?", "?", "")


def test_rewards_by_hand():
    answers = [(Message("human", "q?"), Message("assistant", text)) for text in TEXTS]
    assert answer_rewards.question_mark(answers) == [0, 1, 1, 1, 1, 0]
    assert answer_rewards.single_question(answers) == [0, 0.5, 1, 0.5, 1, 0]


@pytest.mark.parametrize("method", learning_config.METHODS)
def test_every_method_is_a_config_that_may_run(method):
    for reward in learning.REWARDS:
        arguments = f"reward={reward},method={method},seed=1,size=quick"
        config = learning_config.get_config(arguments)
        assert pipeline.build_graph(config)["rl"].fields["algorithm"] == method
    assert config.seed == 1


def test_the_table_by_hand(tmp_path):
    def rows(last, count=6):
        return [
            {"step": i + 1, "reward": last if i >= 2 else 0.25, "kl": 2.0, "seconds": 9.0 - i}
            for i in range(count)
        ]

    curves = {"question_mark": {"ppo": {0: rows(0.5), 1: rows(1.0)}}}
    line = learning.table(curves).splitlines()[2]
    assert line.split(" | ")[1:] == ["PPO", "2", "0.25", "0.75 (0.50 to 1.00)", "2.0", "6 |"]
    learning.draw(curves, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"learning.svg", "learning.png"}
