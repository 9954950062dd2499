"""Lettered questions: softmax, ties, baselines and the requests, with a format small enough to
check by eye."""

import collections
import dataclasses
import math

import pytest

from cai_jax.evals import multiple_choice as mc
from cai_jax.evals.intervals import Estimate
from cai_jax.evals.rows import find, row
from cai_jax.structs import Completion, Message, Score
from tests.synthetic_tokenizers import BYTE_FORMAT


@dataclasses.dataclass(frozen=True)
class Item:
    id: str
    prompt: str
    options: tuple
    correct: int
    dialogues: tuple | None = None
    subset: str | None = None


def shown(request):
    return b"".join(bytes(s) for s in request.segments).decode()


def item(number, correct, texts=("short", "a longer text")):
    prompt = f"Question {number}? Options:\n (A) {texts[0]}\n (B) {texts[1]}\nThe answer is:"
    return Item(f"q{number}", prompt, (" (A)", " (B)"), correct)


def prefers(letter):
    """A scorer whose favourite letter gets log ¾ and the other log ¼."""

    def score(requests):
        for request in reversed(requests):  # results may come in any order
            options = [bytes(o).decode() for o in request.options]
            yield Score(
                request.id, tuple((math.log(0.75 if letter in o else 0.25),) for o in options)
            )

    return score


def test_requests_end_in_the_cue_and_share_the_shots():
    shots, rest = [item(8, 1)], [item(1, 0), item(2, 1)]
    requests = mc.score_requests(rest, BYTE_FORMAT, {item.id: shots for item in rest})
    assert requests[0].segments[0] == requests[1].segments[0]  # one prefill for the worked examples
    text = shown(requests[0])
    assert text.endswith("(B) a longer text\nThe answer is:") and text.count("The answer is:") == 2
    assert "The answer is: (B)\n\nQuestion 1?" in text


def test_worked_examples_that_do_not_fit_are_left_out_and_no_item():
    """The last ones first; a short question keeps all of its own, and the request is never longer
    than the context."""
    long = item(3, 0, ("word " * 40, "a longer text"))
    items, shots = [item(1, 0), long], [item(8, 1), item(9, 0), item(7, 1)]
    asked = {}

    def score(requests):
        asked.update({request.id: request for request in requests})
        return prefers("A")(requests)

    by_item = {one.id: shots for one in items}
    found = mc.answer(score, items, BYTE_FORMAT, shots=by_item, max_length=360)
    counts = {result.id: result.num_few_shot for result in found}
    assert counts["q1"] == 3 and 0 < counts["q3"] < 3
    for name, request in asked.items():
        text = shown(request)
        assert [f"Question {n}?" in text for n in (8, 9, 7)] == [i < counts[name] for i in range(3)]
        assert len(text) + len(" (A)") <= 360
    (plain,) = mc.answer(prefers("A"), items[:1], BYTE_FORMAT, max_length=360)
    assert plain.num_few_shot is None


def test_accuracy_and_first_option_share():
    items = [item(1, 0), item(2, 1), item(3, 1)]
    results = sorted(mc.answer(prefers("A"), items, BYTE_FORMAT), key=lambda r: r.id)
    assert [r.id for r in results] == ["q1", "q2", "q3"]
    assert results[0].probabilities == pytest.approx((0.75, 0.25))
    assert results[0].logprobs == pytest.approx((math.log(0.75), math.log(0.25))), (
        "raw, so that they can be checked"
    )
    assert mc.accuracy(results).value == pytest.approx(1 / 3)
    assert mc.first_option_share(results).value == 1.0


def test_ties_share_the_point_and_skipped_items_are_left_out():
    tied = mc.ChoiceResult("q", None, (0.4, 0.4, 0.2), 1)
    assert tied.right == 0.5 and mc.ChoiceResult("q", None, (0.4, 0.4, 0.2), 2).right == 0.0
    assert list(mc.answer(lambda requests: iter(()), [item(1, 0)], BYTE_FORMAT)) == []


def test_normalise():
    assert mc.normalise([-1000.0, -1000.0]) == (0.5, 0.5)
    assert mc.normalise([0.0, float("-inf")]) == (1.0, 0.0)
    with pytest.raises(ValueError):
        mc.normalise([float("-inf")] * 2)


def test_chains_are_averaged_as_probabilities():
    def sample(requests, sampling):
        for request in requests:
            assert shown(request).endswith("Let's think step by step:")
            yield Completion(request.id, (1,), (0.0,), f" chain {request.id[-1]} ", "eos")

    def score(requests):
        for request in requests:
            sure = 0.9 if "chain 0" in shown(request) else 0.3
            assert shown(request).endswith("So the answer is:")
            yield Score(request.id, ((math.log(sure),), (math.log(1 - sure),)))

    (result,) = mc.answer_with_chains(
        sample, score, [item(1, 0)], BYTE_FORMAT, seed=0, num_chains=2
    )
    assert result.probabilities == pytest.approx((0.6, 0.4)) and result.chains == (
        "chain 0",
        "chain 1",
    )


def test_baselines_by_hand():
    items = [item(1, 1), item(2, 1), item(3, 0), item(4, 0, ("same", "text"))]
    found = mc.baselines(items)
    assert found == {"chance": 0.5, "majority": 0.5, "longer": (1 + 1 + 0 + 0.5) / 4}
    assert mc.baselines([])["chance"] is None


def test_option_texts_in_many_shapes():
    prompt = "Text. Options:\n (A) one\nsecond line\n (B) two\n (C) three\nThe answer is:"
    multi = Item("m", prompt, (" (A)", " (B)", " (C)"), 0)
    assert mc.option_texts(multi) == ["one\nsecond line", "two", "three"]
    dialogues = tuple(
        (Message("human", "?"), Message("assistant", text)) for text in ("right", "no")
    )
    assert mc.option_texts(Item("d", "…", (" (A)", " (B)"), 1, dialogues)) == ["no", "right"]
    assert mc.option_texts(Item("x", "no options here", (" (A)", " (B)"), 0)) is None


def test_shots_are_fixed_by_the_seed_and_no_item_is_shown_its_own_answer():
    items = [item(i, 0) for i in range(20)]
    shots = mc.draw_shots(items, 3, seed=1)
    assert list(shots) == [one.id for one in items] and {
        len(found) for found in shots.values()
    } == {3}
    assert not any(one in shots[one.id] for one in items)
    headers = collections.Counter(tuple(one.id for one in found) for found in shots.values())
    assert sorted(headers.values()) == [3, 17], (
        "all have the same header but those that stand in it"
    )
    assert mc.draw_shots(items, 3, seed=1) == shots != mc.draw_shots(items, 3, seed=2)
    assert (
        set(map(len, mc.draw_shots(items[:4], 3, seed=0).values())) == {2}
        and mc.draw_shots([], 3, seed=0) == {}
    )
    assert not any(mc.draw_shots(items[:1], 3, seed=0).values()) and not any(
        mc.draw_shots(items, 0, seed=0).values()
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
