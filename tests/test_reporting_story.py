"""What the first screen says: the verdict in words, from rows whose meaning is known."""

import json
import re
import shutil

import pytest

from cai_jax.core.intervals import Estimate
from cai_jax.evals.rows import Column, find, row
from cai_jax.report import build, cards, cautions, compare, figures, plot, results, story
from cai_jax.report.run import Run
from tests import fake_evaluation, fake_run


@pytest.fixture
def run(tmp_path):
    return fake_run.write(tmp_path / "demo", 8)


DOUBT = ", by a judge that is not shown to be right"


def told(path, red_team, helpful, extra=()):
    """The run with these differences (low, high) of the PM score as its only ones."""
    rows = []
    for on, (low, high) in (("red_team", red_team), ("helpful", helpful)):
        for name, value in (("initial", 0.0), ("rl", (low + high) / 2)):
            rows.append(
                row("pm_score", on, name, Estimate(value, value - 1, value + 1, 20), good="higher")
            )
            rows.append(
                row("num_tokens", on, name, Estimate(40 if name == "initial" else 50, 30, 60, 20))
            )
        rows.append(
            row(
                "pm_score",
                on,
                "rl",
                Estimate((low + high) / 2, low, high, 20),
                against="initial",
                good="higher",
            )
        )
    (path / "evaluate" / "metrics.json").write_text(
        json.dumps(fake_evaluation.metrics([*rows, *extra]))
    )
    return Run(path)


@pytest.mark.parametrize(
    "red_team,helpful,expected",
    [
        ((0.2, 0.6), (0.1, 0.5), "RL-CAI is judged more harmless and more helpful than Initial"),
        ((0.2, 0.6), (-0.5, -0.1), "RL-CAI is judged more harmless and less helpful than Initial"),
        (
            (-0.6, -0.2),
            (-0.2, 0.3),
            "RL-CAI is judged less harmless than Initial; no difference shown in helpfulness",
        ),
        (
            (-0.1, 0.4),
            (0.1, 0.3),
            "RL-CAI is judged more helpful than Initial; no difference shown in harmlessness",
        ),
        ((-0.1, 0.4), (-0.1, 0.3), "No difference shown between RL-CAI and Initial"),
    ],
)
def test_the_headline_says_what_the_intervals_say(run, red_team, helpful, expected):
    found = told(run, red_team, helpful)
    # No pair of people is among these rows, so the judge is doubted wherever it finds a difference.
    doubted = expected.replace("than Initial", f"than Initial{DOUBT}")
    assert story.headline(found) == doubted
    words = {one.axis: (one.word, one.tone) for one in story.verdict(found)}
    for axis, (low, high) in (("Harmlessness", red_team), ("Helpfulness", helpful)):
        assert words[axis] == (
            ("higher", "good")
            if low > 0
            else ("lower", "bad")
            if high < 0
            else ("no difference shown", "")
        )
    assert words["Length"] == ("longer", "")


def test_less_expected_harm_is_good_and_a_useless_regressor_is_told(run):
    harm = [
        row("expected_harm", "T=1", name, Estimate(x, 0, 4, 9), good="lower")
        for name, x in (("initial", 2), ("rl", 1))
    ]
    harm.append(
        row(
            "expected_harm",
            "T=1",
            "rl",
            Estimate(-1.0, -1.5, -0.5, 9),
            against="initial",
            good="lower",
        )
    )
    l2 = [
        row(
            "harm_l2",
            "held-out ratings",
            "@harm",
            Estimate(1.0, 0.5, 1.5, 9),
            good="lower",
            baseline={"mean": 1.0},
        ),
        row(
            "harm_l2",
            "held-out ratings",
            "@harm",
            Estimate(0.0, -0.4, 0.4, 9),
            against="mean",
            good="lower",
        ),
    ]
    found = told(run, (0.1, 0.2), (0.1, 0.2), [*harm, *l2])
    words = {one.axis: one for one in story.verdict(found)}
    assert (words["Expected harm"].word, words["Expected harm"].tone) == ("less", "good")
    assert any(
        "always saying the mean" in c.text and c.level == "stop" for c in cautions.collect(found)
    )
    assert story.trust(found).word.startswith(
        f"{sum(c.level == 'stop' for c in cautions.collect(found))} serious"
    )


def test_figures_of_the_paper_from_a_run_that_has_the_data(run):
    manifest = run / "evaluate" / "manifest.json"
    value = json.loads(manifest.read_text())
    value["fields"].update(
        models={"initial": "@sl", "sl": "@rl:5", "rl": "@rl"}, inputs={"revisions": "revise"}
    )
    manifest.write_text(json.dumps(value))
    found = Run(run)
    sources = figures.main_sources([found])
    (drawn,) = figures.frontier(sources)
    assert "Elo" in drawn.x_label and "SL-CAI = 0" in drawn.caption, "Figures 2 and 3"
    assert [s.y[list(s.y).index(0.0)] for s in drawn.series if 0.0 in s.y] == [0.0], (
        "one model is at zero"
    )
    assert figures.principle_counts(sources) is None, "one number of principles is no curve"


def test_critiqued_and_direct_revisions_are_two_curves(run, tmp_path):
    """Figure 7, and Figure 6 where runs differ in the number of principles."""
    for path, stage in ((run, "evaluate"),):
        value = json.loads((path / stage / "manifest.json").read_text())
        value["fields"]["inputs"] = {"revisions": "revise"}
        (path / stage / "manifest.json").write_text(json.dumps(value))
        for name, fields in (
            ("revise_direct", {"critique": False, "num_principles": 4}),
            ("evaluate_direct", None),
        ):
            (path / name).mkdir()
            source = path / ("revise" if fields else "evaluate")
            copy = json.loads((source / "manifest.json").read_text())
            copy["fields"].update(fields or {"inputs": {"revisions": "revise_direct"}})
            (path / name / "manifest.json").write_text(json.dumps(copy))
        (path / "evaluate_direct" / "metrics.json").write_text(
            (path / "evaluate" / "metrics.json").read_text()
        )
    drawn = next(
        f
        for f in figures.constitution(figures.main_sources([Run(run)]))
        if f.key == "pm_score_by_revision"
    )
    assert sorted(s.label for s in drawn.series) == ["revise, critiqued", "revise_direct, direct"]
    assert list(figures.principle_counts(figures.main_sources([Run(run)])).series[0].x) == [4, 16]


def changed(path, **fields):
    value = json.loads((path / "manifest.json").read_text())
    value["fields"].update(fields)
    (path / "manifest.json").write_text(json.dumps(value))


def test_the_story_follows_the_policy_to_what_it_came_from(run):
    """Of several preference models the one that RL-CAI was trained against, of several models its
    policy."""
    shutil.copytree(run / "pm", run / "pm_second")
    changed(run / "pm_second", human={"source": "elsewhere.jsonl"})
    assert "elsewhere" not in " ".join(story.sentences(Run(run)))
    changed(run / "rl", reward="@pm_second")
    told = story.sentences(Run(run))
    assert any("elsewhere.jsonl" in one for one in told) and any(
        "trained against it" in one for one in told
    )
    changed(run / "rl", reward="python:mine.reward")
    assert any("trained against python:mine.reward" in one for one in story.sentences(Run(run)))
    terms = {
        "pm": {"kind": "preference_model", "model": "@pm_second", "weight": 1.0},
        "length": {"kind": "length", "weight": -0.01},
    }
    changed(run / "rl", reward="@pm", rewards=terms, algorithm="grpo")
    told = story.sentences(Run(run))
    assert Run(run).method["pm"].name == "pm_second"
    assert any("trained against it + −0.01 × length with GRPO for" in one for one in told)
    assert Run(run).shown == "rl"
    changed(run / "evaluate", models={"initial": "helpful", "sl": "@rl", "rl": "@sl"})
    assert Run(run).shown == "sl", "not the last"


def test_several_evaluations_are_not_mixed(run, tmp_path):
    """The first screen is about the main one; each other has its own part, its own first model and
    its own scores."""
    other = run / "evaluate_steps"
    shutil.copytree(run / "evaluate", other)
    metrics = json.loads((other / "metrics.json").read_text())
    for r in metrics["rows"]:
        if r["on"] in ("red_team", "helpful"):
            r["model"] = {"initial": "start", "rl": "end"}.get(r["model"], r["model"])
            r["value"] = None if r["value"] is None else r["value"] + 5
    (other / "metrics.json").write_text(
        json.dumps(metrics | {"notes": ["the other judge is biased"]})
    )
    shutil.copytree(run / "revise", run / "revise_again")
    alone, found = Run(fake_run.write(tmp_path / "demo2", 8)), Run(run)
    assert found.main == "evaluate" and found.models == ["initial", "sl", "rl"]
    assert found.evaluation.notes == alone.evaluation.notes
    assert [str(one) for one in story.verdict(found)] == [str(one) for one in story.verdict(alone)]
    score = {r["value"] for r in find(found.rows, "pm_score", "red_team", "sl")}
    assert score == {r["value"] for r in find(alone.rows, "pm_score", "red_team", "sl")}
    assert len(find(found.rows, "pm_accuracy", "comparisons")) == 1, (
        "the same number twice stands once"
    )
    (further,) = found.further
    assert (further.stage, further.models) == ("evaluate_steps", ["start", "sl", "end"])
    assert set(found.scores_of("evaluate_steps")) == set(found.scores)
    told = story.sentences(found)
    assert (
        sum("red-team prompts" in sentence for sentence in told) == 1 and "(1 revise)" in told[-1]
    )
    page = build.page([found], svg=lambda figure: f'<svg id="fig-{figure.key}"></svg>')
    assert "evaluate_steps, 3 models" in page
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    card = next(card for card in cards.Deck([found], 6000).cards.values() if card.get("ans"))
    assert {answer["e"] for answer in card["ans"]} == {"", "evaluate_steps"}


def test_runs_are_compared_item_by_item(run, tmp_path):
    other = fake_run.write(tmp_path / "other", 8, seed=1)
    found = {
        (d.column.name, d.on): d
        for d in compare.differences([Run(run), Run(other)])
        if d.model in ("feedback", "rl")
    }
    assert (
        found["expected_harm", "T=1"].paired and found["expected_harm", "T=1"].differences[1].n == 6
    )
    value = json.loads((other / "evaluate" / "manifest.json").read_text())
    for path in (run, other):
        value["fields"]["feedback"] = "feedback"
        (path / "evaluate" / "manifest.json").write_text(json.dumps(value))
    found = {(d.column.name, d.on): d for d in compare.differences([Run(run), Run(other)])}
    assert (
        found["choice_zero_shot", "hhh"].paired
        and found["choice_zero_shot", "hhh"].differences[1].n == 48
    )


def test_a_number_that_an_evaluation_declares_is_shown_everywhere(run, tmp_path, monkeypatch):
    """Nothing but its column is known of it: page, Markdown, comparison, published results."""
    monkeypatch.setattr(plot, "svg", lambda figure: figure.key)
    monkeypatch.setattr(results, "drawn", lambda run, measured: ())
    column = Column("politeness", "Politeness", "points", "higher", figure="forest")
    other = fake_run.write(tmp_path / "other", 8, seed=1)
    for shift, path in enumerate((run, other)):
        values = {
            name: {f"held-{i:03d}": 7.25 + i + shift for i in range(6)} for name in ("sl", "rl")
        }
        rows = column.compared_rows("red_team", values)
        kept = [{"name": r["name"], "values": r.pop("values")} for r in rows if "values" in r]
        with (path / "evaluate" / "values.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        metrics = path / "evaluate" / "metrics.json"
        value = json.loads(metrics.read_text())
        value["rows"] += rows
        value["columns"].append(column.to_json())
        metrics.write_text(json.dumps(value))
    for text in (build.page([Run(run)]), build.markdown([Run(run)])):
        assert "Politeness" in text and "9.75" in text
    found = {d.column.name: d for d in compare.differences([Run(run), Run(other)])}
    assert found["politeness"].paired and found["politeness"].differences[1].value == 1
    assert "Politeness" in build.page([Run(run), Run(other)])
    results.write(run, tmp_path / "out", others=[other])
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert tables.count("Politeness") >= 2 and "9.75" in tables, "and over seeds"
    assert "politeness" in [f.key for f in figures.of_columns(figures.main_sources([Run(run)]))]
