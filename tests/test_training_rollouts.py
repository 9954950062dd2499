"""Rollouts: prompts in epochs without state, arrays that say what was sampled, rewards from
anywhere."""

import collections
import dataclasses
import sys
import types

import numpy as np
import pytest

from cai_jax.errors import UserError
from cai_jax.rewards.functions import custom_reward
from cai_jax.structs import Completion, Message
from cai_jax.training import rollouts as lib

PROMPTS = [
    lib.PromptTokens(f"p{i}", (Message("human", str(i)),), None, ((9,), tuple(range(i + 1))))
    for i in range(5)
]


def fields(count, group_size=1, fraction=None):
    return types.SimpleNamespace(
        rollouts_per_update=count, group_size=group_size, helpful_fraction=fraction
    )


THREE, EIGHT, PAIRS = fields(3), fields(8), fields(6, group_size=2)


def test_prompts_go_round_in_epochs_without_state():
    names = [name for update in range(10) for name, _ in lib.draw(PROMPTS, update, THREE, 0, "rl")]
    assert len(set(names)) == 30
    counts = collections.Counter(name.split("/")[1] for name in names)
    assert set(counts.values()) == {6}  # none skipped, none favoured
    assert [name for name, _ in lib.draw(PROMPTS, 7, THREE, 0, "rl")] == names[21:24]
    epochs = [tuple(name.split("/")[1] for name in names[5 * e : 5 * e + 5]) for e in range(6)]
    assert len(set(epochs)) > 1


def test_a_prompt_is_answered_as_often_as_a_group_is_large():
    names = [name for update in range(5) for name, _ in lib.draw(PROMPTS, update, PAIRS, 0, "rl")]
    assert [name.rpartition(".")[2] for name in names] == ["00", "01"] * 15
    alone = [name for update in range(5) for name, _ in lib.draw(PROMPTS, update, THREE, 0, "rl")]
    assert [name.rpartition(".")[0] for name in names[::2]] == alone
    drawn = lib.draw(PROMPTS, 1, PAIRS, 0, "rl")
    requests = lib.requests(drawn, 1, 0, "rl")
    assert len({tuple(request.key) for request in requests}) == 6
    done = {name: Completion(name, (7,), (-0.5,), "", "eos") for name, _ in drawn}
    groups = lib.assemble(drawn, done, 16).groups
    assert all(groups[::2] == groups[1::2]) and sorted(set(groups.tolist())) == [0, 1, 2]


def test_helpful_prompts_have_their_share_and_go_round_for_themselves():
    helpful = [dataclasses.replace(PROMPTS[0], id=f"h{i}", helpful=True) for i in range(3)]
    how = fields(10, fraction=0.3)
    drawn = [lib.draw([*PROMPTS, *helpful], update, how, 0, "rl") for update in range(5)]
    shares = [sum(prompt.helpful for _, prompt in update) for update in drawn]
    assert shares == [3] * 5
    counts = collections.Counter(prompt.id for update in drawn for _, prompt in update)
    assert {counts[prompt.id] for prompt in helpful} == {5}  # 15 of 3
    assert {counts[prompt.id] for prompt in PROMPTS} == {7}  # 35 of 5
    assert len({name for update in drawn for name, _ in update}) == 50


def test_every_rollout_has_its_own_key_and_the_same_one_again():
    """The defect: a sampler whose key was 0 at every call."""
    keys = [
        tuple(request.key)
        for update in range(4)
        for request in lib.requests(lib.draw(PROMPTS, update, EIGHT, 0, "rl"), update, 0, "rl")
    ]
    assert len(set(keys)) == len(keys)
    drawn = lib.draw(PROMPTS, 3, EIGHT, 0, "rl")
    assert [tuple(request.key) for request in lib.requests(drawn, 3, 0, "rl")] == keys[24:]
    assert [tuple(request.key) for request in lib.requests(drawn[::-1], 3, 0, "rl")] == keys[24:][
        ::-1
    ]


def test_arrays_of_rollouts():
    drawn = [("a", PROMPTS[1]), ("b", PROMPTS[0])]
    done = {
        "a": Completion("a", (7, 0), (-0.5, -1.5), "seven", "eos"),
        "b": Completion("b", (8,), (-2.5,), "eight", "length"),
    }
    batch = lib.assemble(drawn, done, 8)
    np.testing.assert_array_equal(
        batch.tokens, [[9, 0, 1, 7, 0, 0, 0, 0], [9, 0, 8, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch.mask.sum(1), [5, 3])
    np.testing.assert_array_equal(
        np.argwhere(batch.actions), [[0, 3], [0, 4], [1, 2]]
    )  # EOS is an action, padding is not
    np.testing.assert_array_equal(batch.sampled[batch.actions], np.float32([-0.5, -1.5, -2.5]))
    assert batch.scores.dtype == np.float32
    assert lib.longest(PROMPTS, 30) == 48 and lib.longest(PROMPTS, 26) == 32


def test_custom_rewards_by_dotted_name(monkeypatch):
    module = types.ModuleType("my_rewards")
    module.length = lambda dialogues: [len(dialogue[-1].text) + 0.5 for dialogue in dialogues]
    module.short = lambda dialogues: [1.0]
    module.words = lambda dialogues: ["good"] * len(dialogues)
    module.number = 3
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    dialogues = [(Message("human", "q"), Message("assistant", text)) for text in ("abc", "")]
    scores = custom_reward("python:my_rewards.length")(dialogues)
    np.testing.assert_array_equal(scores, np.float32([3.5, 0.5]))
    assert scores.dtype == np.float32
    for name, message in (
        ("short", "2 finite numbers"),
        ("words", "list of numbers"),
        ("number", "list of numbers"),
    ):
        with pytest.raises(UserError, match=message):
            custom_reward(f"python:my_rewards.{name}")(dialogues)
    for name in ("my_rewards.none", "no_such_module.f", "f"):
        with pytest.raises(UserError, match="python:package.module.function"):
            custom_reward(f"python:{name}")


def test_saved_arrays_depend_on_the_numbers_only(tmp_path):
    batch = lib.assemble(
        [("a", PROMPTS[1])], {"a": Completion("a", (7, 0), (-0.5, -1.5), "", "eos")}, 8
    )
    frozen = {"values": np.ones((1, 8), np.float32)}
    for name in ("x", "y"):
        lib.save_arrays(tmp_path / f"{name}.npz", batch, frozen)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    with np.load(tmp_path / "x.npz") as saved:
        assert (saved["start"][0], saved["end"][0]) == (3, 5) and saved["ids"][0] == "a"
