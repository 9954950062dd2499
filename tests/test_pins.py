"""What changes from day to day is fixed when a run begins: commits of the hub, and the date of
templates."""

import datetime
import json
import shutil

import ml_collections
import pytest
from etils import epath

from cai_jax.errors import UserError
from cai_jax.main import parse
from cai_jax.pipeline import graph as pipeline
from cai_jax.pipeline import identity

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def heads(monkeypatch):
    """(repository, type, revision) → commit that the hub names now; without a network where it is
    None."""
    import huggingface_hub

    commits = {"asked": []}

    class Api:
        def repo_info(self, name, *, repo_type, revision, timeout):
            commits["asked"].append((name, repo_type, revision))
            commit = commits["head"]
            if commit is None:
                raise OSError("no network")
            return ml_collections.ConfigDict({"sha": commit})

    def fetched(name, *, local_files_only, repo_type, revision):
        assert local_files_only
        if "fetched" not in commits:
            raise OSError("not there")
        return f"/cache/snapshots/{commits['fetched']}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    return commits


def config_of(**sources) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "date": "",
            "stages": ("a",),
            "models": {"base": "org/name", "judge": "base"},
            "graph": {
                name: {
                    "kind": "respond",
                    "model": "base",
                    "prompts": {"source": source, "split": "train"},
                }
                for name, source in sources.items()
            },
        }
    ).lock()


def test_a_run_keeps_the_commits_it_began_with(tmp_path, heads):
    heads["head"] = OLD
    source = "hf:org/set/plain#prompt=text + hf:org/other@v1[train:5]+embedded:helpful"
    config = config_of(a=source)
    pinned = identity.pin(config, epath.Path(tmp_path))
    assert config.models.base == f"org/name@{OLD}" and config.models.judge == "base"
    expected = f"hf:org/set/plain@{OLD}#prompt=text + hf:org/other@{OLD}[train:5]+embedded:helpful"
    assert config.graph.a.prompts.source == expected
    assert sorted(heads["asked"]) == [
        ("org/name", "model", "main"),
        ("org/other", "dataset", "v1"),
        ("org/set", "dataset", "refs/convert/parquet"),
    ]
    identity.save_pins(pinned, epath.Path(tmp_path))
    heads.update(head=NEW, asked=[])
    again = config_of(a=source)
    assert identity.pin(again, epath.Path(tmp_path)) == pinned and not heads["asked"]
    assert again.graph.a.prompts.source == expected and again.models.base == f"org/name@{OLD}"


def test_models_of_evaluations_and_of_rewards_are_pinned_and_words_are_not(tmp_path, heads):
    """The defect: groups whose names are the user's own were not looked into."""
    heads["head"] = OLD
    config = config_of()
    evals = {
        "judge": {"kind": "judge", "judge": "org/judge", "anchor": "org/anchor"},
        "harm": {"kind": "harm", "model": "org/harm"},
        "letters": {"kind": "multiple_choice", "feedback": "org/feedback"},
        "scores": {"kind": "preference_scores", "reward": "org/reward"},
    }
    terms = {"pm": {"kind": "preference_model", "model": "org/term"}}
    config.graph = {
        "a": {"kind": "evaluate", "models": {"anchor": "org/answers"}, "evals": evals},
        "b": {"kind": "rl", "rewards": terms},
    }
    config.stages = ("a", "b")
    identity.pin(config, epath.Path(tmp_path))
    evals = config.graph.a.evals
    assert config.graph.a.models.anchor == f"org/answers@{OLD}"
    assert evals.judge.judge == f"org/judge@{OLD}" and evals.judge.anchor == "org/anchor"
    assert evals.harm.model == f"org/harm@{OLD}" and evals.scores.reward == f"org/reward@{OLD}"
    assert evals.letters.feedback == f"org/feedback@{OLD}"
    assert config.graph.b.rewards.pm.model == f"org/term@{OLD}"


def test_marks_of_a_name_keep_their_backslashes(tmp_path, heads):
    heads["head"] = OLD
    config = config_of(a=r"hf:org/set/c\+\+@v1#prompt=text+hf:org/set")
    identity.pin(config, epath.Path(tmp_path))
    expected = rf"hf:org/set/c\+\+@{OLD}#prompt=text+hf:org/set@{OLD}"
    assert config.graph.a.prompts.source == expected


def test_a_commit_in_the_config_stays_and_other_stages_are_not_asked_for(tmp_path, heads):
    heads["head"] = OLD
    config = config_of(a=f"hf:org/set@{NEW}", b="hf:org/unused")
    config.models.base = f"org/name@{NEW}"
    identity.pin(config, epath.Path(tmp_path))
    assert config.graph.a.prompts.source == f"hf:org/set@{NEW}"
    assert config.graph.b.prompts.source == "hf:org/unused" and not heads["asked"]


def test_without_a_network_what_was_fetched_counts_or_a_line_says_so(tmp_path, heads, capsys):
    heads.update(head=None, fetched=OLD)
    config = config_of(a="embedded:helpful")
    identity.pin(config, epath.Path(tmp_path))
    assert config.models.base == f"org/name@{OLD}"
    del heads["fetched"]
    config = config_of(a="embedded:helpful")
    identity.pin(config, epath.Path(tmp_path))
    assert config.models.base == "org/name"
    assert "config.models.base: 'org/name' names no commit" in capsys.readouterr().err


def test_local_directories_are_not_the_hubs(tmp_path, heads, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    config = config_of(a="hf:org/name")
    identity.pin(config, epath.Path(tmp_path))
    assert config.models.base == "org/name" and config.graph.a.prompts.source == "hf:org/name"


def test_the_day_on_which_a_run_began_is_kept(tmp_path, heads, tiny_model):
    heads.update(head=None, fetched=OLD)
    path, today = epath.Path(tmp_path / "run"), datetime.date.today().isoformat()
    config = config_of(a="embedded:helpful")
    assert identity.pin(config, path)["date"] == today == config.date
    identity.save_pins({"date": "2026-01-02", "revisions": {}}, path)
    config = config_of(a="embedded:helpful")
    identity.pin(config, path)
    assert config.date == "2026-01-02"
    assert json.loads((path / identity.PINNED).read_text())["date"] == "2026-01-02"


def marks(model, date) -> str:
    arguments = ["main", "--config=configs/tiny.py", f"--config.models.base={model}"]
    config = parse([*arguments, f"--config.date={date}"])[0]
    return pipeline.build_graph(config)["respond"].fingerprint


def test_the_date_counts_where_a_template_writes_it(tmp_path, tiny_model):
    days = ("2026-01-02", "2026-01-03")
    assert len({marks(f"random:{tiny_model}", day) for day in days}) == 1
    dated = tmp_path / "dated"
    shutil.copytree(tiny_model, dated)
    (dated / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    assert len({marks(f"random:{dated}", day) for day in days}) == 2
    with pytest.raises(UserError, match=r"config\.date: expected YYYY-MM-DD or nothing, not 'May'"):
        marks(f"random:{tiny_model}", "May")
