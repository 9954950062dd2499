"""Changed stages stop a run or are moved aside, never those that the command does not run; and they
can be moved back."""

import pytest
from etils import epath

from cai_jax import main
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.pipeline import changes
from cai_jax.pipeline import graph as pipeline

TINY = "--config=configs/tiny.py"


def graph(*overrides):
    config, _ = main.parse(["cai_jax", TINY, *overrides])
    return pipeline.build_graph(config)


def finish(nodes, path, names=None):
    """Directories of finished stages; each holds a file that names what made it."""
    for node in nodes.values():
        if names is None or node.name in names:
            artefacts.StageDirectory(path / node.name).update_manifest(
                fingerprint=node.fingerprint, fields=node.fields, kind=node.kind, done=True
            )
            (path / node.name / "made by").write_text(node.fingerprint)


def made_by(path) -> dict:
    return {
        file.parent.name: file.read_text()
        for file in path.glob("*/made by")
        if file.parent.name != "aside"
    }


def command(capsys, path, *flags):
    code = main.main(["cai_jax", TINY, f"--workdir={path}", *flags])
    return code, capsys.readouterr()


@pytest.fixture
def finished_stages(tmp_path):
    finish(graph(), tmp_path / "run")
    return tmp_path / "run"


def test_a_change_names_its_field_and_every_stage_that_it_touches(tmp_path):
    before, after = graph(), graph("--config.graph.compare.max_new_tokens=13")
    finish(before, tmp_path)
    path = epath.Path(tmp_path)
    assert changes.find(before, path) == changes.Changes()
    found = changes.find(after, path)
    assert found.stages[:2] == ("compare", "feedback") and "sl" not in found.stages
    with pytest.raises(
        UserError, match=r"compare\.max_new_tokens: 12 → 13.*touched: compare, feedback"
    ):
        changes.require_allowed(found, found.stages, "stop")
    changes.require_allowed(found, found.stages, "redo")


def test_a_resolved_reference_is_not_named_twice():
    old = {"reward": "@pm", "reward →": "@pm", "model": "helpful", "model →": "a"}
    new = {"reward": "@pm2", "reward →": "@pm2", "model": "helpful", "model →": "b"}
    assert changes.changed_fields(old, new) == ["model: 'a' → 'b'", "reward: '@pm' → '@pm2'"]


def test_redo_never_moves_a_stage_that_is_not_run(capsys, finished_stages):
    """The audit's loss: a run made with adapters, `rl` asked for without them; five stages were
    moved and none was run."""
    before = made_by(finished_stages)
    code, out = command(
        capsys,
        finished_stages,
        "--config.on_change=redo",
        "--config.stages=rl",
        "--config.graph.sl.adapters.rank=4",
        "--config.graph.rl.kl_coefficient=0.1",
    )
    assert code == 2 and out.err.count("\n") == 1
    assert "Nothing was moved: sl, compare, feedback, pm are not among" in out.err
    assert "--config.stages=sl,compare,feedback,pm,rl" in out.err
    assert made_by(finished_stages) == before and not (finished_stages / "aside").exists()


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--config.graph.rl.reward=python:no_such_module.f"], "no_such_module"),
        (["--config.graph.evaluate.models.rl=@rl:7"], "@rl:7"),
        (["--config.graph.rl.num_minibatches=3"], "not a multiple of num_minibatches 3"),
        (["--config.graph.rl.prompts.source=missing.jsonl"], "missing.jsonl"),
    ],
)
def test_redo_checks_everything_before_it_moves_anything(capsys, finished_stages, flags, message):
    before = made_by(finished_stages)
    code, out = command(
        capsys, finished_stages, "--config.on_change=redo", "--config.graph.rl.clip=0.3", *flags
    )
    assert code == 2 and message in out.err and out.err.count("\n") == 1, out.err
    assert made_by(finished_stages) == before and not (finished_stages / "aside").exists()


def test_what_was_moved_aside_comes_back(tmp_path, capsys):
    before, after = graph(), graph("--config.graph.compare.max_new_tokens=13")
    path = epath.Path(tmp_path)
    finish(before, tmp_path)
    stale = changes.find(after, path).stages
    changes.move_aside(path, stale)
    out = capsys.readouterr().out
    assert "on_change=restore" in out and f"mv {path / 'aside'}" in out
    assert not (tmp_path / "compare").exists() and (tmp_path / "sl").exists()
    finish(after, tmp_path, {"compare"})  # and the redo had begun
    assert set(changes.restore(before, path, tuple(before))) == set(stale)
    assert made_by(tmp_path) == {name: node.fingerprint for name, node in before.items()}
    assert changes.restore(before, path, tuple(before)) == []
    # What was in its place is aside in turn; alone it does not fit the other stages, so nothing
    # moves.
    with pytest.raises(UserError, match="Stages touched: feedback"):
        changes.restore(after, path, tuple(after))
    assert made_by(tmp_path) == {name: node.fingerprint for name, node in before.items()}
    changes.move_aside(path, [name for name in stale if name != "compare"])
    assert changes.restore(after, path, tuple(after)) == ["compare"]


def test_restore_takes_the_stages_of_the_command_only(tmp_path):
    before, after = graph(), graph("--config.graph.compare.max_new_tokens=13")
    path = epath.Path(tmp_path)
    finish(before, tmp_path)
    changes.move_aside(path, changes.find(after, path).stages)
    assert changes.restore(before, path, ("compare",)) == ["compare"]
    assert not (tmp_path / "pm").exists()
