"""answers.jsonl: what is on disk counts, once."""

import resource

import pytest

from cai_jax.errors import UserError
from cai_jax.io.answers import AnswerFile

A, B, C = "0a" * 16, "0b" * 16, "0c" * 16


def test_answers_are_there_again_after_a_restart(tmp_path):
    file = AnswerFile(tmp_path)
    file.asked(A, 1)
    file.failed(A, "not JSON")
    file.asked(A, 2)
    file.add({A: {"choices": [{"text": "é"}], "usage": [3, 2]}}, "m", {A: 0.5})
    file.add({B: {"choices": [], "usage": [4, 1]}}, "m")
    file.add_note("probe", {"tier": "top"})
    for again in (file, AnswerFile(tmp_path)):
        assert again.get(A)["choices"][0]["text"] == "é" and A in again and C not in again
        assert again.get(C) is None and B in again
        assert dict(again.counts) == {"asked": 2, "not JSON": 1, "answered": 2}
        assert (again.tokens, again.cost) == ([7, 3], 0.5) and again.note("probe") == {
            "tier": "top"
        }


def test_what_was_in_flight_at_a_kill_is_counted(tmp_path):
    file = AnswerFile(tmp_path)
    file.asked(A, 1, most=1.0)
    file.add({A: {"usage": None}}, "m", {A: 0.25})
    file.asked(B, 1, most=2.0)
    file.failed(B, "cut", None)  # may have been paid
    file.asked(B, 2, most=4.0)
    file.failed(B, "HTTP 500", 0.0)
    file.asked(B, 3, most=8.0)  # and the process is killed
    for again in (file, AnswerFile(tmp_path)):
        assert (again.cost, again.at_most) == (0.25, 0.25 + 2.0 + 8.0)
    again.asked(B, 1, most=16.0)
    again.add({B: {"usage": None}}, "m", {B: 1.0})
    assert (again.cost, again.at_most) == (1.25, 1.25 + 2.0 + 8.0)
    assert again.to_json()["requests"] == {
        "asked": 5,
        "answered": 2,
        "cut": 1,
        "HTTP 500": 1,
        "killed in flight": 1,
    }


def test_answers_of_other_stages_serve_as_well(tmp_path):
    other = AnswerFile(tmp_path / "other")
    other.asked(A, 1, most=2.0)
    other.add({A: {"usage": [1, 1]}}, "m", {A: 1.0})
    other.add_note("probe", {"tier": "top"})
    file = AnswerFile(tmp_path / "own", [other])
    assert A in file and file.get(A) == {"usage": [1, 1]} and file.note("probe")
    assert file.cost == 0 and file.spent() == 1.0 and not file.path.exists()


def test_a_torn_last_line_is_cut_off(tmp_path):
    file = AnswerFile(tmp_path)
    file.add({A: {"usage": None}}, "m")
    complete = file.path.read_bytes()
    file.add({B: {"usage": None}}, "m")
    for size in range(len(complete), file.path.stat().st_size):
        file.path.write_bytes((complete + complete.replace(A.encode(), B.encode()))[:size])
        again = AnswerFile(tmp_path)
        assert A in again and B not in again
        again.add({C: {"usage": None}}, "m")
        after = AnswerFile(tmp_path)
        assert A in after and B not in after and C in after


def test_a_damaged_line_is_warned_of_and_not_used(tmp_path, capsys):
    file = AnswerFile(tmp_path)
    file.add({A: {"text": "one"}, B: {"text": "two"}}, "m")
    file.path.write_bytes(file.path.read_bytes().replace(b"one", b"ONE"))
    again = AnswerFile(tmp_path)
    assert again.get(A) is None and again.get(B) == {"text": "two"}
    assert "answers.jsonl:1: damaged" in capsys.readouterr().err


def test_a_line_that_the_disk_takes_in_part_is_no_answer(tmp_path):
    file = AnswerFile(tmp_path)
    file.add({A: {"usage": None}}, "m")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 9, hard))
    try:
        with pytest.raises(UserError, match="cannot write"):
            file.add({B: {"usage": None}}, "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert B not in file
    file.add({C: {"usage": None}}, "m")  # on a line of its own
    for again in (file, AnswerFile(tmp_path)):
        assert A in again and B not in again and again.get(C) == {"usage": None}
