"""JSON Lines: what is read, and the line that each kind of damage prints."""

import gzip
import json

import pytest

from cai_jax.data.jsonl import field, read_jsonl
from cai_jax.errors import UserError

ROWS = [{"prompt": "What is π?"}, {"prompt": "two\nlines", "n": 3}]


def test_plain_and_gzip_give_the_same_rows_with_line_numbers(tmp_path):
    text = "\ufeff" + json.dumps(ROWS[0], ensure_ascii=False) + "\r\n\n" + json.dumps(ROWS[1])
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_text(text, encoding="utf-8", newline="")
    packed.write_bytes(gzip.compress(text.encode()))
    assert list(read_jsonl(plain)) == list(read_jsonl(str(packed))) == [(1, ROWS[0]), (3, ROWS[1])]


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
        list(read_jsonl(path))
    assert (
        str(error.value).startswith(f"{path}:2: ")
        and expected in str(error.value)
        and "\n" not in str(error.value)
    )


def test_missing_truncated_and_false_gzip(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        list(read_jsonl(tmp_path / "absent.jsonl"))
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-20])
    with pytest.raises(UserError, match="broken gzip"):
        list(read_jsonl(path))
    path.write_bytes(b'{"prompt": "a"}\n')
    with pytest.raises(UserError, match="broken gzip"):
        list(read_jsonl(path))


def test_field():
    row = {"text": "a", "blank": " ", "count": 2, "flag": True, "rate": 0.5}
    assert field(row, "text", str, "f", 1) == "a"
    assert field(row, "count", float, "f", 1) == 2
    assert field(row, "rate", float, "f", 1) == 0.5
    assert field(row, "flag", bool, "f", 1) is True
    for name, kind, expected in [
        ("absent", str, "missing; expected text"),
        ("count", str, "expected text, found int"),
        ("flag", int, "expected an integer, found bool"),
        ("blank", str, "blank"),
    ]:
        with pytest.raises(UserError, match=expected) as error:
            field(row, name, kind, "f.jsonl", 7)
        assert str(error.value).startswith(f"f.jsonl:7: field '{name}': ")
