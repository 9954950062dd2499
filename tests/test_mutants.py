"""Where a mutant's old text is in its file, and what a list must say."""

import pytest

from tests.mutants import source

CODE = """def f(
    a,  # first
    b,
):
    return a + b if a else [
        b,
    ]


x = f(1, 2) + f(2, 1)
"""


def test_spaces_line_breaks_comments_and_last_commas_do_not_matter():
    assert "def f(a, b, c)" in source.mutate(CODE, "f(a, b)", "f(a, b, c)")
    assert "return 0\n" in source.mutate(CODE, "return a + b if a else [b]", "return 0")
    assert source.mutate(CODE, "f(2,1)", "3").endswith("x = f(1, 2) + 3\n")


@pytest.mark.parametrize(
    "old,new,why",
    [
        ("f(3)", "1", "0 times"),
        ("f(", "g(", "3 times"),
        ("a + b", "a +", "no Python"),
        ("f(1,", "f(1", "no Python"),
    ],
)
def test_an_old_text_is_there_exactly_once_and_the_mutant_is_python(old, new, why):
    with pytest.raises(source.Unanchored, match=why):
        source.mutate(CODE, old, new)


def test_strings_are_words():
    code = 'a = {"x # y": 1, \'z\': "p q"}\n'
    assert source.mutate(code, '"x # y"', '"k"') == 'a = {"k": 1, \'z\': "p q"}\n'
    with pytest.raises(source.Unanchored, match="0 times"):
        source.mutate(code, '"p  q"', '""')


def test_the_lists_are_complete():
    mutants = source.load()
    assert len(mutants) >= 150 and len({mutant.name for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        assert mutant.breaks and mutant.tests and mutant.old != mutant.new, mutant.name
        assert (source.ROOT / mutant.file).is_file(), mutant.file


def test_lost_mutants_are_named(tmp_path):
    (tmp_path / "m.py").write_text("a = 1\n")
    there = source.Mutant("m.py", "1", "2", "it", ("m.py",))
    gone = source.Mutant("m.py", "3", "2", "it", ("m.py", "none.py::test"))
    assert source.unanchored([there, gone], tmp_path) == [
        "m.py: 3 -> 2: 0 times there",
        "m.py: 3 -> 2: no file none.py::test",
    ]
