"""Answers that exist already: null fields, empty and missing ones, prompts that models have in
common."""

import json

import pytest

from cai_jax.data import answers
from cai_jax.data.answers import Answer
from cai_jax.data.prompts import Prompt
from cai_jax.errors import UserError
from cai_jax.structs import Message


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"responses:{path}"


def prompt(name):
    return Prompt(name, (Message("human", f"Ask {name}"),))


SETS = {"helpful": [prompt("h1"), prompt("h2")], "red_team": [prompt("r1"), prompt("r2")]}


def test_null_empty_and_missing_fields(tmp_path):
    found = answers.from_file(
        write(
            tmp_path / "a.jsonl",
            {"prompt_id": "h1", "response": " One two. ", "num_tokens": None, "stop": None},
            {"prompt_id": "h1", "response": "", "num_tokens": float("nan")},
            {"prompt": "Ask h2 ", "prompt_id": None, "response": "x", "num_tokens": 7.0}
            | {"stop": "length"},
            {"prompt_id": 3, "response": None},
        )
    )
    assert list(found.to(prompt("h1"))) == [
        Answer("One two.", "eos", 2, True),
        Answer("", "eos", 0, True),
    ]
    assert list(found.to(prompt("h2"))) == [Answer("x", "length", 7, False)]
    assert not found.to(prompt("r1")) and found.num_null == 1 and found.in_words


def test_columns_of_other_peoples_answers_in_a_folder_with_an_odd_name(tmp_path):
    (tmp_path / "run #1+2").mkdir()
    reference = write(tmp_path / "run #1+2" / "a[b].jsonl", {"q": "Ask h1", "output": "Yes."})
    found = answers.from_file(f"{reference}#prompt=q,response=output")
    assert [answer.text for answer in found.to(prompt("h1"))] == ["Yes."]


@pytest.mark.parametrize(
    "row,expected",
    [
        ({"prompt_id": "a", "answer": "x"}, ("field 'response': missing; fields: prompt_id, "
                                            "answer; name .*#response=answer")),
        ({"prompt_id": "a", "response": 3}, "field 'response': expected text"),
        ({"response": "x"}, "field 'prompt': missing"),
        ({"prompt_id": "a", "response": "x", "num_tokens": 1.5}, ("expected a number of "
                                                                 "tokens or null")),
        ({"prompt_id": "a", "response": "x", "num_tokens": "9"}, ("expected a number of "
                                                                 "tokens or null")),
        ({"prompt_id": "a", "response": "x", "stop": 3}, "field 'stop': expected text"),
        ({"prompt_id": "a", "response": None}, "0 rows left.*1 null response"),
    ],
)  # fmt: skip
def test_wrong_rows_are_one_line(tmp_path, row, expected):
    with pytest.raises(UserError, match=expected) as error:
        answers.from_file(write(tmp_path / "a.jsonl", row))
    assert "a.jsonl" in str(error.value)


def test_models_are_compared_on_prompts_that_they_have_in_common(tmp_path):
    def written(**ids):
        return {
            name: answers.from_file(
                write(
                    tmp_path / f"{name}.jsonl", *({"prompt_id": i, "response": "x"} for i in given)
                )
            )
            for name, given in ids.items()
        }

    answers.require_common(
        written(a=["h1", "r1"], b=["h1"], c=["h1", "r1", "r2"]), SETS, "evaluate"
    )
    answers.require_common(written(a=["h1"], b=["r1"]), SETS, "evaluate")  # never side by side
    answers.require_common(written(a=["q"]), {}, "evaluate")  # no prompts are asked
    with pytest.raises(
        UserError, match="'a' .* and 'b' .* no prompt of prompts_red_team in common"
    ):
        answers.require_common(written(a=["h1", "r1"], b=["h1", "r2"]), SETS, "evaluate")
    with pytest.raises(
        UserError, match="evaluate.models.a: .*none of its 1 prompts .* 'q', .* 'h1'"
    ):
        answers.require_common(written(a=["q"]), SETS, "evaluate")
