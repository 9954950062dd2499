"""Drawing of principles, and the request texts in the paper's own format."""

import collections

import pytest

from cai_jax.constitution.loader import load_constitution
from cai_jax.data import fitting
from cai_jax.data.dialogue import render_text
from cai_jax.stages import revise
from cai_jax.structs import Message
from configs import default
from tests import recording


def test_principles_are_drawn_independently_with_replacement_among_the_first_n():
    drawn = [
        revise.draw_principles(range(16), 4, 4, 0, "revise", f"row{number}")
        for number in range(2000)
    ]
    counts = collections.Counter(value for row in drawn for value in row)
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) / min(counts.values()) < 1.15
    pairs = collections.Counter(
        (row[0], row[1]) for row in drawn
    )  # a round does not depend on the one before
    assert len(pairs) == 16 and max(pairs.values()) < 2 * min(pairs.values())


def test_a_rows_principles_depend_on_its_name_only():
    assert revise.draw_principles(range(16), 16, 4, 0, "revise", "a") == revise.draw_principles(
        range(16), 16, 4, 0, "revise", "a"
    )
    others = [
        revise.draw_principles(range(16), 16, 8, *name)
        for name in ((1, "revise", "a"), (0, "revise", "b"), (0, "x", "a"))
    ]
    assert len({tuple(row) for row in others}) == 3


def test_the_header_is_whole_examples_in_order():
    examples = load_constitution().critique_examples[:2]
    shown = revise.worked_examples(examples, critique=True)
    assert shown == (examples[0].messages, examples[1].messages)
    direct = revise.worked_examples(examples, critique=False)
    assert {message.role for example in direct for message in example} == {
        "human",
        "assistant",
        "revision_request",
        "revision",
    }


def test_the_official_files_give_the_papers_text(shared_data):
    """Header + dialogue + request, letter by letter what joining the paper's strings gives."""
    import json

    folder = shared_data / "official" / "prompts"
    shots = json.loads((folder / "CritiqueRevisionFewShotPrompts.json").read_text())
    instruction = json.loads((folder / "CritiqueRevisionInstructions.json").read_text())["harmful3"]
    constitution = load_constitution(str(folder))
    header = sum(revise.worked_examples(constitution.critique_examples, critique=True), ())
    principle = constitution.critique_principles[3]
    dialogue = (
        Message("human", "Hello?"),
        Message("assistant", "Hi."),
        Message("critique_request", principle.critique_request),
    )
    joined = "".join(shot.removesuffix("\n\nHuman:") for shot in shots)
    expected = joined + "\n\nHuman: Hello?\n\nAssistant: Hi." + instruction["prompt"][0]
    assert render_text(header + dialogue, reply="critique") == expected


@pytest.mark.parametrize("text", ["{}", "{0.__class__}", "%s", "$x", "\\1"])
def test_braces_in_a_principle_stay_as_they_are(text):
    assert (
        render_text((Message("human", text),), reply="assistant")
        == f"\n\nHuman: {text}\n\nAssistant:"
    )


def respond_record(name: str, prompt: str = "How do I do it?") -> dict:
    return {
        "id": f"{name}/00",
        "prompt_id": name,
        "dialogue": recording.human(prompt),
        "response": "Like this.",
    }


def revise_stage(path, rows, limit, answer=lambda asked: "So be it.", **fields):
    fields |= {"max_critique_tokens": 16, "max_revision_tokens": 16}
    given = {"inputs": {"responses": rows}, "limit": limit, "answer": answer, "format": "chat"}
    return recording.stage(path, "revise", default.revise(**fields), **given)


def test_worked_examples_that_do_not_fit_are_left_out_and_no_row(tmp_path):
    """A long dialogue is asked about with fewer examples, the last ones first; a short one keeps
    them all."""
    rows = [respond_record("short"), respond_record("long", "How do I do it? " * 100)]
    ctx, asked = revise_stage(tmp_path, rows, 1200, num_rounds=1, num_few_shot=3)
    summary = revise.run(ctx)
    records = {row["prompt_id"]: row for row in ctx.directory.records()}
    assert set(records) == {"short", "long"} and ctx.dropped == {}
    examples = load_constitution().critique_examples[:3]
    by_id = {request.id: request.prompt for request in asked}
    for name, record in records.items():
        assert record["few_shot_ids"] == [example.id for example in examples]
        for role, count in record["rounds"][0]["num_few_shot"].items():
            text = by_id[f"{name}/00#0/{role}"]
            shown = [example.messages[0].text in text for example in examples]
            assert shown == [number < count for number in range(3)], (name, role)
    assert records["short"]["rounds"][0]["num_few_shot"] == {"critique": 3, "revision": 3}
    assert records["long"]["rounds"][0]["num_few_shot"]["critique"] < 3
    assert summary["few_shot"]["requests"] == 2 and summary["few_shot"]["of"] == 4
    assert "worked examples left out" in summary["headline"]


def test_a_row_that_outgrows_the_context_keeps_its_finished_rounds(tmp_path):
    """The first revision is so long that no second round fits. The counts are those of all records,
    after a restart too."""

    def answer(request):
        return "word " * 400 if "grows/00#0/revision" in request.id else "Short."

    rows = [
        respond_record("grows"),
        respond_record("stays"),
        respond_record("never", "word " * 600),
    ]
    inputs = None
    for restart in (False, True):
        ctx, asked = revise_stage(tmp_path, rows, 512, answer, num_rounds=2, num_few_shot=0)
        inputs = ctx.inputs = inputs or ctx.inputs
        summary, rows = revise.run(ctx), []
        assert len(asked) == (0 if restart else 6)
        records = {row["prompt_id"]: row for row in ctx.directory.records()}
        done = {name: len(row["rounds"]) for name, row in records.items()}
        assert done == {"grows": 1, "stays": 2} and summary["rows"] == 2
        reason = {"round": 2, "turn": "critique", "reason": fitting.CONTEXT}
        assert records["grows"]["outgrown"] == reason and records["stays"]["outgrown"] is None
        assert ctx.dropped == {fitting.CONTEXT: 1, fitting.OUTGROWN: 1}
