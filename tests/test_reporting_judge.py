"""What the report says of the judge behind its numbers, and what it does where runs have different
ones."""

import json
import shutil

import pytest

from cai_jax.core.intervals import Estimate, wilson
from cai_jax.evals.rows import row
from cai_jax.report import (
    build,
    cautions,
    compare,
    figures,
    judge,
    plot,
    sections,
    story,
    transcripts,
)
from cai_jax.report.run import Run
from tests import fake_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("judges")
    return fake_run.write(root / "one", 8), fake_run.write(root / "two", 8, seed=1)


@pytest.fixture
def runs(made, tmp_path):
    """Two runs whose files a test may change."""
    return [shutil.copytree(path, tmp_path / path.name) for path in made]


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their drawings, which take longest."""
    monkeypatch.setattr(plot, "svg", lambda figure: figure.key)


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def of_another(columns, metric):
    """The columns of the metric's judge are another judge's."""
    (scale,) = {c["scale"] for c in columns if c["name"] == metric}
    for column in columns:
        same = column["scale"] == scale if scale else column["name"] == metric
        column["scale"] = "another" if same else column["scale"]


def judged_on(run, held_out, accuracies=()):
    """The run with these (right, n) held out of the judge's training by source, and in the
    evaluation by set."""
    parts = {name: {"accuracy": vars(wilson(*pair))} for name, pair in held_out.items()}
    edit(run / "pm" / "manifest.json", lambda v: v["summary"].update(held_out=parts))
    rows = [row("pm_accuracy", on, "@pm", wilson(*pair)) for on, pair in dict(accuracies).items()]

    def replace(value):
        value["rows"] = [r for r in value["rows"] if r["metric"] != "pm_accuracy"] + rows

    edit(run / "evaluate" / "metrics.json", replace)
    return Run(run)


def test_the_head_says_on_how_many_pairs_of_each_kind_the_judge_was_measured(undrawn, runs):
    """The demo's case: 13 of its 16 pairs are of helpfulness, the rest repeats AI labels."""
    edit(
        runs[0] / "evaluate" / "manifest.json",
        lambda v: v["fields"].update(comparisons={"source": "embedded:helpful_comparisons"}),
    )
    held_out = {"ai": (2, 3), "helpful_comparisons": (12, 13)}
    found = judged_on(runs[0], held_out, {"comparisons": (11, 12)})
    assert "11 of 12 human pairs (helpful comparisons)" in judge.sentence(found)
    said = judge.sentence(found)
    assert "12 of 13 held-out human pairs (helpful comparisons)" in said
    assert "agrees with 2 of 3 held-out AI labels" in said
    assert "no pairs of people about what is harmless" in said
    assert not judge.shown_right(found) and judge.shown_right(found, helpful=True)
    head = build.page([found]).partition("<nav")[0]
    assert "12 of 13" in head and "by a judge that is not shown to be right" in head
    assert "12 of 13" in build.markdown([found])
    first = cautions.collect(found)[0]
    assert first.level == "stop" and first.text == said


def test_a_judge_that_is_right_on_people_s_pairs_about_harm_is_not_doubted(runs):
    accuracies = {"comparisons": (70, 100), "comparisons:hh_harmless_base": (40, 50)}
    accuracies["comparisons:hh_helpful_base"] = (30, 50)
    found = judged_on(runs[0], {"ai": (5, 9)}, accuracies)
    assert judge.shown_right(found) and "40 of 50 human pairs (hh harmless base)" in judge.sentence(
        found
    )
    assert not any(c.text == judge.sentence(found) for c in cautions.collect(found))
    assert "not shown" not in story.headline(found)
    weak = judged_on(runs[0], {}, {**accuracies, "comparisons:hh_harmless_base": (26, 50)})
    assert "not shown to beat chance" in judge.sentence(weak)


def test_runs_with_different_judges_have_no_difference_and_no_axis_in_common(runs, monkeypatch):
    drawn_as = plot.svg
    same = [Run(path) for path in runs]
    assert not judge.differ(same) and len(figures.frontier(figures.main_sources(same))) == 1
    edit(runs[1] / "evaluate" / "metrics.json", lambda v: of_another(v["columns"], "pm_score"))
    other = [Run(path) for path in runs]
    assert judge.differ(other) and not judge.differ(other, "num_tokens")
    for one in compare.differences(other):
        of_judge = one.column.unit in ("PM score", "Elo")
        assert one.scales == of_judge
        assert (one.differences[1] is None) == of_judge or one.values[1] is None
    drawn = [one.key for one in figures.of_columns(figures.main_sources(other))]
    assert "pm_score" not in drawn and {"pm_score-1", "pm_score-2", "num_tokens"} <= set(drawn)
    assert {"frontier-1", "frontier-2"} == {
        one.key for one in figures.frontier(figures.main_sources(other))
    }
    monkeypatch.setattr(plot, "svg", lambda f: drawn_as(f) if "frontier" in f.key else f.key)
    text = build.page(other)
    assert "no common scale" in text and len(set(text.split('id="fig-frontier-1-t"'))) == 2


def test_harm_is_compared_where_one_regressor_said_it(runs):
    edit(runs[1] / "evaluate" / "metrics.json", lambda v: of_another(v["columns"], "expected_harm"))
    found = [Run(path) for path in runs]
    assert judge.differ(found, "expected_harm") and not judge.differ(found, "pm_score")


def test_metrics_of_an_older_version_are_named_and_nothing_is_read_of_them(runs):
    edit(runs[0] / "evaluate" / "metrics.json", lambda v: v.pop("columns"))
    run = Run(runs[0])
    assert run.rows == [] and any("older version" in c.text for c in cautions.collect(run))


def test_no_published_interval_has_zero_width():
    run = Run("results/smollm2/reference")
    rows = [r for measured in run.measured.values() for r in measured.rows]
    assert len(rows) > 500 and not run.problems
    assert all(r["low"] is None or r["low"] < r["high"] for r in rows)


def test_three_texts_are_drawn_by_a_hash_each_prompt_once(undrawn, runs):
    run = Run(runs[0])
    what, found = transcripts.opening(run)
    assert what == "Revisions of revise, first answer to last revision" and len(found) == 3
    assert (
        len({one[0].text for one in found}) == 3 and transcripts.opening(Run(runs[0]))[1] == found
    )
    records = {r["initial"]: r for r in run.records("revise")}
    for prompt, before, critique, after in found:
        record = records[before.text]
        assert prompt.text == record["dialogue"][-1]["text"]
        assert critique.text == record["rounds"][0]["critique"], (
            "the critique of the text before it"
        )
        assert after.text == record["rounds"][-1]["revision"] and after.who == "Revision 2"
    assert build.page([run]).count("<article") == 3
    assert sections.opening([run, run])["texts"] == []


def test_a_hostile_text_is_only_text(undrawn, runs):
    path = runs[0] / "revise" / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for r in rows:
        r["initial"] = "<script>alert(1)</script>" + "x" * 1000
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = build.page([Run(runs[0])])
    assert "<script>alert" not in out and "All of it" in out


def test_principles_that_were_used_once_are_not_on_top(runs):
    uses = {"often_up": (9, 0.2), "often_down": (7, -0.3), "once": (1, 2.0), "twice": (2, -2.0)}

    def replace(value):
        value["rows"] = [r for r in value["rows"] if r["metric"] != "score_moved"] + [
            row("score_moved", "revisions", name, Estimate(v, None, None, n), used=n, changed=1.0)
            for name, (n, v) in uses.items()
        ]

    edit(runs[0] / "evaluate" / "metrics.json", replace)
    drawn = figures.principles(figures.main_sources([Run(runs[0])]))
    assert [r.label for r in drawn.rows] == [
        "often_up (9)",
        "often_down (7)",
        "twice (2)",
        "once (1)",
    ]
    assert "The last 2 were used fewer than 5 times" in drawn.caption


def test_labels_that_position_decides_are_a_serious_warning_near_the_top(runs):
    edit(runs[0] / "feedback" / "manifest.json", lambda v: v["summary"].update(flip_rate=1.0))
    found = cautions.collect(judged_on(runs[0], {"ai": (2, 3)}))
    assert [c.level for c in found[:2]] == ["stop", "stop"]
    assert "100" in found[1].text and "change places" in found[1].text
    levels = [c.level for c in found]
    assert levels == sorted(levels, key=("stop", "care", "note").index)
