"""Stages whose models are behind a server: what they leave, what stops them, no key anywhere."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from cai_jax import main
from cai_jax.configuration.endpoints import ENDPOINTS
from cai_jax.configuration.fields import build_kind
from cai_jax.errors import UserError
from cai_jax.pipeline import graph
from cai_jax.report import cautions, sections
from cai_jax.report.run import Run
from cai_jax.textmodels import endpoint
from configs import default, tiny
from tests.faulty_server import FaultyServer

CANARY = "sk-canary-5f0c1e"


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(endpoint, "LONGEST_DELAY", 0.05)
    monkeypatch.setenv("SOME_KEY", CANARY)


def run_config(server, stages="respond,revise,compare,feedback", **endpoints):
    config = default.base_config()
    config.models.base = tiny.MODEL
    config.models.helpful = config.models.feedback = f"openai:{server.url}#m"
    default.set_graph(
        config,
        {
            "respond": default.respond(limit=3),
            "revise": default.revise(num_rounds=1, num_few_shot=1),
            "compare": default.compare(model="helpful", offset=3, limit=3),
            "feedback": default.feedback(both_orders=True),
            "sl": default.sl(helpful=""),
        },
    )
    config.stages = tuple(stages.split(","))
    config.endpoints.all.update({"tier": "top", "key_env": "SOME_KEY", **endpoints})
    return config


def records(workdir, stage):
    return [json.loads(line) for line in (workdir / stage / "records.jsonl").open()]


def manifest(workdir, stage):
    return json.loads((workdir / stage / "manifest.json").read_text())


def test_stages_ask_a_server_and_tell_what_it_took(tmp_path, capsys):
    with FaultyServer({"500": 0.1}, key=CANARY) as server:
        config = run_config(server, input_price=1000.0)
        graph.run(config, str(tmp_path))
        assert records(tmp_path, "respond")[0]["response"].startswith("answer to ")
        assert records(tmp_path, "respond")[0]["logprob"] is None
        assert records(tmp_path, "revise")[0]["rounds"][0]["critique"].startswith("answer to ")
        label = records(tmp_path, "feedback")[0]["logprobs"][0]
        assert (label["a"], label["b"], label["how"]) == (-0.25, -1.75, "top")
        served = [manifest(tmp_path, name)["served"] for name in config.stages]
        assert sum(each["requests"]["asked"] for each in served) == server.asked.total()
        answered = sum(each["requests"]["answered"] for each in served)
        assert answered == server.answered.total()
        assert sum(each["cost"] for each in served) == pytest.approx(0.01 * answered)
        assert manifest(tmp_path, "feedback")["summary"]["tiers"] == {"top": 6}
        assert "tokens, cost 0.03" in manifest(tmp_path, "respond")["summary"]["headline"]
        run = Run(tmp_path)
        servers = {what: (value, note) for what, value, note in sections.facts(run)}
        assert servers["Answers of servers"][0] == str(answered)
        assert f"cost {0.01 * answered:.2f}" in servers["Answers of servers"][1]
        assert any("6 are read among the likeliest" in each.text for each in cautions.collect(run))
        # Rates, prices and keys change nothing; what decides answers does.
        asked = server.asked.total()
        graph.run(run_config(server, concurrency=3, input_price=1.0), str(tmp_path))
        assert server.asked.total() == asked
        with pytest.raises(UserError, match="feedback.endpoints.model.tier: 'top' → 'counted'"):
            graph.run(run_config(server, tier="counted"), str(tmp_path))
        # A stage that is moved aside leaves its answers to the one that is run anew.
        config = run_config(server, "respond")
        config.on_change, config.graph.respond.prompts.limit = "redo", 2
        graph.run(config, str(tmp_path))
        assert len(records(tmp_path, "respond")) == 2 and server.asked.total() == asked
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(CANARY.encode() in path.read_bytes() for path in files)
    assert CANARY not in "".join(capsys.readouterr())


def test_refusals_are_counted_and_no_revisions(tmp_path):
    with FaultyServer({"a refusal": 0.25}) as server:
        config = run_config(server)
        config.graph.respond.prompts.limit = config.graph.compare.prompts.limit = 12
        graph.run(config, str(tmp_path))
        dropped = [manifest(tmp_path, name)["dropped"] for name in ("respond", "compare", "revise")]
        assert sum(each.get("refused by the server", 0) for each in dropped) > 0
        of_revise = manifest(tmp_path, "revise")["dropped"].get("refused by the server", 0)
        assert len(records(tmp_path, "revise")) + of_revise == len(records(tmp_path, "respond"))
        for record in records(tmp_path, "revise"):
            assert record["rounds"][0]["revision"].startswith("answer to")


def test_a_run_stops_before_max_cost_and_goes_on(tmp_path):
    with FaultyServer() as server:
        config = run_config(server, input_price=1000.0, output_price=1000.0)
        config.max_cost = 3.0
        with pytest.raises(UserError, match="max_cost"):
            graph.run(config, str(tmp_path))
        assert 0 < server.asked.total() * 0.015 <= 3.0
        config.max_cost = 100.0
        graph.run(config, str(tmp_path))
        assert set(server.answered.values()) == {1}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"graph.sl.init": "helpful"}, "sl.init: .*all models of a stage that trains must be in"),
        ({"models.helpful": "openai:nowhere#m"}, "expected the URL of a server"),
        ({"models.helpful": "openai:http://a:b@c/v1#m"}, "a URL with a password"),
        ({"graph.feedback.mode": "preference_model"}, "feedback.model: .*is elsewhere"),
        ({"endpoints.all.key_env": "NOT_SET"}, "NOT_SET .key_env. is not set"),
        ({"max_cost": 1.0}, "config.max_cost: .* has no prices"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(change, words, tmp_path):
    with FaultyServer() as server:
        config = run_config(server, "respond,revise,sl,compare,feedback")
        for field, value in change.items():
            *path, last = field.split(".")
            group = config
            for key in path:
                group = group[key]
            group[last] = value
        with pytest.raises(UserError, match=words):
            graph.run(config, str(tmp_path / "run"))
        assert not server.asked and not (tmp_path / "run" / "respond").exists()


@pytest.mark.parametrize(
    "field, value",
    [
        ("models.judge", f"openai:http://me:{CANARY}@h/v1#m"),
        ("models.judge", f"openai:me:{CANARY}@h/v1"),
        ("models.judge", f"openai:http://h/v1?key={CANARY}#m"),
        ("models.judge", f"openai:http://[{CANARY}@h/v1#m"),
        ("graph.sl.init", f"openai:http://me:{CANARY}@h/v1#m"),
        ("endpoints.all.key_env", CANARY),
    ],
)
def test_a_secret_in_a_field_is_refused_and_not_repeated(field, value, tmp_path, capsys):
    # No stage that runs reads it.
    flags = ["--config=tiny", "--config.stages=respond", f"--config.{field}={value}"]
    assert main.main(["main", f"--workdir={tmp_path / 'run'}", *flags]) == 2
    output = "".join(capsys.readouterr())
    assert f"config.{field}: " in output and CANARY not in output
    assert not (tmp_path / "run").exists()


def test_a_role_has_fields_of_its_own(tmp_path, monkeypatch):
    with FaultyServer(key="another") as open_door, FaultyServer(key=CANARY) as server:
        config = run_config(server, "respond,compare,feedback")
        config.models.feedback = f"openai:{open_door.url}#m"
        with config.unlocked():
            given = {"kind": "openai", "key_env": "OTHER_KEY", "tier": "counted", "num_samples": 4}
            config.endpoints.feedback = build_kind(ENDPOINTS, given, "endpoints.feedback")
        monkeypatch.setenv("OTHER_KEY", "another")
        # "answer to …" is none of the options; equal responses make one request of both orders.
        with pytest.raises(UserError, match="none of the options: 3"):
            graph.run(config, str(tmp_path))
        assert open_door.asked.total() == 3 and server.asked.total() == 9


@pytest.mark.long
def test_no_key_is_in_a_file_a_log_a_traceback_or_the_process_list(tmp_path):
    flags = [
        "--config=tiny",
        f"--workdir={tmp_path / 'run'}",
        "--config.stages=respond,revise",
        "--config.endpoints.all.key_env=SOME_KEY",
        "--config.endpoints.all.patience=3",
    ]
    for key in (CANARY, "another"):  # taken, and refused with the key in the server's words
        with FaultyServer(key=key, latency=0.5) as server:
            command = [sys.executable, "-m", "cai_jax.main", *flags]
            command += [f"--config.models.helpful=openai:{server.url}#m"]
            command += ["--config.on_change=redo"]
            env = {**os.environ, "OPENAI_LOG": "debug"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            process = subprocess.Popen(command, env=env, **pipes)
            while process.poll() is None and not server.asked.total() and key == CANARY:
                pass
            listed = [path.read_bytes() for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")]
            output, _ = process.communicate()
            assert process.returncode == (0 if key == CANARY else 2), output
            assert CANARY not in output and not any(CANARY.encode() in line for line in listed)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(CANARY.encode() in path.read_bytes() for path in files)
