"""`--config=tiny` from anywhere, in a clone or from a wheel; copies that import `configs.NAME`; a
name that is none."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest

from cai_jax import main, plan
from cai_jax.configuration import files as config_files
from cai_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]


@pytest.mark.parametrize(
    "name", ["tiny", "tiny.py", "configs/tiny.py", "pods/llama3_8b_v5e_8x8", "figures/pareto.py"]
)
def test_a_name_is_one_of_ours_from_any_directory(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = config_files.locate(name)
    assert found.is_file() and found.stem == pathlib.Path(name).stem
    config, workdir = main.parse(["cai_jax", f"--config={name}"])
    assert config.stages and workdir == os.path.join("runs", found.stem)


def test_a_path_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    mine = tmp_path / "configs" / "tiny.py"
    mine.write_text("from configs import tiny\n\n\ndef get_config():\n    return 1\n")
    assert config_files.locate("configs/tiny.py") == mine
    assert config_files.locate("tiny") == ROOT / "configs" / "tiny.py"


@pytest.mark.parametrize(
    "name,message",
    [
        ("tini", "did you mean tiny"),
        ("configs/none.py", "no such config file"),
        ("../configs/tiny", "no such config file"),
        ("/nowhere/tiny.py", "no such config file"),
    ],
)
def test_a_name_that_is_none(name, message):
    with pytest.raises(UserError, match=message):
        config_files.locate(name)


def test_a_directory_is_no_config(tmp_path):
    with pytest.raises(UserError, match="is a directory"):
        config_files.locate(str(tmp_path))


def test_a_plan_reads_the_topology_of_a_name():
    assert plan._preset(["--config=pods/llama3_8b_v5e_8x8"]) == "v5e:8x8"


def test_the_wheel_lists_every_package():
    """pyproject.toml names packages one by one, because configs/ goes into the wheel under another
    name."""
    here = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "cai_jax").rglob("__init__.py")
    }
    assert set(SETTINGS["packages"]) == here | {"cai_jax.packaged.configs"}
    assert SETTINGS["package-dir"] == {"cai_jax.packaged.configs": "configs"}
    kinds = {path.suffix for path in (ROOT / "configs").rglob("*.*") if path.is_file()} - {".pyc"}
    patterns = SETTINGS["package-data"]["cai_jax.packaged.configs"]
    assert {f"**/*{kind}" for kind in kinds} <= set(patterns)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What `pip install` would put into site-packages, built from a copy of the sources by
    setuptools, without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("cai_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("requirements.txt", "README.md"):
        shutil.copy(ROOT / name, source / name)
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    # An older setuptools, as it may be here, does not know a licence by its name.
    settings = settings.replace('license = "Apache-2.0"\n', "")
    (source / "pyproject.toml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-c", "from setuptools import setup; setup()"]
    subprocess.run(
        [*command, "-q", "build_py", "--build-lib", str(out)],
        cwd=source, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return out


def test_an_installed_package_has_its_configs(installed, tmp_path):
    """Every config file is there; a name works far from the clone, and so does a copy that imports
    `configs`."""
    root = installed / "cai_jax" / "packaged" / "configs"
    want = {
        path.relative_to(ROOT / "configs")
        for path in (ROOT / "configs").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert want <= {path.relative_to(root) for path in root.rglob("*")}
    assert not (installed / "configs").exists()  # no top-level name that others may have
    (tmp_path / "mine").mkdir()
    shutil.copy(ROOT / "configs" / "smollm2_cpu.py", tmp_path / "mine" / "my_config.py")
    program = """
import pathlib, sys
from cai_jax import main
for name in ("tiny", "configs/microworld.py", "mine/my_config.py"):
    config, workdir = main.parse(["cai_jax", f"--config={name}"])
    source = config.graph.respond.prompts.source
    source = pathlib.Path(source).is_file() if source.startswith("/") else source
    print(name, len(config.stages), source)
import configs
print(configs.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(installed)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].endswith("True") and lines[-1].startswith(str(root))
