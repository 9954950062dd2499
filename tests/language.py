"""Reads code and pages for what CONTRIBUTING.md asks of their language: plain words, comments,
docstrings, function length.

    python tests/language.py [PATH ...]     prints every offence as FILE:LINE: rule: text
"""

import ast
import functools
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("cai_jax", "configs", "benchmarks", "colab", "examples", "docs", "launch")
PAGES = ("README.md", "CONTRIBUTING.md", "AGENTS.md")

# Words that a JAX or RLHF engineer would not write, in prose and in names alike.
PROSE = r"found|told|said|stands|lies|beside|fresh|whole|rests? on|made again"
# Names that are refused everywhere, and names that are refused in the rooms where they would mean
# a microbatch, a shard, a shared prefix or a sequence; elsewhere tables have rows, paths parts.
NAMES = {"found", "told", "said", "stands", "lies", "beside", "fresh", "whole", "one", "piece"}
TENSOR_NAMES = {"place", "part", "header", "row"}
TENSOR_ROOMS = {"core", "engine", "training", "rewards", "textmodels"}
# Fields of config files and of records on disk keep their names.
KEPT = {"num_headers", "header_id"}

RULES = ("word", "name", "docstring", "length")
MAX_LINES, MAX_MAIN_LINES, BANNERS = 60, 120, 2


class Offence(NamedTuple):
    path: str
    line: int
    rule: str
    text: str


class Source(NamedTuple):
    """One file, read and walked once."""

    text: str
    tree: ast.Module
    nodes: list[ast.AST]
    comments: list[tuple[int, str]]


@functools.cache
def read(path: str) -> Source:
    text = (ROOT / path).read_text()
    tree = ast.parse(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [
        (token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT
    ]
    return Source(text, tree, list(ast.walk(tree)), comments)


def package(path: str) -> str:
    """The room of a file: `cai_jax/evals`, `cai_jax` (its top files), `docs`, `README.md`."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "cai_jax" and len(parts) > 2 else parts[0]


def files() -> Iterator[str]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md") and ".ipynb_checkpoints" not in path.parts:
                yield str(path.relative_to(ROOT))
    yield from (page for page in PAGES if (ROOT / page).exists())


def name_words(name: str) -> set[str]:
    """`numRows_of` → {num, row, of}: a plural counts as its singular."""
    words = re.findall(r"[a-z]+|[A-Z][a-z]*", name)
    return {word.lower().removesuffix("s") for word in words} | {word.lower() for word in words}


def defined_names(source: Source) -> Iterator[tuple[str, int]]:
    """Every name that the file itself gives: functions, classes, parameters, variables."""
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def refused_names(path: str) -> Iterator[Offence]:
    room = package(path).removeprefix("cai_jax/")
    refused = NAMES | (TENSOR_NAMES if room in TENSOR_ROOMS else set())
    for name, line in defined_names(read(path)):
        if name not in KEPT and name_words(name) & refused:
            yield Offence(path, line, "name", name)


def refused_words(path: str, line: int, text: str) -> Iterator[Offence]:
    for match in re.finditer(rf"\b({PROSE})\b", re.sub(r"\s+", " ", text), re.I):
        near = match.string[max(0, match.start() - 30) : match.end() + 20]
        yield Offence(path, line, "word", f"{match[0]!r} in …{near}…")


def prose(source: Source) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and messages: every string that reads like text, with its first line."""
    yield from source.comments
    for node in source.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if " " in node.value.strip():
                yield node.lineno, node.value


def docstring(node) -> str:
    return ast.get_docstring(node, clean=True) or ""


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions of the module and methods of its classes, without nested and private ones."""
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for member in members:
            if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                yield member


def own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions nested in it."""
    pending = list(function.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            pending.extend(ast.iter_child_nodes(node))


def missing_sections(function: ast.FunctionDef) -> list[str]:
    """The sections (Args, Returns, Raises) that a docstring of more than three parameters lacks."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    if len([name for name in names if name not in ("self", "cls")]) <= 3:
        return []
    nodes = list(own_nodes(function))
    needed = ["Args"]
    returns = any(isinstance(node, ast.Return) and node.value is not None for node in nodes)
    if returns:
        needed.append("Returns")
    if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in nodes):
        needed.append("Yields")
    if any(isinstance(node, ast.Raise) and node.exc is not None for node in nodes):
        needed.append("Raises")
    text = docstring(function)
    return [section for section in needed if not re.search(rf"^\s*{section}:", text, re.M)]


def long_functions(path: str) -> Iterator[Offence]:
    """Functions over 60 lines; over 120 where banners (`# --- words`) head their sections."""
    lines = read(path).text.splitlines()
    for node in read(path).nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            banners = [
                s for s in lines[node.lineno - 1 : node.end_lineno] if re.match(r"\s*# --", s)
            ]
            limit = MAX_MAIN_LINES if len(banners) >= BANNERS else MAX_LINES
            if length > limit:
                yield Offence(path, node.lineno, "length", f"{node.name} has {length} lines")


def offences(path: str) -> list[Offence]:
    """All that is refused in one file.

    Rules: `word` (prose), `name` (identifiers), `docstring` (its sections), `length` (functions).
    """
    if path.endswith(".md"):
        text = (ROOT / path).read_text()
        text = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
        return [
            o for i, line in enumerate(text.split("\n"), 1) for o in refused_words(path, i, line)
        ]
    source = read(path)
    result = [o for line, text in prose(source) for o in refused_words(path, line, text)]
    result += refused_names(path)
    for function in public_functions(source.tree):
        if missing := missing_sections(function):
            text = f"{function.name} lacks {', '.join(missing)}"
            result.append(Offence(path, function.lineno, "docstring", text))
    return result + list(long_functions(path))


def comment_counts(path: str) -> tuple[int, int]:
    """(lines with a comment, lines of code): blank lines and docstrings are neither."""
    source = read(path)
    with_comment = {line for line, text in source.comments if not text.startswith("#!")}
    code = {i for i, line in enumerate(source.text.splitlines(), 1) if line.strip()}
    for node in source.nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and docstring(node):
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(with_comment), len(code)


def main(arguments: list[str]) -> None:
    global ROOT
    ROOT = pathlib.Path.cwd() if arguments else ROOT
    chosen = []
    for argument in arguments:
        path = ROOT / argument
        chosen += sorted(p for p in path.rglob("*.py")) if path.is_dir() else [path]
    names = [str(path.resolve().relative_to(ROOT)) for path in chosen] or list(files())
    every = [offence for name in names for offence in offences(name)]
    for path, line, rule, text in every:
        print(f"{path}:{line}: {rule}: {text}")
    counts = [comment_counts(name) for name in names if name.endswith(".py")]
    total = [sum(column) for column in zip(*counts, strict=True)] if counts else [0, 1]
    by_rule = {rule: sum(o.rule == rule for o in every) for rule in RULES}
    share = 100 * total[0] / max(1, total[1])
    print(f"{by_rule}; comments on {share:.1f} % of {total[1]} lines of code")


if __name__ == "__main__":
    main(sys.argv[1:])
