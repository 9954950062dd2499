"""`cai_jax.status` tells where a run is and changes nothing."""

import json

import pytest

from cai_jax import status
from cai_jax.errors import UserError
from cai_jax.io import artefacts, preemption, where


def test_done_begun_and_waiting_stages(tmp_path, capsys):
    graph = dict.fromkeys(("pm", "respond", "revise", "rl", "sl"), {})
    artefacts.write_json(
        tmp_path / "config.json",
        {"config": {"stages": ["respond", "revise", "sl", "pm"], "graph": graph}},
    )
    artefacts.StageDirectory(tmp_path / "respond").update_manifest(
        done=True, seconds=3.2, summary={"headline": "40 tokens"}
    )
    revise = artefacts.StageDirectory(tmp_path / "revise")
    revise.update_manifest(done=False)
    journal = revise.journal()
    journal.append({"id": "a"})
    journal.flush()
    artefacts.StageDirectory(tmp_path / "sl").update_manifest(done=False)
    (tmp_path / "sl" / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    before = sorted(path for path in tmp_path.rglob("*"))
    assert status.main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert "no process holds it" in lines[0]
    assert lines[1] == "  1 of 5 stages of the graph done"
    assert "done in 3 s: 40 tokens" in lines[2]
    assert "begun, 1 rows on disk" in lines[3]
    assert "step 7" in lines[4]
    assert lines[5].split() == ["pm", "waiting"]
    assert lines[6].split(maxsplit=1) == ["rl", "not among the stages of the last command"]
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_manifest_is_named_in_its_stages_line(tmp_path, how):
    artefacts.write_json(tmp_path / "config.json", {"config": {"stages": ["respond", "sl"]}})
    for name in ("respond", "sl"):
        artefacts.StageDirectory(tmp_path / name).update_manifest(
            done=True, seconds=3.2, summary={"headline": "40 tokens"}
        )
    manifest = tmp_path / "respond" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("40", "41") if how == "flipped" else text[:20])
    _, count, respond, sl = status.describe(tmp_path)
    assert count == "  1 of 2 stages of the graph done"
    assert respond.startswith("  respond ") and f"{manifest}: " in respond
    assert "\n" not in respond and sl.endswith("done in 3 s: 40 tokens")


def test_mistakes_are_one_line(tmp_path, capsys):
    for arguments in ([], [str(tmp_path)], [str(tmp_path), "other"]):
        assert status.main(["status", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "ends,state,message",
    [
        (None, "done", ""),
        (preemption.Preempted("saved step 3"), "stopped", "saved step 3"),
        (UserError("no space"), "failed", "UserError: no space"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
    ],
)
def test_the_status_file_says_where_a_run_is(tmp_path, ends, state, message):
    def told():
        return json.loads((tmp_path / "status.json").read_text())

    def run():
        with where.reported(tmp_path, ["respond", "sl"]) as begin:
            begin("respond")
            expected = {
                "state": "running",
                "stage": "respond",
                "number": 1,
                "stages": ["respond", "sl"],
            }
            assert expected.items() <= told().items()
            begin("sl")
            if ends:
                raise ends

    if ends:
        with pytest.raises(type(ends)):
            run()
    else:
        run()
    assert (told()["state"], told()["stage"], told()["number"], told()["message"]) == (
        state,
        "sl",
        2,
        message,
    )
    artefacts.write_json(tmp_path / "config.json", {"config": {"stages": ["respond", "sl"]}})
    first = status.describe(tmp_path)[0]
    assert f": {state}" in first and message in first and first.endswith("no process holds it")
    (tmp_path / "status.json").write_text('{"state": "runn')  # it tells, nobody rests on it
    assert status.describe(tmp_path)[0] == f"{tmp_path}: no process holds it"
