"""configs/rlhf.py on files of the published form: they are read, and no prompt is trained on and
measured."""

import json

import pytest

from cai_jax.configuration import topic
from cai_jax.data.comparisons import load_comparisons
from configs import default, rlhf


def hh_file(path, name, count):
    turns = [f"\n\nHuman: {name} question {i}?\n\nAssistant: " for i in range(count)]
    rows = [{"chosen": turn + "Yes.", "rejected": turn + "No."} for turn in turns]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("how", ["harmless", "helpful", "the field of the README"])
def test_prompts_of_training_and_of_measurement_are_disjoint(tmp_path, how):
    path = hh_file(tmp_path / "hh_base.jsonl", how, 40)
    if how == "harmless":
        config = rlhf.get_config(f"variant=harmless,harmless={path}")
    elif how == "helpful":
        config = rlhf.get_config(f"helpful={path}")
    else:
        config = default.get_config()
        config.topic.comparisons = str(path)
    graph = topic.resolve(config).graph
    sides = [graph.pm.human, graph.evaluate.evals.preference_pairs.comparisons]
    trained, measured = (load_comparisons(**side.to_dict())[0] for side in sides)
    openings = [{item.dialogue[0].text for item in side} for side in (trained, measured)]
    assert not openings[0] & openings[1]
    assert [sum("question" in text for text in side) > 4 for side in openings] == [True, True]
    embedded = [any("question" not in text for text in side) for side in openings]
    assert embedded == [how == "harmless"] * 2


def test_a_wrong_argument_is_named():
    with pytest.raises(ValueError, match="harmles"):
        rlhf.get_config("harmles=x")
