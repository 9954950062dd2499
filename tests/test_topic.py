"""config.topic: one place for prompts, constitution and words, and what is still the default is
named."""

import json

import pytest

from cai_jax.configuration import topic
from cai_jax.data.prompts import read_prompts
from cai_jax.errors import UserError
from cai_jax.main import parse
from cai_jax.pipeline import graph as pipeline

TINY = "configs/tiny.py"


def config(*overrides, file=TINY):
    return parse(["main", f"--config={file}", *overrides])[0]


def sources(config) -> dict[str, str]:
    """ "stage.field" → source, of everything that the stages to be run read."""
    found = {}
    for name in config.stages:
        for key, value in config.graph[name].items():
            if hasattr(value, "get") and value.get("source") is not None:
                found[f"{name}.{key}"] = value.source
    return found


def test_the_default_topic_is_the_embedded_one():
    read = sources(topic.resolve(config()))
    assert read["respond.prompts"] == read["compare.prompts"] == "embedded:red_team"
    assert read["rl.prompts"] == "embedded:red_team+embedded:helpful"
    assert read["evaluate.prompts_red_team"] == "embedded:red_team"
    assert not any("topic:" in source for source in read.values())


def test_own_prompts_reach_every_stage_and_the_held_out_part_is_another():
    read = sources(topic.resolve(config("--config.topic.prompts=mine.jsonl")))
    assert read["respond.prompts"] == read["compare.prompts"] == "mine.jsonl[0-7/10]"
    assert read["rl.prompts"] == "mine.jsonl[0-7/10]+embedded:helpful"
    assert read["evaluate.prompts_red_team"] == "mine.jsonl[8-9/10]"
    assert read["respond_helpful.prompts"] == read["evaluate.prompts_helpful"] == "embedded:helpful"


def test_held_out_prompts_of_their_own():
    flags = ("--config.topic.prompts=a.jsonl", "--config.topic.heldout_prompts=b.jsonl")
    read = sources(topic.resolve(config(*flags)))
    assert read["respond.prompts"] == "a.jsonl"
    assert read["evaluate.prompts_red_team"] == "b.jsonl[0/1]"


def test_all_rows_of_a_held_out_file_are_held_out_unless_it_is_trained_on(tmp_path):
    for name, fields in (("a", {}), ("b", {}), ("both", {"split": "train"})):
        rows = [{"prompt": f"{name} {n}", **fields} for n in range(6)]
        rows += [{"prompt": f"{name} last", **{key: "heldout" for key in fields}}]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def held_out(prompts, heldout) -> list:
        flags = (
            f"--config.topic.prompts={tmp_path}/{prompts}",
            f"--config.topic.heldout_prompts={heldout}",
        )
        fields = topic.resolve(config(*flags)).graph.evaluate.prompts_red_team
        return read_prompts(fields.source, split=fields.split)[0]

    assert len(held_out("a.jsonl", f"{tmp_path}/b.jsonl")) == 7
    assert len(held_out("a.jsonl", f"{tmp_path}/b.jsonl[:2]")) == 2
    assert len(held_out("both.jsonl", f"{tmp_path}/../{tmp_path.name}/both.jsonl")) == 1
    with pytest.raises(UserError, match="no split 'heldout'"):
        held_out("a.jsonl", f"{tmp_path}/a.jsonl")


def test_every_source_of_a_sum_is_divided():
    read = sources(
        topic.resolve(config("--config.topic.prompts=a.jsonl+embedded:red_team+b.jsonl"))
    )
    assert read["respond.prompts"] == "a.jsonl[0-7/10]+embedded:red_team+b.jsonl[0-7/10]"


def test_limits_and_odd_names_of_own_sources(tmp_path):
    read = sources(topic.resolve(config("--config.topic.prompts=a.jsonl[:50]")))
    assert read["respond.prompts"] == "a.jsonl[0-7/10:50]"
    odd = tmp_path / "c++ [x].jsonl"
    odd.write_text("{}")
    read = sources(topic.resolve(config(f"--config.topic.prompts={odd}")))
    assert read["evaluate.prompts_red_team"] == f"{odd}[8-9/10]"


def test_a_source_with_a_split_needs_held_out_prompts():
    with pytest.raises(UserError, match=r"a.jsonl\[train\].*config.topic.heldout_prompts"):
        topic.resolve(config("--config.topic.prompts=a.jsonl[train]"))


def test_no_helpful_prompts():
    read = sources(
        topic.resolve(config("--config.topic.helpful=", "--config.stages=respond,rl,evaluate"))
    )
    assert read["rl.prompts"] == "embedded:red_team"
    assert read["evaluate.prompts_helpful"] == ""
    with pytest.raises(UserError, match=r"respond_helpful.prompts.source.*config.stages"):
        topic.resolve(config("--config.topic.helpful="))


def test_constitution_and_choices_of_the_topic_reach_every_stage():
    resolved = topic.resolve(
        config("--config.topic.constitution=mine.json", "--config.topic.choices=q.jsonl")
    )
    stages = ("revise", "feedback", "feedback_chain")
    assert {resolved.graph[name].constitution for name in stages} == {"mine.json"}
    assert resolved.graph.evaluate.evals.multiple_choice.choices == "q.jsonl"


def test_a_misspelt_part_of_the_topic_is_one_line():
    with pytest.raises(UserError, match=r"respond.prompts.source: 'topic:promts'.*topic:prompts"):
        topic.resolve(config("--config.graph.respond.prompts.source=topic:promts"))


def test_the_topic_is_part_of_the_fingerprint_of_what_reads_it(tmp_path):
    own = tmp_path / "mine.jsonl"
    own.write_text("".join(json.dumps({"prompt": f"What is {n}?"}) + "\n" for n in range(40)))
    before = pipeline.build_graph(config())
    after = pipeline.build_graph(config(f"--config.topic.helpful={own}"))
    assert before["respond"].fingerprint == after["respond"].fingerprint
    assert before["respond_helpful"].fingerprint != after["respond_helpful"].fingerprint


def test_a_report_in_other_words_is_another_report():
    before = pipeline.build_graph(config())
    after = pipeline.build_graph(config("--config.topic.quality=plain"))
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert changed == {"report"}
    assert after["report"].fields["topic"]["quality"] == "plain"


def test_the_mark_inside_a_text_of_ones_own_is_a_word():
    question = "Which answer keeps to the topic: style?"
    for flag in ("topic.question", "graph.evaluate.evals.judge.judge_question"):
        resolved = pipeline.resolve(config(f"--config.{flag}={question}"))
        assert resolved.graph.evaluate.evals.judge.judge_question == question
        assert pipeline.resolve(resolved).graph.evaluate.evals.judge.judge_question == question


def test_what_is_still_the_default_is_named():
    assert topic.notes(config(), {}) == []
    (note,) = topic.notes(config("--config.topic.prompts=mine.jsonl"), {})
    for name in ("helpful", "comparisons", "choices", "constitution", "name", "quality"):
        assert f"{name}=" in note
    assert "prompts=" not in note
    # A part that no stage to be run reads is not named.
    (note,) = topic.notes(config("--config.topic.prompts=m.jsonl", "--config.stages=respond"), {})
    assert "constitution=" not in note


def test_prompts_of_one_stage_alone_are_named():
    (note,) = topic.notes(config("--config.graph.respond.prompts.source=mine.jsonl"), {})
    assert note.startswith("respond.prompts: prompts of your own; compare.prompts, rl.prompts")
    assert "config.topic.prompts" in note


def test_principles_without_examples_are_named(tmp_path):
    row = {
        "id": "plain",
        "critique_request": "Point out jargon.",
        "revision_request": "Rewrite it.",
    }
    path = tmp_path / "plain.json"
    path.write_text(
        json.dumps(
            {
                "critique_principles": [row],
                "comparison_principles": [{"id": "plain", "text": "Which uses plainer words?"}],
                "critique_examples": [],
            }
        )
    )
    notes = pipeline.topic_notes(config(f"--config.topic.constitution={path}"))
    assert any(
        str(path) in note and "comparison_examples, chain_examples" in note for note in notes
    )
    assert not any("critique_examples" in note for note in notes)


@pytest.mark.parametrize("file", ["configs/microworld.py", "configs/results/smollm2.py:size=cpu"])
def test_configs_whose_data_are_all_their_own_have_no_notes(file):
    assert topic.notes(config(file=file), {}) == []


def test_words():
    words = topic.Words.of({"topic": {"name": "plain-words", "quality": "plain"}})
    assert (words.name, words.noun) == ("plain-words", "plainness")
    assert topic.Words.of({}) == topic.Words("red-team", "harmless")
    assert topic.Words().noun == "harmlessness"


def test_the_report_is_in_the_topics_words(tmp_path):
    from cai_jax.report.build import build
    from tests import fake_run

    run = fake_run.write(tmp_path / "run", 12)
    path = run / "config.json"
    info = json.loads(path.read_text())
    info["config"]["topic"] = {"name": "plain-words", "quality": "plain"}
    info["topic_notes"] = ["config.topic has its own prompts; still the defaults: <b>helpful</b>"]
    path.write_text(json.dumps(info))
    manifest = run / "evaluate" / "manifest.json"  # its headline is the stage's own
    manifest.write_text(manifest.read_text().replace("red-team prompts", "plain-words prompts"))
    build([run], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "plain-words prompts" in html and "Plainness" in html
    assert "&lt;b&gt;helpful" in html and "<b>helpful" not in html
    for text in (html.partition("<script")[0], markdown):
        assert "red-team prompts" not in text and "armlessness" not in text
