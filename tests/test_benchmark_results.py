"""What the benchmark of the sampler writes, goes on with, and shows."""

import pytest

from benchmarks import results, sampling, table
from benchmarks.workloads import Peers, Took, even_parts

SETTINGS = {"scale": 1.0, "cores": 2}


def measured(*repeats):
    known = results.entry({}, "critique", SETTINGS)
    known |= {
        "units": 100,
        "compile_s": 3.0,
        "programs": 2,
        "about": {"rows": 32, "header_tokens": 2004, "new_tokens": 64},
        "ours_peak_bytes": 2**30,
        "load": [0.1] * len(repeats),
    }
    for ours, generate in repeats:
        results.add(
            known,
            {
                "ours": {"wall": ours, "cpu": 2 * ours, "share": 1.0},
                "generate": {"wall": generate, "cpu": generate, "share": 0.5},
            },
        )
    known["summary"] = results.summarise(known)
    return known


def test_medians_and_spread_are_those_of_the_repeats_and_ratios_pair_them():
    summary = measured((10, 60), (20, 80), (11, 99))["summary"]
    assert summary["ours"]["median_s"] == 11 and (
        summary["ours"]["min_s"],
        summary["ours"]["max_s"],
    ) == (10, 20)
    assert summary["ours"]["per_second"] == pytest.approx(100 / 11)
    generate = summary["generate"]
    assert (generate["times_ours_min"], generate["times_ours"], generate["times_ours_max"]) == (
        4,
        6,
        9,
    )
    assert generate["times_ours_cpu"] == 3 and generate["repeats"] == 3 and generate["share"] == 0.5


def test_a_file_is_gone_on_with_only_where_it_was_measured_in_the_same_way(tmp_path):
    path = tmp_path / "out.json"
    assert results.load(path) == {}
    results.save(path, {"workloads": {"critique": measured((10, 60), (20, 80))}})
    found = results.load(path)
    assert results.repeats(results.entry(found, "critique", SETTINGS)) == 2
    assert results.repeats(results.entry(found, "decode", SETTINGS)) == 0
    with pytest.raises(ValueError, match=r"measured otherwise \(cores\)"):
        results.entry(found, "critique", SETTINGS | {"cores": 1})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "units,share", [(1, 0.125), (2, 0.125), (6, 0.125), (6, 0.5), (8, 0.125), (8, 0.3), (7, 1.0)]
)
def test_the_parts_of_a_peer_take_turns_and_cover_the_whole(units, share):
    peers = Peers(lambda parts: Took(0, 0), units)
    parts = [peers.parts(repeat, share) for repeat in range(units)]
    assert all(
        len(set(each)) == len(each) and share * units - 1e-6 <= len(each) < share * units + 1
        for each in parts
    )
    assert {part for each in parts for part in each} == set(range(units))
    assert peers.parts(0, 1.0) == list(range(units))
    assert [even_parts(number) for number in (2, 16, 24, 32, 48)] == [
        1,
        1,
        1,
        2,
        3,
    ]  # parts are equal, or there is one


def test_the_table_says_what_was_reached_and_on_which_part_it_rests():
    found = {
        "workloads": {"critique": measured((10, 55), (10, 50), (10, 59))},
        "versions": {"jax": "0"},
        "device": "a box",
    }
    text = table.markdown(found)
    row = next(line for line in text.splitlines() if line.startswith("| critique, 32 dialogues"))
    assert (
        "5.50× (5.00 to 5.90) | 6× | 10× | **no** | 3 |" in row
        and "timed on 0.5 of the work" in row
        and "10 tokens/s" in row
    )
    assert "| critique | 3.0 | 2 | 1024 |" in text and text.endswith("a box 2 cores; jax 0")
    fast = {"workloads": {"critique": measured((10, 70))}}
    assert "| yes |" in table.markdown(fast) and "| **no** |" in table.markdown(fast, "cpu")


def test_every_workload_is_there_and_can_be_chosen():
    from benchmarks import stage_workloads, workloads

    for name in sampling.REPEATS:
        assert callable(getattr(workloads, name, None) or getattr(stage_workloads, name))
    assert {row[0] for row in table.ROWS} == set(sampling.REPEATS) and min(
        sampling.REPEATS.values()
    ) >= 3
    args = sampling.parse(["--quick", "--workloads", "decode"])
    assert (
        args.repeats == 1
        and args.scale < 0.25
        and sampling.parse(["--quick", "--repeats", "4"]).repeats == 4
    )
