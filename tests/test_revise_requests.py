"""What a revise stage asks of its model over two rounds, word by word, and what it records of the
answers."""

import json

import pytest

from cai_jax.constitution.loader import load_constitution
from cai_jax.errors import UserError
from cai_jax.seeds import row_key
from cai_jax.stages import revise, sl
from configs import default
from tests.recording import CONSTITUTION, human, stage

ROWS = [
    {
        "id": f"a{i}/00",
        "prompt_id": f"a{i}",
        "kind": "theft",
        "dialogue": human(f"Question {i}"),
        "response": f"first {i}",
        "stop": "eos",
    }
    for i in range(2)
]
HEADER = (
    "\n\nHuman: Asked 0\n\nAssistant: Said 0\n\nCritiqueRequest: What is wrong 0\n\nCritique: All 0"
    "\n\nRevisionRequest: Mend 0\n\nRevision: Mended 0"
)
STOPS = ("\n\nHuman:", "\n\nAssistant:", "\n\nCritiqueRequest:", "\n\nRevisionRequest:")


def run(path, rows=ROWS, limit=100_000, answer=None, **fields):
    """(summary, context, what was asked, principles by row) of the stage on `rows`."""
    source = path / "constitution.json"
    source.write_text(json.dumps(CONSTITUTION))
    sizes = {"max_critique_tokens": 20, "max_revision_tokens": 30, "temperature": 0.7}
    chosen = {"num_rounds": 2, "num_few_shot": 1, "top_k": 9, "top_p": 0.8, **sizes, **fields}
    config = default.revise(constitution=str(source), **chosen)
    ctx, asked = stage(
        path,
        "revise",
        config,
        inputs={"responses": rows},
        answer=answer or (lambda request: f" said in {request.id} "),
        limit=limit,
        roles={"helpful": "a helpful model"},
    )
    summary = revise.run(ctx)
    number = min(chosen.get("num_principles", 16), 4)
    principles = {
        row["id"]: revise.draw_principles(
            load_constitution(str(source)).critique_principles,
            number,
            chosen["num_rounds"],
            5,
            "revise",
            row["id"],
        )
        for row in rows
    }
    return summary, ctx, asked, principles


def test_two_rounds_word_by_word(tmp_path):
    """Critique shown to the reviser, the revision in place of the response, the worked example
    before both requests."""
    summary, ctx, asked, principles = run(tmp_path)
    assert len(asked) == 8 and {request.model for request in asked} == {"a helpful model"}
    by_id = {request.id: request for request in asked}
    for row in ROWS:
        response, name = row["response"], row["id"]
        for number in (0, 1):
            principle = principles[name][number]
            start = f"{HEADER}\n\nHuman: {row['dialogue'][0]['text']}\n\nAssistant: {response}"
            start += f"\n\nCritiqueRequest: {principle.critique_request}\n\nCritique:"
            critique = by_id[f"{name}#{number}/critique"]
            assert critique.prompt == start
            assert critique.segments[0] == HEADER, "a segment of its own"
            wanted = f"{start} said in {critique.id}"
            wanted += f"\n\nRevisionRequest: {principle.revision_request}\n\nRevision:"
            revision = by_id[f"{name}#{number}/revision"]
            assert revision.prompt == wanted
            assert revision.segments[: len(critique.segments)] == critique.segments
            response = f"said in {revision.id}"
            for request, role, limit in ((critique, "critique", 20), (revision, "revision", 30)):
                assert request.key == tuple(row_key(5, "revise", f"{number}/{role}", name, 0))
                how = request.sampling
                assert (how.max_new_tokens, how.temperature) == (limit, 0.7)
                assert (how.top_k, how.top_p, how.stop_strings) == (9, 0.8, STOPS)
    order = [request.id.rpartition("#")[2] for request in asked]
    assert order == [f"{n}/{role}" for n in "01" for role in ("critique", "revision") for _ in "ab"]
    assert len({p.id for drawn in principles.values() for p in drawn}) > 1
    assert summary["rows"] == summary["changed"] == 2


def test_records_hold_every_round(tmp_path):
    _, ctx, _, principles = run(tmp_path)
    records = ctx.directory.records()
    assert [record["id"] for record in records] == ["a0/00", "a1/00"]
    for record, row in zip(records, ROWS, strict=True):
        assert (record["prompt_id"], record["kind"]) == (row["prompt_id"], "theft")
        assert (record["initial"], record["dialogue"]) == (row["response"], row["dialogue"])
        assert (record["few_shot_ids"], record["seed"]) == (["e0"], 5)
        assert record["model"] == "a helpful model" and len(record["rounds"]) == 2
        for number, found in enumerate(record["rounds"]):
            principle = principles[row["id"]][number]
            wanted = {
                "principle_id": principle.id,
                "critique_request": principle.critique_request,
                "critique": f"said in {row['id']}#{number}/critique",
                "revision_request": principle.revision_request,
                "revision": f"said in {row['id']}#{number}/revision",
            }
            assert {name: found[name] for name in wanted} == wanted


def test_without_critique_the_revision_is_asked_for_at_once(tmp_path):
    _, ctx, asked, principles = run(tmp_path, rows=ROWS[:1], critique=False)
    header = (
        "\n\nHuman: Asked 0\n\nAssistant: Said 0\n\nRevisionRequest: Mend 0\n\nRevision: Mended 0"
    )
    drawn = principles["a0/00"]
    assert [request.prompt for request in asked] == [
        f"{header}\n\nHuman: Question 0\n\nAssistant: {response}\n\nRevisionRequest: "
        f"{principle.revision_request}\n\nRevision:"
        for response, principle in (("first 0", drawn[0]), ("said in a0/00#0/revision", drawn[1]))
    ]
    (record,) = ctx.directory.records()
    assert all(found["critique"] is found["critique_request"] is None for found in record["rounds"])


@pytest.mark.parametrize("shots,ids", [(0, []), (2, ["e0", "e1"]), (9, ["e0", "e1"])])
def test_worked_examples_stand_in_the_constitutions_order(tmp_path, shots, ids):
    _, ctx, asked, _ = run(tmp_path, rows=ROWS[:1], num_few_shot=shots, num_rounds=1)
    assert ctx.directory.records()[0]["few_shot_ids"] == ids
    before, _, _ = asked[0].prompt.partition("\n\nHuman: Question 0")
    mentioned = [f"e{i}" for i in range(2) if f"Mended {i}" in before]
    assert mentioned == ids and before.count("\n\nHuman:") == len(ids)
    assert len(asked[0].segments) == (2 if ids else 1)


def test_only_the_first_principles_are_drawn(tmp_path):
    rows = [{**ROWS[0], "id": f"r{i}/00"} for i in range(12)]
    _, _, asked, _ = run(tmp_path, rows=rows, num_principles=2)
    requests = {
        a.prompt.rpartition("CritiqueRequest: ")[2][:13] for a in asked if "critique" in a.id
    }
    assert requests == {"Criticise 0 {", "Criticise 1 {"}


def test_finished_turns_are_not_asked_again(tmp_path):
    _, ctx, asked, _ = run(tmp_path)
    again, more = stage(tmp_path, "revise", ctx.config)
    again.inputs = ctx.inputs
    assert revise.run(again)["rows"] == 2 and not more


def test_nothing_that_fits_is_one_line(tmp_path):
    with pytest.raises(UserError, match="0 revisions"):
        run(tmp_path, limit=3)


def test_how_every_turn_ended_is_kept_and_what_was_cut_is_learned_without_an_end(tmp_path):
    """The defect: revisions cut at the limit of tokens became answers of SL-CAI that end in
    mid-sentence."""

    def answer(request):
        cut = request.id in ("r0#0/critique", "r0#0/revision", "r1#1/revision")
        return f"said in {request.id}", "length" if cut else "eos"

    rows = [{**row, "id": f"r{i}", "stop": ("length", "eos")[i]} for i, row in enumerate(ROWS)]
    summary, ctx, asked, _ = run(tmp_path, rows, answer=answer)
    records = {row["id"]: row for row in ctx.directory.records()}
    assert [row["initial_stop"] for row in records.values()] == ["length", "eos"]
    assert [
        [(item["critique_stop"], item["revision_stop"]) for item in row["rounds"]]
        for row in records.values()
    ] == [[("length", "length"), ("eos", "eos")], [("eos", "eos"), ("eos", "length")]]
    assert summary["cut"]["critiques of round 1"] == {"cut": 1, "of": 2}
    assert summary["cut"]["revisions of round 2"] == {"cut": 1, "of": 2}
    shown = {request.id: request.prompt for request in asked}
    assert "said in r0#0/critique" in shown["r0#0/revision"], "a critique that was cut is shown"
    answers = sl.answers(records.values(), rows)
    assert {name: dialogue[-1].cut for name, dialogue in answers} == {
        "revision r0#1": True,
        "revision r0#2": False,
        "revision r1#1": False,
        "revision r1#2": True,
        "response r0": True,
        "response r1": False,
    }
    format = ctx.models.load("helpful").format
    for _, dialogue in answers:
        example = format.example(dialogue)
        learned = example.tokens[example.target_mask].tolist()
        assert bool(set(learned) & set(format.eos_ids)) != dialogue[-1].cut
