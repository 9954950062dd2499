"""The files of the published results, made from downloads: here from files of a few rows."""

import gzip
import json

import pytest

from cai_jax.data import published
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.prompts import read_prompts
from cai_jax.errors import UserError
from configs import evaluations
from configs.results import smollm2

ROWS = [
    {
        "chosen": f"\n\nHuman: Ask {i // 2}\n\nAssistant: Yes {i}.",
        "rejected": f"\n\nHuman: Ask {i // 2}\n\nAssistant: No {i}!",
    }
    for i in range(4)
]


def test_files_are_made_and_read(tmp_path):
    source = tmp_path / "train.jsonl.gz"
    source.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    files = {
        "turns.jsonl.gz": (source.as_uri(), "turns"),
        "a/pairs.jsonl.gz": (source.as_uri(), "same"),
    }
    assert dict(published.fetch(tmp_path / "data", files))["turns.jsonl.gz"].endswith("bytes")
    prompts, _ = read_prompts(
        str(tmp_path / "data" / "turns.jsonl.gz"), split="", offset=0, limit=None
    )
    assert [prompt.dialogue[0].text for prompt in prompts] == ["Ask 0", "Ask 1"]
    pairs, _ = load_comparisons(str(tmp_path / "data" / "a" / "pairs.jsonl.gz"))
    assert len(pairs) == 4
    assert dict(published.fetch(tmp_path / "data", files)) == dict.fromkeys(files, "is there")


def test_a_table_becomes_prompts(tmp_path):
    (tmp_path / "x.csv").write_text('id,prompt,type,label\n1,"Kill, a process?",homonyms,safe\n')
    files = {"x.jsonl.gz": ((tmp_path / "x.csv").as_uri(), "table")}
    list(published.fetch(tmp_path, files))
    prompts, _ = read_prompts(str(tmp_path / "x.jsonl.gz"), split="", offset=0, limit=None)
    assert [(p.dialogue[0].text, p.kind) for p in prompts] == [
        ("Kill, a process?", "safe:homonyms")
    ]


def test_what_cannot_be_downloaded_is_named_and_nothing_is_left(tmp_path):
    files = {"x.jsonl.gz": ((tmp_path / "none.gz").as_uri(), "turns")}
    with pytest.raises(UserError, match=r"none.gz: not downloaded .*put the file at .*x.jsonl.gz"):
        list(published.fetch(tmp_path / "data", files))
    (tmp_path / "none.gz").write_bytes(gzip.compress(b'{"chosen": "no turn"}\n'))
    with pytest.raises(UserError, match=r"none.gz:1: expected a row of hh-rlhf"):
        list(published.fetch(tmp_path / "data", files))
    assert not list((tmp_path / "data").glob("*"))


def test_every_file_that_the_configs_read_is_listed():
    """And no folder of somebody's machine is a default."""
    found = set()

    def walk(value):
        if isinstance(value, dict) or hasattr(value, "items"):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, str):
            found.update(part for part in value.split("+") if part.startswith(("data/", "..", "/")))

    for config in (
        smollm2.get_config("size=cpu"),
        smollm2.get_config("size=gpu"),
        evaluations.get_config(),
    ):
        walk(config.graph)
    assert found and all(name.startswith("data/") for name in found)
    files = {f"data/{name}" for name in published.FILES} | {"data/official/prompts"}
    assert found <= files
