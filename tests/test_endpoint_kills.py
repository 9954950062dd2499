"""Clients of a server that are killed: by the server's own log no finished request is repeated."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from cai_jax.io.answers import AnswerFile
from tests.faulty_server import FaultyServer

ROOT = pathlib.Path(__file__).parent.parent
CLIENT = """
import sys
from tests.test_endpoint import SAMPLING, model, turns

asking, _ = model(None, sys.argv[2], url=sys.argv[1], concurrency=8)
for done in asking.generate(turns(int(sys.argv[3])), SAMPLING):
    assert done.text == f"answer to {done.id[1:]}", done
"""


def client(server, directory, count):
    command = [sys.executable, "-c", CLIENT, server.url, str(directory), str(count)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_no_finished_request_is_repeated_after_kills(kills, tmp_path):
    draw, count = random.Random(kills), 300 if kills > 1 else 40
    with FaultyServer({"500": 0.1}, latency=0.02) as server:
        for _ in range(kills):
            before, answered = server.asked.total(), server.answered.copy()
            finished = set(map(bytes.hex, AnswerFile(tmp_path)._offsets))
            process = client(server, tmp_path, count)
            more = draw.randint(1, count // (kills + 1))
            while server.asked.total() - before < more and process.poll() is None:
                time.sleep(0.001)
            assert process.poll() is None, "it was done before it was killed"
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.1)  # what is in flight comes to its end
            assert all(server.answered[key] == answered[key] for key in finished)
        process = client(server, tmp_path, count)
        assert process.wait() == 0
        file = AnswerFile(tmp_path)
        assert len(file._offsets) == count and set(server.answered) == set(
            map(bytes.hex, file._offsets)
        )
        # What was in flight at a kill is asked again, and both attempts count; some had not
        # reached the server.
        assert server.asked.total() <= file.counts["asked"] <= server.asked.total() + 8 * kills
        assert server.answered.total() - count <= 8 * kills
        lost = file.to_json()["requests"].get("killed in flight", 0)
        assert server.answered.total() - count <= lost <= 8 * kills
