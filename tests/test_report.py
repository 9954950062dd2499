"""The report: whole, partial and hostile runs, several runs, sizes, and the command."""

import base64
import dataclasses
import gzip
import html.parser
import json
import re
import shutil
import time
import types

import pytest

from cai_jax.core.intervals import Estimate
from cai_jax.errors import UserError
from cai_jax.io.artefacts import StageDirectory
from cai_jax.report import __main__ as report
from cai_jax.report import build, cards, cautions, compare, curves, figures, judge, plot
from cai_jax.report.run import Run, Stage
from cai_jax.report.spec import Forest, ForestRow, Panel, Series
from tests import fake_run

SECTIONS = (
    *("differences", "results", "judges", "transparency", "training"),
    *("labels", "transcripts", "numbers", "cost", "provenance"),
)
STAGES = ("respond", "revise", "sl", "compare", "feedback", "pm", "rl", "evaluate")
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "<!--",
    "]]>",
    "\u202eevil\u202c \u2066x",
    "lone \ud800 surrogate",
    "\x00\x1b[31m",
    "| a | b |\n# heading\n```\n**bold**",
    "x" * 1_000_000,
    "<style>*{display:none}</style>",
    "&lt;script&gt;",
    "javascript:alert(1)",
    "{{constructor}}",
    "\u2028\u2029",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fake_run.write(tmp_path_factory.mktemp("runs") / "whole", 16)


@pytest.fixture(scope="module")
def written(whole):
    """The command's report of the whole run."""
    out = whole.parent / "out"
    assert report.main(["report", str(whole), f"--out={out}"]) == 0
    return out


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their drawings, which take longest."""
    monkeypatch.setattr(plot, "svg", lambda figure: figure.key)


class Reader(html.parser.HTMLParser):
    """Elements, attributes and the text of scripts; complains about what a page of ours never
    has."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.ids, self.scripts, self.words, self._in = [], [], [], "", None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in = tag
        for name, value in attrs:
            assert not name.startswith("on"), f"an event handler: {name}"
            assert name not in ("src", "srcdoc", "action"), f"a request: {name}"
            if name == "href":
                assert value.startswith(("#", "data:,")), (
                    f"a link that leaves the page: {value[:80]}"
                )
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in == "script":
            self.scripts.append(data)
        elif self._in != "style":
            self.words += data


def data_of(text):
    """What the record browser reads."""
    found = re.search(r'id="records-data" data-encoding="(\w+)">(.*?)</script>', text, re.DOTALL)
    encoded = found[2]
    if found[1] == "gzip":
        return json.loads(gzip.decompress(base64.b64decode(encoded)))
    return json.loads(encoded)


def test_whole_run(whole, written):
    text = (written / "report.html").read_text()
    reader = Reader(text)
    assert len(reader.ids) == len(set(reader.ids)), "ids repeat"
    for name in SECTIONS:
        assert (name in reader.ids) == (name != "differences")
    targets = re.findall(r'href="#([^"]+)"', text)
    assert set(targets) <= set(reader.ids), "a link to nowhere"
    assert {
        name for names in re.findall(r'aria-labelledby="([^"]+)"', text) for name in names.split()
    } <= set(reader.ids)
    for phrase in (
        "Win rates of every two models",
        "Principles by kind of harm",
        "distinct 2",
        "Harmlessness",
        "Null result",
        "Length drift",
        "Position bias",
        "independent evidence",
        "SL-CAI",
        "smollm2",
    ):
        assert phrase in reader.words, phrase
    assert build.page([Run(whole)]) == text, "the same run gives the same page"


def test_records_join_by_prompt(undrawn, whole):
    data = data_of(build.page([Run(whole)]))
    by_prompt = {card["p"]: card for card in data["cards"]}
    card = by_prompt["red-000"]
    revision = card["rev"][0]
    assert card["k"] == "violence" and len(revision["r"]) == 2
    assert card["x"] == pytest.approx(revision["r"][-1]["s"] - revision["s"], abs=2e-3)
    held = by_prompt["held-000"]
    assert [answer["m"] for answer in held["ans"]] == ["Initial", "SL-CAI", "RL-CAI"]
    assert [(roll["m"], roll["u"]) for roll in card["roll"]] == [
        ("RL-CAI", 0),
        ("RL-CAI", 9),
    ] and revision["w"], "the whole way"
    assert by_prompt["cmp-red-000"]["cmp"][0]["b"] == "SL-CAI"
    label = by_prompt["cmp-red-000"]["cmp"][0]["l"][0]
    assert 0 <= label["p"] <= 1 and {"ab", "ba"} <= set(label)
    assert any(one["ch"] for one in by_prompt["cmp-red-000"]["cmp"][0]["l"]), (
        "the chain of thought is shown"
    )


@pytest.mark.parametrize("count", range(1, len(STAGES) + 1))
def test_runs_that_stopped_half_way(undrawn, tmp_path, count):
    run = fake_run.write(tmp_path / "half", 5, stages=STAGES[:count])
    Reader(build.page([Run(run)]))
    assert build.markdown([Run(run)]).startswith("# half")


def test_missing_and_damaged_files(undrawn, whole, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    (broken / "evaluate" / "metrics.json").write_text("{")
    (broken / "revise" / "records.jsonl").write_text('{"id": "x"}\nnot json\n')
    (broken / "pm" / "metrics.jsonl").unlink()
    (broken / "config.json").unlink()
    manifest = broken / "rl" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"done": true', '"done": false'))
    text = build.page([Run(broken)])
    words = Reader(text).words
    assert (
        "incomplete" in words
        and "rl" in words
        and "records.jsonl:2" in words
        and "metrics.json" in words
    )


def test_a_stage_that_is_running(whole, tmp_path):
    """The journal of an unfinished stage is read as far as it is on disk."""
    run = tmp_path / "running"
    shutil.copytree(whole, run)
    directory = StageDirectory(run / "revise")
    rows = directory.records()
    (run / "revise" / "records.jsonl").unlink()
    journal = directory.journal()
    for row in rows[:5]:
        journal.append(row)
    journal.flush()
    assert len(Run(run).records("revise")) == 5 and not Run(run).problems


def test_hostile_text_is_only_text(undrawn, whole, tmp_path):
    """Of figures see `test_markup_and_formulas_in_labels_are_only_text`: no answer is in one."""
    run = fake_run.write(tmp_path / "<b>run'\"", 12, hostile=HOSTILE)
    start = time.monotonic()
    text = build.page([Run(run)])
    assert time.monotonic() - start < 20
    reader, safe = Reader(text), Reader(build.page([Run(whole)]))
    assert sorted(set(reader.tags)) == sorted(set(safe.tags)) and reader.tags.count("script") == 2
    assert (
        "\u202e" not in text
        and "\x00" not in text
        and "⟨U+202E⟩" in json.dumps(data_of(text), ensure_ascii=False)
    )
    assert "<script>alert" not in text and len(text) < 1_000_000, "a line of a megabyte is cut"
    noted = build.markdown([Run(run)])
    for line in noted.split("\n"):
        if not line.startswith("    "):
            assert "<script" not in line and "<img" not in line and "<b>" not in line


def test_hostile_names_are_only_text_in_headline_lede_and_cautions(undrawn, tmp_path):
    """These go through a macro that makes markup of its own."""
    evil = "\u202eevil\x1b[31m<b>"
    path = fake_run.write(tmp_path / "run", 12)
    metrics = json.loads((path / "evaluate" / "metrics.json").read_text())
    for row in metrics["rows"]:
        row["model"] = evil if row["model"] == "rl" else row["model"]
    metrics["notes"] = [evil]
    (path / "evaluate" / "metrics.json").write_text(json.dumps(metrics))
    manifest = json.loads((path / "rl" / "manifest.json").read_text())
    manifest["fields"]["reward"] = evil
    (path / "rl" / "manifest.json").write_text(json.dumps(manifest))
    run, other = Run(path), Run(path)
    run.name = other.name = evil
    for text in (build.page([run]), build.page([run, other])):
        assert not re.search("[\u202e\x1b]|31m<b>", text)
    text = build.page([run])
    for place in (r"<h1>(.*?)</h1>", r'class="lede">(.*?)</p>', r'class="cautions">(.*?)</ul>'):
        assert "⟨U+202E⟩evil⟨U+001B⟩[31m&lt;b&gt;" in " ".join(
            re.findall(place, text, re.DOTALL)
        ), place


def test_hostile_names_of_figures_stay_in_their_folder(tmp_path):
    path = fake_run.write(tmp_path / "run", 12, stages=("evaluate",))
    names = ["../../../out", "a/b", "a b", "a:b", '"><script>', "", "x" * 999, "plain_name"]
    series = [{"label": "s", "x": [0, 1], "y": [0, 1]}]
    axes = {"title": "t", "x_label": "x", "y_label": "y", "group": "judges"}
    metrics = json.loads((path / "evaluate" / "metrics.json").read_text())
    metrics["rows"] = []  # no other figures
    metrics["figures"] = [{"name": name, **axes, "series": series} for name in names]
    (path / "evaluate" / "metrics.json").write_text(json.dumps(metrics))
    before = {p for p in tmp_path.rglob("*") if path not in p.parents}
    build.build([path], tmp_path / "report")
    made = {p for p in tmp_path.rglob("*") if p.is_file()} - before
    assert not [p for p in made - set(path.rglob("*")) if tmp_path / "report" not in p.parents]
    drawn = [f for f in figures.declared(figures.main_sources([Run(path)]), ["judges"])]
    keys = [figure.key for figure in drawn]
    assert len(set(keys)) == len(names) and keys[-1] == "plain_name"
    assert all(re.fullmatch(r"[\w-]{1,100}", key, re.ASCII) for key in keys)
    for figure in drawn:
        assert (tmp_path / "report" / "figures" / f"{figure.key}.png").exists()
    reader = Reader((tmp_path / "report" / "report.html").read_text())
    assert {f"fig-{key}-t" for key in keys} <= set(reader.ids)


def many(run, times):
    """Copies of every prompt and record under ids, and with texts, of their own."""
    for file in run.glob("*/records.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        with open(file, "w") as out:
            for number in range(times):
                for row in rows:
                    ids = {k: f"{row[k]}.{number}" for k in ("id", "prompt_id", "comparison_id")
                           if k in row}  # fmt: skip
                    texts = {"response": f"{row['response']} {number}"} if "response" in row else {}
                    out.write(json.dumps(row | ids | texts) + "\n")
    return run


def test_two_thousand_records_fit(undrawn, whole, tmp_path):
    run = many(shutil.copytree(whole, tmp_path / "large"), 41)
    text = build.page([Run(run)])
    assert len(text.encode()) <= 5_000_000
    assert len(data_of(text)["cards"]) >= 2000  # prompts; the records behind them are twice as many


def test_the_budget_is_kept_with_long_texts(whole):
    text, encoding, count = cards.pack([Run(whole)], budget=3_000)
    assert (
        len(text) <= 3_000
        and count["shown"] < count["total"]
        and count["limit"] == min(cards.TEXT_LIMITS)
    )
    assert encoding == "json"


def test_several_runs(undrawn, whole, tmp_path):
    other = fake_run.write(tmp_path / "other", 16, seed=1, lift=1.5)
    runs = [Run(whole), Run(other)]
    text = build.page(runs)
    words = Reader(text).words
    assert "different preference models" not in words and not judge.differ(runs)
    assert "Differences" in words and "whole" in words and "other" in words
    found = {(d.column.name, d.on, d.model): d for d in compare.differences(runs)}
    score = found["pm_score", "red_team", "rl"]
    assert score.paired and score.differences[0] is None and score.differences[1].value > 0
    same = {(d.column.name, d.on, d.model): d for d in compare.differences([runs[0], runs[0]])}
    assert same["pm_score", "red_team", "rl"].differences[1].value == 0
    assert "Differences" in build.markdown(runs)


def test_difference_of_independent_intervals():
    a, b = Estimate(0.5, 0.4, 0.6, 100), Estimate(0.7, 0.6, 0.8, 100)
    d = compare.mover(a, b)
    assert (
        d.value == pytest.approx(0.2)
        and d.low == pytest.approx(0.2 - 0.02**0.5)
        and d.high == pytest.approx(0.2 + 0.02**0.5)
    )
    assert compare.mover(a, Estimate(None, None, None, 0)).value is None


@pytest.mark.parametrize("requests,level", [(0, None), (2, "note"), (9, "care")])
def test_worked_examples_that_were_left_out_are_a_caution(requests, level):
    counts = {"examples": 3 * requests, "requests": requests, "of": 20}
    stage = Stage("revise", None, {}, "revise", summary={"few_shot": counts})
    found = list(cautions.worked_examples(types.SimpleNamespace(stages={"revise": stage})))
    assert [caution.level for caution in found] == [level] * bool(level)
    if level:
        assert f"worked examples left out: {3 * requests}, in {requests} of 20" in found[0].text


def test_cautions_of_a_bad_run(tmp_path):
    run = Run(fake_run.write(tmp_path / "bad", 12, lift=-1.0))
    rows = [
        {"step": i, "kl": -2.0 if i == 1 else 40.0, "sampler_gap": 0.2, "first_ratio_error": 0.5}
        for i in range(3)
    ]
    (run.stages["rl"].path / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows)
    )
    found = [c for c in cautions.collect(run) if c.level == "stop"]
    told = " ".join(c.text for c in found)
    for phrase in ("Lower PM score", "ratio", "below zero", "differ by up to"):
        assert phrase in told, phrase
    assert [c.level for c in cautions.collect(run)] == sorted(
        (c.level for c in cautions.collect(run)), key=("stop", "care", "note").index
    )


def test_every_figure_draws_both_ways(whole):
    run = Run(whole)
    sources = figures.main_sources([run])
    drawn = [
        *figures.frontier(sources),
        *figures.of_columns(sources, ["judges"]),
        curves.label_histogram(run, run.stages["feedback"]),
    ]
    assert len(drawn) == 3
    for one in drawn:
        assert plot.png(one).startswith(b"\x89PNG")
        text = plot.svg(one)
        reader = Reader(text)
        assert reader.tags[0] == "svg" and {"title", "desc"} <= set(reader.tags)
        assert plot.svg(one) == text, "the same figure is the same drawing"
        assert "var(--t1)" in text and "#2a67ad" not in text, "colours are the page's"
        assert "<style" not in text, "a style sheet in a drawing would apply to the page"
    assert drawn[0].series[2].texts[0].startswith("RL-CAI, ")


def test_markup_and_formulas_in_labels_are_only_text():
    label = "<script>alert(1)</script> $x^2$ \u202e"
    panel = Panel(label, label, label, label, [Series(label, [1, 2], [3, None], tone=1)])
    row = ForestRow(label, 0.5, 0.4, 0.6, marks=((0.1, label),), note=label)
    for figure in (panel, Forest("key", label, label, [row])):
        text = plot.svg(dataclasses.replace(figure, key="key"))
        assert "<script" not in text and "\u202e" not in text
        assert plot.png(figure)


def test_labels_of_close_points_do_not_meet():
    points = [("Initial, 12 tokens", 200, 100), ("SL-CAI, 12 tokens", 230, 100), ("RL", 202, 104)]
    series = [Series(t, [x], [y], mark="dots", texts=[t]) for t, x, y in points]
    canvas = plot.Drawing(Panel("p", "t", "x", "y", series, size=(560, 280))).canvas
    names = [
        text
        for text in canvas.axes[0].texts
        if text.get_text() in dict.fromkeys(p[0] for p in points)
    ]
    boxes = [name.get_window_extent().extents for name in names]
    assert len(boxes) == 3
    assert not any(plot.meet(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_command(whole, written, tmp_path, capsys):
    assert {p.name for p in written.iterdir()} == {"report.html", "report.md", "figures"}
    assert len(list((written / "figures").glob("*.png"))) > 10
    half = fake_run.write(tmp_path / "half", 5, stages=("respond",))
    assert report.main(["report", str(half)]) == 0
    assert str(half / "report" / "report.html") in capsys.readouterr().out
    for arguments in ([], [str(tmp_path / "nowhere")], [str(tmp_path)], [str(whole), "--colour"]):
        assert report.main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
    assert report.default_out(["runs/a", "runs/b"]).endswith("runs/compare-a-b")


def test_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="no stage has begun"):
        Run(tmp_path)


@pytest.mark.parametrize(
    "fields, scored",
    [
        ({"reward": "@pm"}, True),
        ({"reward": "judge", "reward →": "@pm"}, True),
        ({"reward": "@x", "rewards": {"a": {"kind": "length"}, "b": {"model": "@pm"}}}, True),
        ({"reward": "@pm", "rewards": {"a": {"kind": "length"}}}, False),
    ],
)
def test_the_share_of_cut_turns_is_named_by_stage_and_round(fields, scored):
    """The defect: only respond's answers were looked at."""
    stages = {
        "respond": ("respond", {"answers": {"cut": 1, "of": 8}}),
        "revise": (
            "revise",
            {
                "critiques of round 1": {"cut": 3, "of": 8},
                "revisions of round 1": {"cut": 0, "of": 8},
                "revisions of round 2": {"cut": 8, "of": 8},
            },
        ),
        "rl": ("rl", {"answers of the last update": {"cut": 16, "of": 32}}),
        "pm": ("pm", {"answers": {"cut": 0, "of": 8}}),
    }
    shown = {
        name: Stage(name, None, {}, kind, True, fields, {"cut": cut, "reads_cut": False})
        for name, (kind, cut) in stages.items()
    }
    run = types.SimpleNamespace(
        stages=shown,
        rows=[],
        of_kind=lambda kind: [stage for stage in shown.values() if stage.kind == kind],
    )
    told = [caution.text for caution in cautions.cut_turns(run)]
    assert len(told) == 2 + scored
    assert "3 of 8 critiques of round 1, 8 of 8 revisions of round 2 were cut" in told[0]
    assert "16 of 32 answers of the last update" in told[1]
    assert not scored or "trained on (almost) no answer that was cut" in told[2]


def test_clamps_that_are_missing_or_undone_are_named():
    summaries = [{"unclamped_chains": True}, {"clamp_undone": {"raw": 0.3, "scaled": 1.2}}, {}]
    stages = [Stage("pm", None, {}, "pm", summary=summary) for summary in summaries]
    run = types.SimpleNamespace(of_kind=lambda kind: stages if kind == "pm" else [])
    missing, undone = [caution.text for caution in cautions.clamps(run)]
    assert "not clamped" in missing and "0.30 raw and by 1.20 scaled" in undone
