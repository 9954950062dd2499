"""The pages in docs/: their code runs, their commands parse, their links lead somewhere, their
defaults are the config's."""

import ast
import importlib.util
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import cai_jax.stages
from cai_jax import main
from cai_jax.configuration.evaluations import EVALS
from cai_jax.configuration.stages import STAGES
from cai_jax.core.algorithms import ALGORITHMS
from cai_jax.evals import answer_statistics
from cai_jax.evals.registry import KINDS
from cai_jax.models.config import FAMILIES
from cai_jax.pipeline import graph as pipeline
from configs import default

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("README.md", "AGENTS.md", "CONTRIBUTING.md", "CHANGELOG.md") + tuple(
    sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
)
# What a page may call that is not ours.
OTHERS = {"pip", "git", "tensorboard", "pytest"}


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


@pytest.fixture
def tables(monkeypatch):
    """What the recipes add to is as it was afterwards."""
    changed = (STAGES, STAGES["rl"].fields, FAMILIES, KINDS, EVALS, ALGORITHMS)
    before = [dict(table) for table in changed]
    monkeypatch.setattr(answer_statistics, "STATISTICS", answer_statistics.STATISTICS)
    yield
    for table, items in zip(changed, before, strict=True):
        table.clear()
        table.update(items)


def test_the_code_of_extend_runs(finished, tmp_path, monkeypatch, tables):
    """As a reader would: block after block in one session and directory; what a block calls a file
    is written there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        cai_jax.stages, "__path__", [*cai_jax.stages.__path__, str(tmp_path / "cai_jax" / "stages")]
    )
    shutil.copytree(finished[0], tmp_path / "runs" / "tiny")
    session, ran = {"__name__": "extend"}, 0
    for language, code in blocks("docs/extend.md"):
        if language == "python" and (name := re.match(r"# file: (\S+)\n", code)):
            (tmp_path / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name[1]).write_text(code)
        elif language == "python":
            exec(compile(code, f"docs/extend.md, block {ran}", "exec"), session)
            ran += 1
        else:
            arguments = shlex.split(code.replace("configs/", f"{ROOT}/configs/"))
            assert arguments[:3] == ["python", "-m", "cai_jax.main"]
            pipeline.build_graph(main.parse(arguments[2:])[0])
    assert ran == 11
    above = tmp_path / "runs" / "tiny" / "above" / "records.jsonl"
    assert len(above.read_text().splitlines()) == 6


def test_the_paper_map_has_the_defaults():
    graph, num_rows = default.get_config().graph, 0
    for line in (ROOT / "docs" / "paper_map.md").read_text().splitlines():
        row = re.match(r"\|.*\| `(\w+)\.(\w+)` \| `([^`]*)`.*\|$", line)
        if row:
            stage, field, value = row.groups()
            assert graph[stage][field] == ast.literal_eval(value), (
                f"{stage}.{field}: the page says {value}"
            )
            num_rows += 1
    assert num_rows >= 40


def test_every_field_that_the_paper_map_names_exists():
    graph = default.get_config().graph
    for stage, field in re.findall(
        r"`([a-z_]+)\.([a-z_]+)(?:\.[a-z_]+)*`", (ROOT / "docs" / "paper_map.md").read_text()
    ):
        assert field in graph[stage], f"{stage}.{field}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s#]+)", (ROOT / page).read_text()):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def commands(page: str) -> list[list[str]]:
    """The words of every command line in the page's unnamed blocks, comments and `\\` undone."""
    lines = []
    for language, code in blocks(page):
        if language == "" and not code.startswith(("RUN/", "main  ")):
            lines += code.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line]


def check_flags(words: list[str], source: pathlib.Path) -> None:
    """Every flag is named in the file (or, of a package's command, in its folder)."""
    text = source.read_text()
    for word in words:
        if word == "--":
            break
        if word.startswith("--") and not word.startswith("--config"):
            flag = word.split("=")[0].lstrip("-")
            known = re.search(rf"\b{flag}\b|\b{flag.replace('-', '_')}\b", text)
            assert known, f"{source.name} knows no {word}"


def check_command(words: list[str]) -> None:
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    if words[0] == "make":
        for target in words[1:]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
    elif words[0].startswith("launch/"):
        assert (ROOT / words[0]).exists(), words[0]
        check_flags(words[1:], ROOT / words[0])
    elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in (
        "cai_jax",
        "benchmarks",
        "tests",
    ):
        source = pathlib.Path(importlib.util.find_spec(words[2]).origin)
        if source.name == "__init__.py":  # a package that is a command
            source = source.with_name("__main__.py")
        check_flags(words[3:], source)
        if words[2] == "cai_jax.main" and not any("…" in word for word in words):
            arguments = [word.replace("configs/", f"{ROOT}/configs/", 1) for word in words[3:]]
            main.parse(["cai_jax", *arguments])
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists(), words[1]
    else:
        assert words[0] in OTHERS or words[:2] == ["python", "-m"], words


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_and_their_flags_and_fields_parse(page):
    for words in commands(page):
        check_command(words)


@pytest.mark.long  # tests within tests: more than a minute
def test_the_fast_checks_of_agents_run(finished, tmp_path):
    """As an agent would, from the root; reading a finished run in place of `runs/tiny`."""
    fast = blocks("AGENTS.md")[0][1].splitlines()
    assert len(fast) >= 8
    for line in fast:
        words = shlex.split(line)
        words = [word.replace("runs/tiny", str(finished[0])) for word in words]
        words = [word.replace("--out=report", f"--out={tmp_path}") for word in words]
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
    assert (tmp_path / "report.html").exists()


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pytest.mark.long
def test_docstrings_render(tmp_path):
    """What `make docs` does."""
    pytest.importorskip("pdoc")
    done = subprocess.run(
        [sys.executable, "-m", "pdoc", "-o", str(tmp_path), "cai_jax"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "preference_loss" in (tmp_path / "cai_jax" / "core" / "losses.html").read_text()
