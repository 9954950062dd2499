"""The language of code and pages, as CONTRIBUTING.md asks for it: a ratchet, whose numbers only go
down. `python tests/language.py [PATH ...]` prints what is refused, and where."""

import collections

import pytest

from tests import language

# What each room may still have of each rule; what is not listed is 0.
ALLOWED: dict[str, dict[str, int]] = {
    "cai_jax/configuration": {"docstring": 2},
    "cai_jax/core": {"name": 1},
    "cai_jax/report": {"name": 1},
    "cai_jax/rewards": {"docstring": 1},
    "cai_jax/stages": {"docstring": 6},
    "cai_jax/training": {"name": 2, "docstring": 16, "length": 1},
}
# Per cent of the lines of code that carry a comment, over everything; nanodo has 7.4.
LEAST_COMMENTS = 3.2


@pytest.fixture(scope="module")
def offences() -> dict[str, list]:
    by_room = collections.defaultdict(list)
    for path in language.files():
        by_room[language.package(path)] += language.offences(path)
    return by_room


@pytest.mark.parametrize("rule", language.RULES)
def test_refused_language_only_gets_less(rule, offences):
    too_many = []
    for room, every in offences.items():
        of_rule = [offence for offence in every if offence.rule == rule]
        if len(of_rule) > ALLOWED.get(room, {}).get(rule, 0):
            too_many += [f"{room}: {len(of_rule)}", *map(str, of_rule)]
    assert not too_many, "\n".join(too_many)


def test_code_is_commented():
    paths = [path for path in language.files() if path.endswith(".py")]
    commented, code = map(sum, zip(*map(language.comment_counts, paths), strict=True))
    assert 100 * commented / code >= LEAST_COMMENTS, f"{commented} of {code} lines"


def test_the_lint_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "ROOT", tmp_path)
    room = tmp_path / "cai_jax" / "engine"
    room.mkdir(parents=True)
    (room / "bad.py").write_text(
        '"""The whole of it."""\n'
        "def add(first, second, third, fourth):\n"
        "    # said before\n"
        "    one_row = f'{first} not found'\n"
        "    if second:\n"
        "        raise ValueError('lies beside')\n"
        "    return one_row\n"
        "def long():\n" + "    pass\n" * 60
    )
    seen = collections.Counter(o.rule for o in language.offences("cai_jax/engine/bad.py"))
    assert seen == {"word": 5, "name": 1, "docstring": 1, "length": 1}
    assert language.comment_counts("cai_jax/engine/bad.py") == (1, 67)
