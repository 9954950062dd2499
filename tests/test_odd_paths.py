"""Paths with odd characters, from the command line to the finished stage, and bytes that are no
text."""

import json
import os
import pathlib

import pytest

from cai_jax import main
from cai_jax.errors import UserError, printable

ROOT = pathlib.Path(__file__).resolve().parent.parent
TINY = ROOT / "configs" / "tiny.py"


def test_data_and_runs_in_folders_with_odd_names(tmp_path, capsys):
    folder = tmp_path / "c++ run #1 @[x] é"
    folder.mkdir()
    rows = [{"question": f"Why {i}?"} for i in range(3)]
    (folder / "p+q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = folder / "runs [1] + #2"
    flags = [
        f"--config.graph.respond.prompts.source={folder}/p+q.jsonl#prompt=question[:2]+embedded:helpful[:1]",
        "--config.stages=respond",
        "--config.graph.respond.max_new_tokens=2",
    ]
    code = main.main(["main", f"--config={TINY}", f"--workdir={run}", *flags])
    assert code == 0, capsys.readouterr().err
    asked = [json.loads(line) for line in (run / "respond" / "records.jsonl").open()]
    assert len(asked) == 3
    assert {"Why 0?", "Why 1?"} < {row["dialogue"][0]["text"] for row in asked}
    assert main.main(["main", f"--config={TINY}", f"--workdir={run}", *flags]) == 0
    assert "done before" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--workdir", "--config.graph.respond.prompts.source"])
def test_bytes_that_are_not_utf8_are_one_line(tmp_path, capsys, flag):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/r\xffn")
    assert main.main(["main", f"--config={TINY}", f"{flag}={name}"]) == 2
    text = capsys.readouterr().err
    assert text.encode("utf-8") and text.count("\n") == 1  # a strict stream takes it
    assert "not UTF-8" in text and "r\\udcffn" in text and not os.listdir(tmp_path)


def test_a_message_about_such_a_path_can_be_printed():
    name = os.fsdecode(b"/x/\xff.jsonl")
    assert str(UserError(f"{name}: no such file")) == "/x/\\udcff.jsonl: no such file"
    assert printable("é, 日本") == "é, 日本"
