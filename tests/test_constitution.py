"""The embedded constitution is complete and readable; the official files lose nothing; mistakes are
named."""

import json

import pytest

from cai_jax.constitution.loader import KEYS, load_constitution
from cai_jax.data import choices
from cai_jax.errors import UserError
from cai_jax.structs import Message

HEADINGS = {
    "human": "Human",
    "assistant": "Assistant",
    "critique_request": "CritiqueRequest",
    "critique": "Critique",
    "revision_request": "RevisionRequest",
    "revision": "Revision",
}
EXAMPLE_ROLES = ["assistant", "critique_request", "critique", "revision_request", "revision"]


def render(messages):
    return "".join(f"\n\n{HEADINGS[message.role]}: {message.text}" for message in messages)


@pytest.fixture(scope="module")
def embedded():
    return load_constitution()


def test_embedded_is_complete(embedded):
    assert len(embedded.critique_principles) == len(embedded.comparison_principles) == 16
    assert all(len(getattr(embedded, key)) >= 5 for key in KEYS[2:])
    texts = [principle.text for principle in embedded.comparison_principles]
    texts += [
        text
        for item in embedded.critique_principles
        for text in (item.critique_request, item.revision_request)
    ]
    assert len(set(texts)) == 48
    assert all(len(text.split()) <= 45 and text[-1] in ".?" for text in texts)


def test_embedded_critique_examples_are_whole_rounds_and_the_first_two_are_short(embedded):
    for example in embedded.critique_examples:
        roles = [message.role for message in example.messages]
        assert roles[-5:] == EXAMPLE_ROLES and roles[-6] == "human"
    assert (
        max(len(example.messages) for example in embedded.critique_examples) > 6
    )  # some have several turns
    for example in embedded.critique_examples[:2]:
        assert len(render(example.messages).split()) <= 110


def test_embedded_chains_favour_no_letter_and_comparisons_differ(embedded):
    answers = [example.answer for example in embedded.chain_examples]
    assert answers.count("A") == answers.count("B")
    assert all(example.chosen != example.rejected for example in embedded.comparison_examples)


def test_chain_question_is_the_question_that_the_feedback_stage_asks(embedded):
    example = next(item for item in embedded.chain_examples if item.id == "mushrooms")
    raw = json.loads((load_constitution.__globals__["EMBEDDED"] / "examples.json").read_text())[
        "chain_examples"
    ]
    row = next(item for item in raw if item["id"] == "mushrooms")
    dialogue = tuple(Message(turn["role"], turn["text"]) for turn in row["dialogue"])
    asked = choices.question(dialogue, "Choose {} {0}.", row["options"], options_heading=False)
    assert example.question("Choose {} {0}.") == asked


# The official files


@pytest.fixture(scope="module")
def official(shared_data):
    directory = shared_data / "official" / "prompts"
    raw = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in directory.glob("*.json")
    }
    return load_constitution(str(directory)), raw


def test_official_principles_render_verbatim(official):
    constitution, raw = official
    assert [
        {
            "prompt": [f"\n\nCritiqueRequest: {item.critique_request}\n\nCritique:"],
            "edit_request": f"\n\nRevisionRequest: {item.revision_request}\n\nRevision:",
        }
        for item in constitution.critique_principles
    ] == list(raw["CritiqueRevisionInstructions"].values())
    assert [item.id for item in constitution.critique_principles] == [
        f"harmful{number}" for number in range(16)
    ]
    assert [f"\n{item.text} Options:" for item in constitution.comparison_principles] == raw[
        "RLMadisonInstructions"
    ]
    assert len(constitution.comparison_principles) == 16


def test_official_examples_render_verbatim(official):
    constitution, raw = official
    shown = [render(example.messages) for example in constitution.critique_examples]
    assert len(shown) == 5
    ends = [
        "" if number == 3 else "\n\nHuman:" for number in range(5)
    ]  # the fourth does not open the next example
    assert [text + end for text, end in zip(shown, ends, strict=True)] == raw[
        "CritiqueRevisionFewShotPrompts"
    ]
    assert [len(example.messages) for example in constitution.critique_examples] == [8, 6, 6, 8, 8]
    assert [
        {
            "prompt": f"{render(item.dialogue)}\n\nAssistant:",
            "corrects": [item.chosen],
            "incorrects": [item.rejected],
        }
        for item in constitution.comparison_examples
    ] == raw["RLMadisonFewShotPrompts"]
    assert len(constitution.comparison_examples) == 5


def test_official_chains_are_asked_as_the_question_after_them(official):
    """Every word of theirs, in the form of `choices.question`: no "H:", no "[[[…]]]"."""
    constitution, raw = official
    assert [example.answer for example in constitution.chain_examples] == list("BBABAB")
    for example, item in zip(
        constitution.chain_examples, raw["RLMadisonPrecogFewShotPrompts"], strict=True
    ):
        asked, thought = item["prompt"].split("\n\nAssistant: Let's think step by step:")
        for theirs, ours in (
            ("\n\nHuman: Consider", "Consider"),
            ("Human: Consider", "Consider"),
            (" (H) and an assistant (A):\n", " and an assistant:"),
            (" and an assistant:\n\n", " and an assistant:\n"),
            ("\n\nH:", "\n\nHuman:"),
            ("\n\nA:", "\n\nAssistant:"),
            ("\nH:", "\nHuman:"),
            ("\n\n{}\n", "\nPRINCIPLE\n"),
            ("\n (A) [[[", "\n(A) "),
            ("]]]\n (B) [[[", "\n(B) "),
            ("]]]", ""),
        ):
            asked = asked.replace(theirs, ours)
        assert " ".join(example.question("PRINCIPLE").split()) == " ".join(asked.split())
        assert (
            thought
            == f"{thought[: len(thought) - len(thought.lstrip())]}{example.reasoning}"
            + (f"\n\nHuman:\nSo the answer is: ({example.answer})")
        )


def test_a_chain_of_the_official_form_becomes_our_question(tmp_path):
    item = {
        "prompt": "\n\nHuman: Consider the following conversation between a human (H) and an "
        "assistant (A):\n\nH: Is it?"
        "\n\nA:  No.\n\nH:  Why?\n\n{}\n (A) [[[Because [x].]]]\n (B) "
        "[[[Two\n\nlines]]]\n\nAssistant: Let's think step by "
        "step: (A) says why.\n\nHuman:\nSo the answer is: (A)"
    }
    row = loader_rows(tmp_path, item)
    dialogue = tuple(map(Message, ("human", "assistant", "human"), ("Is it?", "No.", "Why?")))
    options = ("Because [x].", "Two\n\nlines")
    assert row.question("Choose.") == choices.question(dialogue, "Choose.", options, False)
    assert (row.reasoning, row.answer) == ("(A) says why.", "A")


def loader_rows(directory, chain):
    """The chain example that a directory of the official form with `chain` holds."""
    turns = (
        "\n\nHuman: q\n\nAssistant: a\n\nCritiqueRequest: c\n\nCritique: "
        "d\n\nRevisionRequest: e\n\nRevision: f"
    )
    principle = {
        "prompt": ["\n\nCritiqueRequest: x\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: y\n\nRevision:",
    }
    compared = {
        "prompt": "\n\nHuman: q\n\nAssistant:",
        "corrects": ["yes"],
        "incorrects": ["no"],
    }
    for name, value in {
        "CritiqueRevisionInstructions": {"harmful0": principle},
        "RLMadisonInstructions": ["\nChoose. Options:"],
        "CritiqueRevisionFewShotPrompts": [turns],
        "RLMadisonFewShotPrompts": [compared],
        "RLMadisonPrecogFewShotPrompts": [chain],
    }.items():
        (directory / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return load_constitution(str(directory)).chain_examples[0]


# Files by hand


def write(path, **tables):
    path.write_text(json.dumps(tables), encoding="utf-8")
    return str(path)


PRINCIPLES = {
    "critique_principles": [
        {"id": "p", "critique_request": "Why {0}?", "revision_request": "Rewrite."}
    ],
    "comparison_principles": [{"id": "c", "text": "Choose the better one."}],
}


CHAIN = {
    "id": "e",
    "dialogue": [{"role": "human", "text": "a"}],
    "options": ["a", "b"],
    "reasoning": "r",
    "answer": "A",
}


def test_a_file_with_principles_only_keeps_the_embedded_examples(tmp_path, embedded):
    constitution = load_constitution(write(tmp_path / "mine.json", **PRINCIPLES, chain_examples=[]))
    assert constitution.critique_principles[0].critique_request == "Why {0}?"
    assert (
        constitution.critique_examples == embedded.critique_examples
        and constitution.chain_examples == ()
    )
    write(tmp_path / "principles.json", **PRINCIPLES)
    assert load_constitution(str(tmp_path)).comparison_examples == embedded.comparison_examples


@pytest.mark.parametrize(
    "tables, expected",
    [
        (
            {"critique_principles": PRINCIPLES["critique_principles"]},
            "field 'comparison_principles': missing",
        ),
        (
            PRINCIPLES | {"critique_principles": []},
            "field 'critique_principles': expected a non-empty list",
        ),
        (PRINCIPLES | {"principle": []}, "field 'principle': unknown"),
        (
            PRINCIPLES | {"comparison_principles": [{"id": "c"}]},
            r"field 'comparison_principles\[0\].text': missing",
        ),
        (PRINCIPLES | {"comparison_principles": [{"id": "c", "text": " "}]}, "not blank"),
        (
            PRINCIPLES | {"comparison_principles": [{"id": "c", "text": "a", "txt": 1}]},
            r"\[0\].txt': unknown",
        ),
        (
            PRINCIPLES | {"comparison_principles": [{"id": "c", "text": "a"}] * 2},
            r"\[1\].id': 'c' was there before",
        ),
        (PRINCIPLES | {"comparison_principles": ["a"]}, r"\[0\]': expected an object"),
        (
            PRINCIPLES
            | {
                "comparison_examples": [
                    {"id": "e", "dialogue": [{"role": "assistant", "text": "a"}]}
                ]
            },
            "ending in a human turn",
        ),
        (PRINCIPLES | {"chain_examples": [CHAIN | {"answer": "C"}]}, "expected 'A' or 'B'"),
        (
            PRINCIPLES | {"chain_examples": [CHAIN | {"options": ["a", "b", "c"]}]},
            "expected a list of two texts",
        ),
    ],
)
def test_a_mistake_is_one_line_with_file_and_field(tmp_path, tables, expected):
    path = write(tmp_path / "mine.json", **tables)
    with pytest.raises(UserError, match=expected) as error:
        load_constitution(path)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


def test_unreadable_sources(tmp_path):
    with pytest.raises(UserError, match="no such constitution"):
        load_constitution(str(tmp_path / "absent.json"))
    with pytest.raises(UserError, match="CritiqueRevisionInstructions.json: no such file"):
        load_constitution(str(tmp_path))
    path = tmp_path / "broken.json"
    path.write_text('{\n"critique_principles": [,]}')
    with pytest.raises(UserError, match=r"broken.json:2: not valid JSON"):
        load_constitution(str(path))


def test_official_item_of_another_form_is_named(tmp_path):
    item = {"prompt": ["x"], "edit_request": "y"}
    (tmp_path / "CritiqueRevisionInstructions.json").write_text(json.dumps({"harmful0": item}))
    with pytest.raises(
        UserError, match="Instructions.json: field 'harmful0': not of the official form"
    ):
        load_constitution(str(tmp_path))
