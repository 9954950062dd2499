"""A pm stage from its records to its published model: what it trains on, what it keeps back, what
it says of that."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.stages import pm
from cai_jax.training import batching
from cai_jax.training import pairs as pairs_lib
from cai_jax.training.examples import group_of
from configs import default
from tests.recording import human, stage

EOS = "<|im_end|>"


class Lengths:
    """A preference model that scores how many tokens a dialogue has, raw."""

    def __init__(self, params, config, format, mesh, normalisation=None, name="", reads_cut=False):
        assert params["trained"] == 1.0 and normalisation is None

    def score_tokens(self, rows):
        return np.array([len(row) for row in rows], np.float32)


def comparison(name, dialogue=None, **fields):
    texts = [f"left {name}", f"right {name} and more"]
    dialogue = dialogue or human(f"Question {name}")
    return {"id": name, "prompt_id": name, "dialogue": dialogue, "responses": texts, **fields}


def label(name, a, b):
    entry = {"order": "ab", "chain": 0, "a": float(np.log(a)), "b": float(np.log(b))}
    row = {"id": f"{name}/0-1/c0", "comparison_id": name, "pair": [0, 1], "prompt_id": name}
    return {**row, "logprobs": [entry]}


def run(path, monkeypatch, num_ai=8, num_human=8, stops=None, labelled=None, **fields):
    """(summary, arguments of the training, context). `stops`: by number of comparison, how its two
    responses ended; `labelled`: fields of the stage that gave the labels."""
    seen = {}

    def fit(ctx, model, steps, make_batch, loss, *, kind, head, means, meter):
        assert kind == "reward" and means == ("agreement",)
        names = dict(zip(steps.ids, steps.lengths.tolist(), strict=True))
        seen.update(examples=names, make_batch=make_batch, head=head, kind=model.kind)
        return {"trained": jnp.float32(1.0)}

    monkeypatch.setattr(pm.supervised, "fit", fit)
    shape = batching.Shape(64, 256)
    monkeypatch.setattr(pm.supervised.batching, "common_shape", lambda *given: shape)
    monkeypatch.setattr(pm, "RewardModel", Lengths)
    rows = [comparison(f"c{i}", **({"stops": stops[i]} if stops else {})) for i in range(num_ai)]
    inputs = {"comparisons": rows, "labels": [label(row["id"], 0.8, 0.2) for row in rows]}
    pairs = [
        {
            "id": f"h{i}",
            "dialogue": human(f"Helpful {i}"),
            "chosen": f"chosen {i} is longer",
            "rejected": f"rejected {i}",
        }
        for i in range(num_human)
    ]
    path.mkdir(exist_ok=True)
    source = path / "pairs.jsonl"
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    chosen = {
        "human": default.human_pairs(str(source) if pairs else "", ""),
        "holdout_fraction": 0.25,
        **fields,
    }
    config = default.pm(**chosen)
    graph = {"older": {"kind": "pm"}, "feedback": {"kind": "feedback", **(labelled or {})}}
    ctx, _ = stage(path, "pm", config, inputs=inputs if num_ai else {}, graph=graph)
    return pm.run(ctx), seen, ctx


def test_held_out_prompts_are_not_trained_on(tmp_path, monkeypatch):
    """The defect: a preference model that is measured on what it was trained on."""
    _, seen, ctx = run(tmp_path, monkeypatch)
    held = ctx.directory.records()
    names = {f"ai c{i}#0-1" for i in range(8)} | {f"human h{i}" for i in range(8)}
    assert set(seen["examples"]) == names - {row["id"] for row in held}
    assert len(held) == 4 and {row["source"] for row in held} == {"ai", "pairs"}
    assert list(seen["examples"]) == sorted(seen["examples"])


def test_a_prompt_of_two_sources_is_on_one_side(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs_lib.labels, "target", lambda *_, **__: 0.8)
    twice = human("Helpful 3")
    monkeypatch.setitem(
        globals(), "human", lambda text: twice if text == "Question c5" else human_(text)
    )
    _, seen, ctx = run(tmp_path, monkeypatch)
    group = group_of(pairs_lib.dialogue_from_json(twice))
    held = {row["id"] for row in ctx.directory.records() if row["prompt_id"] == group}
    trained = {"ai c5#0-1", "human h3"} & set(seen["examples"])
    assert held | trained == {"ai c5#0-1", "human h3"} and not (held and trained)


human_ = human


def test_batches_hold_both_dialogues_their_ends_and_the_label(tmp_path, monkeypatch):
    _, seen, ctx = run(tmp_path, monkeypatch)
    names = list(seen["examples"])
    batch = seen["make_batch"](np.arange(len(names)))
    decode = ctx.models.load("base").format.tokenizer.hf.decode
    sides = {}
    for row in range(len(names)):  # longest first: which row a pair is in is told by its text
        segments = batch["segments"][row]
        texts = [
            decode(batch["tokens"][row][segments == n], skip_special_tokens=False)
            for n in sorted(set(segments.tolist()) - {0})
        ]
        for text, end in zip(texts, batch["ends"][row, 0], strict=True):
            assert text.endswith(EOS) and batch["segments"][row, end] > 0
        assert decode(batch["tokens"][row, batch["ends"][row, 0]]).count(EOS) == 2
        sides[texts[0].removesuffix(EOS)] = texts[1].removesuffix(EOS), batch["target"][row, 0]
    assert batch["valid"].sum() == len(sides) == len(names)
    for number in range(8):
        start = f"\n\nHuman: Question c{number}\n\nAssistant: "
        if f"ai c{number}#0-1" in names:
            other, target = sides[f"{start}left c{number}"]
            assert other == f"{start}right c{number} and more" and target == pytest.approx(0.8)
    firsts = set()
    for first, (second, target) in sides.items():
        if "Helpful" in first:
            assert ("chosen" in first) == (target == 1.0) == ("rejected" in second)
            firsts.add(target)
    assert firsts == {0.0, 1.0}, "which side comes first is drawn"


@pytest.mark.parametrize("normalise", [True, False])
def test_normalisation_is_mean_and_spread_of_the_held_out_scores(tmp_path, monkeypatch, normalise):
    summary, _, ctx = run(tmp_path, monkeypatch, normalise=normalise)
    scores = np.array([row["scores"] for row in ctx.directory.records()])
    role = json.loads((ctx.directory.path / "model" / "role.json").read_text())
    assert role["kind"] == "reward"
    if normalise:
        assert role["normalisation"] == pytest.approx([scores.mean(), scores.std()])
        assert list(summary["normalisation"]) == role["normalisation"]
    else:
        assert role["normalisation"] is summary["normalisation"] is None


def test_numbers_on_held_out_pairs(tmp_path, monkeypatch):
    """The judge likes what is longer: right where people chose the longer answer, wrong against the
    labels of the left one."""
    summary, _, ctx = run(tmp_path, monkeypatch)
    found = summary["held_out"]
    assert found["pairs"]["accuracy"]["value"] == 1.0 and found["pairs"]["longer"]["value"] == 1.0
    assert found["ai"]["accuracy"]["value"] == 0.0 and found["all"]["n"] == 4
    assert found["ai"]["loss"] > 1 > found["pairs"]["loss"]
    for row in ctx.directory.records():
        format = ctx.models.load("base").format
        for text, score in zip(row["texts"], row["scores"], strict=True):
            messages = pairs_lib.dialogue_from_json(
                [*row["dialogue"], {"role": "assistant", "text": text}]
            )
            assert score == len(format.score_input(messages))
    assert (summary["examples_ai"], summary["examples_human"]) == (6, 6)


def test_the_human_share_and_the_clamp(tmp_path, monkeypatch):
    summary, seen, ctx = run(tmp_path, monkeypatch, human_fraction=0.25, clamp=(0.4, 0.6))
    assert (summary["examples_ai"], summary["examples_human"]) == (6, 2)
    assert ctx.dropped["beyond human_fraction"] == 4
    batch = seen["make_batch"](np.arange(8))
    targets = sorted(set(batch["target"][:, 0].tolist()) - {0.0, 1.0})
    assert targets == [pytest.approx(0.6)]


def test_what_is_too_long_is_left_out(tmp_path, monkeypatch):
    _, _, ctx = run(tmp_path, monkeypatch)
    lengths = sorted(score for row in ctx.directory.records() for score in row["scores"])
    limit = int(lengths[-1]) - 1
    again = tmp_path / "short"
    again.mkdir()
    _, seen, ctx = run(again, monkeypatch, max_length=limit)
    assert ctx.dropped["longer than max_length"] > 0
    assert max(max(pair) for pair in seen["examples"].values()) <= limit


def test_a_preference_model_is_trained_further_with_its_head(tmp_path, monkeypatch):
    _, seen, _ = run(tmp_path, monkeypatch, init="@older")
    assert seen["head"] is None and seen["kind"] == "reward"
    other = tmp_path / "new"
    other.mkdir()
    _, seen, _ = run(other, monkeypatch, num_ai=0)
    assert seen["head"] is not None and seen["kind"] == "policy"
    assert all(name.startswith("human") for name in seen["examples"])


def ends(seen, ctx):
    """Name of a pair → whether each side's last token is an end token."""
    names = list(seen["examples"])
    batch = seen["make_batch"](np.arange(len(names)))
    found, format = {}, ctx.models.load("base").format
    for row in range(len(names)):
        tokens, places = batch["tokens"][row], batch["ends"][row, 0]
        text = format.tokenizer.hf.decode(tokens[: places[0] + 1], skip_special_tokens=True)
        found[text.rpartition("left ")[2]] = [int(tokens[p]) in format.eos_ids for p in places]
    return found


def test_answers_that_were_cut_are_read_at_their_last_token(tmp_path, monkeypatch):
    """The defect: an answer that ran into the limit was given an end token, and judged as one that
    ends there."""
    stops = [["length", "eos"] if i % 2 else ["eos", "\n\nHuman:"] for i in range(8)]
    summary, seen, ctx = run(tmp_path, monkeypatch, num_human=0, stops=stops)
    found = ends(seen, ctx)
    assert found == {f"c{i}": [not i % 2, True] for i in range(8) if f"c{i}" in found}
    cut = sum(not first for first, _ in found.values())
    assert cut and summary["cut"] == {"answers": {"cut": cut, "of": 2 * len(found)}}
    role = json.loads((ctx.directory.path / "model" / "role.json").read_text())
    assert role["reads_cut"] is summary["reads_cut"] is True
    held = {row["id"]: row["stops"] for row in ctx.directory.records()}
    assert held == {name: stops[int(name[4])] for name in held} and held


def test_too_few_cut_answers_are_read_as_ended(tmp_path, monkeypatch):
    """The head would not learn to score a token that ends nothing; scoring then does the same
    (`RewardModel`)."""
    monkeypatch.setattr(pairs_lib, "MIN_CUT", 0.1)
    stops = [["length" if i == 3 else "eos", "eos"] for i in range(8)]
    summary, seen, ctx = run(tmp_path, monkeypatch, num_human=0, stops=stops)
    assert all(all(sides) for sides in ends(seen, ctx).values())
    assert not summary["reads_cut"]
    assert "reads_cut" not in json.loads((ctx.directory.path / "model" / "role.json").read_text())


def test_pairs_with_a_cut_answer_can_be_left_out(tmp_path, monkeypatch):
    stops = [["eos", "length" if i < 3 else "eos"] for i in range(8)]
    summary, seen, ctx = run(tmp_path, monkeypatch, stops=stops, cut_answers="drop")
    names = set(seen["examples"]) | {row["id"] for row in ctx.directory.records()}
    assert not names & {f"ai c{i}#0-1" for i in range(3)} and len(names) == 13
    assert ctx.dropped == {"an answer cut at the limit of tokens": 3}
    assert summary["cut"] == {"answers": {"cut": 0, "of": 2 * len(seen["examples"])}}


def test_labels_after_chains_that_are_not_clamped_are_named(tmp_path, monkeypatch, capsys):
    chains = {"mode": "chain_of_thought"}
    summary, *_ = run(tmp_path / "a", monkeypatch, labelled=chains, clamp=())
    assert summary["unclamped_chains"] is True and "not clamped" in capsys.readouterr().err
    for name, fields in (("b", {"clamp": ("auto",)}), ("c", {"clamp": (), "label_kind": "hard"})):
        summary, *_ = run(tmp_path / name, monkeypatch, labelled=chains, **fields)
        assert "unclamped_chains" not in summary


def test_clamped_labels_without_peoples_pairs_lose_their_scale(tmp_path, monkeypatch, capsys):
    """All scores are divided by their spread: what the clamp took from their size is given back."""
    summary, _, ctx = run(tmp_path / "a", monkeypatch, num_human=0, clamp=(0.4, 0.6))
    scores = np.array([row["scores"] for row in ctx.directory.records()])
    gap = np.abs(scores[:, 0] - scores[:, 1]).mean()
    want = {"raw": gap, "scaled": gap / scores.std()}
    assert summary["clamp_undone"] == pytest.approx(want)
    assert f"{gap:.3f} raw" in capsys.readouterr().err
    for name, fields in (
        ("b", {"clamp": (0.4, 0.6)}),
        ("c", {"clamp": (0.4, 0.6), "num_human": 0, "normalise": False}),
        ("d", {"clamp": (), "num_human": 0}),
    ):
        assert "clamp_undone" not in run(tmp_path / name, monkeypatch, **fields)[0]
