"""Digests by content, and the cache that keeps those of large files."""

import hashlib
import os
import pathlib

import pytest

from cai_jax.io import contents


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache directory for this test; all files are kept there, and all count as
    settled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "KEPT_FROM", 1)
    monkeypatch.setattr(contents, "SETTLED_SECONDS", -60)
    return tmp_path / "cache" / "cai_jax" / "digests"


def test_a_file_is_read_once_and_again_when_it_was_replaced(tmp_path, cache, monkeypatch):
    path, read = tmp_path / "weights", []
    path.write_bytes(b"old")
    of = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: read.append(1) or of(*args))
    first = contents.of_file(path)
    assert contents.of_file(path) == first == contents.of_file(os.path.relpath(path))
    assert len(read) == 1 and len(list(cache.iterdir())) == 1
    times = path.stat()
    other = tmp_path / "other"
    other.write_bytes(b"new")  # the same size, and below the same modification time
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, path)
    assert contents.of_file(path) != first and len(read) == 2


def test_a_file_that_just_changed_is_not_kept(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(contents, "SETTLED_SECONDS", 60)
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    before = contents.of_file(path)
    state = path.stat()
    path.write_bytes(b"new")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not cache.exists() and contents.of_file(path) != before


@pytest.mark.parametrize("obstacle", ["file", "rotten", "no home"])
def test_a_cache_that_cannot_be_used_is_no_error(tmp_path, cache, monkeypatch, obstacle):
    path = tmp_path / "weights"
    path.write_bytes(b"data")
    expected = contents.of_file(path)
    if obstacle == "file":
        monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    elif obstacle == "rotten":
        next(cache.iterdir()).write_bytes(b"\xff\x00")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "")
        assert contents.user_cache() is None
    assert contents.of_file(path) == expected


def test_model_files_are_those_that_decide(tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md", "old.bin"):
        (tmp_path / name).write_text(name)
    templates = tmp_path / contents.TEMPLATES
    templates.mkdir()
    (templates / "tools.jinja").write_text("x")
    names = {"config.json", "tokenizer.json", "model.safetensors", f"{templates.name}/tools.jinja"}
    assert set(contents.of_model(tmp_path)) == names
    assert set(contents.of_model(tmp_path, weights=False)) == names - {"model.safetensors"}
    assert set(contents.of_model(tmp_path, tokenizer=False)) == {"config.json", "model.safetensors"}


def test_combined_digests_do_not_run_into_each_other():
    assert contents.combined(["ab", "c"]) != contents.combined(["a", "bc"])
    assert contents.combined({"a": "1", "b": "2"}) != contents.combined({"a": "2", "b": "1"})
    assert isinstance(pathlib.Path(contents.combined([])).name, str)
