"""References by content: what counts as another input of a stage, and what does not."""

import os
import pathlib
import shutil

import pytest
from etils import epath

from cai_jax.errors import UserError
from cai_jax.io import contents
from cai_jax.main import parse
from cai_jax.pipeline import changes, identity
from cai_jax.pipeline import graph as pipeline

TINY = pathlib.Path(__file__).resolve().parent.parent / "configs" / "tiny.py"


def graph(*overrides):
    return pipeline.build_graph(parse(["main", f"--config={TINY}", *overrides])[0])


@pytest.fixture
def model(tmp_path, tiny_model):
    """A model directory with weights (of any bytes: nothing here loads them)."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").write_bytes(b"weights" * 10)
    return folder


@pytest.mark.parametrize(
    "name", ["model.safetensors", "chat_template.jinja", "generation_config.json", "config.json"]
)
def test_a_changed_file_of_a_model_changes_the_stages_that_use_it(model, tmp_path, name):
    flag = f"--config.models.base={model}"
    before = graph(flag)
    for node in before.values():
        pipeline.artefacts.StageDirectory(tmp_path / "run" / node.name).update_manifest(
            fingerprint=node.fingerprint, fields=node.fields, kind=node.kind, done=True
        )
    path = model / name
    size = path.stat().st_size if path.exists() else 0
    path.write_bytes(b"x" * size + b"x" * (not size))  # the same name and size
    after = graph(flag)
    same = {stage for stage in before if before[stage].fingerprint == after[stage].fingerprint}
    assert same == {"report"}  # it compares the stages that it read when it runs
    with pytest.raises(UserError) as error:
        found = changes.find(after, epath.Path(tmp_path / "run"))
        changes.require_allowed(found, found.stages, "stop")
    assert f"respond.model: contents of {model}/{name}" in str(error.value)
    assert "→" not in str(error.value)  # no bare digests


def test_a_named_template_counts_and_a_readme_does_not(model):
    before = identity.of(str(model), is_model=True)
    (model / "README.md").write_text("words")
    assert identity.of(str(model), is_model=True).text == before.text
    (model / contents.TEMPLATES).mkdir()
    (model / contents.TEMPLATES / "tool_use.jinja").write_text("x")
    assert identity.of(str(model), is_model=True).text != before.text


def test_spelling_and_place_make_no_difference(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(model, tmp_path / "link")
    moved = tmp_path / "elsewhere"
    shutil.copytree(model, moved)
    spellings = ["model", "./model", "model/", str(model), "x/../model", "link", str(moved)]
    os.mkdir("x")
    graphs = [graph(f"--config.models.base={name}") for name in spellings]
    assert len({nodes["evaluate"].fingerprint for nodes in graphs}) == 1
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text('{"prompt": "a"}\n')
    shutil.copytree(data, tmp_path / "copy")
    sources = ["data/a.jsonl", "./data//a.jsonl", str(data / "a.jsonl"), "copy/a.jsonl"]
    marks = {
        graph(f"--config.graph.respond.prompts.source={name}")["respond"].fingerprint
        for name in sources
    }
    assert len(marks) == 1


def test_the_columns_and_the_order_of_sources_count(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "{name}", "q": "{name}"}}\n')
    a, b = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    texts = [identity.of(name).text for name in (f"{a}+{b}", f"{b} + {a}", a, f"{a}#prompt=q", b)]
    assert len(set(texts)) == 5


@pytest.mark.parametrize("name", ["a+b.jsonl", "a#b.jsonl", "a@1.jsonl", "a[1].jsonl"])
def test_marks_of_our_own_in_a_path(tmp_path, name):
    path = tmp_path / name
    path.write_text("{}\n")
    before = identity.of(f"{path}#prompt=q+{path}")
    assert [part.where for part in before.parts] == [str(path)] * 2
    path.write_text("[]\n")
    assert identity.of(f"{path}#prompt=q+{path}").text != before.text


@pytest.mark.parametrize("reference", ["{}", "hf:{}", "hf:{}#prompt=q"])
def test_a_directory_of_data_is_what_it_holds(tmp_path, reference):
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.parquet").write_bytes(b"1")
    reference = reference.format(folder)
    before = identity.of(reference)
    (folder / "README.md").write_text("words")
    assert identity.of(reference).text == before.text
    (folder / "data" / "train.parquet").write_bytes(b"2")
    after = identity.of(reference)
    assert after.text != before.text
    lines = identity.changed_files({"source": before.to_json()}, {"source": after.to_json()})
    assert lines == [f"source: contents of {folder}/data/train.parquet"]


def test_a_prepared_data_set_is_what_it_holds(tmp_path):
    folder = tmp_path / "some_set" / "plain" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "train.array_record-00000-of-00001").write_bytes(b"1")
    before = identity.of(f"tfds:some_set/plain@{tmp_path}")
    (folder / "train.array_record-00000-of-00001").write_bytes(b"2")
    assert identity.of(f"tfds:some_set/plain@{tmp_path}").text != before.text
    assert identity.of(f"tfds:other@{tmp_path}") is None


def test_the_code_of_a_reward_counts_with_what_it_imports(tmp_path, monkeypatch):
    (tmp_path / "myreward.py").write_text("import myhelper, json\ndef f(d): return myhelper.g(d)\n")
    (tmp_path / "myhelper.py").write_text("def g(d): return [0.0 for _ in d]\n")
    (tmp_path / "unrelated.py").write_text("1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    flag = "--config.graph.rl.reward=python:myreward.f"
    marks = [graph(flag)["rl"].fingerprint]
    for name in ("unrelated", "myhelper", "myreward"):
        with open(tmp_path / f"{name}.py", "a") as file:
            file.write("# changed\n")
        marks.append(graph(flag)["rl"].fingerprint)
    assert marks[0] == marks[1] and len(set(marks)) == 3


def test_a_folder_that_is_called_like_a_value_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = graph()["respond"].fingerprint
    for name in ("train", "chat", "auto", "respond"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    assert graph()["respond"].fingerprint == before


def test_a_file_that_is_called_like_an_item_of_a_list_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = (
        "--config.graph.sl.adapters.rank=2",
        "--config.stages=respond,respond_helpful,revise,sl",
    )
    before = graph(*flags)["sl"].fingerprint
    (tmp_path / "all").write_text("x")  # adapters.targets=("all",)
    assert graph(*flags)["sl"].fingerprint == before


def test_weights_of_a_random_model_do_not_count(model):
    before = identity.of(f"random:{model}", is_model=True)
    (model / "model.safetensors").write_bytes(b"other")
    assert identity.of(f"random:{model}", is_model=True).text == before.text
    assert identity.of(str(model), is_model=True).text != before.text


@pytest.mark.parametrize("text,expected", [("{{ strftime_now('%d') }}", True), ("{{ x }}", False)])
def test_a_template_that_writes_the_date(model, text, expected):
    (model / "chat_template.jinja").write_text(text)
    assert identity.writes_date(str(model)) is expected
    assert identity.writes_date(f"random:{model}") is expected
