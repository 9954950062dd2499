"""Options and worked examples as the tokens that they have where they stand, with tokenizers of
either kind."""

import pytest

from cai_jax.data import choices
from cai_jax.data.dialogue import load_format
from cai_jax.data.evals import ChoiceItem
from cai_jax.evals import items as items_lib
from cai_jax.structs import Message
from cai_jax.textmodels import questions
from cai_jax.textmodels.local import LocalTextModel
from tests.synthetic_tokenizers import sentencepiece

MERGES = (("▁", "("), ("▁", "a"), ("▁", "H"))
LLAMA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)


def flat(segments):
    return tuple(token for segment in segments for token in segment)


def text_of(format, tokens):
    return format.tokenizer._backend.decode(list(tokens), skip_special_tokens=False)


@pytest.fixture(params=["text", "chat"])
def spaced(request, tmp_path):
    """A format of a tokenizer that writes a space before every text."""
    return load_format(sentencepiece(tmp_path, MERGES, template=LLAMA), request.param)


def tokens_of(question, format):
    """(segments, options) of what the model is asked."""
    return LocalTextModel("m", format, 10**6, None).question(question, len(question.examples))


def requests(format):
    worked = [questions.worked_choice("Which is more?\n(A) 1\n(B) 2", " (B)")]
    chain = [questions.worked_chain("Which is less?\n(A) 1\n(B) 2", "One is.", " (A)")]
    asked = "Which is it?\n(A) yes\n(B) no"
    yield tokens_of(questions.choice("c", asked), format)
    yield tokens_of(questions.choice("c", asked, examples=worked), format)
    yield tokens_of(questions.after_chain("c", asked, "It is."), format)
    yield tokens_of(questions.after_chain("c", asked, "It is.", examples=chain), format)


def test_options_are_what_follows_the_leads_own_tokens(spaced):
    alone = spaced.tokenizer.encode(" (A)")
    for segments, (a, b) in requests(spaced):
        joined = flat(segments) + a
        assert text_of(spaced, joined).endswith("he answer is: (A)")  # one space, not two
        assert text_of(spaced, a) == " (A)" and text_of(spaced, b) == " (B)"
        assert a != alone and text_of(spaced, alone) == "  (A)"
        assert len(a) == 3 and a[0] == spaced.tokenizer.token_id("▁(")


def test_a_text_is_encoded_as_one_running_text(tmp_path):
    """The question after worked examples does not begin anew, with a space of its own."""
    format = load_format(sentencepiece(tmp_path, MERGES), "text")
    asked = questions.choice("c", "another q", (), [questions.worked_choice("q", " (B)")])
    segments, _ = tokens_of(asked, format)
    assert len(segments) == 2
    whole = "q\nThe answer is: (B)\n\nanother q\nThe answer is:"
    assert flat(segments) == format.tokenizer.encode(whole)
    assert text_of(format, flat(segments)) == " " + whole


def test_where_an_option_merges_with_the_lead_all_are_scored_from_before_the_merge(tmp_path):
    merges = (*MERGES, (":", "▁("), (":▁(", "A"))
    format = load_format(sentencepiece(tmp_path, merges), "text")
    segments, options = tokens_of(questions.choice("c", "q"), format)
    assert [text_of(format, option) for option in options] == [": (A)", ": (B)"]
    assert [len(option) for option in options] == [2, 3]
    assert text_of(format, flat(segments)).endswith("The answer is")


def test_byte_level_options_are_those_of_the_option_alone(tiny_model):
    for kind in ("text", "chat"):
        format = load_format(tiny_model, kind)
        alone = tuple(format.tokenizer.encode(option) for option in choices.ANSWERS)
        assert [options for _, options in requests(format)] == [alone] * 4


def test_an_answer_whose_first_letters_merge_with_the_prompt_has_no_space_of_its_own(tmp_path):
    template = (
        "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
    )
    directory = sentencepiece(tmp_path, (*MERGES, ("\n", "\n")), template=template)
    format = load_format(directory)
    example = format.example((Message("human", "q"), Message("assistant", "\n\nyes")))
    assert text_of(format, example.tokens[example.target_mask]) == "\n\nyes</s>"
    prompt = flat(format.prompt((Message("human", "q"),)))
    assert tuple(example.tokens[: len(prompt)]) == prompt


def test_control_tokens_in_a_message_get_no_space_before_them(tmp_path):
    format = load_format(sentencepiece(tmp_path, MERGES, template=LLAMA))
    dialogue = (Message("human", "see</s>this"), Message("assistant", "ok"))
    assert "see</s>this [/INST]" in text_of(format, format.example(dialogue).tokens)


PUBLISHED = (
    "\n\nConsider this:\n\nHuman: Hi\n\nWhich is best? Options:\n (A) Yes\n (B) "
    "No\n\nThe answer is:"
)


def test_published_questions_are_asked_to_the_byte(tmp_path, tiny_model):
    item = ChoiceItem("f:1", PUBLISHED, choices.ANSWERS, 0, None, None)
    shot = ChoiceItem("f:2", PUBLISHED.replace("Hi", "Ho"), choices.ANSWERS, 1, None, None)
    format = load_format(tiny_model, "text")
    for shots, expected in (
        ((), PUBLISHED),
        ((shot,), shot.prompt + " (B)" + PUBLISHED),
    ):
        segments, _ = tokens_of(items_lib.question(item, shots), format)
        assert format.decode(flat(segments)) == expected
        assert len(segments) == 1 + len(shots)
    chat = load_format(tiny_model, "chat")
    shown = text_of(chat, flat(tokens_of(items_lib.question(item), chat)[0]))
    assert "user\nConsider this" in shown and shown.count("The answer is:") == 1
    assert "(B) No<|im_end|>" in shown and shown.endswith("assistant\nThe answer is:")
    spaces = load_format(sentencepiece(tmp_path, MERGES), "text")
    segments, options = tokens_of(items_lib.question(item), spaces)
    assert text_of(spaces, flat(segments) + options[0]) == f" {PUBLISHED} (A)"
