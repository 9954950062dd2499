"""The pages in docs/: their code runs, their commands parse, their links lead somewhere, their
defaults are the config's."""

import ast
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import cai_jax.stages
from cai_jax import main
from cai_jax.models.config import FAMILIES
from cai_jax.pipeline import graph as pipeline
from configs import default

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/extend.md",
    "docs/paper_map.md",
    "docs/adapters.md",
    "docs/data.md",
)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def test_the_code_of_extend_runs(finished, tmp_path, monkeypatch):
    """As a reader would: block after block in one directory; what a block calls a file is written
    there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        pipeline, "KINDS", (*pipeline.KINDS, "above")
    )  # what the page says to do by hand
    monkeypatch.setattr(
        cai_jax.stages, "__path__", [*cai_jax.stages.__path__, str(tmp_path / "cai_jax" / "stages")]
    )
    families = dict(FAMILIES)
    shutil.copytree(finished[0], tmp_path / "runs" / "tiny")
    ran = 0
    try:
        for language, code in blocks("docs/extend.md"):
            if language == "python" and (name := re.match(r"# file: (\S+)\n", code)):
                (tmp_path / name[1]).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name[1]).write_text(code)
            elif language == "python":
                exec(compile(code, f"docs/extend.md, block {ran}", "exec"), {"__name__": "extend"})
                ran += 1
            else:
                arguments = shlex.split(code.replace("configs/", f"{ROOT}/configs/"))
                assert arguments[:3] == ["python", "-m", "cai_jax.main"]
                pipeline.build_graph(main.parse(arguments[2:])[0])
    finally:
        FAMILIES.clear()
        FAMILIES.update(families)
    assert ran == 6
    assert (
        len((tmp_path / "runs" / "tiny" / "above" / "records.jsonl").read_text().splitlines()) == 6
    )


def test_the_paper_map_has_the_defaults():
    graph, found = default.get_config().graph, 0
    for line in (ROOT / "docs" / "paper_map.md").read_text().splitlines():
        row = re.match(r"\|.*\| `(\w+)\.(\w+)` \| `([^`]*)`.*\|$", line)
        if row:
            stage, field, value = row.groups()
            assert graph[stage][field] == ast.literal_eval(value), (
                f"{stage}.{field}: the page says {value}"
            )
            found += 1
    assert found >= 40


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
    assert "preference_loss" in (tmp_path / "cai_jax" / "losses.html").read_text()
