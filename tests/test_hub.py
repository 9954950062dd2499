"""Data sets of the hub by name: which files a split is, what is fetched, and what is there without
a network."""

import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from cai_jax.data import hub
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.prompts import read_prompts
from cai_jax.data.ratings import load_ratings
from cai_jax.errors import UserError
from cai_jax.structs import Message


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """{repository: folder as the branch refs/convert/parquet has it}; without a network only what
    was fetched is there."""
    import huggingface_hub

    state = {"online": True, "fetched": [], "asked": []}

    def folder(repo_id, **where):
        assert where["repo_type"] == "dataset"
        state["asked"].append(where["revision"])
        found = tmp_path / "hub" / repo_id
        if not found.is_dir():
            raise ValueError(f"404: no data set {repo_id}\nmore words")
        return found

    class Api:
        def list_repo_files(self, repo_id, **where):
            if not state["online"]:
                raise OSError("no network")
            root = folder(repo_id, **where)
            return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]

    def download(repo_id, filename, **where):
        state["fetched"].append(filename)
        return str(folder(repo_id, **where) / filename)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda local_files_only, **where: str(folder(**where))
    )
    state["root"] = tmp_path / "hub"
    return state


def test_prompts_and_comparisons_by_name(fake_hub):
    root = fake_hub["root"] / "org" / "asks" / "default"
    write(root / "train" / "0001.parquet", {"question": "Who?", "n": 2})
    write(root / "train" / "0000.parquet", {"question": "Why?", "n": 1})
    write(root / "test" / "0000.parquet", {"question": "Where?", "n": 3})
    prompts = read_prompts("hf:org/asks#prompt=question,id=n", split="train")[0]
    assert [(p.id, p.dialogue) for p in prompts] == [
        ("1", (Message("human", "Why?"),)),
        ("2", (Message("human", "Who?"),)),
    ]
    assert fake_hub["fetched"] == ["default/train/0000.parquet", "default/train/0001.parquet"]
    assert set(fake_hub["asked"]) == {"refs/convert/parquet"}
    assert [
        p.id for p in read_prompts("hf:org/asks/default#prompt=question,id=n", split="test")[0]
    ] == ["3"]
    assert len(read_prompts("hf:org/asks#prompt=question", split="train 0-9/10", limit=1)[0]) == 1

    write(
        fake_hub["root"] / "org" / "pairs" / "only" / "train" / "0000.parquet",
        {
            "q": "Why?",
            "good": "So.",
            "bad": "No.",
            "rating": 3.0,
            "transcript": "\n\nHuman: a\n\nAssistant: b",
        },
    )
    (pair,), dropped = load_comparisons("hf:org/pairs#dialogue=q,chosen=good,rejected=bad")
    assert (pair.source, pair.chosen, pair.rejected, dropped) == ("org/pairs", "So.", "No.", {})
    (rated,), _ = load_ratings("hf:org/pairs")
    assert rated.rating == 3.0


def test_without_a_network_what_was_fetched_is_read(fake_hub):
    write(
        fake_hub["root"] / "org" / "asks" / "default" / "train" / "0000.parquet", {"prompt": "Why?"}
    )
    fake_hub["online"] = False
    assert len(read_prompts("hf:org/asks", split="train")[0]) == 1


def test_other_revisions_and_a_directory(fake_hub, tmp_path):
    write(
        fake_hub["root"] / "org" / "asks" / "data" / "train-00000-of-00002.parquet",
        {"prompt": "Why?"},
    )
    write(
        fake_hub["root"] / "org" / "asks" / "data" / "train-00001-of-00002.parquet",
        {"prompt": "Who?"},
    )
    write(
        fake_hub["root"] / "org" / "asks" / "data" / "train_extra.parquet", {"prompt": "not this"}
    )
    assert [p.dialogue[0].text for p in read_prompts("hf:org/asks@main", split="train")[0]] == [
        "Why?",
        "Who?",
    ]
    assert fake_hub["asked"][-1] == "main"
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "test.jsonl").write_text('{"prompt": "When?"}\n')
    assert read_prompts(f"hf:{clone}", split="test")[0][0].dialogue[0].text == "When?"
    write(clone / "one" / "train" / "0.parquet", {"prompt": "How?"})
    write(clone / "two" / "train" / "0.parquet", {"prompt": "How far?"})
    assert read_prompts(f"hf:{clone}/two", split="train")[0][0].dialogue[0].text == "How far?"


@pytest.mark.parametrize(
    "listed,config,expected",
    [
        (["a/train/0.parquet", "b/train/0.parquet"], "b", ["b/train/0.parquet"]),
        (
            ["a/train/0.parquet", "default/train/0.parquet", "README.md"],
            None,
            ["default/train/0.parquet"],
        ),
        (["only/train/0.parquet", ".gitattributes"], None, ["only/train/0.parquet"]),
        (["train.jsonl.gz", "test.jsonl.gz"], None, ["train.jsonl.gz"]),
        (["sub/train-0.jsonl", "sub/test-0.jsonl"], "sub", ["sub/train-0.jsonl"]),
    ],
)
def test_which_files_a_split_is(listed, config, expected):
    assert hub.chosen(listed, "org/name", config, "train") == expected


@pytest.mark.parametrize(
    "source,says",
    [
        (
            "hf:org/absent",
            "the Hugging Face hub did not give the data set: 404: no data set org/absent",
        ),
        ("hf:a/b/c/d", "expected hf:ORG/NAME"),
        ("hf:", "expected hf:ORG/NAME"),
        ("hf:./absent", "expected hf:ORG/NAME"),
        (
            "hf:org/two",
            "name one of its configurations, such as hf:org/two/one; there are one, three",
        ),
        ("hf:org/two/one", "no split 'valid' of one; there are splits of one: train"),
        ("hf:org/none", "no split 'valid'; there are files: none that can be read"),
        ("hf:org/two/one#prompt=nothing", "no split 'valid'"),
    ],
)
def test_mistakes_are_one_line(fake_hub, source, says):
    for config in ("one", "three"):
        write(
            fake_hub["root"] / "org" / "two" / config / "train" / "0000.parquet", {"prompt": "Why?"}
        )
    (fake_hub["root"] / "org" / "none").mkdir()
    (fake_hub["root"] / "org" / "none" / "script.py").write_text("raise SystemExit")
    with pytest.raises(UserError) as caught:
        read_prompts(source, split="valid")[0]
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_and_missing_columns_name_the_source(fake_hub):
    path = fake_hub["root"] / "org" / "asks" / "default" / "train" / "0000.parquet"
    write(path, {"question": "Why?"})
    with pytest.raises(UserError, match="hf:org/asks:1: field 'prompt'"):
        read_prompts("hf:org/asks", split="train")[0]
    pathlib.Path(path).write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_prompts("hf:org/asks", split="train")[0]


@pytest.mark.parametrize(
    "files,says",
    [
        (
            ["data/train.jsonl", "data/train.parquet"],
            "more than once .data/train.jsonl, data/train",
        ),
        (["train.jsonl", "train.jsonl.gz"], "more than once"),
        (["train.jsonl", "data/train.parquet"], "more than once"),
        (["train.parquet", "train-00000-of-00001.parquet"], "more than once"),
        (["train/a.jsonl", "train/a.parquet"], "more than once"),
        (["train-00000-of-00002.parquet", "train-00000-of-00001.parquet"], "more than once"),
        (["data/train-00000-of-00003.parquet"], "2 of its 3 files are missing, first number 1"),
        (["train-00001-of-00003.jsonl", "train-00002-of-00003.jsonl"], "1 of its 3 .* number 0"),
        (["default/train/0000.parquet", "default/train/0002.parquet"], "1 of its 3 .* number 1"),
    ],
)
def test_two_truths_and_missing_shards_are_refused(files, says):
    with pytest.raises(UserError, match=f"hf:x: split 'train' is .*{says}") as error:
        hub.chosen(sorted([*files, "test.jsonl", "README.md"]), "x", None, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ["train-00001-of-00002.jsonl", "train-00002-of-00002.jsonl"],
        ["train-0.jsonl", "train-2.jsonl"],
        ["train/part-a.jsonl", "train/part-b.jsonl"],
        ["default/train/0000.parquet", "default/train/0001.parquet"],
        ["train.jsonl.gz"],
    ],
)
def test_complete_sets_are_read(files):
    assert hub.chosen(sorted([*files, "test.parquet"]), "x", None, "train") == files


def test_ids_do_not_depend_on_how_a_directory_is_spelled(tmp_path, monkeypatch):
    turns = "\n\nHuman: Hi\n\nAssistant: "
    row = {"chosen": f"{turns}Yes.", "rejected": f"{turns}No."}
    write(tmp_path / "pairs" / "train.parquet", row)
    monkeypatch.chdir(tmp_path)
    spellings = ["pairs", "./pairs", "pairs/", str(tmp_path / "pairs"), "pairs/../pairs"]
    ids = {load_comparisons(f"hf:{name}")[0][0].id for name in spellings}
    assert ids == {"pairs:1"}


def test_without_a_network_the_line_says_what_the_hub_said(monkeypatch):
    """Not what its client says of an empty cache, which advises an argument that no config has."""
    import huggingface_hub

    def refused(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refused)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="Network is unreachable") as caught:
        hub.files("nobody/nothing-at-all", "", "train")
    assert "local_files_only" not in str(caught.value)
