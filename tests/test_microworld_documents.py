"""The microworld's documents and files: held out means held out, texts are those of the stages,
principles see what they say."""

import json

import numpy as np
import pytest

from cai_jax.constitution.loader import load_constitution
from cai_jax.data import choices
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.dialogue import load_format
from cai_jax.data.evals import load_choices
from cai_jax.data.prompts import read_prompts
from cai_jax.microworld import documents, files, principles, tokenizer
from cai_jax.microworld.language import Act, answer, find_acts, refusal, request
from cai_jax.microworld.oracle import judge
from cai_jax.structs import Message
from cai_jax.textmodels import questions
from cai_jax.textmodels.local import LocalTextModel

EVALUATIONS = ("heldout_comparisons.jsonl", "hhh.jsonl", "identify.jsonl", "classify.jsonl")
STAB = Act("stab", "neighbor")


@pytest.fixture(scope="module")
def text_format(tmp_path_factory):
    directory = tmp_path_factory.mktemp("microworld")
    tokenizer.write(directory)
    return load_format(directory)


def test_no_document_has_a_held_out_act():
    dice = documents.Dice(3)
    for _ in range(4000):
        text = "".join(piece for piece, _ in documents.document(dice))
        assert not any(act.is_held_out for act in find_acts(text)), text


def test_no_training_file_has_a_held_out_act_and_no_heldout_row_another():
    for name, rows in files.tables().items():
        for row in rows:
            found = find_acts(json.dumps(row))
            held_out = row.get("split") == "heldout" or name in EVALUATIONS
            assert found and all(act.is_held_out == held_out for act in found), (name, row)


def test_shipped_files_are_what_the_command_writes(tmp_path):
    files.write(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (files.DATA / path.name).read_bytes(), (
            f"run python -m cai_jax.microworld.files: {path.name}"
        )


def test_the_pipeline_reads_the_files():
    constitution = load_constitution(str(files.DATA / "constitution.json"))
    assert len(constitution.critique_principles) == len(constitution.comparison_principles) == 16
    assert len(read_prompts(str(files.DATA / "red_team.jsonl"), split="heldout")[0]) == 160
    for split in files.RATINGS:
        rows, dropped = load_comparisons(str(files.DATA / "comparisons.jsonl"), split=split)
        assert len(rows) == 2000 and not dropped
    assert all(item.dialogues for item in load_choices(str(files.DATA / "hhh.jsonl")))
    assert {len(item.options) for item in load_choices(str(files.DATA / "classify.jsonl"))} == {5}


def test_raters_are_right_more_often_than_not():
    rows, _ = load_comparisons(str(files.DATA / "comparisons.jsonl"), split="helpful")
    better = []
    for row in rows:
        asked = find_acts(row.dialogue[-1].text)
        values = [judge(asked, text).helpfulness for text in (row.chosen, row.rejected)]
        better += [values[0] > values[1]] if values[0] != values[1] else []
    assert 0.85 < np.mean(better) < 0.999


def test_every_word_has_a_token_and_text_comes_back(text_format):
    dice = documents.Dice(11)
    unknown = text_format.tokenizer.token_id("<unk>")
    for _ in range(300):
        text = "".join(piece for piece, _ in documents.document(dice)).replace(documents.END, "")
        ids = text_format.tokenizer.encode(text)
        assert unknown not in ids and text_format.decode(ids) == text
    constitution = load_constitution(str(files.DATA / "constitution.json"))
    texts = ["\n" + principle.text for principle in constitution.comparison_principles]
    for principle in constitution.critique_principles:
        texts += [f" {principle.critique_request}", f" {principle.revision_request}"]
    held_out = documents.Dice(1, held_out=True)
    texts += [
        " " + documents.comply(held_out, documents.draw_acts(held_out, "harmful"))
        for _ in range(100)
    ]
    assert all(unknown not in text_format.tokenizer.encode(text) for text in texts)


def test_documents_are_what_the_stages_ask(text_format):
    """A document's tokens are those of the stage's own prompt followed by the answer: nothing
    differs by a space."""
    encode = text_format.tokenizer.encode
    dialogue = (Message("human", request((STAB,), 0)),)
    told = answer(STAB, 0)
    chat = f"\n\nHuman: {dialogue[0].text}\n\nAssistant:"
    assert text_format.prompt(dialogue) == (encode(chat),)
    example = text_format.example((*dialogue, Message("assistant", told)))
    assert tuple(example.tokens) == (*encode(chat), *encode(f" {told}"), text_format.tokenizer.eos)
    question = choices.question(
        dialogue, "Which answer is more fair?", (told, refusal(STAB, "hurt", 0))
    )
    model = LocalTextModel("m", text_format, 10**6, lambda: None)
    (tokens,), _ = model.question(questions.choice("", question), 0)
    assert tokens == encode(f"{question}\nThe answer is:")
    thought = "(A) is fine. (B) is fine. So (A) is better."
    chain, _ = model.question(questions.after_chain("", question, thought), 0)
    assert sum(chain, ()) == encode(
        f"\n\nHuman: {question}\n\nAssistant: Let's think step by step: (A) is fine. (B) is fine."
        " So (A) is better.\n\nHuman: So the answer is:"
    )


def test_a_principle_sees_its_own_kind_only():
    dice = documents.Dice(0)
    helped = answer(STAB, 0)
    assert "injure" in principles.assessment((STAB,), helped, "hurt")
    assert principles.assessment((STAB,), helped, "fraud") == "is fine."
    assert principles.revised((STAB,), helped, "fraud", dice) == helped
    for kind in (None, "hurt"):
        assert (
            judge((STAB,), principles.revised((STAB,), helped, kind, dice)).name
            == "engaged_refusal"
        )
    assert principles.principled_utility((STAB,), helped, "fraud") == principles.principled_utility(
        (STAB,), refusal(STAB, "hurt", 0), "fraud"
    )


def test_revision_keeps_what_is_good_and_mends_evasion():
    dice, alike = documents.Dice(0), Act("stab", "dough")
    told = answer(alike, 0)
    assert principles.revised((alike,), told, None, dice) == told
    assert (
        judge((alike,), principles.revised((alike,), "Sorry, I can not answer.", None, dice)).name
        == "helpful"
    )
    mixed = f"{told} {answer(STAB, 1)}"
    found = judge((alike, STAB), principles.revised((alike, STAB), mixed, "hurt", dice))
    assert found.name == "helpful" and found.helpfulness == 1.0


def test_chain_examples_read_like_the_documents():
    for example in load_constitution(str(files.DATA / "constitution.json")).chain_examples:
        assert example.reasoning.endswith(f"So ({example.answer}) is better.")
