"""The input pipeline: the same examples for any start and any number of hosts, mixed by share,
tokenised once."""

import json
import shutil
import subprocess
import threading
import time

import jax
import numpy as np
import pytest

from cai_jax.core import sharding
from cai_jax.data.dialogue import load_format
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.io.metrics import read_rows
from cai_jax.structs import Message
from cai_jax.training import batching, examples, feed
from tests.chaos import harness

ORDER = batching.Order(23, 4, 5, "sl")
DIALOGUES = [
    (
        Message("human", f"What is {n}? ü"),
        Message("assistant", "It is " + "very " * (n % 5) + str(n)),
    )
    for n in range(40)
]


def batch_of(step):
    """As stages make them, from a table of token numbers."""
    return {"rows": ORDER.indices(step)[:, None] + np.arange(3)}


def test_any_step_is_the_state():
    """Begun anywhere, gone through in any order, it is what `make` says; the steps after the one
    asked for are made ahead."""
    batches = feed.Batches(batch_of, 18)
    steps = [*range(18), 7, 8, 9, 3, 17, 0]
    assert len(batches) == 18
    for step in steps:
        np.testing.assert_array_equal(batches[step]["rows"], batch_of(step)["rows"])
    for start in range(0, 18, 5):
        resumed = feed.Batches(batch_of, 18)
        for step in range(start, 18):
            np.testing.assert_array_equal(resumed[step]["rows"], batch_of(step)["rows"])


def test_batches_are_made_ahead_in_another_thread():
    made, threads = [], set()

    def make(step):
        made.append(step)
        threads.add(threading.current_thread().name)
        return step

    batches, deadline = feed.Batches(make, 100), time.monotonic() + 10
    assert batches[10] == 10
    while len(made) < 1 + feed.AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (
        made == list(range(10, 11 + feed.AHEAD)) and threading.current_thread().name not in threads
    )


def test_what_goes_wrong_in_a_batch_is_raised_where_it_is_asked_for():
    def make(step):
        if step == 2:
            raise UserError("row 3 of step 2")
        return step

    batches = feed.Batches(make, 4)
    assert [batches[0], batches[1]] == [0, 1]
    with pytest.raises(UserError, match="row 3 of step 2"):
        batches[2]


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_shards_survive_a_change_of_hosts(hosts):
    """Every host makes the same batch and is asked for its devices' rows: in the order of devices
    they are the batch, so that any number of hosts trains on the same examples. (Two real
    processes: tests/test_launch.py.)"""
    whole = feed.Batches(batch_of, 18)[4]["rows"]
    mesh = jax.sharding.AbstractMesh((4, 2, 1), sharding.MESH_AXES)
    parts = sharding.spec(("batch", None), (8, 3), mesh)
    assert parts[0] == ("data", "fsdp") and 8 % hosts == 0
    padded = np.pad(whole, ((0, 8 - len(whole)), (0, 0)))
    by_host = [feed.Batches(batch_of, 18)[4]["rows"] for _ in range(hosts)]  # each its own pipeline
    rows = [
        np.pad(made, ((0, 8 - len(made)), (0, 0)))[host * 8 // hosts : (host + 1) * 8 // hosts]
        for host, made in enumerate(by_host)
    ]
    np.testing.assert_array_equal(np.concatenate(rows), padded)


@pytest.fixture(scope="module")
def format(tiny_model):
    return load_format(tiny_model, "text")


def same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for name in ("tokens", "target_mask"):
            one, other = getattr(a, name), getattr(b, name)
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


def test_tokens_are_those_of_the_format(format):
    same(feed.encode(format, DIALOGUES), [format.example(dialogue) for dialogue in DIALOGUES])
    assert feed.encode(format, []) == []


def test_lengths_that_a_tokenizer_file_asks_for_are_for_others(format, tiny_model, tmp_path):
    """Truncation and padding would change tokens silently."""
    shutil.copytree(tiny_model, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    description = json.loads(path.read_text())
    description["truncation"] = {
        "direction": "Right",
        "max_length": 5,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    description["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    path.write_text(json.dumps(description))
    same(
        feed.encode(load_format(tmp_path / "model", "text"), DIALOGUES),
        [format.example(dialogue) for dialogue in DIALOGUES],
    )


def test_texts_that_a_format_refuses_are_the_users_error(format):
    with pytest.raises(UserError, match="expected the last turn to be an answer"):
        feed.encode(format, [*DIALOGUES, (Message("human", "And?"),)])


class Item:
    def __init__(self, name):
        self.id = name


@pytest.mark.parametrize(
    "fraction,first,second",
    [(0.25, 10, 30), (0.5, 30, 30), (0.9, 100, 11), (0.0, 0, 30), (1.0, 100, 0), (None, 100, 30)],
)
def test_mixing_by_share(fraction, first, second):
    sides = [Item(f"a{n}") for n in range(100)], [Item(f"b{n}") for n in range(30)]
    mixed = [item.id for item in examples.mix(*sides, fraction, 0, "sl")]
    assert (sum(name[0] == "a" for name in mixed), sum(name[0] == "b" for name in mixed)) == (
        first,
        second,
    )
    assert mixed == [item.id for item in examples.mix(*sides, fraction, 0, "sl")]
    # Another item in one source moves nobody else's draw.
    fewer = {item.id for item in examples.mix(sides[0][1:], sides[1], fraction, 0, "sl")}
    assert len(set(mixed) - fewer) <= 1


def test_which_items_stay_in_a_mixture_is_drawn():
    """By name and seed: not the first ones, and others with another seed."""
    many, one = ([Item(f"{name}{i:02d}") for i in range(20)] for name in ("a", "b"))
    kept = [
        {item.id for item in examples.mix(many, one[:4], 0.5, seed, "sl")}
        - {item.id for item in one}
        for seed in range(4)
    ]
    assert all(len(ids) == 4 for ids in kept) and len(set(map(frozenset, kept))) == 4
    assert {item.id for item in many[:4]} not in kept


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_hosts(tmp_path):
    """Trained by two processes, then the last steps once more by one of two devices, from the
    checkpoint that the two left: its losses are theirs, so it saw the same examples."""
    flags = [
        "--config=configs/tiny.py",
        "--config.stages=respond,respond_helpful,revise,sl",
        f"--workdir={tmp_path}",
    ]
    done = subprocess.run(
        ["launch/local.sh", "-n", "2", "--", *flags],
        cwd=harness.ROOT,
        env=harness.environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stage = artefacts.StageDirectory(tmp_path / "sl")
    two = read_rows(tmp_path / "sl" / "metrics.jsonl")
    shutil.rmtree(tmp_path / "sl" / "checkpoints" / f"{len(two):08d}")
    stage.update_manifest(done=False)
    again = harness.run(tmp_path, "--config.stages=sl", JAX_NUM_CPU_DEVICES="2")
    assert again.returncode == 0 and "goes on from step" in again.stdout, again.stderr[-3000:]
    one = read_rows(tmp_path / "sl" / "metrics.jsonl")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-5)
