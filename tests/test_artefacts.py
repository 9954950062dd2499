"""Journals: whole parts, no record lost or doubled, sorted and digested at the end."""

import json

import pytest

from cai_jax.errors import UserError
from cai_jax.io import artefacts


def rows(*names):
    return [{"id": name, "text": f"ü\n{name}"} for name in names]


def test_records_are_sorted_and_digested_at_the_end(tmp_path):
    directory = artefacts.StageDirectory(tmp_path / "respond")
    journal = directory.journal()
    for row in rows("b", "c", "a"):
        journal.append(row)
    digest = journal.finish()
    directory.update_manifest(sha256={"records": digest}, done=True)
    assert [row["id"] for row in directory.records()] == ["a", "b", "c"]
    assert directory.records()[0]["text"] == "ü\na"
    assert not (tmp_path / "respond" / "records.parts").exists()
    assert directory.done


def test_a_new_journal_continues_where_the_old_was_killed(tmp_path):
    directory = artefacts.StageDirectory(tmp_path / "s")
    first = directory.journal()
    for row in rows("a", "b"):
        first.append(row)
    first.flush()
    first.append(rows("lost")[0])  # never flushed: as after kill -9
    (directory.path / "records.parts" / ".000007.jsonl.writing").write_text('{"id": "half')
    second = directory.journal()
    assert set(second.finished) == {"a", "b"}
    second.append(rows("c")[0])
    second.finish()
    assert [row["id"] for row in directory.records()] == ["a", "b", "c"]


def test_the_same_record_twice_is_a_bug(tmp_path):
    journal = artefacts.StageDirectory(tmp_path / "s").journal()
    journal.append(rows("a")[0])
    with pytest.raises(ValueError, match="twice"):
        journal.append(rows("a")[0])


def test_discard_forgets_what_a_checkpoint_does_not_cover(tmp_path):
    directory = artefacts.StageDirectory(tmp_path / "s")
    journal = directory.journal()
    for step in range(5):
        journal.append({"id": f"{step}", "step": step})
    journal.discard(lambda row: row["step"] < 3)
    assert set(directory.journal().finished) == {"0", "1", "2"}
    journal.append({"id": "3", "step": 3})
    journal.finish()
    assert [row["step"] for row in directory.records()] == [0, 1, 2, 3]


def test_a_light_journal_keeps_ids_and_writes_the_same(tmp_path):
    rows = [{"id": f"{n:02d}", "step": n // 4, "text": "x" * n} for n in range(12)]
    marks = []
    for light in (False, True):
        directory = artefacts.StageDirectory(tmp_path / str(light))
        journal = directory.journal(light=light)
        for row in rows:
            journal.append(row)
            if row["step"] % 2:
                journal.flush()
        journal.discard(lambda row: row["step"] < 2)
        assert (
            list(journal.finished) == [row["id"] for row in rows[:8]]
            and any(journal.finished.values()) is not light
        )
        again = artefacts.StageDirectory(tmp_path / str(light)).journal(light=light)
        again.discard(lambda row: True)
        for row in rows[8:]:
            again.append(row)
        with pytest.raises(ValueError, match="twice"):
            again.append(rows[0])
        marks.append(again.finish())
    assert marks[0] == marks[1] and len(directory.records("records")) == 12
    assert (tmp_path / "True" / "records.jsonl").read_text() == (
        tmp_path / "False" / "records.jsonl"
    ).read_text()


def test_a_light_journal_notices_a_lost_part(tmp_path):
    journal = artefacts.StageDirectory(tmp_path).journal(light=True)
    for number in range(2):
        journal.append({"id": str(number)})
        journal.flush()
    next(tmp_path.glob("records.parts/*.jsonl")).unlink()
    with pytest.raises(artefacts.Damaged, match="1 records are lost"):
        journal.finish()


def test_many_rows_reach_the_disk_in_parts(tmp_path):
    directory = artefacts.StageDirectory(tmp_path / "s")
    journal = directory.journal()
    for number in range(artefacts.FLUSH_ROWS * 2 + 1):
        journal.append({"id": f"{number:04d}"})
    assert len(list((directory.path / "records.parts").glob("*.jsonl"))) == 2
    assert len(directory.journal().finished) == artefacts.FLUSH_ROWS * 2


def test_a_flipped_bit_is_seen(tmp_path):
    directory = artefacts.StageDirectory(tmp_path / "s")
    journal = directory.journal()
    journal.append(rows("a")[0])
    directory.update_manifest(sha256={"records": journal.finish()}, done=True)
    path = directory.path / "records.jsonl"
    path.write_text(path.read_text().replace("ü", "u"))
    with pytest.raises(UserError, match="SHA-256"):
        directory.records()


@pytest.mark.parametrize(
    "line,message", [("{", "not a JSON object"), ("[1]", "string id"), ('{"id": 3}', "string id")]
)
def test_a_malformed_record_is_named_by_file_and_line(tmp_path, line, message):
    directory = artefacts.StageDirectory(tmp_path)
    (tmp_path / "records.jsonl").write_text('{"id": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"records\.jsonl:2.*{message}"):
        directory.records()


def test_missing_records_say_which_stage_to_run(tmp_path):
    with pytest.raises(UserError, match="run the stage 'revise' first"):
        artefacts.StageDirectory(tmp_path / "revise").records()


@pytest.mark.parametrize("old,new", [("{", ""), ("true", "false"), ('"sl"', '"pm"')])
def test_a_damaged_manifest_is_named(tmp_path, old, new):
    directory = artefacts.StageDirectory(tmp_path)
    directory.update_manifest(done=True, kind="sl")
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match="manifest.json.*move"):
        directory.done  # noqa: B018


def test_a_kill_before_the_finished_file_is_written_loses_nothing(tmp_path, capsys):
    directory = artefacts.StageDirectory(tmp_path)
    directory.journal().append(rows("a")[0])
    directory.flush()
    directory.update_manifest(files={"records.jsonl": "0" * 64})
    (tmp_path / "records.jsonl").write_text("of an earlier time")
    journal = directory.journal()
    assert set(journal.finished) == {"a"}
    assert "records.jsonl: damaged" in capsys.readouterr().err
    journal.finish()
    assert directory.records() == rows("a")


def test_line_separators_inside_texts_are_no_ends_of_lines(tmp_path):
    directory = artefacts.StageDirectory(tmp_path)
    row = {"id": "a", "text": "1\u20282\x853\r4\x0b"}
    directory.journal().append(row)
    directory.flush()
    again = directory.journal()
    assert again.finished == {"a": row}
    again.finish()
    assert directory.journal().finished == {"a": row} and directory.records() == [row]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_record_that_is_not_finite_names_stage_id_and_field_and_loses_no_other(tmp_path, bad):
    journal = artefacts.StageDirectory(tmp_path / "sampled").journal()
    journal.append({"id": "a", "x": 1.0})
    with pytest.raises(
        UserError, match=r"stage 'sampled': record 'b': field 'rounds\.1\.score' is NaN"
    ):
        journal.append({"id": "b", "rounds": [{"score": 0.5}, {"score": bad}]})
    journal.flush()
    assert set(artefacts.StageDirectory(tmp_path / "sampled").journal().finished) == {"a"}


def test_not_finite_numbers_are_refused():
    with pytest.raises(ValueError):
        artefacts.dump({"x": float("nan")})


def test_fingerprint_depends_on_everything_that_counts():
    base = artefacts.fingerprint("sl", {"a": 1, "b": 2}, ["x"], 1)
    assert base == artefacts.fingerprint("sl", {"b": 2, "a": 1}, ["x"], 1)
    others = [
        artefacts.fingerprint(*args)
        for args in (
            ("pm", {"a": 1, "b": 2}, ["x"], 1),
            ("sl", {"a": 1, "b": 3}, ["x"], 1),
            ("sl", {"a": 1, "b": 2}, ["y"], 1),
            ("sl", {"a": 1, "b": 2}, ["x"], 2),
        )
    ]
    assert base not in others and len(set(others)) == 4


def test_write_to_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        artefacts.write_json(tmp_path / "file" / "x.json", {})


def test_json_on_disk_is_plain(tmp_path):
    artefacts.write_json(tmp_path / "x.json", {"b": 1, "a": "ü"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": "ü", "b": 1}
    assert "ü" in (tmp_path / "x.json").read_text()
