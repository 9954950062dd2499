"""The TFDS data set: built from files by name, by download, read without TensorFlow, equal to the
JSON Lines it came from."""

import functools
import gzip
import http.server
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from cai_jax.data import prepare, rows, tfds_sets
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.files import read_json
from cai_jax.errors import UserError

ATTEMPT = {
    "min_harmlessness_score_transcript": -1.5,
    "num_params": "52B",
    "model_type": "rlhf",
    "rating": 3.0,
    "task_description": "ask for “a secret”",
    "task_description_harmlessness_score": -0.25,
    "red_team_member_id": 7,
    "is_upworker": True,
    "tags": ["a", "b"],
    "transcript": "\n\nHuman: Hé?\n\nAssistant: No.",
}


def pairs(name, count):
    return [
        {
            "chosen": f"\n\nHuman: {name} {i}\n\nAssistant: yes ☃",
            "rejected": f"\n\nHuman: {name} {i}\n\nAssistant: no",
        }
        for i in range(count)
    ]


def write(path, rows, array=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One published layout, one flat file, one array of attempts: (directory of files, TFDS
    directory)."""
    files, data = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("tfds")
    write(files / "helpful-base" / "train.jsonl.gz", pairs("train", 30))
    write(
        files / "helpful-base" / "test.jsonl.gz",
        [*pairs("test", 5), {"chosen": "", "rejected": "x"}],
    )
    write(files / "hh_harmless_base.jsonl", pairs("flat", 4))
    write(
        files / "red_team_attempts.jsonl.gz",
        [ATTEMPT, {**ATTEMPT, "tags": None, "rating": 0}],
        array=True,
    )
    assert prepare.main(["cai_hh_rlhf", "--manual_dir", str(files), "--data_dir", str(data)]) == 0
    return files, data


def test_rows_equal_those_of_the_files_in_order(built):
    files, data = built
    for split in ("train", "test"):
        found = list(rows.read(f"tfds:cai_hh_rlhf/helpful_base@{data}", split))
        published = list(read_json(files / "helpful-base" / f"{split}.jsonl.gz"))
        assert [(r.line, r.values["chosen"], r.values["rejected"]) for r in found] == [
            (r.line, r.values["chosen"], r.values["rejected"]) for r in published
        ]
        assert [row.values["id"] for row in found][:2] == [
            f"helpful_base-{split}:1",
            f"helpful_base-{split}:2",
        ]


def test_load_comparisons_from_tfds(built):
    source = f"tfds:cai_hh_rlhf/helpful_base@{built[1]}"
    kept, dropped = load_comparisons(source, split="test")
    assert len(kept) == 5 and dropped == {"empty turn": 1} and kept[0].chosen == "yes ☃"
    assert kept[0].source == "cai_hh_rlhf/helpful_base"
    assert [i.id for i in load_comparisons(source, split="train", offset=3, limit=2)[0]] == [
        "helpful_base-train:4",
        "helpful_base-train:5",
    ]
    assert len(load_comparisons(source, split="train[:10]")[0]) == 10
    assert len(load_comparisons(f"tfds:cai_hh_rlhf/harmless_base@{built[1]}", split="test")[0]) == 4


def test_attempts_are_read_from_a_json_array(built):
    source = f"tfds:cai_hh_rlhf/red_team_attempts@{built[1]}"
    first, second = [row.values for row in rows.read(source, "train")]
    assert first == {"id": "red_team_attempts-train:1", **ATTEMPT} and second["tags"] == []
    assert not any(isinstance(value, bytes | np.generic) for value in first.values())


def test_metadata_says_where_the_rows_are_from(built):
    import tensorflow_datasets as tfds

    builder = tfds.builder("cai_hh_rlhf/helpful_base", data_dir=built[1])
    assert (
        set(builder.info.splits) == {"train", "test"}
        and builder.info.splits["train"].num_examples == 30
    )
    assert (
        "2204.05862" in builder.info.citation and builder.info.file_format.value == "array_record"
    )
    found = builder.info.metadata["files"]["train"]
    assert (
        found["name"] == "train.jsonl.gz"
        and len(found["sha256"]) == 64
        and found["published"] is None
    )
    assert set(tfds_sets.CaiHhRlhf.builder_configs) == set(tfds_sets.CaiHhRlhf.SETS)


def test_prepared_data_are_kept(built, capsys):
    assert (
        prepare.main(["cai_hh_rlhf/helpful_base", "--data_dir", str(built[1])]) == 0
    )  # no files, no network needed
    assert "train: 30 rows" in capsys.readouterr().out


def test_downloads(tmp_path, monkeypatch, built):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(built[0]))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(tfds_sets.CaiHhRlhf, "URL", f"http://127.0.0.1:{server.server_port}")
    try:
        (builder,) = prepare.prepare("cai_hh_rlhf/helpful_base", data_dir=str(tmp_path))
        with pytest.raises(UserError, match="manual_dir"):  # not on this server
            prepare.prepare("cai_hh_rlhf/helpful_online", data_dir=str(tmp_path))
    finally:
        server.shutdown()
    assert builder.info.splits["train"].num_examples == 30
    assert not (tmp_path / "cai_hh_rlhf" / "helpful_online" / "1.0.0").exists()


@pytest.mark.parametrize(
    "row,expected",
    [
        ({"chosen": "x"}, "bad.jsonl:2: field 'rejected'"),
        ({"chosen": "x", "rejected": 1}, "bad.jsonl:2: field 'rejected'"),
        ([1], "bad.jsonl:2: expected a JSON object"),
    ],
)
def test_malformed_rows_are_named_and_nothing_is_left(tmp_path, capsys, row, expected):
    write(tmp_path / "in" / "hh_helpful_base.jsonl", [*pairs("x", 1), row])
    assert (
        prepare.main(
            [
                "cai_hh_rlhf/helpful_base",
                "--manual_dir",
                str(tmp_path / "in"),
                "--data_dir",
                str(tmp_path),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected.replace("bad", "hh_helpful_base") in error
    assert not (tmp_path / "cai_hh_rlhf" / "helpful_base" / "1.0.0").exists()


@pytest.mark.parametrize(
    "name,files,expected",
    [
        ("other", None, "there are cai_hh_rlhf"),
        ("cai_hh_rlhf/other", None, "there are helpful_base"),
        ("cai_hh_rlhf/helpful_online", "absent", "no such directory"),
        ("cai_hh_rlhf/helpful_online", ".", "hh_helpful_online"),
        ("cai_hh_rlhf", ".", "helpful-base/train.jsonl.gz"),
    ],
)
def test_wrong_names_and_missing_files(tmp_path, name, files, expected):
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(UserError, match=expected):
        prepare.prepare(
            name, data_dir=str(tmp_path / "out"), manual_dir=files and str(tmp_path / files)
        )


@pytest.mark.parametrize(
    "name,split,expected",
    [
        ("cai_hh_rlhf/helpful_base", "validation", "there are test, train|there are train, test"),
        ("cai_hh_rlhf/helpful_online", "train", "cai_jax.data.prepare cai_hh_rlhf/helpful_online"),
        ("cai_hh_rlhf/other", "train", "no such TFDS"),
        ("no_such_data", "train", "no such TFDS"),
    ],
)
def test_reading_what_is_not_there(built, name, split, expected):
    with pytest.raises(UserError, match=expected):
        list(rows.read(f"tfds:{name}@{built[1]}", split))


def test_tensorflow_is_never_imported(built, tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "raise SystemExit('TensorFlow was imported')"
    )  # as if it were installed
    code = (
        "import sys\n"
        "from cai_jax.data.comparisons import load_comparisons\n"
        f"assert len(load_comparisons('tfds:cai_hh_rlhf/helpful_base@{built[1]}', "
        "split='train')[0]) == 30\n"
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_public_subsets_are_found_by_name(shared_data):
    for name in tfds_sets.PAIRS:
        assert tfds_sets.CaiHhRlhf.find(shared_data, name) == {
            "test": shared_data / f"hh_{name}.jsonl.gz"
        }
