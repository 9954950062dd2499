"""The parser of source strings: every form, odd characters in paths, what a wrong string prints,
which files are named."""

import os

import pytest

from cai_jax.data import rows, sources
from cai_jax.data.sources import Source, Split
from cai_jax.errors import UserError


@pytest.fixture
def odd_paths(tmp_path, monkeypatch):
    """Files and folders whose names have every character that otherwise ends a name; the current
    directory holds them."""
    monkeypatch.chdir(tmp_path)
    for name in ("run #1/p.jsonl", "c++/p.jsonl", "user@host/ds/train.jsonl", "a[1]/x+y.jsonl"):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        open(name, "w").close()
    return tmp_path


@pytest.mark.parametrize(
    "text,expected",
    [
        ("embedded:red_team", [Source("embedded", "red_team")]),
        (
            "a.jsonl#prompt=q,kind=t",
            [Source("file", "a.jsonl", "", (("prompt", "q"), ("kind", "t")))],
        ),
        ("tfds:x/y@/dir#prompt=a.0", [Source("tfds", "x/y", "/dir", (("prompt", "a.0"),))]),
        ("hf:o/n/c@main[valid:5]", [Source("hf", "o/n/c", "main", (), "valid", 5)]),
        ("tfds:x[train[:10%]:5]", [Source("tfds", "x", split="train[:10%]", limit=5)]),
        (
            "a[train]+b[heldout:100] + c[:5]+d[]",
            [
                Source("file", "a", split="train"),
                Source("file", "b", split="heldout", limit=100),
                Source("file", "c", limit=5),
                Source("file", "d", split=""),
            ],
        ),
        ("a[2-5/10]#prompt=q", [Source("file", "a", "", (("prompt", "q"),), "2-5/10")]),
        (r"c\+\+/a\#\[1\].jsonl+b", [Source("file", "c++/a#[1].jsonl"), Source("file", "b")]),
        (r"a#prompt=x\,y", [Source("file", "a", "", (("prompt", "x,y"),))]),
        ("  ", []),
    ],
)  # fmt: skip
def test_every_form(text, expected):
    assert list(sources.parse(text)) == expected


def test_a_home_directory_is_read_as_it_is_identified(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hello"}\n')
    assert sources.files("~/p.jsonl") == [tmp_path / "p.jsonl"]
    assert [row.values for row in rows.read("~/p.jsonl")] == [{"prompt": "Hello"}]


@pytest.mark.parametrize(
    "text,names",
    [
        ("run #1/p.jsonl", ["run #1/p.jsonl"]),
        ("run #1/missing.jsonl", ["run #1/missing.jsonl"]),  # the folder is there: no columns "1/…"
        ("c++/p.jsonl#prompt=question", ["c++/p.jsonl"]),
        ("c++/p.jsonl+embedded:helpful", ["c++/p.jsonl", "helpful"]),
        ("embedded:helpful+c++/p.jsonl[:3]", ["helpful", "c++/p.jsonl"]),
        ("hf:user@host/ds", ["user@host/ds"]),
        ("a[1]/x+y.jsonl[0-8/10]", ["a[1]/x+y.jsonl"]),
        ("tfds:x@c++#prompt=q", ["x"]),
    ],
)
def test_a_path_that_exists_wins_as_it_is_written(odd_paths, text, names):
    assert [source.name for source in sources.parse(text)] == names


@pytest.mark.parametrize(
    "text,expected",
    [
        ("a[train", "'[' without ']'"),
        ("a[train]b", "'b' after a ']'"),
        ("a#prompt=q#kind=t", None),  # the second # is a part of the column's name
        ("a[x][y]", "a second '['"),
        ("a#1", "expected FIELD=COLUMN"),
        ("a++b", "a source without a name"),
        ("+a", "a source without a name"),
    ],
)
def test_wrong_strings_are_one_line_that_says_how_to_escape(text, expected):
    if expected is None:
        assert sources.single(text).columns == (("prompt", "q#kind=t"),)
        return
    with pytest.raises(UserError) as error:
        sources.parse(text)
    assert expected in str(error.value) and "backslash" in str(error.value)


def test_files_that_a_string_names(odd_paths):
    assert [str(p) for p in sources.files("c++/p.jsonl#prompt=q[train]+a[1]/x+y.jsonl")] == [
        "c++/p.jsonl",
        "a[1]/x+y.jsonl",
    ]
    assert sources.files("embedded:helpful")[0].name == "helpful.jsonl"
    assert [str(p) for p in sources.files("hf:user@host/ds")] == ["user@host/ds"]
    for nothing in ("", "hf:org/name@main", "gs://b/x", "x" * 9999, "\0"):
        assert sources.files(nothing) == []


def test_a_split_is_a_name_parts_or_both():
    assert [Split.parse(text) for text in (None, "", "train", "2-5/10", "train 2/10")] == [
        Split(),
        Split(),
        Split("train"),
        Split("", 2, 5, 10),
        Split("train", 2, 2, 10),
    ]
    assert Split.parse("train[:5%]").name == "train[:5%]"
    for text in ("5-2/10", "2-10/10", "10/10"):
        with pytest.raises(UserError, match="of 10 parts there are 0 to 9"):
            Split.parse(text)
