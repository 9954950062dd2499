"""Request files and what comes back, in every form and every disorder."""

import json
import pathlib

import pytest

from cai_jax import seeds
from cai_jax.structs import LENGTH, REFUSED, TOO_LONG, Message, Sampling
from cai_jax.textmodels import batch_files, chat
from cai_jax.textmodels.protocol import Turn
from examples import answer_batch
from tests import answer_files

WIRE = chat.Wire("batch:", "m")


def requests(count):
    turns = [
        Turn(str(n), (Message("human", f"Wo „{n}“?"),), seeds.row_key(0, n)) for n in range(count)
    ]
    return [chat.sample(turn, Sampling(9), WIRE) for turn in turns]


def plain(request, text="Yes.", **fields):
    return json.dumps({"custom_id": request.key, "text": text, **fields})


def answered(tmp_path, *lines):
    """What is read of a directory with three requests after these lines of results."""
    asked = requests(3)
    batch_files.write_requests(tmp_path, asked, batch_files.OPENAI, 9)
    data = b"".join((x if isinstance(x, bytes) else x.encode()) + b"\n" for x in lines)
    (tmp_path / "results-0001.jsonl").write_bytes(data)
    return asked, batch_files.read(tmp_path)


def texts(asked, replies):
    return [
        [
            chat.read(request, reply)["choices"][0]["text"] if isinstance(reply, dict) else reply
            for reply in replies.by_key.get(request.key, ())
        ]
        for request in asked
    ]


def test_lines_are_those_of_openai_and_complete_in_themselves(tmp_path):
    written = batch_files.write_requests(tmp_path, requests(3), batch_files.OPENAI, 2)
    assert list(written.values()) == [2, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "requests-0001.jsonl",
        "requests-0002.jsonl",
    ]
    first = json.loads((tmp_path / "requests-0001.jsonl").read_text().split("\n")[0])
    assert first == {
        "custom_id": requests(1)[0].key,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": dict(requests(1)[0].body),
    }
    assert "„0“" in (tmp_path / "requests-0001.jsonl").read_text()  # readable as it is
    # Numbers go on, also where only the results of a file are left.
    (tmp_path / "results-0007.jsonl").write_text("")
    batch_files.write_requests(tmp_path, requests(1), batch_files.OPENAI, 2)
    assert (tmp_path / "requests-0008.jsonl").exists()


def test_a_model_that_has_no_name_is_not_in_the_line(tmp_path):
    turn = Turn("t", (Message("human", "Hi"),), seeds.row_key(0, 0))
    request = chat.sample(turn, Sampling(9), chat.Wire("batch:", ""))
    batch_files.write_requests(tmp_path, [request], batch_files.OPENAI, 2)
    (line,) = answer_files.requests_of(tmp_path / "requests-0001.jsonl")
    assert "model" not in line["body"]
    # Whoever answers may say who it was.
    body = batch_files.completion("Yes.", "stop") | {"model": "anything"}
    assert chat.read(request, body)["choices"] == [{"text": "Yes.", "stop": "eos"}]


def test_anthropics_fields():
    example = (Message("human", "1?"), Message("assistant", "One."))
    dialogue = (Message("system", "Be kind."), Message("human", "Hi"))
    turn = Turn("t", dialogue, seeds.row_key(0, 0), examples=(example,), lead="Well: ")
    wire = chat.Wire("batch:", "m", continue_turns=chat.PLAIN)
    body = chat.sample(turn, Sampling(9, temperature=0.5, top_k=3), wire).body
    assert batch_files.anthropic_params(body) == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_k": 3,
        "system": "Be kind.",
        "messages": [
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": "One."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Well:"},
        ],
    }


def test_results_of_every_form_in_any_order(tmp_path):
    a, b, c = requests(3)
    message = {"content": [{"type": "text", "text": "Cut"}], "stop_reason": "max_tokens"}
    result = {"type": "succeeded", "message": message}
    said = answer_files.body_of({"body": dict(a.body)})
    openai = {"custom_id": a.key, "response": {"status_code": 200, "body": said}, "error": None}
    asked, replies = answered(
        tmp_path,
        plain(c),
        json.dumps({"custom_id": b.key, "result": result}),
        json.dumps(openai),
    )
    assert texts(asked, replies) == [[said["choices"][0]["message"]["content"]], ["Cut"], ["Yes."]]
    assert chat.read(b, replies.by_key[b.key][0])["choices"][0]["stop"] == LENGTH
    assert replies.notes == {} and replies.awaited == {}


def test_the_first_of_two_answers_counts_and_others_are_noted(tmp_path):
    a, b, _ = requests(3)
    asked, replies = answered(tmp_path, plain(a), plain(b), plain(a), plain(b, "No."))
    assert texts(asked, replies) == [["Yes.", "Yes."], ["Yes.", "No."], []]
    assert replies.notes == {"answers that differ from the first to the same request": 1}


def test_failures_say_why(tmp_path):
    a, b, c = requests(3)
    error = {"message": "not\nso", "type": "invalid_request_error"}
    refused = {"error": error}
    long = {"message": "maximum context length is 8", "code": "context_length_exceeded"}
    asked, replies = answered(
        tmp_path,
        json.dumps({"custom_id": a.key, "response": {"status_code": 400, "body": refused}}),
        json.dumps({"custom_id": b.key, "result": {"type": "errored", "error": refused}}),
        json.dumps({"custom_id": c.key, "response": None, "error": {"message": "expired"}}),
        json.dumps({"custom_id": c.key, "result": {"type": "expired"}}),
        json.dumps({"custom_id": c.key}),
        json.dumps({"custom_id": c.key, "error": long}),
        json.dumps({"custom_id": c.key, "error": {"message": "Prompt is too long: 9 > 8"}}),
        json.dumps({"custom_id": c.key, "error": {"message": "x", "code": "content_filter"}}),
    )
    reasons = ["expired", "expired", "no answer in the line", TOO_LONG, TOO_LONG, REFUSED]
    assert texts(asked, replies) == [["not so"], ["not so"], reasons]
    assert replies.notes == {"requests that failed": 8}


@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id": "k", "te',  # torn
        b'{"custom_id": "k", "text": "\xff"}',
        b"[1]",
        b'{"text": "whose?"}',
        b'{"custom_id": 7, "text": "x"}',
        b'{"custom_id": "k", "text": NaN}',
        b"[" * 100_000,
        b"\x00\x01",
    ],
)
def test_lines_that_are_none_are_noted_and_their_requests_missing(tmp_path, line):
    a, *_ = requests(3)
    asked, replies = answered(tmp_path, line, plain(a), "")
    assert texts(asked, replies) == [["Yes."], [], []]
    name = "lines of results-0001.jsonl that are no JSON object with a custom_id"
    assert replies.notes == {name: 1}


@pytest.mark.parametrize(
    "fields",
    [{"text": None}, {"text": 3}, {"text": "x", "finish_reason": "bored"}, {"result": []},
     {"result": {"type": "succeeded", "message": {"content": [{"type": "text"}]}}},
     {"result": {"type": "succeeded", "message": {"content": [], "stop_reason": ["end_turn"]}}},
     {"text": "x", "finish_reason": ["stop"]},
     {"response": {"status_code": 200, "body": []}},
     {"response": {"status_code": 200, "body": {"choices": 3}}}],
)  # fmt: skip
def test_answers_that_cannot_be_used(tmp_path, fields):
    request, *_ = requests(1)
    _, replies = answered(tmp_path, json.dumps({"custom_id": request.key, **fields}))
    (reply,) = replies.by_key[request.key]
    if isinstance(reply, dict):
        with pytest.raises(chat.Unusable):
            chat.read(request, reply)


def test_answers_to_nothing_and_files_without_results(tmp_path):
    asked, replies = answered(tmp_path, json.dumps({"custom_id": "ff", "text": "x"}))
    assert replies.notes == {"answers to requests that no file asks": 1}
    more = batch_files.write_requests(tmp_path, asked, batch_files.OPENAI, 2)
    replies = batch_files.read(tmp_path)
    keys = [request.key for request in asked]
    assert replies.awaited == dict(zip(more, (keys[:2], keys[2:]), strict=True))


def test_the_example_answers_a_file_and_may_be_stopped(tmp_path, monkeypatch, capsys):
    asked = requests(3)
    (path,) = batch_files.write_requests(tmp_path, asked, batch_files.OPENAI, 9)
    # It was stopped in the middle of its second line.
    (tmp_path / ".results-0001.jsonl.part").write_text(f'{plain(asked[0], "A.")}\n{{"custom_id": "')
    answers = iter(["B.", "C."])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    answer_batch.answer(pathlib.Path(path), answer_batch.by_hand)
    assert texts(asked, batch_files.read(tmp_path)) == [["A."], ["B."], ["C."]]
    assert "--- user\nWo „1“?" in capsys.readouterr().out
    assert not (tmp_path / ".results-0001.jsonl.part").exists()


@pytest.mark.parametrize("form", [batch_files.ANTHROPIC, chat.TEXT])
def test_the_example_shows_all_that_is_asked_in_every_form(form, tmp_path, monkeypatch, capsys):
    """The defects: no system message in Anthropic's form, a KeyError at plain text."""
    wire = chat.Wire("batch:", "m", format=chat.TEXT if form == chat.TEXT else chat.CHAT)
    dialogue = (Message("system", "Be kind."), Message("human", "Hi"))
    request = chat.sample(Turn("t", dialogue, seeds.row_key(0, 0)), Sampling(9), wire)
    written_as = batch_files.OPENAI if form == chat.TEXT else form
    (path,) = batch_files.write_requests(tmp_path, [request], written_as, 9)
    monkeypatch.setattr("builtins.input", lambda prompt: "Yes.")
    answer_batch.answer(pathlib.Path(path), answer_batch.by_hand)
    shown = capsys.readouterr().out
    assert "Be kind." in shown and "Hi" in shown
    assert texts([request], batch_files.read(tmp_path)) == [["Yes."]]
