"""Models that answer later, through files: a graph of text stages that waits, goes on, and is
killed; and its answers, recorded, as the model of another run."""

import json
import random

import ml_collections
import pytest

from cai_jax import main, seeds
from cai_jax.errors import EXIT_BAD_INPUT, EXIT_WAITING, UserError, Waiting
from cai_jax.io import artefacts
from cai_jax.io.answers import AnswerFile
from cai_jax.pipeline import graph as pipeline
from cai_jax.structs import Message, Sampling
from cai_jax.textmodels import batch_files, chat
from cai_jax.textmodels.batch import BatchFiles
from cai_jax.textmodels.batch_files import REQUESTS, RESULTS
from cai_jax.textmodels.protocol import Turn
from configs import default, tiny
from tests import answer_files

STAGES = ("respond", "revise", "compare", "feedback", "feedback_chain")


class Killed(BaseException):
    """The process ends here: nothing after it is written."""


def config(model="batch:asked", **fields):
    """The text stages of the tiny graph, all asking one model."""
    made = tiny.get_config()
    made.stages, made.date = STAGES, "2026-01-01"
    for name in STAGES:
        made.graph[name].model = model
    made.graph.respond.prompts.limit = made.graph.compare.prompts.limit = 3
    made.endpoints.all.update(fields)
    return made


def finish(made, run_path, answer=answer_files.answer_all, limit=30):
    """Runs to the end and answers every round of files; how many there were."""
    for number in range(limit):
        try:
            pipeline.run(made, str(run_path))
            return number
        except Waiting:
            answer(run_path / "asked")
    raise AssertionError("it waits for ever")


def records(run_path):
    return {name: (run_path / name / "records.jsonl").read_bytes() for name in STAGES}


def asked(run_path):
    """The requests of every file."""
    files = batch_files.numbered(run_path / "asked", REQUESTS)
    return [answer_files.requests_of(path) for path in files.values()]


@pytest.fixture(scope="module", autouse=True)
def _no_collection():
    """Nothing here holds a model: most of a start's time would be Python's garbage collection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.gc, "collect", lambda: 0)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_path = tmp_path_factory.mktemp("batch") / "run"
    return run_path, finish(config(), run_path)


def test_every_round_is_a_file_and_nothing_is_asked_twice(finished):
    run_path, rounds = finished
    # respond, then four turns of revise; compare, feedback and the chains go on meanwhile.
    assert rounds == 5
    files = asked(run_path)
    # respond and compare; critiques, labels and chains; revisions and conclusions; the second round
    assert list(map(len, files)) == [3, 6, 3, 6, 3, 3, 3, 3, 3]
    keys = [request["custom_id"] for file in files for request in file]
    assert len(keys) == len(set(keys))
    revision = json.loads(records(run_path)["revise"].split(b"\n")[0])
    assert revision["rounds"][1]["revision"].startswith("I think")
    label = json.loads(records(run_path)["feedback"].split(b"\n")[0])["logprobs"][0]
    assert label["how"] == "top" and label["outside"] == pytest.approx(0.1)


def test_a_run_that_is_killed_at_any_moment_leaves_the_same(finished, tmp_path, monkeypatch):
    rng, left = random.Random(0), [0]
    write = artefacts.write_bytes

    def dying(path, data):
        left[0] -= path.name != "status.json"
        if left[0] == 0 and rng.random() < 0.5:
            raise Killed
        write(path, data)
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(artefacts, "write_bytes", dying)
    kills = 0
    for _ in range(40):
        left[0] = rng.randint(1, 24)
        try:
            finish(config(), tmp_path / "run")
            break
        except Killed:
            kills += 1
    assert 5 <= kills < 40
    assert records(tmp_path / "run") == records(finished[0])
    keys = [request["custom_id"] for file in asked(tmp_path / "run") for request in file]
    assert len(keys) == len(set(keys))


def test_results_in_disorder_come_to_the_same(finished, tmp_path):
    rng = random.Random(1)

    def disordered(lines):
        """Some are missing, some have failed, some are there twice, one is torn."""
        kept = []
        for line in lines:
            chance = rng.random()
            if chance < 0.2:
                failed = {"status_code": 500, "body": {"error": {"message": "oh"}}}
                name = json.loads(line)["custom_id"]
                kept.append(json.dumps({"custom_id": name, "response": failed}))
            elif chance < 0.8:
                kept += [line] * rng.randint(1, 2)
        rng.shuffle(kept)
        return [*kept, lines[0][:40]]

    made = config(lines_per_file=2)
    finish(made, tmp_path / "run", lambda path: answer_files.answer_all(path, disordered))
    assert records(tmp_path / "run") == records(finished[0])
    assert max(map(len, asked(tmp_path / "run"))) == 2


def test_what_always_fails_is_left_out_and_counted(tmp_path):
    made = config()
    made.stages = ("respond",)
    failing = []

    def without_one(lines):
        failing.append(json.loads(lines[0])["custom_id"])
        return [json.dumps({"custom_id": failing[0], "error": {"message": "oh"}}), *lines[1:]]

    answer = lambda path: answer_files.answer_all(path, without_one)  # noqa: E731
    assert finish(made, tmp_path / "run", answer) == 3
    assert failing == failing[:1] * 3
    manifest = artefacts.StageDirectory(tmp_path / "run" / "respond").manifest
    assert manifest["dropped"] == {"no answer of the server could be read": 1}
    assert manifest["summary"]["rows"] == 2


def test_what_is_too_long_is_not_asked_again(tmp_path):
    made = config()
    made.stages = ("respond",)
    error = {"message": "no", "code": "context_length_exceeded in length"}

    def one_too_long(lines):
        name = json.loads(lines[0])["custom_id"]
        return [json.dumps({"custom_id": name, "error": error}), *lines[1:]]

    answer = lambda path: answer_files.answer_all(path, one_too_long)  # noqa: E731
    assert finish(made, tmp_path / "run", answer) == 1
    manifest = artefacts.StageDirectory(tmp_path / "run" / "respond").manifest
    assert list(manifest["dropped"].values()) == [1]


def test_files_that_may_cost_too_much_are_not_written(tmp_path):
    made = config(input_price=0.0, output_price=1e6)
    made.stages, made.max_cost = ("respond",), 35.0
    with pytest.raises(
        UserError, match="3 requests may cost 36, and 0 is spent, of config.max_cost=35"
    ):
        pipeline.run(made, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "asked").exists()
    made.max_cost = 36.0
    assert finish(made, tmp_path / "run") == 1
    served = artefacts.StageDirectory(tmp_path / "run" / "respond").manifest["served"]
    assert served["cost"] == 15.0  # three answers of five tokens


def test_models_without_names_have_their_own_answers(tmp_path):
    for model, is_asked in (("asked", True), ("bob", True), ("asked#m", True), ("bob#m", False)):
        made = config(f"batch:{model}", lines_per_file=2)
        made.stages, made.on_change = ("respond",), "redo"
        if is_asked:
            with pytest.raises(Waiting):
                pipeline.run(made, str(tmp_path))
        answer_files.answer_all(tmp_path / model.partition("#")[0])
        pipeline.run(made, str(tmp_path))
    # In files the key is the request's own: results may be copied from one directory to another.
    bob = batch_files.read(tmp_path / "bob").by_key
    assert bob.keys() == {each["custom_id"] for file in asked(tmp_path)[:2] for each in file}


def carrier(directory, *others, max_cost=None, **prices):
    """What asks by files in `directory`, with answers of its own."""
    file = AnswerFile(directory / "stage", others)
    fields = config(**prices).endpoints.all
    return BatchFiles("batch:asked", directory / "asked", fields, file, max_cost)


def request(text="Hi"):
    turn = Turn("t", (Message("human", text),), seeds.row_key(0, 0))
    return chat.sample(turn, Sampling(9), chat.Wire("batch:asked", "m"))


def test_what_cannot_be_used_is_noted_and_paid_once(tmp_path, capsys):
    model = carrier(tmp_path, input_price=1e6)

    def answer(finish_reason, **fields):
        def change(lines):
            line = json.loads(lines[0])
            line["response"]["body"]["choices"][0]["finish_reason"] = finish_reason
            line["response"]["body"] |= fields
            return [json.dumps(line)]

        answer_files.answer_all(tmp_path / "asked", change)

    with pytest.raises(Waiting):
        list(model.answers([request()]))
    answer("bored")
    for _ in range(2):  # it is asked again, once
        with pytest.raises(Waiting):
            list(model.answers([request()]))
        assert "1 answers that cannot be used: finish_reason 'bored'" in capsys.readouterr().err
        assert dict(model.file.counts) == {"asked": 2, "finish_reason 'bored'": 1}
        assert model.file.cost == 10  # tokens that were read
    answer("stop", model="another name of it")
    ((_, answered),) = model.answers([request()])
    assert answered["choices"][0]["stop"] == "eos" and model.file.cost == 20


def test_files_of_another_stage_count_against_max_cost(tmp_path):
    prices = {"output_price": 1e6, "max_cost": 20.0}  # a request costs 9 at most
    first = carrier(tmp_path / "a", **prices)
    with pytest.raises(Waiting):
        list(first.answers([request()]))
    with pytest.raises(Waiting):  # the second file of a stage
        list(first.answers([request("Ho")]))
    assert first.file.spent() == 18
    second = carrier(tmp_path / "b", first.file, **prices)
    with pytest.raises(UserError, match="1 requests may cost 9, and 18 is spent"):
        list(second.answers([request("Hm")]))
    assert not (tmp_path / "b" / "asked").exists()
    with pytest.raises(Waiting):  # what is asked already costs nothing more
        list(first.answers([request(), request("Ho")]))


def test_labels_in_words_count_as_one_sample(tmp_path):
    made = config(form="anthropic", num_samples=1)
    made.stages = ("compare", "feedback")

    def in_words(path):
        done = batch_files.numbered(path, RESULTS)
        for number, file in batch_files.numbered(path, REQUESTS).items():
            if number not in done:
                names = [each["custom_id"] for each in answer_files.requests_of(file)]
                lines = [json.dumps({"custom_id": name, "text": f"(A) {name}"}) for name in names]
                batch_files.path_of(path, RESULTS, number).write_text("\n".join(lines))

    finish(made, tmp_path / "run", in_words)
    labels = (tmp_path / "run" / "feedback" / "records.jsonl").read_text()
    label = json.loads(labels.split("\n")[0])["logprobs"][0]
    assert label["how"] == "counted" and label["counts"] == [1, 0] and label["a"] > label["b"]


def test_an_evaluation_asks_at_once_what_does_not_depend_on_answers(tmp_path):
    made = config()
    made.models.base, made.stages = "batch:asked", ("evaluate",)
    numbers = {"num_choices": 2, "num_few_shot": 1, "num_chains": 1, "max_chain_tokens": 8}
    sets = {name: {"limit": 1} for name in ("prompts_red_team", "prompts_helpful")}
    models = {"initial": "helpful", "other": "feedback"}
    evaluate = default.evaluate(models, "", max_new_tokens=8, **numbers, **sets)
    kept = ("answer_statistics", "judge", "multiple_choice")
    evals = {name: own for name, own in evaluate["evals"].items() if name in kept}
    evals["judge"] = {**evals["judge"], "judge": "judge", "anchor": "initial"}
    made.graph = ml_collections.ConfigDict({"evaluate": {**evaluate, "evals": evals}})
    # answers; verdicts, choices with and without examples, and chains; what chains come to
    assert finish(made, tmp_path / "run") == 3
    metrics = artefacts.read_json(tmp_path / "run" / "evaluate" / "metrics.json")["rows"]
    names = {row["metric"] for row in metrics}
    assert {"win_rate_judge", "choice_few_shot", "choice_chain_of_thought"} <= names


def test_recorded_answers_are_a_model(finished, tmp_path, capsys):
    run_path, _ = finished
    pipeline.run(config(f"recorded:{run_path}"), str(tmp_path / "again"))
    assert records(tmp_path / "again") == records(run_path)
    other = config(f"recorded:{run_path}")
    other.graph.respond.prompts.limit = 4
    with pytest.raises(UserError, match="never answered the request"):
        pipeline.run(other, str(tmp_path / "other"))
    nothing = config(f"recorded:{tmp_path}/nowhere")
    with pytest.raises(UserError, match="no answers are recorded there"):
        pipeline.run(nothing, str(tmp_path / "none"))


def test_anthropics_form_has_no_plain_text(tmp_path):
    """The defect: a KeyError where the request was written."""
    made = config(form="anthropic")
    made.graph.respond.format = "text"
    with pytest.raises(UserError, match=r"graph\.respond\.model.*expected format=chat"):
        pipeline.run(made, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "asked").exists()


def test_the_command_says_what_to_do(tmp_path, capsys):
    argv = [
        "main",
        "--config=tiny",
        f"--workdir={tmp_path}/run",
        "--config.models.base=batch:asked",
    ]
    assert main.main([*argv, "--config.stages=respond"]) == EXIT_WAITING
    err = capsys.readouterr().err.strip().split("\n")[-1]
    assert err.startswith("waiting: 6 requests wait") and "requests-0001.jsonl (6)" in err
    stages = "respond,respond_helpful,revise,sl"  # sl trains, which needs weights
    assert main.main([*argv, f"--config.stages={stages}"]) == EXIT_BAD_INPUT
    assert "config.graph.sl.init: 'batch:asked'" in capsys.readouterr().err
