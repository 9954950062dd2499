"""Asking a server that does what servers should not: everything right in the end, asked exactly as
often as is counted, and nothing twice."""

import collections
import contextlib
import math
import pathlib
import resource
import socket
import subprocess
import sys
import threading
import time

import ml_collections
import pytest

from cai_jax import seeds
from cai_jax.configuration import fields as fields_lib
from cai_jax.configuration.endpoints import OPENAI
from cai_jax.errors import UserError
from cai_jax.io.answers import AnswerFile
from cai_jax.structs import FAILED, REFUSED, Message, Sampling
from cai_jax.textmodels import answering, chat, endpoint, failures, questions
from cai_jax.textmodels.answering import AnsweringModel
from cai_jax.textmodels.protocol import COUNTED, TOP, Turn
from tests.faulty_server import FAULTS, FaultyServer

SAMPLING = Sampling(20)
OF_LOGPROBS = tuple(fault for fault in FAULTS if fault.startswith("log-prob"))


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(endpoint, "LONGEST_DELAY", 0.05)


def model(server, directory, max_cost=None, name="m", url="", **given):
    given = {"concurrency": 64, "timeout": 5.0, "attempts": 20, "tier": TOP, **given}
    fields = ml_collections.ConfigDict(fields_lib.build(OPENAI, given))
    wire = chat.Wire(url or server.url, name, samples_per_request=fields.samples_per_request)
    file = AnswerFile(directory)
    carrier = endpoint.Endpoint(f"openai:{wire.url}#{name}", wire, fields, file, max_cost)
    return AnsweringModel(carrier, wire, fields.num_samples), file


def turns(count, **fields):
    return [
        Turn(f"t{n}", (Message("human", f"question {n}"),), seeds.row_key(0, n), **fields)
        for n in range(count)
    ]


def require_right(done, count):
    """Every turn is answered by its own answer, once."""
    assert sorted(each.id for each in done) == sorted(f"t{n}" for n in range(count))
    for each in done:
        assert each.stop == REFUSED or each.text == f"answer to {each.id[1:]}"


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in OF_LOGPROBS])
def test_turns_are_right_and_counted_whatever_a_fifth_of_answers_is(fault, tmp_path):
    with FaultyServer({fault: 0.2}) as server:
        asking, file = model(server, tmp_path)
        done = list(asking.generate(turns(30), SAMPLING))
        require_right(done, 30)
        assert file.counts["asked"] == server.asked.total() >= 30
        assert file.counts["answered"] == server.answered.total() == 30
        assert set(server.answered.values()) == {1}
        refused = sum(each.stop == REFUSED for each in done)
        assert (refused > 0) == (fault == "a refusal")
        # The file answers the same turns again, and nobody is asked.
        asked = server.asked.total()
        again, _ = model(server, tmp_path)
        assert sorted(map(str, again.generate(turns(30), SAMPLING))) == sorted(map(str, done))
        assert server.asked.total() == asked


@pytest.mark.parametrize("fault", OF_LOGPROBS)
def test_choices_are_right_where_log_probabilities_are_missing(fault, tmp_path):
    asked = [questions.choice(f"q{n}", f"question {n}") for n in range(30)]
    with FaultyServer({fault: 0.2}) as server:
        asking, file = model(server, tmp_path)
        chosen = list(asking.choose(asked))
        assert {each.id for each in chosen} == {f"q{n}" for n in range(30)}
        assert all(each.logprobs == pytest.approx((-0.25, -1.75)) for each in chosen)
        assert file.counts["asked"] == server.asked.total() > 30


def test_requests_are_asked_once_though_they_are_asked_for_twice(tmp_path):
    twins = turns(3) + [Turn(f"u{n}", *astuple(each)[1:]) for n, each in enumerate(turns(3))]
    with FaultyServer() as server:
        asking, _ = model(server, tmp_path)
        done = {each.id: each.text for each in asking.generate(twins, SAMPLING)}
        assert done["u2"] == done["t2"] == "answer to 2" and len(done) == 6
        assert server.asked.total() == 3


def astuple(turn):
    return (turn.id, turn.dialogue, turn.key)


# --- What stops a run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, words",
    [
        ({"name": "none"}, "no such model or path there"),
        ({"key_env": "CANARY"}, "refuses the key"),
        ({"url": "http://127.0.0.1:9/v1", "patience": 0.2}, "cannot be reached"),
    ],
)
def test_what_asking_again_does_not_mend_is_one_line(given, words, tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", "canary-key")
    with FaultyServer(key="" if "key_env" not in given else "another") as server:
        asking, file = model(server, tmp_path, **given)
        start = time.monotonic()
        with pytest.raises(UserError, match=words) as error:
            list(asking.generate(turns(5), SAMPLING))
        assert time.monotonic() - start < 5
        assert "canary-key" not in str(error.value)
        assert "canary-key" not in file.path.read_text()


def test_a_missing_key_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with FaultyServer() as server, pytest.raises(UserError, match="NO_KEY .key_env. is not set"):
        model(server, tmp_path, key_env="NO_KEY")


def test_a_server_that_comes_back_is_waited_for(tmp_path):
    with FaultyServer(latency=0.01) as server:
        asking, file = model(server, tmp_path, concurrency=4, attempts=10_000, patience=60)
        answers = asking.generate(turns(20), SAMPLING)
        first = next(answers)
    back = FaultyServer(port=server.port)
    opens = threading.Timer(0.3, back.__enter__)
    opens.start()
    try:
        require_right([first, *answers], 20)
    finally:
        opens.join()
        back.__exit__()
    assert file.counts["the server cannot be reached"] > 0
    assert set((server.answered + back.answered).values()) <= {1, 2}


def test_max_cost_is_not_passed(tmp_path):
    # Each answer costs 10 read + 5 written tokens = 20 millionths × 1000 = 0.02.
    with FaultyServer(latency=0.01) as server:
        prices = {"input_price": 1000.0, "output_price": 2000.0}
        asking, file = model(server, tmp_path, max_cost=1.0, **prices)
        with pytest.raises(UserError, match="max_cost=1"):
            list(asking.generate(turns(100), SAMPLING))
        at_most = 1000e-6 * (answering.TEMPLATE_TOKENS * 2 + len("question 99")) + 2000e-6 * 20
        answered = server.answered.total()
        assert file.cost == pytest.approx(0.02 * answered) and file.at_most <= 1.0
        assert 1.0 - at_most <= file.cost <= 1.0
        # What was answered is kept, and with more to spend the rest is asked.
        asking, file = model(server, tmp_path, max_cost=10.0, **prices)
        require_right(list(asking.generate(turns(100), SAMPLING)), 100)
        assert set(server.answered.values()) == {1} and server.answered.total() == 100


def test_max_cost_is_not_passed_by_attempts_that_wait_for_the_pace(tmp_path):
    with FaultyServer({"half a JSON": 0.5}) as server:
        prices = {"input_price": 1000.0, "output_price": 2000.0, "requests_per_minute": 3000}
        asking, file = model(server, tmp_path, max_cost=2.0, **prices)
        with pytest.raises(UserError, match="max_cost=2"):
            list(asking.generate(turns(100), SAMPLING))
        assert file.at_most <= 2.0


def test_answers_that_cannot_be_used_are_no_silence(tmp_path):
    with FaultyServer({"the wrong model": 0.8}) as server:
        asking, _ = model(server, tmp_path, concurrency=1, patience=0.02, attempts=100)
        require_right(list(asking.generate(turns(5), SAMPLING)), 5)


def test_a_run_that_goes_on_has_all_its_patience(tmp_path):
    with FaultyServer({"429": 1.0}) as server:
        asking, _ = model(server, tmp_path, concurrency=1, patience=0.6)
        with pytest.raises(UserError, match="no answer for"):
            list(asking.generate(turns(1), SAMPLING))
        opens = threading.Timer(0.3, server.faults.clear)
        opens.start()
        require_right(list(asking.generate(turns(1), SAMPLING)), 1)
        opens.join()


def test_names_that_a_server_gives_its_model(tmp_path):
    with FaultyServer() as server:
        server.calls_it, server.listed = "its-own", []
        asking, _ = model(server, tmp_path / "listed", attempts=1)
        (done,) = asking.generate(turns(1), SAMPLING)
        assert done.stop == FAILED
        server.listed = ["its-own"]  # which it could not tell before
        require_right(list(asking.generate(turns(1), SAMPLING)), 1)
        server.listed = ["its-own", "another"]
        asking, _ = model(server, tmp_path / "named", attempts=1, served_as="its-own")
        require_right(list(asking.generate(turns(1), SAMPLING)), 1)


def test_a_server_without_usage_may_have_been_paid_the_most(tmp_path):
    with FaultyServer(per_answer=(None, None)) as server:
        asking, file = model(server, tmp_path, output_price=1e6)
        (done,) = asking.generate(turns(1), SAMPLING)
        assert done.usage is None and file.cost == SAMPLING.max_new_tokens


# --- Pace and order -------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [None, 120_000])
def test_a_minute_has_no_more_requests_than_it_may(tokens, tmp_path):
    with FaultyServer(per_answer=(1, 1)) as server:  # fewer than was thought
        paces = {"requests_per_minute": 1200, "tokens_per_minute": tokens}
        asking, _ = model(server, tmp_path, concurrency=2, **paces)
        list(asking.generate(turns(20), SAMPLING))
        gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
        assert sum(gaps) >= 19 * 0.05 - 0.03


def test_a_minute_has_no_more_tokens_than_it_may(tmp_path):
    with FaultyServer(per_answer=(100, 0)) as server:
        asking, _ = model(server, tmp_path, tokens_per_minute=120_000, concurrency=1)
        list(asking.generate(turns(20), SAMPLING))
        assert server.times[-1] - server.times[0] >= 18 * 0.05


def test_concurrency_is_a_limit_and_is_used(tmp_path):
    with FaultyServer(latency=0.05) as server:
        asking, _ = model(server, tmp_path, concurrency=8)
        list(asking.generate(turns(40), SAMPLING))
        assert server.most_in_flight == 8


def test_long_shared_prefixes_come_first_and_together(tmp_path):
    short = ((Message("human", "a"), Message("assistant", "b")),)
    long = ((Message("human", "a" * 50), Message("assistant", "b")),)
    mixed = [
        Turn(each.id, each.dialogue, each.key, examples=(short, long, ())[n % 3])
        for n, each in enumerate(turns(9))
    ]
    with FaultyServer() as server:
        asking, _ = model(server, tmp_path, concurrency=1)
        require_right(list(asking.generate(mixed, SAMPLING)), 9)
        lengths = [len(body["messages"][0]["content"]) for body in server.order]
        assert lengths == [50] * 3 + [1] * 3 + [len("question 0")] * 3


@pytest.mark.long
def test_500_requests_of_200_ms_take_little_longer_than_they_must(tmp_path):
    with FaultyServer(latency=0.2) as server:
        asking, _ = model(server, tmp_path)
        list(asking.generate(turns(64), SAMPLING))  # imports, connections
        start = time.monotonic()
        list(asking.generate(turns(564)[64:], SAMPLING))
        assert time.monotonic() - start <= 1.25 * math.ceil(500 / 64) * 0.2


# --- Tiers ----------------------------------------------------------------------------------------


def test_a_probe_finds_the_tier_and_the_file_keeps_it(tmp_path):
    with FaultyServer() as server:
        asking, file = model(server, tmp_path, tier="auto", attempts=2)
        (chosen,) = asking.choose([questions.choice("q", "question 1")])
        assert chosen.how == TOP
        asked = server.asked.total()
        again, _ = model(server, tmp_path, tier="auto", attempts=2)
        list(again.choose([questions.choice("q", "question 1")]))
        assert server.asked.total() == asked


def test_a_probe_needs_two_answers_that_say_no(tmp_path):
    with FaultyServer({"log-probabilities missing": 1.0}) as server:
        asking, file = model(server, tmp_path, tier="auto")
        list(asking.choose([]))
        assert asking._carrier.tier() == COUNTED
        # Two of each option's score, two of the likeliest tokens.
        assert server.asked.total() == 6
    words = {"error": {"message": "You are not allowed to request logprobs from this model"}}
    assert type(failures.of_status(403, words, {}, "x")) is failures.Unsupported
    assert type(failures.of_status(403, {"error": "no"}, {}, "x")) is failures.Final


def test_keys_of_requests_are_many(tmp_path):
    keys = collections.Counter(chat.sample(t, SAMPLING, chat.Wire("u", "m")).key for t in turns(99))
    assert set(keys.values()) == {1}


@pytest.mark.long
def test_memory_is_flat_over_20000_requests(tmp_path):
    def resident():  # MiB
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    with free_port() as port:
        pass
    command = [sys.executable, "-m", "tests.faulty_server", str(port), "{}", "", "0"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen(command, cwd=pathlib.Path(__file__).parent.parent, **pipes)
    try:
        server.stdout.readline()
        asking, _ = model(None, tmp_path, url=f"http://127.0.0.1:{port}/v1")
        start, asked = None, turns(20_000)
        for number, _ in enumerate(asking.generate(asked, SAMPLING)):
            if number == 2_000:
                start = resident()
        assert number == 19_999 and resident() - start < 16, (start, resident())
    finally:
        server.stdin.close()
        server.wait()


@contextlib.contextmanager
def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        yield opened.getsockname()[1]
