"""Any table as prompts or comparisons: columns named behind the source, chat lists, red-team
transcripts."""

import json

import pytest

from cai_jax.data import chats
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.prompts import read_prompts
from cai_jax.errors import UserError
from cai_jax.pipeline import identity
from cai_jax.structs import Message


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_columns_of_a_jsonl_file_as_prompts(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"n": 7, "question": "Why?", "topic": 3, "prompt": "not this", "split": "train"},
        {"n": 8, "question": "Who?", "topic": 4, "split": "test"},
    )
    prompts = read_prompts(f"{path}#prompt=question,id=n,kind=topic")[0]
    assert [(p.id, p.dialogue, p.kind) for p in prompts] == [
        ("7", (Message("human", "Why?"),), "3"),
        ("8", (Message("human", "Who?"),), "4"),
    ]
    assert [p.id for p in read_prompts(f"{path}#prompt=question,id=n", split="test")[0]] == ["8"]
    assert (
        read_prompts(f"{path}#prompt=question")[0][0].id
        == read_prompts(f"{path}#prompt=question,kind=topic")[0][0].id
    )
    assert (
        len(read_prompts(f"{path}#prompt=question+embedded:helpful", limit=1, split="train")[0])
        == 2
    )


def test_columns_of_parquet_and_dots_into_lists(tmp_path):
    import pyarrow.parquet

    rows = [
        {
            "talk": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Why?"},
            ],
            "n": 1,
        }
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    whole = (Message("human", "Hi"), Message("assistant", "Yes?"), Message("human", "Why?"))
    assert read_prompts(f"{tmp_path}/a.parquet#prompt=talk")[0][0].dialogue == whole
    assert read_prompts(f"{tmp_path}/a.parquet#prompt=talk.0.content")[0][0].dialogue == whole[:1]
    assert read_prompts(f"{tmp_path}/a.parquet#prompt=talk.-1.content")[0][0].dialogue == (
        whole[2],
    )


def test_columns_as_comparisons(tmp_path):
    path = write(
        tmp_path / "pairs.jsonl",
        {"q": "Why?", "good": "Because.", "bad": "No."},
        {"q": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:", "good": "D", "bad": "E"},
        {"q": "Who?", "good": "same", "bad": "same"},
    )
    pairs, dropped = load_comparisons(f"{path}#dialogue=q,chosen=good,rejected=bad")
    assert [(p.id, p.source, p.chosen, p.rejected) for p in pairs] == [
        ("pairs:1", "pairs", "Because.", "No."),
        ("pairs:2", "pairs", "D", "E"),
    ]
    assert [m.text for m in pairs[1].dialogue] == ["A", "B", "C"] and dropped == {"equal pair": 1}


def test_chat_lists_as_comparisons(tmp_path):
    ask = {"role": "user", "content": "Why?\n\nHuman: not a heading"}

    def answer(text):
        return {"role": "assistant", "content": text}

    path = write(
        tmp_path / "chat.jsonl",
        {"chosen": [ask, answer("a")], "rejected": [ask, answer("b")]},
        {
            "chosen": [ask, answer("a")],
            "rejected": [{"role": "user", "content": "Who?"}, answer("b")],
        },
        {"chosen": [ask], "rejected": [ask, answer("b")]},
    )
    pairs, dropped = load_comparisons(path)
    assert [(p.dialogue, p.chosen, p.rejected) for p in pairs] == [
        ((Message("human", ask["content"]),), "a", "b")
    ]
    assert dropped == {"different prompts": 1, "not ending in the assistant": 1}
    shared = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    assert chats.read(shared, "x") == (Message("human", "x"), Message("assistant", "y"))


def test_red_team_transcripts_are_prompts_up_to_the_last_answer(tmp_path):
    path = write(
        tmp_path / "attempts.jsonl",
        {
            "id": "x",
            "transcript": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
            "rating": 1.0,
        },
        {"transcript": "\n\nHuman: A\n\nAssistant: B\n\nHuman: E"},
        {"transcript": "\n\nAssistant: F"},
    )
    prompts, dropped = read_prompts(path)
    assert [[m.text for m in p.dialogue] for p in prompts] == [["A", "B", "C"], ["A", "B", "E"]]
    assert prompts[0].id == "x" and dropped == {"odd turns": 1}
    write(tmp_path / "other.jsonl", {"text": "\n\nHuman: A\n\nAssistant: B"})
    assert len(read_prompts(f"{tmp_path}/other.jsonl#transcript=text")[0]) == 1


@pytest.mark.parametrize(
    "mapping,expected",
    [
        ("prompts=x", "expected FIELD=COLUMN"),
        ("prompt", "expected FIELD=COLUMN"),
        ("prompt=x,prompt=y", "expected FIELD=COLUMN"),
        ("prompt=x", r"a.jsonl:1: field 'x': missing; columns: q, talk"),
        ("prompt=talk.5", "field 'talk.5': missing"),
        ("prompt=n", "missing"),
        ("kind=q", "field 'prompt': missing"),
    ],
)
def test_wrong_columns_are_one_line(tmp_path, mapping, expected):
    path = write(tmp_path / "a.jsonl", {"q": "Why?", "talk": [1]})
    with pytest.raises(UserError, match=expected):
        read_prompts(f"{path}#{mapping}")[0]


def test_an_edited_file_counts_as_changed_behind_its_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", {"q": "Why?"})
    before = identity.of(f"{path}#prompt=q")
    assert before.parts == identity.of(str(path)).parts and "prompt" in before.text
    write(tmp_path / "a.jsonl", {"q": "Who?"})
    assert identity.of(f"{path}#prompt=q").text != before.text
