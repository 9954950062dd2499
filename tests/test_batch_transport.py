"""`python -m cai_jax.batch` against a server that speaks both batch APIs."""

import json

import pytest

from cai_jax import batch, seeds
from cai_jax.errors import EXIT_BAD_INPUT, EXIT_WAITING
from cai_jax.structs import Message, Sampling
from cai_jax.textmodels import batch_files, chat
from cai_jax.textmodels.protocol import Turn
from tests.batch_server import BatchServer, serving

KEY = "sk-canary-8172"


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    for name, _ in batch.DEFAULTS.values():
        monkeypatch.delenv(name, raising=False)


def requests(count=3):
    wire = chat.Wire("batch:", "m-1")
    turns = [
        Turn(str(n), (Message("human", f"Number {n}?"),), seeds.row_key(0, n)) for n in range(count)
    ]
    return [chat.sample(turn, Sampling(9), wire) for turn in turns]


def command(action, directory, url, *more):
    return batch.main(["batch", action, str(directory), "--url", url, *more])


def written(directory):
    return "".join(path.read_text() for path in directory.iterdir())


def test_files_go_to_a_service_and_come_back(tmp_path, monkeypatch, capsys):
    asked = requests()
    batch_files.write_requests(tmp_path, asked, batch_files.OPENAI, 2)
    server = BatchServer(KEY)
    with serving(server) as url:
        assert command("submit", tmp_path, url) == EXIT_BAD_INPUT  # no key
        assert "OPENAI_API_KEY is not set" in capsys.readouterr().err
        monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
        assert command("submit", tmp_path, url) == EXIT_BAD_INPUT
        refused = capsys.readouterr()
        assert "bad key (key)" in refused.err and "sk-another" not in refused.err + refused.out
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert command("submit", tmp_path, url) == 0
        assert command("submit", tmp_path, url) == 0  # nothing is submitted twice
        assert len(server.batches) == 2
        assert command("fetch", tmp_path, url) == EXIT_WAITING
        assert not batch_files.numbered(tmp_path, batch_files.RESULTS)
        assert command("status", tmp_path, url) == EXIT_WAITING
        assert command("fetch", tmp_path, url, "--wait", "0.01") == 0
    replies = batch_files.read(tmp_path)
    # The last request of each file has failed, as the error file says.
    assert [type(replies.by_key[each.key][0]) for each in asked] == [dict, str, str]
    assert replies.by_key[asked[2].key] == ["oh"] and not replies.awaited
    assert KEY not in written(tmp_path) + "".join(capsys.readouterr())


def test_a_batch_whose_start_was_not_answered_is_not_started_again(tmp_path, monkeypatch, capsys):
    batch_files.write_requests(tmp_path, requests(), batch_files.OPENAI, 9)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = BatchServer(KEY)
    server.lose = 1
    with serving(server) as url:
        assert command("submit", tmp_path, url) == EXIT_BAD_INPUT
        assert capsys.readouterr().err.startswith(f"error: {tmp_path}: the server did not answer")
        assert command("submit", tmp_path, url) == 0
    assert list(server.batches) == ["batch_0"]
    submitted = json.loads((tmp_path / "submitted-0001.json").read_text())
    assert submitted["batch"] == "batch_0"


def test_a_batch_that_the_service_refuses_may_be_submitted_again(tmp_path, monkeypatch, capsys):
    batch_files.write_requests(tmp_path, requests(), batch_files.OPENAI, 9)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = BatchServer(KEY)
    server.ends_as = "failed"
    with serving(server) as url:
        assert command("submit", tmp_path, url) == 0
        assert command("fetch", tmp_path, url, "--wait", "0.01") == EXIT_BAD_INPUT
        assert "ended as 'failed' without results" in capsys.readouterr().err
        server.ends_as = "completed"
        assert command("submit", tmp_path, url) == 0
        assert command("fetch", tmp_path, url, "--wait", "0.01") == 0
    assert list(server.batches) == ["batch_0", "batch_1"]


def test_a_file_that_failed_completely_becomes_another_batch(tmp_path, monkeypatch):
    asked = requests(1)  # the server lets the last request of a file fail
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = BatchServer(KEY)
    with serving(server) as url:
        for _ in range(2):
            batch_files.write_requests(tmp_path, asked, batch_files.OPENAI, 9)
            assert command("submit", tmp_path, url) == 0
            assert command("fetch", tmp_path, url, "--wait", "0.01") == 0
    assert list(server.batches) == ["batch_0", "batch_1"]
    assert batch_files.read(tmp_path).by_key[asked[0].key] == ["oh", "oh"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--url", f"http://me:{KEY}@h/v1"),
        ("--url", f"me:{KEY}@h/v1"),
        ("--url", f"http://h/v1?key={KEY}"),
        ("--key", KEY),
    ],
)
def test_secrets_in_flags_are_not_repeated(tmp_path, capsys, flags):
    batch_files.write_requests(tmp_path, requests(), batch_files.OPENAI, 9)
    for action in ("submit", "fetch"):
        assert batch.main(["batch", action, str(tmp_path), *flags]) == EXIT_BAD_INPUT
        refused = capsys.readouterr()
        assert refused.err.startswith(f"error: {flags[0]}: ")
        assert KEY not in refused.err + refused.out + written(tmp_path)


def test_anthropics_form(tmp_path, monkeypatch):
    asked = requests()
    batch_files.write_requests(tmp_path, asked, batch_files.ANTHROPIC, 9)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    server = BatchServer(KEY)
    with serving(server) as url:
        assert command("submit", tmp_path, url) == 0
        assert command("fetch", tmp_path, url, "--wait", "0.01") == 0
    sent = server.batches["msgbatch"]["requests"][0]["params"]
    assert sent == {
        "model": "m-1",
        "max_tokens": 9,
        "temperature": 1.0,
        "messages": [{"role": "user", "content": "Number 0?"}],
    }
    (body,) = batch_files.read(tmp_path).by_key[asked[0].key]
    kept = chat.read(asked[0], body)
    assert kept == {"choices": [{"text": "(B)", "stop": "eos"}], "usage": [9, 2]}
