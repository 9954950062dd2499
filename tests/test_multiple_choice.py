"""Lettered questions: softmax, ties, baselines and the questions."""

import collections
import dataclasses
import math
import types

import ml_collections
import pytest

from cai_jax.core import labels
from cai_jax.core.intervals import Estimate
from cai_jax.evals import items as items_lib
from cai_jax.evals import multiple_choice as mc
from cai_jax.evals.rows import find, row
from cai_jax.structs import Completion, Message
from cai_jax.textmodels.protocol import Choice


@dataclasses.dataclass(frozen=True)
class Item:
    id: str
    prompt: str
    options: tuple
    correct: int
    dialogues: tuple | None = None
    subset: str | None = None


def item(number, correct, texts=("short", "a longer text")):
    prompt = f"Question {number}? Options:\n (A) {texts[0]}\n (B) {texts[1]}\nThe answer is:"
    return Item(f"q{number}", prompt, (" (A)", " (B)"), correct)


def prefers(letter):
    """A task whose model gives its favourite letter log ¾ and the other log ¼."""

    class Context:
        name = "evaluate"

        def choose(self, model, questions, label, wanted, together):
            for question in reversed(questions):  # results may come in any order
                options = [math.log(0.75 if letter in o else 0.25) for o in question.options]
                if question.id in wanted:
                    yield Choice(question.id, tuple(options), num_examples=len(question.examples))

    return types.SimpleNamespace(ctx=Context())


def answers(items, shots=None, letter="A"):
    asking = mc.ModelOnSet(prefers(letter), "set", items, "m", "@m")
    found = asking.at_once(None, shots or {}, {each.id for each in items})
    return sorted(found, key=lambda record: record["item"])


def test_questions_end_in_the_cue_after_the_shots():
    asked = items_lib.question(item(1, 0), [item(8, 1)])
    text = "".join(message.text for dialogue in asked.examples for message in dialogue)
    assert text.endswith("(B) a longer text\nThe answer is: (B)") and asked.id == "q1"
    assert asked.dialogue[-1].text.endswith("The answer is:") and asked.options == (" (A)", " (B)")
    assert items_lib.closed("Why?") == "Why?\nThe answer is:"


def test_accuracy_and_first_option_share():
    items = [item(1, 0), item(2, 1), item(3, 1)]
    records = answers(items)
    assert [record["item"] for record in records] == ["q1", "q2", "q3"]
    assert records[0]["probabilities"] == pytest.approx((0.75, 0.25))
    assert records[0]["logprobs"] == pytest.approx((math.log(0.75), math.log(0.25))), (
        "raw, so that they can be checked"
    )
    assert {record["num_few_shot"] for record in records} == {None}
    few_shot = answers(items[:1], {"q1": [item(8, 1)]})
    assert few_shot[0]["num_few_shot"] == 1
    rows = mc.ModelOnSet(None, "set", items, "m", "@m").rows("zero_shot", records)
    assert find(rows, "choice_zero_shot")[0]["value"] == pytest.approx(1 / 3)
    assert find(rows, "first_option_zero_shot")[0]["value"] == 1.0


def test_ties_share_the_point():
    tied = {"probabilities": (0.4, 0.4, 0.2), "correct": 1}
    assert mc.right(tied) == 0.5 and mc.right(tied | {"correct": 2}) == 0.0


def test_chains_are_averaged_as_probabilities():
    class Context:
        name, config = "evaluate", types.SimpleNamespace(temperature=1.0)

        def generate(self, model, turns, sampling, label):
            for turn in turns:
                assert turn.lead == "Let's think step by step:"
                yield Completion(turn.id, (1,), (0.0,), f"chain {turn.id[-1]}", "eos")

        def choose(self, model, questions, label):
            for question in questions:
                sure = 0.9 if "chain 0" in question.dialogue[-1].text else 0.3
                yield Choice(question.id, (math.log(sure), math.log(1 - sure)))

    fields = {"num_chains": 2, "max_chain_tokens": 9, "num_few_shot_chains": 0}
    fields = ml_collections.ConfigDict(fields)
    task = types.SimpleNamespace(ctx=Context(), fields=fields, seed=0)
    asking = mc.ModelOnSet(task, "set", [item(1, 0)], "m", "@m")
    (record,) = asking.after_chains(None, {"q1"})
    assert record["probabilities"] == pytest.approx((0.6, 0.4))
    assert record["chains"] == ["chain 0", "chain 1"]


def test_normalise():
    assert labels.normalise([-1000.0, -1000.0]) == (0.5, 0.5)
    assert labels.normalise([0.0, float("-inf")]) == (1.0, 0.0)
    with pytest.raises(ValueError):
        labels.normalise([float("-inf")] * 2)


def test_baselines_by_hand():
    items = [item(1, 1), item(2, 1), item(3, 0), item(4, 0, ("same", "text"))]
    found = items_lib.baselines(items)
    assert found == {"chance": 0.5, "majority": 0.5, "longer": (1 + 1 + 0 + 0.5) / 4}
    assert items_lib.baselines([])["chance"] is None


def test_option_texts_in_many_shapes():
    prompt = "Text. Options:\n (A) one\nsecond line\n (B) two\n (C) three\nThe answer is:"
    multi = Item("m", prompt, (" (A)", " (B)", " (C)"), 0)
    assert items_lib.option_texts(multi) == ["one\nsecond line", "two", "three"]
    dialogues = tuple(
        (Message("human", "?"), Message("assistant", text)) for text in ("right", "no")
    )
    assert items_lib.option_texts(Item("d", "…", (" (A)", " (B)"), 1, dialogues)) == ["no", "right"]
    assert items_lib.option_texts(Item("x", "no options here", (" (A)", " (B)"), 0)) is None


def test_shots_are_fixed_by_the_seed_and_no_item_is_shown_its_own_answer():
    items = [item(i, 0) for i in range(20)]
    shots = items_lib.draw_shots(items, 3, seed=1)
    assert list(shots) == [one.id for one in items] and {
        len(found) for found in shots.values()
    } == {3}
    assert not any(one in shots[one.id] for one in items)
    headers = collections.Counter(tuple(one.id for one in found) for found in shots.values())
    assert sorted(headers.values()) == [3, 17], (
        "all have the same header but those that stand in it"
    )
    assert items_lib.draw_shots(items, 3, seed=1) == shots != items_lib.draw_shots(items, 3, seed=2)
    assert (
        set(map(len, items_lib.draw_shots(items[:4], 3, seed=0).values())) == {2}
        and items_lib.draw_shots([], 3, seed=0) == {}
    )
    assert not any(items_lib.draw_shots(items[:1], 3, seed=0).values()) and not any(
        items_lib.draw_shots(items, 0, seed=0).values()
    )


def test_rows_say_null():
    null = row("pm_score", "red_team", "sl", Estimate(0.1, -0.2, 0.4, 9), against="base")
    assert (
        null["null"]
        and "covers zero" in null["note"]
        and null["name"] == "pm_score/red_team/sl-base"
    )
    plain = row("pm_score", "red_team", "sl", Estimate(0.1, -0.2, 0.4, 9))
    assert "null" not in plain and find([null, plain], "pm_score") == [plain]
    assert find([null, plain], "pm_score", against="base") == [null]
