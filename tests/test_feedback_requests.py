"""What a feedback stage asks word by word, in every mode, and what its labels are for the scores
that it got."""

import json
import math

import pytest

from cai_jax.core import labels
from cai_jax.seeds import row_key
from cai_jax.stages import feedback
from cai_jax.textmodels import loader
from configs import default
from tests.recording import CONSTITUTION, human, stage

PRINCIPLES = {item["id"]: item["text"] for item in CONSTITUTION["comparison_principles"]}
ROWS = [
    {
        "id": f"q{i}",
        "prompt_id": f"q{i}",
        "kind": "theft",
        "dialogue": human(f"Question {i}"),
        "responses": [f"left {i}", f"right {i}"],
    }
    for i in range(2)
]
START = "Consider the following conversation between a human and an assistant:\n"
# log-probabilities of (A) and (B), by order and chain
SCORES = {"ab0": (-1.0, -3.0), "ab1": (-2.0, -1.5), "ba0": (-0.5, -0.7), "ba1": (-4.0, -1.0)}


def probability(part):
    """p(first response) of one of SCORES, by hand."""
    a, b = SCORES[part] if part.startswith("ab") else SCORES[part][::-1]
    return math.exp(a) / (math.exp(a) + math.exp(b))


def question(asked, principle, first, second, heading="Options:\n"):
    return f"{START}Human: {asked}\n{principle}\n{heading}(A) {first}\n(B) {second}"


def run(path, rows=ROWS, limit=100_000, **fields):
    source = path / "constitution.json"
    source.write_text(json.dumps(CONSTITUTION))
    config = default.feedback(constitution=str(source), **{"num_few_shot": 2, **fields})
    ctx, asked = stage(
        path,
        "feedback",
        config,
        inputs={"comparisons": rows},
        answer=lambda request: f" thought {request.id} ",
        score=lambda request: SCORES[request.id.rpartition("#")[2]],
        roles={"feedback": "a judge"},
        limit=limit,
    )
    return feedback.run(ctx), ctx.directory.records(), asked


def test_multiple_choice_word_by_word(tmp_path):
    """Both orders; two worked examples with principles and orders of their own, then the question
    with the drawn one."""
    _, records, asked = run(tmp_path, both_orders=True)
    by_id = {request.id: request for request in asked}
    assert len(records) == 2 and len(asked) == len(by_id) == 4
    for record in records:
        number, header = record["comparison_id"][1], ""
        for index, name in enumerate(record["few_shot_ids"]):
            example, principle, order = name.split(":")
            assert example == f"x{index}"
            good, bad = f"Good {index}", f"Bad {index}"
            shown = (good, bad) if order == "ab" else (bad, good)
            header += question(f"Shown {index}", PRINCIPLES[principle], *shown)
            header += f"\nThe answer is: ({'A' if order == 'ab' else 'B'})\n\n"
        for order in ("ab", "ba"):
            request = by_id[f"{record['id']}#{order}0"]
            texts = (f"left {number}", f"right {number}")
            texts = texts if order == "ab" else texts[::-1]
            own = question(f"Question {number}", PRINCIPLES[record["principle_id"]], *texts)
            assert request.segments == (header, f"{own}\nThe answer is:")
            assert request.options == (" (A)", " (B)") and request.model == "a judge"


def test_raw_scores_are_recorded_and_become_the_label(tmp_path):
    summary, records, _ = run(tmp_path, both_orders=True)
    for record in records:
        name = record["comparison_id"]
        scores = {order: SCORES[f"{order}0"] for order in ("ab", "ba")}
        assert record["logprobs"] == [
            {"order": order, "chain": 0, "a": a, "b": b, "how": "scored"}
            for order, (a, b) in scores.items()
        ]
        assert record["id"] == f"{name}/0-1/{record['principle_id']}" and record["pair"] == [0, 1]
        assert (record["prompt_id"], record["kind"], record["chains"]) == (name, "theft", [])
        assert record["principle"] == PRINCIPLES[record["principle_id"]]
        mean = (probability("ab0") + probability("ba0")) / 2
        assert labels.target([record]) == pytest.approx(mean) and 0.6 < mean < 0.7
        assert labels.target([record], average_orders=False) == pytest.approx(probability("ab0"))
    assert summary["mean_confidence"] == pytest.approx(probability("ab0"))
    assert (summary["chose_option_a"], summary["flip_rate"]) == (1.0, 1.0)


@pytest.mark.parametrize("both,shares", [(False, 1.0), (True, 0.0)])
def test_agreement_with_people(tmp_path, both, shares):
    """Of pairs that people judged; the label is that of both orders where both were asked."""
    rows = [{**ROWS[0], "preferred": 0, "kind": "hh"}]
    saved, SCORES["ba0"] = SCORES["ba0"], (-0.1, -9.0)
    try:
        summary, *_ = run(tmp_path, rows=rows, both_orders=both)
    finally:
        SCORES["ba0"] = saved
    assert summary["agreement"] == shares and "agrees with people" in summary["headline"]


def test_chains_of_thought_word_by_word(tmp_path):
    """Two chains an order at a temperature that is not 1; each chain stands before the question of
    its own letter."""
    _, records, asked = run(
        tmp_path,
        mode="chain_of_thought",
        both_orders=True,
        num_chains=2,
        temperature=0.6,
        max_chain_tokens=17,
    )
    thought = {request.id: request for request in asked if request.sampling}
    scored = {request.id: request for request in asked if not request.sampling}
    assert len(thought) == len(scored) == 2 * 2 * 2 and set(thought) == set(scored)
    for record in records:
        number, header = record["comparison_id"][1], ""
        for index, name in enumerate(record["few_shot_ids"]):
            example, principle = name.split(":")
            assert example == f"t{index}"
            shown = question(
                f"Thought {index}", PRINCIPLES[principle], f"Left {index}", f"Right {index}", ""
            )
            header += f"\n\nHuman: {shown}\n\nAssistant: Let's think step by step: Because {index}."
            header += "\n\nHuman: So the answer is: (B)"
        for order in ("ab", "ba"):
            texts = (f"left {number}", f"right {number}")
            texts = texts if order == "ab" else texts[::-1]
            principle = PRINCIPLES[record["principle_id"]]
            own = question(f"Question {number}", principle, *texts, "")
            start = f"{header}\n\nHuman: {own}\n\nAssistant: Let's think step by step:"
            for chain in (0, 1):
                name = f"{record['id']}#{order}{chain}"
                assert thought[name].prompt == start
                assert thought[name].key == tuple(
                    row_key(5, "feedback", order, record["id"], chain)
                )
                how = thought[name].sampling
                assert (how.max_new_tokens, how.temperature) == (17, 0.6)
                assert (how.top_k, how.top_p) == (0, 1.0)
                assert how.stop_strings == ("\n\nHuman:", "\n\nAssistant:")
                said = f"{start} thought {name}\n\nHuman: So the answer is:"
                assert scored[name].prompt == said and scored[name].options == (" (A)", " (B)")


def test_chains_are_averaged_as_probabilities_and_then_clamped(tmp_path):
    _, records, _ = run(tmp_path, mode="chain_of_thought", both_orders=True, num_chains=2)
    for record in records:
        found = [(entry["order"], entry["chain"]) for entry in record["logprobs"]]
        assert found == [("ab", 0), ("ab", 1), ("ba", 0), ("ba", 1)]
        assert [(c["order"], c["chain"]) for c in record["chains"]] == found
        for chain in record["chains"]:
            part = f"{chain['order']}{chain['chain']}"
            assert chain["text"] == f"thought {record['id']}#{part}"
        mean = sum(map(probability, SCORES)) / 4
        assert labels.target([record]) == pytest.approx(mean) and mean > 0.6
        assert labels.target([record], clamp=(0.4, 0.6)) == 0.6
        # Clamped one by one before averaging they would give another label.
        apart = sum(min(max(probability(part), 0.4), 0.6) for part in SCORES) / 4
        assert abs(apart - 0.6) > 0.01


def test_principles_and_headers(tmp_path):
    """Several principles a pair, none twice; headers shared by number where `num_headers` says
    so."""
    rows = [{**ROWS[0], "id": f"r{i}"} for i in range(8)]
    _, records, asked = run(tmp_path, rows=rows, principles_per_pair=3, num_headers=2)
    assert len(records) == 24
    for name in {record["comparison_id"] for record in records}:
        ids = [r["principle_id"] for r in records if r["comparison_id"] == name]
        assert len(set(ids)) == 3
    assert {record["header_id"] for record in records} == {"0", "1"}
    assert len({request.segments[0] for request in asked}) == 2
    assert len({record["principle_id"] for record in records}) == 4


def test_every_pair_of_a_group_shows_its_own_responses(tmp_path):
    rows = [{**ROWS[0], "responses": ["one", "two", "three"]}]
    _, records, asked = run(tmp_path, rows=rows)
    assert [record["pair"] for record in records] == [[0, 1], [0, 2], [1, 2]]
    by_id = {request.id.partition("#")[0]: request.prompt for request in asked}
    for record in records:
        a, b = (rows[0]["responses"][index] for index in record["pair"])
        assert by_id[record["id"]].endswith(f"(A) {a}\n(B) {b}\nThe answer is:")


def test_a_preference_model_labels_by_the_sigmoid_of_its_difference(tmp_path, monkeypatch):
    class Lengths:
        name = "@pm"

        def __init__(
            self, params, config, format, mesh, normalisation=None, name="", reads_cut=False
        ):
            assert normalisation is None, "raw scores"

        def score_each(self, dialogues):
            assert {d[0].text for d in dialogues} == {"Question 0", "Question 1"}
            return reversed([(i, float(len(d[-1].text))) for i, d in enumerate(dialogues)])

    monkeypatch.setattr(loader, "RewardModel", Lengths)
    _, records, asked = run(tmp_path, mode="preference_model", model="@pm")
    assert len(records) == 2 and not asked
    for record in records:
        (entry,) = record["logprobs"]  # "left 0" is one letter shorter than "right 0"
        assert entry["a"] == pytest.approx(math.log(1 / (1 + math.e)))
        assert entry["b"] == pytest.approx(math.log(1 / (1 + math.exp(-1))))
        assert labels.target([record]) == pytest.approx(1 / (1 + math.e))
        assert record["principle_id"] is None and entry["order"] == "ab"


@pytest.mark.parametrize("mode", ["multiple_choice", "chain_of_thought"])
def test_worked_examples_that_do_not_fit_are_left_out_for_all_of_a_pair(tmp_path, mode):
    """A long question has fewer, the same number for both orders and every chain; what fits with
    none is never lost."""
    long = {**ROWS[1], "dialogue": human("Question " * 30), "responses": ["left " * 30, "right"]}
    never = {**ROWS[1], "id": "q9", "dialogue": human("Question " * 300)}
    fields = {"both_orders": True, "num_chains": 2, "max_chain_tokens": 16, "mode": mode}
    summary, records, asked = run(tmp_path, [ROWS[0], long, never], limit=340, **fields)
    shown = {record["comparison_id"]: len(record["few_shot_ids"]) for record in records}
    assert shown == {"q0": 2, "q1": 1 if mode == "multiple_choice" else 0}
    word = "Shown" if mode == "multiple_choice" else "Thought"
    for record in records:
        texts = [r.prompt for r in asked if r.id.startswith(record["id"] + "#")]
        assert len(texts) == (2 if mode == "multiple_choice" else 8)
        assert {text.count(f"Human: {word}") for text in texts} <= {shown[record["comparison_id"]]}
        assert len(record["logprobs"]) == (2 if mode == "multiple_choice" else 4)
    lacking = 2 - shown["q1"]
    assert summary["few_shot"] == {"examples": lacking, "requests": 1, "of": 2}
    assert "worked examples left out" in summary["headline"]


def test_a_pair_that_does_not_fit_is_counted_once(tmp_path):
    config = default.feedback(num_few_shot=0, both_orders=True)
    rows = [ROWS[0], {**ROWS[1], "dialogue": human("Question " * 300)}]
    ctx, _ = stage(tmp_path, "feedback", config, inputs={"comparisons": rows}, limit=300)
    feedback.run(ctx)
    assert ctx.dropped == {"longer than the context": 1} and len(ctx.directory.records()) == 1
