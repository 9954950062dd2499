"""Fixtures that several test files share."""

import os
import pathlib

import filelock
import pytest

# Every program is compiled once for all tests and their commands: most of their time is compiling.
COMPILED = os.environ.get("CAI_JAX_TEST_CACHE", f"/tmp/cai_jax_tests_{os.getuid()}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", COMPILED)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

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
    """The directory of public data beside the project (hh-rlhf subsets, the paper's prompts and
    evaluations)."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is absent: public data is read from there")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_model():
    """A 2-layer architecture with a byte-level tokenizer and no weights: `random:` references
    initialise it."""
    return str(ROOT / "configs" / "models" / "tiny")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """(directory, output) of an undisturbed run of configs/tiny.py. Nobody changes it: copy what is
    to be broken. Several pytest processes share one run: the first makes it, the others wait."""
    from tests.chaos import harness

    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    workdir, output = base / "finished" / "run", base / "finished" / "output.txt"
    with filelock.FileLock(base / "finished.lock"):
        if not output.exists():
            done = harness.run(workdir)
            assert done.returncode == 0, done.stderr[-3000:]
            output.write_text(done.stdout, encoding="utf-8")
    return workdir, output.read_text(encoding="utf-8")
