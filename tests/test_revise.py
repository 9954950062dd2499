"""Drawing of principles, and the request texts in the paper's own format."""

import collections

import pytest

from cai_jax.constitution.loader import load_constitution
from cai_jax.data.dialogue import render_text
from cai_jax.stages import revise
from cai_jax.structs import Message


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
    messages = revise.few_shot_messages(examples, critique=True)
    assert messages == examples[0].messages + examples[1].messages
    direct = revise.few_shot_messages(examples, critique=False)
    assert {message.role for message in direct} == {
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
    header = revise.few_shot_messages(constitution.critique_examples, critique=True)
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
