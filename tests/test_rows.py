"""JSON Lines: what is read, and the line that each kind of damage prints."""

import gzip
import json

import pytest

from cai_jax.data import rows
from cai_jax.data.files import Row
from cai_jax.errors import UserError


def read(source):
    return [(row.line, row.values) for row in rows.read(str(source))]


ROWS = [{"prompt": "What is π?"}, {"prompt": "two\nlines", "n": 3}]


def test_plain_and_gzip_give_the_same_rows_with_line_numbers(tmp_path):
    text = "\ufeff" + json.dumps(ROWS[0], ensure_ascii=False) + "\r\n\n" + json.dumps(ROWS[1])
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_text(text, encoding="utf-8", newline="")
    packed.write_bytes(gzip.compress(text.encode()))
    assert read(plain) == read(str(packed)) == [(1, ROWS[0]), (3, ROWS[1])]


@pytest.mark.parametrize(
    "bad, expected",
    [
        (b'{"prompt": "a"', "not valid JSON"),
        (b'["prompt"]', "expected a JSON object"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": "a\0b"}', "NUL"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_bad_line_is_named(tmp_path, bad, expected):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n' + bad + b"\n")
    with pytest.raises(UserError) as error:
        read(path)
    assert (
        str(error.value).startswith(f"{path}:2: ")
        and expected in str(error.value)
        and "\n" not in str(error.value)
    )


def test_missing_truncated_and_false_gzip(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "absent.jsonl")
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-20])
    with pytest.raises(UserError, match="broken gzip"):
        read(path)
    path.write_bytes(b'{"prompt": "a"}\n')
    with pytest.raises(UserError, match="broken gzip"):
        read(path)


def test_a_csv_file_is_a_table_of_texts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffq,n\n"Why, so?\nTell",3\n', encoding="utf-8")
    assert read(path) == [(1, {"q": "Why, so?\nTell", "n": "3"})]
    assert read(f"{path}#prompt=q") == [(1, {"prompt": "Why, so?\nTell"})]
    path.write_text("q,n\nWhy?\n", encoding="utf-8")
    with pytest.raises(UserError, match="a.csv:1: not as many values as columns"):
        read(path)
    path.write_bytes(b"q,n\n\xff,3\n")
    with pytest.raises(UserError, match="a.csv: not a readable CSV file"):
        read(path)


def test_fields_of_a_row():
    row = Row("f.jsonl", 7, {"text": "a", "blank": " ", "count": 2, "flag": True, "rate": 0.5})
    assert row.text("text") == row.require("text") == row.label("text") == "a"
    assert row.require("count", float) == 2 and row.label("count") == "2"
    assert row.require("rate", float) == 0.5
    assert row.require("flag", bool) is row.require("flag") is True
    assert row.label("absent") is None
    for name, kind, expected in [
        ("absent", str, "missing; fields: text, blank"),
        ("prompt", str, "missing; fields: .*name the column that has it: f.jsonl#prompt=text"),
        ("count", str, "expected text, got int"),
        ("flag", int, "expected an integer, got bool"),
    ]:
        with pytest.raises(UserError, match=expected) as error:
            row.require(name, kind)
        assert str(error.value).startswith(f"f.jsonl:7: field '{name}': ")
    with pytest.raises(UserError, match="'blank': is blank"):
        row.text("blank")
