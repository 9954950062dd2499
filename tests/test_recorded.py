"""Answers that a local model has given serve again, as they were."""

import dataclasses

import pytest
from etils import epath

from cai_jax import seeds
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.structs import FAILED, Completion, Message, Sampling
from cai_jax.textmodels import questions, recorded
from cai_jax.textmodels.protocol import Turn
from cai_jax.textmodels.recorded import RecordedTextModel
from tests import recording

SAMPLING, GREEDY = Sampling(8, 0.7), Sampling(8, 0.0)
EXAMPLE = questions.worked_choice("Shown?", " (B)")
QUESTION = questions.choice("q", "Which?", examples=(EXAMPLE,))


def turn(text="Hi", draw=0, name="t"):
    return Turn(name, (Message("human", text),), seeds.row_key(0, draw))


def record(tmp_path, stage="respond", model=None):
    """What a stage asks is recorded; the model's own results."""
    fields = {"kind": stage, "model": model or str(recording.TINY)}
    ctx, _ = recording.stage(tmp_path, stage, fields)
    ctx.run_config.record = True
    asked = ctx.models.text_model(ctx.config.model)
    turns = [turn(), turn(draw=1, name="t1"), turn("word " * 50_000, name="long")]
    completions = list(asked.generate(turns, SAMPLING))
    assert list(ctx.generate(asked, turns, SAMPLING, count=False)) == completions[1:]
    assert not completions[0].answered  # it does not fit, which is an answer too
    (choice,) = ctx.choose(asked, [QUESTION])
    (greedy,) = ctx.generate(asked, [turn()], GREEDY)
    assert list(ctx.generate(asked, [turn()], GREEDY)) == [greedy]  # is recorded once
    ctx.finish_recording()
    ctx.directory.update_manifest(done=True)
    return turns, completions, choice, greedy


def test_what_was_answered_comes_back_as_it_was(tmp_path):
    turns, completions, choice, greedy = record(tmp_path)
    for directory in (tmp_path, tmp_path / "respond"):
        model = RecordedTextModel(str(directory))
        assert model.name == str(recording.TINY)
        by_id = {each.id: each for each in model.generate(turns, SAMPLING)}
        assert by_id == {each.id: each for each in completions}
        assert list(model.generate(turns, SAMPLING, wanted={"t"})) == [by_id["t"]]
        assert list(model.choose([QUESTION])) == [choice]
        # The draw decides only what is drawn.
        (again,) = model.generate([turn(draw=7, name="another")], GREEDY)
        assert (again.id, again.text) == ("another", greedy.text)


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [(turn("Ho"), SAMPLING), (turn(draw=2), SAMPLING), (turn(), Sampling(9, 0.7)),
     (turn(), Sampling(8, 0.7, top_k=3))],
)  # fmt: skip
def test_what_was_not_asked_is_one_line(tmp_path, asked, sampling):
    record(tmp_path)
    with pytest.raises(UserError, match=r"never answered the request 't' \(it ends in 'H[io]'\)"):
        list(RecordedTextModel(str(tmp_path)).generate([asked], sampling))
    with pytest.raises(UserError, match="never answered the request 'q'"):
        list(RecordedTextModel(str(tmp_path)).choose([questions.choice("q", "Which?")]))


def test_of_several_models_one_is_named(tmp_path):
    record(tmp_path)
    record(tmp_path, "compare", model="another")
    with pytest.raises(UserError, match=rf"models that answered there: {recording.TINY}, another"):
        RecordedTextModel(str(tmp_path)).require()
    model = RecordedTextModel(f"{tmp_path}#another")
    model.require()
    assert model.name == "another"


def test_a_failure_is_recorded_until_there_is_an_answer(tmp_path):
    directory = artefacts.StageDirectory(epath.Path(tmp_path) / "s")
    journal = directory.journal(recorded.RECORDED)
    of = Completion("t", (), (), "", FAILED)
    again = dataclasses.replace(of, text="Yes.", stop="eos")
    for results in ([of], [dataclasses.replace(of, id="u")], [again], [again]):
        requests = [turn(), turn(draw=1, name="u")]
        assert list(recorded.keeping(journal, "m", results, requests, SAMPLING)) == results
    journal.finish()
    directory.update_manifest(done=True)
    model = RecordedTextModel(str(tmp_path))
    results = list(model.generate([turn(), turn(draw=1, name="u")], SAMPLING))
    assert [(each.text, each.stop) for each in results] == [("Yes.", "eos"), ("", FAILED)]


@pytest.mark.parametrize("model, is_elsewhere", [("batch:m", True), ("a/model", False)])
def test_refusals_are_marked_when_answers_are_read(model, is_elsewhere, tmp_path):
    """The defect: recorded.jsonl kept the mark, by the rule of then."""
    evasive = "I can't help with that."
    engaged = "I can't help with breaking in. " + "A locksmith can open the door for you. " * 3
    texts = {"assistant": evasive, "critique": evasive, "revision": engaged}
    turns = [Turn(role, turn().dialogue, turn().key, role) for role in texts]
    results = [Completion(role, (), (), text, "eos") for role, text in texts.items()]
    before = artefacts.StageDirectory(epath.Path(tmp_path) / "before")
    journal = before.journal(recorded.RECORDED)
    list(recorded.keeping(journal, model, results, turns, SAMPLING))
    journal.finish()
    before.update_manifest(done=True)

    fields = {"kind": "respond", "model": f"recorded:{before.path}"}
    ctx, _ = recording.stage(tmp_path, "respond", fields)
    ctx.run_config.record = True
    taken = [each.id for each in ctx.generate(RecordedTextModel(str(before.path)), turns, SAMPLING)]
    assert taken == ["assistant", *["critique"] * (not is_elsewhere), "revision"]
    assert ctx.dropped == ({"refused by the server": 1} if is_elsewhere else {})
    ctx.finish_recording()
    kept = ctx.directory.records(recorded.RECORDED)
    assert [each["completion"]["stop"] for each in kept] == ["eos"] * 3


def test_a_damaged_journal_is_not_used(tmp_path):
    record(tmp_path)
    path = epath.Path(tmp_path) / "respond" / "recorded.jsonl"
    path.write_text(path.read_text().replace("answer to", "answer for"))
    with pytest.raises(UserError, match="contents differ"):
        RecordedTextModel(str(tmp_path)).require()
    assert artefacts.StageDirectory(path.parent).damage()


def test_answers_are_on_disk_before_the_records_that_are_made_from_them(tmp_path):
    directory = artefacts.StageDirectory(epath.Path(tmp_path) / "s")
    records = directory.journal()
    answers = directory.journal(recorded.RECORDED, light=True, first=True)
    answers.append({"id": "a"})
    records.append({"id": "r"})
    records.flush()
    assert list(artefacts.read_parts(directory.path / "recorded.parts")) == ["a"]
