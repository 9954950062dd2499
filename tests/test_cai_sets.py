"""TFDS data sets of the official evaluations and of a run: built, read back equal, and usable as
what they are."""

import gzip
import hashlib
import json
import subprocess
import sys

import pytest

from cai_jax.data import prepare, rows, tfds_sets
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.evals import load_choices
from cai_jax.data.files import read_json
from cai_jax.data.prompts import read_prompts
from cai_jax.errors import UserError

TURNS = [
    {"role": "human", "text": "A?"},
    {"role": "assistant", "text": "B"},
    {"role": "human", "text": "C?\n\nHuman: é"},
]
TURN = {
    "principle_id": "p",
    "critique_request": None,
    "critique": None,
    "revision_request": "Rewrite.",
    "revision": "better",
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def stage(run, kind, rows, done=True):
    write(run / f"my_{kind}" / "records.jsonl", rows)
    (run / f"my_{kind}" / "manifest.json").write_text(json.dumps({"kind": kind, "done": done}))


def test_official_evaluations(tmp_path):
    row = {"prompt": "…\n\nThe answer is:", "corrects": [" (B)"], "incorrects": [" (A)"]}
    whole = {
        "text_correct": "\n\nHuman: a\n\nAssistant: b",
        "text_incorrect": "\n\nHuman: a\n\nAssistant: c",
    }
    write(tmp_path / "in" / "eval_438HHHEvaluations.jsonl.gz", [row | whole])
    write(tmp_path / "in" / "HarmfulVsEthical.jsonl", [row, row])
    assert (
        prepare.main(
            ["cai_evals", "--manual_dir", str(tmp_path / "in"), "--data_dir", str(tmp_path)]
        )
        == 0
    )
    items = load_choices(f"tfds:cai_evals/harmful_vs_ethical@{tmp_path}")
    assert len(items) == 2 and items[0].options == (" (A)", " (B)") and items[0].correct == 1
    (item,) = load_choices(f"tfds:cai_evals/hhh@{tmp_path}")
    assert [dialogue[-1].text for dialogue in item.dialogues] == ["b", "c"]
    with pytest.raises(UserError, match="HarmfulnessClassification"):
        prepare.prepare(
            "cai_evals/harm_kinds", data_dir=str(tmp_path), manual_dir=str(tmp_path / "in")
        )


def test_what_a_run_made(tmp_path, capsys):
    run, base = tmp_path / "run", {"prompt_id": "x", "model": "m", "seed": 0, "dialogue": TURNS}
    stage(
        run,
        "revise",
        [
            base
            | {
                "id": "x/00",
                "kind": None,
                "initial": "bad",
                "rounds": [TURN, TURN | {"critique": "c"}],
            }
        ],
    )
    stage(run, "compare", [base | {"id": "x", "kind": "k", "responses": ["one", "two", "two"]}])
    entry = {"order": "ab", "chain": 0, "a": -2.0, "b": -1.0}
    stage(
        run,
        "feedback",
        [
            {
                "id": f"x/{a}{b}",
                "comparison_id": "x",
                "pair": [a, b],
                "model": "judge",
                "logprobs": [entry],
            }
            for a, b in ((0, 1), (0, 2), (1, 2))
        ],
    )
    assert prepare.main(["cai_run", "--manual_dir", str(run), "--data_dir", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "read as tfds:cai_run/comparisons@" in told
    assert (
        told.count("records.jsonl (sha256 ") == 3 and "2022" not in told
    )  # of revise; of compare and feedback
    (row,) = [row.values for row in rows.read(f"tfds:cai_run/revisions@{tmp_path}", "train")]
    assert (
        row["prompt"] == TURNS
        and row["initial"] == "bad"
        and [r["critique"] for r in row["rounds"]] == ["", "c"]
    )
    assert [
        m.text
        for m in read_prompts(f"tfds:cai_run/revisions@{tmp_path}#prompt=prompt,id=id")[0][
            0
        ].dialogue
    ][0] == "A?"
    pairs, dropped = load_comparisons(f"tfds:cai_run/comparisons@{tmp_path}")
    assert [(p.id, p.chosen, p.rejected) for p in pairs] == [
        ("x#0-1", "two", "one"),
        ("x#0-2", "two", "one"),
    ]
    assert pairs[0].dialogue[-1].text == TURNS[-1]["text"] and dropped == {}
    first = next(rows.read(f"tfds:cai_run/comparisons@{tmp_path}", "train"))
    assert first.values["probability"] == pytest.approx(0.7310585786300049)


def test_a_directory_that_is_no_run(tmp_path):
    stage(tmp_path / "run", "revise", [], done=False)
    with pytest.raises(UserError, match="revise/manifest.json"):
        prepare.prepare("cai_run", data_dir=str(tmp_path), manual_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="needs --manual_dir=RUN"):
        prepare.prepare("cai_run/revisions", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="expected a run with finished stages"):
        prepare.prepare(
            "cai_run/comparisons", data_dir=str(tmp_path), manual_dir=str(tmp_path / "run")
        )


def test_public_evaluations_are_read_as_what_they_are_without_tensorflow(shared_data, tmp_path):
    """All three official files: prepared, then read by another process through tfds.data_source;
    every row is the file's, and metadata name it with its digest."""
    assert (
        prepare.main(["cai_evals", "--manual_dir", str(shared_data), "--data_dir", str(tmp_path)])
        == 0
    )
    code = (
        "import hashlib, json, sys\n"
        "import tensorflow_datasets as tfds\n"
        "from cai_jax.data import tfds_sets\n"
        "for name in tfds_sets.EVALS:\n"
        f"    rows = tfds.data_source(f'cai_evals/{{name}}', split='test', "
        f"data_dir={str(tmp_path)!r})\n"
        f"    info = tfds.builder(f'cai_evals/{{name}}', data_dir={str(tmp_path)!r}).info\n"
        "    prompts = [row['prompt'].decode() for row in rows]\n"
        "    assert len(rows) == info.splits['test'].num_examples and '2212.08073' in "
        "info.citation\n"
        "    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()\n"
        "    print(json.dumps([name, len(rows), digest, "
        "info.metadata['files']['test']['sha256']]))\n"
        "assert not {'tensorflow', 'torch', 'jax'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stdout.splitlines():
        name, count, digest, sha256 = json.loads(line)
        path = tfds_sets.CaiEvals.find(shared_data, name)["test"]
        prompts = [row.values["prompt"] for row in read_json(path)]
        assert (
            count == len(prompts)
            and digest == hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        )
        assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(done.stdout.splitlines()) == len(tfds_sets.EVALS)


def test_public_evaluations_are_found_by_name(shared_data):
    for name in tfds_sets.EVALS:
        assert list(tfds_sets.CaiEvals.find(shared_data, name)) == ["test"]
