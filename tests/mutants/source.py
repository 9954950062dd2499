"""Mutants as data: the lists in this folder, where each one's old text is in its file, and the
mutated source.

A list is a TOML file of modules, each with the tests that are to notice its mutants, and of
mutants:

    [[module]]
    file = "cai_jax/stages/revise.py"
    tests = ["tests/test_revise_recorded.py"]

    [[module.mutant]]
    old = "…"       # in the file exactly once, by its words: spaces, line breaks and comments are
                    # ignored
    new = "…"       # what stands there instead, in one line or more
    breaks = "…"    # what this would do to a run
    tests = […]     # instead of the module's, where others notice it
    explained = "…" # why no test can notice it
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
LISTS = pathlib.Path(__file__).resolve().parent
_STRING = r"[rRbBfFuU]{0,2}(?:\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')"
_WORD = re.compile(rf"(?P<comment>\#[^\n]*)|{_STRING}|\w+|\S", re.DOTALL)
_CLOSING = (")", "]", "}")


class Unanchored(Exception):
    """A mutant whose old text is not in its file exactly once."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]
    explained: str = ""

    @property
    def name(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())} -> {' '.join(self.new.split())}"

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py").replace("/", ".")


def words(text: str) -> list[tuple[str, int, int]]:
    """(word, begin, end) of Python source, without comments and the commas that a formatter puts
    before a closing bracket."""
    found = [
        (match[0], match.start(), match.end())
        for match in _WORD.finditer(text)
        if match["comment"] is None
    ]
    return [
        word
        for word, following in zip(found, [*found[1:], ("", 0, 0)], strict=True)
        if not (word[0] == "," and following[0] in _CLOSING)
    ]


def mutate(source: str, old: str, new: str) -> str:
    """`source` with `new` in place of `old`. Raises Unanchored where `old` is not there exactly
    once, or makes no Python."""
    have, wanted = words(source), [word for word, *_ in words(old)]
    texts = [word for word, *_ in have]
    places = [
        start
        for start in range(len(have) - len(wanted) + 1)
        if texts[start : start + len(wanted)] == wanted
    ]
    if len(places) != 1:
        raise Unanchored(f"{len(places)} times there")
    begin, end = have[places[0]][1], have[places[0] + len(wanted) - 1][2]
    mutated = source[:begin] + new + source[end:]
    try:
        compile(mutated, "mutant", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise Unanchored(f"the mutant is no Python: {error}") from None
    return mutated


def load(folder: pathlib.Path = LISTS) -> list[Mutant]:
    """All mutants, list by list."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        for module in tomllib.loads(path.read_text(encoding="utf-8"))["module"]:
            for item in module["mutant"]:
                tests = tuple(item.pop("tests", module["tests"]))
                found.append(Mutant(file=module["file"], tests=tests, **item))
    return found


def unanchored(mutants: list[Mutant], root: pathlib.Path = ROOT) -> list[str]:
    """One line for each mutant that is no longer anchored in its file, or that names a test file
    that is not there."""
    lines = []
    for mutant in mutants:
        try:
            mutate((root / mutant.file).read_text(encoding="utf-8"), mutant.old, mutant.new)
        except (Unanchored, OSError) as error:
            lines.append(f"{mutant.name}: {error}")
        lines += [
            f"{mutant.name}: no file {test}"
            for test in mutant.tests
            if not (root / test.partition("::")[0]).is_file()
        ]
    return lines
