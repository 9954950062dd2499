"""What the benchmarks of trainers make of their measurements."""

import json
import subprocess
import sys

import pytest

from benchmarks import scaling, sides, training


def test_medians_pair_the_sides_of_a_round():
    visits = {
        "ppo ours": [
            {
                "seconds": ours,
                "cpu_seconds": 2 * ours,
                "peak_bytes": 4 + n,
                "learn_seconds": ours / 2,
            }
            for n, ours in enumerate([10, 20, 16, 7])
        ],
        "ppo tunix": [
            {"seconds": theirs, "cpu_seconds": theirs, "peak_bytes": 12} for theirs in (15, 60, 32)
        ],
    }
    found = training.summary("tunix", visits, training.WORK)
    ours = found["ppo ours"]
    assert (ours["seconds"], ours["learn_seconds"], ours["speed"], ours["cpu_speed"]) == (
        13,
        6.5,
        2,
        1,
    )
    assert (ours["speed_min"], ours["speed_max"], ours["visits"]) == (1.5, 3, 4)
    assert ours["memory"] == 7 / 12 and ours["tokens_per_second"] == 16 * 80 / 13
    assert found["ppo tunix"]["speed"] == 1 and "learn_seconds" not in found["ppo tunix"]
    row = training.table(found)[0]
    assert "| 2.00× (1.50 to 3.00) |" in row and row.count("|") == training.HEADER.count("|")
    alone = training.summary("ppo", visits, training.WORK)  # its peer has not run yet
    assert list(alone) == ["ppo ours"] and "speed" not in alone["ppo ours"]
    assert training.table(alone)[0].count("|") == training.HEADER.count("|")


def test_sides_take_turns_and_go_on_where_they_stopped():
    known, called, saved = {"visits": {"a": [{"seconds": 1.0}]}}, [], []

    def one(name):
        called.append(name)
        if name == "bad":
            raise RuntimeError("died")
        if len(called) == 5:
            raise KeyboardInterrupt
        return {"seconds": 1.0, "peak_bytes": 2}

    def measure():
        return training.measure(
            ["a", "bad", "b"], 3, known, one, lambda: saved.append(len(called)), lambda rows: False
        )

    with pytest.raises(KeyboardInterrupt):
        measure()
    assert called == ["bad", "b", "a", "b", "a"] and saved == [
        2,
        3,
        4,
    ]  # a's first was there already
    assert measure() == {"bad": "died"}  # asked again, once
    assert called[5:] == ["bad", "a", "b"] and [
        len(known["visits"][name]) for name in ("a", "bad", "b")
    ] == [3, 0, 3]
    assert set(training.ORDER) == {name for group in training.GROUPS.values() for name in group}


def test_other_work_is_refused(monkeypatch):
    closed = []

    class Side:
        ready = {"compiled": False}

        def work(self):
            return {"seconds": 1.0, "cpu_seconds": 1.0, "peak_bytes": 1, "steps": 4}

        def close(self):
            closed.append(True)

    monkeypatch.setattr(training, "Side", lambda *_: Side())
    with pytest.raises(RuntimeError, match="4.* optimiser steps"):
        training.visit("ppo trl", "work.json", "python", training.WORK)
    assert closed and training.visit("ppo trl", "work.json", "python", training.QUICK)["steps"] == 4


def test_all_sides_get_the_same_tokens_in_the_sizes_that_were_asked_for(tiny_model):
    work = training.work_of(tiny_model, training.WORK)
    assert [len(row) for row in work["rows"]] == [256] * 4 and [
        len(row) for row in work["prompts"]
    ] == [32] * 16
    assert len({tuple(row) for row in work["prompts"]}) == 16 and all(
        isinstance(token, int) for token in work["rows"][0]
    )


def test_a_side_answers_once_a_line_and_keeps_other_output_apart(tmp_path):
    file = tmp_path / "work.json"
    file.write_text("3")
    code = (
        "import sys, types; from benchmarks import sides\n"
        "def run(work):\n    print('noise'); yield {'ready': True}\n    while True: yield "
        "{'work': work}\n"
        "sys.modules['benchmarks.toy'] = types.SimpleNamespace(run=run); sides.SIDES['toy'] = "
        "'toy:run'\n"
        f"sides.serve('toy', {str(file)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="\n\n", capture_output=True, text=True
    )
    ready, *answers = map(json.loads, done.stdout.splitlines())
    assert (
        ready["ready"]
        and [answer["work"] for answer in answers] == [3, 3]
        and "noise" in done.stderr
    )
    assert all(answer["seconds"] >= 0 and answer["peak_bytes"] > 2**20 for answer in answers)
    assert set(sides.SIDES) == {name for group in training.GROUPS.values() for name in group}


@pytest.mark.parametrize(
    "layout,want",
    [("fsdp", (1, 64, 1)), ("fsdp, tensor 4", (1, 16, 4)), ("data, fsdp 8", (8, 8, 1))],
)
def test_layouts_of_the_scaling_table(layout, want):
    assert tuple(scaling.mesh_sizes(64, layout).values()) == want


def test_the_spread_of_operations():
    rows = [{"layout": "fsdp", "flops": flops} for flops in (100.0, 102.0, 101.0)] + [
        {"layout": "other", "flops": 5.0}
    ]
    assert scaling.spread(rows) == {"fsdp": pytest.approx(0.02), "other": 0}
