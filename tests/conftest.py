"""Fixtures that several test files share."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / "models" / "smollm2-135m-instruct"
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def smollm2():
    """The converted SmolLM2-135M-Instruct directory (`make model` writes it)."""
    if not (SMOLLM2 / "model.safetensors").exists():
        pytest.skip("models/smollm2-135m-instruct is absent: run `make model`")
    return str(SMOLLM2)


@pytest.fixture(scope="session")
def shared_data():
    """The directory of public data beside the project (hh-rlhf subsets, the paper's prompts and evaluations)."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is absent: public data is read from there")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_model():
    """A 2-layer architecture with a byte-level tokenizer and no weights: `random:` references initialise it."""
    return str(ROOT / "configs" / "models" / "tiny")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(directory, output) of an undisturbed run of configs/tiny.py. Nobody changes it: copy what is to be broken."""
    from tests.chaos import harness

    workdir = tmp_path_factory.mktemp("tiny") / "run"
    done = harness.run(workdir)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done.stdout
