"""Published results of a run: numbers found again in the files, words that intervals allow, and
critiques counted by hand."""

import csv
import json
import re

import numpy as np
import pytest

from cai_jax import results
from cai_jax.core.intervals import paired_difference, wilson
from cai_jax.errors import UserError
from cai_jax.evals.rows import find
from cai_jax.report import critiques, numbers, render, sections, tables, transcripts
from cai_jax.report import results as results_lib
from cai_jax.report.build import markdown
from cai_jax.report.results import collect
from cai_jax.report.run import Run
from cai_jax.report.text import plain
from tests import fake_run

HOSTILE = ("<script>alert(1)</script>", "# heading\n| a | b |\n![x](http://example.org/x.png)")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run whose labels are of pairs that people have judged, too."""
    root = fake_run.write(tmp_path_factory.mktemp("runs") / "mine", 24, hostile=HOSTILE)
    path = root / "compare" / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(
            json.dumps({**r, "preferred": n % 2, "kind": "hh_harmless_base"}) + "\n"
            for n, r in enumerate(rows)
        )
    )
    return root


def command(run, out, *flags):
    return results.main(["x", str(run), "--out", str(out), *flags])


@pytest.fixture(scope="module")
def out(run):
    assert command(run, run.parent / "out", "--critiques", "10") == 0
    return run.parent / "out"


def test_everything_is_written_and_the_same_again(run, out, capsys):
    written = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }
    assert {
        "metrics.json",
        "tables.md",
        "transcripts.md",
        "critiques_to_read.md",
        "critiques_to_read.csv",
        "figures/frontier.png",
        "figures/judges.png",
        "figures/label_agreement.png",
        "figures/pm_score_by_revision.png",
        "figures/differences_red_team.png",
        "figures/rl-reward.png",
        "reference/rl/metrics.jsonl",
        "reference/config.json",
    } <= set(written)
    assert all(data[:4] == b"\x89PNG" for name, data in written.items() if name.endswith(".png"))
    assert not any(name.endswith("records.jsonl") for name in written), (
        "no texts but the ones drawn"
    )
    assert command(run, out, "--critiques", "10") == 0
    assert all((out / name).read_bytes() == data for name, data in written.items())
    assert "tables.md" in capsys.readouterr().out


def written(run, out, *flags):
    """(metrics.json, tables.md) of the command."""
    assert command(run, out, *flags) == 0
    return json.loads((out / "metrics.json").read_text()), (out / "tables.md").read_text()


def test_numbers_are_in_the_tables_with_interval_and_length(run, tmp_path, monkeypatch):
    monkeypatch.setattr(results_lib, "drawn", lambda run, found: ())
    found, text = written(run, tmp_path)
    for name in ("Initial", "SL-CAI", "RL-CAI"):
        (line,) = re.findall(rf"^\| {name} \|.*$", text.partition("\n### ")[0], re.M)
        key = {"Initial": "initial", "SL-CAI": "sl", "RL-CAI": "rl"}[name]
        (tokens,) = find(found["rows"], "num_tokens", "red_team", key)
        assert f"{tokens['value']:.0f} [{tokens['low']:.0f}, {tokens['high']:.0f}]" in line, (
            "length is next to the score"
        )
    (even,) = find(found["rows"], "pm_score_at_equal_length", "red_team", "rl", "initial")
    assert f"{even['value']:+.2f} [".replace("-", "−") in text
    (agreement,) = find(found["rows"], "label_agreement", "hh_harmless_base", "feedback")
    assert (
        found["cost"]["cpu_seconds"] == pytest.approx(2 * found["cost"]["seconds"])
        and found["cost"]["seconds"] > 0
    )
    assert agreement["n"] == 24 and found["about"]["versions"] == {"jax": "0.10.2"}
    (moved,) = find(found["rows"], "revision_moved", "revisions", "revise", "initial")
    scores = Run(run).revision_scores("revise")
    assert Run(run).revision_scores("revise_direct") == {}
    ends = [scores[r["id"]][2] - scores[r["id"]][0] for r in Run(run).records("revise")]
    assert moved["value"] == pytest.approx(sum(ends) / len(ends))


def test_nothing_is_called_a_gain_whose_interval_covers_zero(run):
    def verdict(value, low, high):
        row = {"value": value, "low": low, "high": high}
        return tables.difference_note(
            row, numbers.Column("x", "x", percent=False, digits=2)
        ).verdict

    for low, high in ((-0.01, 0.8), (-2, 0), (0, 0)):
        assert verdict((low + high) / 2, low, high) == "no difference shown"
    assert verdict(0.4, 0.01, 0.8) == "higher" and verdict(-0.4, -0.5, -0.1) == "lower"
    assert verdict(0.4, None, None) == ""
    for r in collect(Run(run)).rows:
        if r["against"] and r["value"] is not None and r["low"] is not None:
            shown = verdict(r["value"], r["low"], r["high"])
            assert (shown == "no difference shown") == r["null"]


def test_every_two_are_compared_on_the_same_prompts(run, tmp_path, monkeypatch):
    monkeypatch.setattr(results_lib, "drawn", lambda run, found: ())
    one, (metrics, text) = Run(run), written(run, tmp_path)
    found = metrics["pairwise"]
    (difference,) = find(found, "pm_score", "red_team", "rl", "sl")
    means = {
        name: {
            r["prompt_id"]: one.scores[r["id"]]
            for r in one.answers
            if (r["on"], r["name"]) == ("red_team", name)
        }
        for name in ("sl", "rl")
    }
    expected = paired_difference(means["sl"], means["rl"])
    assert (difference["value"], difference["low"], difference["n"]) == (
        expected.value,
        expected.low,
        expected.n,
    )
    assert find(found, "pm_score_at_equal_length", "red_team", "rl", "sl")
    assert not find(found, "pm_score", "red_team", "rl", "initial"), "it is in the evaluation"
    (labels,) = find(found, "label_agreement", "hh_harmless_base", "feedback_chain", "feedback")
    assert labels["n"] == 24
    apart = [r for r in found if r["metric"] == "label_agreement" and not r["null"]]
    assert f"of 1 pairs {len(apart)} differ at 95 % each; 0.1 would by chance" in text


def test_transcripts_are_drawn_by_rule_and_are_only_text(run):
    one = Run(run)
    template = render.environment("md").get_template("transcripts.md.j2")
    text = template.render(transcripts=transcripts.selected(one), prompts=True)
    assert text.count("## rl, red-team prompts: the ") == 3
    outside = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    assert "<script" not in outside and "![" not in outside and "# heading" not in outside
    assert transcripts.ranked({"a": 1.0, "b": 3.0, "c": 2.0, "d": -1.0, "e": 0.0}) == {
        "best": "b",
        "middle": "a",
        "worst": "d",
    }
    assert (
        transcripts.ranked({"a": 1.0, "b": 3.0}) == {"best": "b", "worst": "a"}
        and transcripts.ranked({}) == {}
    )


def test_prompts_and_principles_can_be_named_only(run, tmp_path, monkeypatch):
    monkeypatch.setattr(results_lib, "drawn", lambda run, found: ())
    one = Run(run)
    words = {turn["text"] for r in one.records("revise") for turn in r["dialogue"]}
    words |= {
        turn["critique_request"]
        for r in one.records("revise")
        for turn in r["rounds"]
        if turn.get("critique")
    }
    for flags, copied in (((), True), (("--no-prompts",), False)):
        assert command(run, tmp_path / "out", "--critiques", "8", *flags) == 0
        for name in ("transcripts.md", "critiques_to_read.md"):
            text = re.sub(r"^ +", "", (tmp_path / "out" / name).read_text(), flags=re.M)
            assert (
                any(line in text for told in words for line in told.splitlines() if len(line) > 12)
                == copied
            ), (name, flags)
            assert ("named here, not copied" in text) != copied
    assert (
        plain(critiques.drawn(one, "revise", 1)[0]["principle"])
        in (tmp_path / "out" / "critiques_to_read.md").read_text()
    )


def test_the_draw_depends_on_names_alone():
    names = [f"n{i}" for i in range(50)]
    drawn = transcripts.draw(names, 10)
    assert (
        drawn == transcripts.draw(names[::-1], 10)
        and drawn == transcripts.draw(names, 20)[:10]
        and len(set(drawn)) == 10
    )


def test_critiques_read_by_hand_are_counted(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(results_lib, "drawn", lambda run, found: ())  # drawing takes longest
    out = tmp_path / "out"
    command(run, out, "--critiques", "8")
    sheet = (out / "critiques_to_read.md").read_text()
    assert sheet.count("**Critique**") == 8 and "would not fit any other" in sheet
    rows = list(csv.DictReader(open(out / "critiques_to_read.csv")))
    marks = ["yy", "yy", "yn", "yn", "yn", "nn", "nn", "  "]
    with open(out / "critiques_to_read.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, critiques.COLUMNS)
        writer.writeheader()
        writer.writerows(
            {**r, "fault": m[0].strip(), "names": m[1].strip()}
            for r, m in zip(rows, marks, strict=True)
        )
    filled = (out / "critiques_to_read.csv").read_text()
    assert command(run, out, "--critiques", "8") == 0
    assert (out / "critiques_to_read.csv").read_text() == filled, "what was read is kept"
    found = {
        r["note"]: r
        for r in json.loads((out / "metrics.json").read_text())["rows"]
        if r["metric"] == "critiques_read"
    }
    expected = wilson(2, 7)
    assert (found["names a real problem"]["value"], found["names a real problem"]["low"]) == (
        expected.value,
        expected.low,
    )
    assert (
        found["its answer has a fault"]["value"] == 5 / 7
        and found["names it, where there is one"]["n"] == 5
    )
    assert "names a real problem" in (out / "tables.md").read_text()
    capsys.readouterr()
    assert command(run, out, "--critiques", "9") == 2, "another draw would not be what was read"
    assert "move it aside" in capsys.readouterr().err
    with pytest.raises(UserError, match=":2: fault and names are both y or n"):
        critiques.count("id,fault,names,note\na,y,,\n", [{"id": "a"}], "x.csv")
    assert command(tmp_path / "nowhere", out) == command(run, out, "--of", "sl") == 2


def test_other_seeds_give_means_over_runs(run, tmp_path, monkeypatch):
    monkeypatch.setattr(results_lib, "drawn", lambda run, found: ())
    others = [fake_run.write(tmp_path / f"seed{seed}", 24, seed=seed) for seed in (1, 2)]
    assert results.main(["x", str(run), *map(str, others), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["over_seeds"]
    (difference,) = find(found, "pm_score", "red_team", "rl", "initial")
    values = [
        find(collect(Run(path)).rows, "pm_score", "red_team", "rl", "initial")[0]["value"]
        for path in (run, *others)
    ]
    assert difference["by_run"] == pytest.approx(values) and difference["n"] == 3
    half = 4.302653 * np.std(values, ddof=1) / 3**0.5  # Student's t of two degrees of freedom
    assert difference["high"] - difference["value"] == pytest.approx(half)
    assert not find(found, "pm_score", "red_team", "rl"), (
        "each run has a judge of its own: scores have no common scale"
    )
    assert "Over 3 runs" in (tmp_path / "out" / "tables.md").read_text()


def test_a_run_can_be_laid_over_the_reference(run, out):
    runs = [Run(out / "reference"), Run(run)]
    content = sections.content(runs)
    assert len(sections.open_figures(content)) > 5
    text = markdown(runs, content)
    assert "Differences to the first run" in text and "PM score" in text
