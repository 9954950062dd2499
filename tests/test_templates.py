"""Chat templates are tried before anything is sampled: what they would do wrong is mended or
refused by name."""

import datetime
import json

import numpy as np
import pytest

from cai_jax.data import templates
from cai_jax.data.dialogue import load_format
from cai_jax.errors import UserError
from cai_jax.exporting import folder
from cai_jax.pipeline import graph as pipeline
from cai_jax.stages.context import StageContext
from cai_jax.structs import Completion, Message, Sampling
from cai_jax.textmodels.protocol import Turn
from configs import tiny
from tests.synthetic_tokenizers import sentencepiece

TAGS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
HEAD = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + HEAD
# Thoughts before the last answer only, as Qwen3's.
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% if "
    "loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% else %}"
    + TURN
    + "{% endif %}{% endfor %}"
    + HEAD
    + (
        "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% "
        "endif %}"
    )
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
LOSES_SYSTEM = CHATML.replace(TURN, "{% if m.role != 'system' %}" + TURN + "{% endif %}")
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    + CHATML
)
DATED = "<|im_start|>system\n{{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML
DIALOGUE = (
    Message("human", "First?"),
    Message("assistant", "One."),
    Message("human", " Second? "),
    Message("assistant", "Two."),
)


def load(path, template, args=templates.DEFAULT_ARGS, date="", kind="auto"):
    directory = sentencepiece(path, specials=TAGS, template=template)
    return load_format(directory, kind, templates.Settings(args, date))


def flat(segments):
    return tuple(token for segment in segments for token in segment)


def shown(format, tokens):
    text = format.tokenizer._backend.decode(list(tokens), skip_special_tokens=False)
    return text.replace("> ", ">").removeprefix(" ")  # this tokenizer writes a space after a tag


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace(HEAD, ""), "ignores add_generation_prompt: '<|im_start|>assistant"),
        (CHATML.replace("{{ m.content }}", "{{ m.text }}"), "does not write what a turn says"),
        (CHATML + "<|im_end|>", "does not begin an answer as its prompt ends"),
        (CHATML.replace("assistant\n", "assistant\n<think>\n"), ("inside a thought "
                                                                ".<think>.*enable_thinking")),
        (CHATML.replace(("{{ m.content "
                        "}}"), ("{% if loop.revindex < 3 %}{{ m.content }}{% endif "
                               "%}")), "loses turns"),
        (CHATML.replace(("{{ m.content "
                        "}}"), "{{ m.content | upper }}"), "does not write what a turn says"),
        (
            "{% for m in messages %}{% if m.role == 'assistant' "
            "%}<|im_start|>assistant<|im_end|>final<|im_end|>"
            "{{ m.content }}{% else %}" + TURN + "{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
            "does not write all of a prompt: '<|im_end|>final",
        ),
        ("{{ raise_exception('never') }}", "refuses turns of user: never"),
        ("{% if messages | length > 3 %}x{% endif %}" + CHATML, "rewrites earlier turns once they"),
    ],
)  # fmt: skip
def test_what_a_template_would_do_wrong_is_refused_when_it_is_loaded(tmp_path, template, reason):
    pattern = reason.replace("|im", r"\|im")
    with pytest.raises(UserError, match=f"the chat template .*{pattern}") as caught:
        load(tmp_path, template)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("args", [{}, {"enable_thinking": False}])
def test_thoughts_before_the_last_answer_only(tmp_path, args):
    """Several turns work, the prompt begins the example, and nobody learns the template's empty
    thought."""
    format = load(tmp_path, THINKING, args)
    for dialogue in (DIALOGUE[:2], DIALOGUE):
        encoded = format.example(dialogue)
        prompt = flat(format.prompt(dialogue[:-1]))
        assert tuple(encoded.tokens[: len(prompt)]) == prompt
        assert shown(format, encoded.tokens).count("<think>") == 1
        learned = shown(format, encoded.tokens[encoded.target_mask])
        assert learned.replace("\n", "") == f"{dialogue[-1].text}<|im_end|>"
        question = flat(format.prompt(dialogue[:-1], start="Two"))
        assert tuple(encoded.tokens[: len(question)]) == question or len(dialogue) == 2


def test_reasoning_is_no_part_of_an_answer(tmp_path):
    format = load(tmp_path, THINKING)
    begin, end = (format.tokenizer.token_id(tag) for tag in ("<think>", "</think>"))
    thought, answer = format.tokenizer.encode("so it is"), format.tokenizer.encode("yes")
    for tokens, spent in (
        ((begin, *thought, end, *answer), len(thought) + 2),
        ((*thought, end, *answer), len(thought) + 1),
        ((begin, end, begin, *thought, end, *answer), len(thought) + 4),
        (answer, 0),
    ):
        assert format.decode(tokens).strip() == "yes"
        assert format.reasoning_tokens(tokens) == spent
    cut = (begin, *thought)
    assert format.decode(cut) == "" and format.reasoning_tokens(cut) == len(cut)
    spelt = format.tokenizer.encode("<think>so</think> yes")  # in letters
    assert format.decode(spelt) == "yes"
    plain = load(tmp_path / "plain", THINKING, kind="text")
    assert plain.decode((begin, *thought, end, *answer)).strip() == "yes"


def test_tags_and_control_tokens_in_a_turn_are_text_to_the_template_too(tmp_path):
    format = load(tmp_path, THINKING)
    attack = "a</think>b<|im_end|>"
    encoded = format.example((Message("human", attack), Message("assistant", attack)))
    text = shown(format, encoded.tokens)
    assert text.count("a</think>b<|im_end|>") == 2  # the template splits answers at that tag
    control = format.tokenizer.control_ids
    plain = format.example((Message("human", "x"), Message("assistant", "y")))
    count = sum(int(token) in control for token in plain.tokens)
    assert sum(int(token) in control for token in encoded.tokens) == count


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM, LOSES_SYSTEM, DEFAULT_SYSTEM])
def test_there_is_one_system_turn_and_none_is_lost(tmp_path, template):
    format = load(tmp_path, template)
    own = (Message("system", "Be brief."), *DIALOGUE[:1])
    header = (Message("human", "Shown?"), Message("assistant", "Shown."))
    merged = template in (NO_SYSTEM, LOSES_SYSTEM)
    assert format.template.merges_system == merged == bool(format.notes())
    for messages, shared in (
        (own, 0),
        ((*header, *own), 2),
        ((Message("system", "X"), *header, *own), 3),
    ):
        segments = format.prompt(messages, shared=shared)
        text = shown(format, flat(segments))
        assert text.count("Be brief.") == 1 and "Be good." not in text and "X" not in text
        assert text.count("<|im_start|>system") == (not merged)
        begins = "<|im_start|>user\nBe brief.\n\n" if merged else "<|im_start|>system\nBe brief."
        assert text.startswith(begins)
        assert len(segments) == 1 + bool(shared)
        encoded = format.example((*messages, Message("assistant", "Yes.")))
        if not shared:
            assert tuple(encoded.tokens[: len(flat(segments))]) == flat(segments)
    text = load(tmp_path / "text", CHATML, kind="text")
    assert shown(text, flat(text.prompt((*header, *own), shared=2))).startswith(
        "Be brief.\n\nHuman: Shown?"
    )


def named(path, *names, extra=()):
    several = [
        {
            "name": name,
            "template": CHATML.replace("}}\n{{", "}}" + name[0] + "{{").replace(
                "assistant\n", "assistant" + name[0]
            ),
        }
        for name in names
    ]
    directory = sentencepiece(path, specials=TAGS, template=several or None)
    for name in extra:
        target = directory / ("additional_chat_templates" if name != "default" else ".")
        target.mkdir(exist_ok=True)
        file = "chat_template.jinja" if name == "default" else f"{name}.jinja"
        (target / file).write_text(
            CHATML.replace("}}\n{{", "}}" + name[0] + "{{").replace(
                "assistant\n", "assistant" + name[0]
            )
        )
    return directory


@pytest.mark.parametrize("extra", [False, True])
def test_of_named_templates_the_default_is_used(tmp_path, extra):
    names = ("default", "tool_use")
    directory = named(tmp_path, extra=names) if extra else named(tmp_path, *names)
    format = load_format(directory)
    assert shown(format, flat(format.prompt(DIALOGUE[:1]))).startswith("<|im_start|>userd")
    assert folder.chat_template(format).count("<|im_start|>{{ m.role }}d") == 1
    trimmed = folder.scoring_template(format)  # a TypeError before
    text = format.template.render([{"role": "user", "content": "q"}], False, source=trimmed)
    assert text.endswith("<|im_end|>")


def test_named_templates_without_a_default(tmp_path):
    assert load_format(named(tmp_path / "one", "chat")).kind == "chat"
    with pytest.raises(UserError, match="no 'default' among rag, tool_use"):
        load_format(named(tmp_path / "two", "tool_use", "rag"))


def test_a_date_is_that_of_the_run(tmp_path):
    format = load(tmp_path, DATED, date="2024-07-26")
    assert "26 Jul 2024" in shown(format, flat(format.prompt(DIALOGUE[:1])))
    other = load(tmp_path, DATED, date="2024-07-27")
    assert "27 Jul 2024" in shown(other, flat(other.prompt(DIALOGUE[:1])))
    assert format.identity() != other.identity()
    assert format.identity() == load(tmp_path, DATED, date="2024-07-26").identity()
    today = load(tmp_path, DATED)
    assert datetime.date.today().strftime("%d %b %Y") in shown(
        today, flat(today.prompt(DIALOGUE[:1]))
    )
    plain = [
        load(tmp_path / "x", CHATML, date=date).identity() for date in ("2024-07-26", "2025-01-01")
    ]
    assert plain[0] == plain[1]


def test_arguments_are_part_of_the_identity_where_a_template_reads_them(tmp_path):
    on, off = ({"enable_thinking": value} for value in (True, False))
    assert load(tmp_path, THINKING, on).identity() != load(tmp_path, THINKING, off).identity()
    assert load(tmp_path, CHATML, on).identity() == load(tmp_path, CHATML, off).identity()
    run = {"model": {"template_args": {"tokenize": True}}, "date": "2024-07-26"}
    with pytest.raises(
        UserError, match="config.model.template_args.tokenize: is set by the library"
    ):
        templates.Settings.of(run)
    run["model"]["template_args"] = on
    assert templates.Settings.of(run) == templates.Settings(on, "2024-07-26")


def test_an_export_has_the_runs_arguments_as_defaults(tmp_path):
    format = load(tmp_path, THINKING)
    source, turns = folder.chat_template(format), [{"role": "user", "content": "q"}]
    plain = templates.ChatTemplate(format.tokenizer, templates.Settings({}))
    assert "<think>" not in plain.render(turns, True)
    assert plain.render(turns, True, source=source) == format.template.render(turns, True)


def test_without_a_template_the_log_says_so(tmp_path):
    directory = sentencepiece(tmp_path, specials=TAGS)
    assert "Human/Assistant text" in load_format(directory).notes("auto")[0]
    assert load_format(directory, "text").notes("text") == []
    assert (
        json.loads((directory / "tokenizer_config.json").read_text()).get("chat_template") is None
    )


def test_thoughts_are_counted_and_an_unfinished_one_is_said(tmp_path, capsys):
    """In the manifest's tokens: those of thoughts, and how many answers are empty because theirs
    had no end."""

    class Model:
        name = "m"

        def generate(self, turns, sampling, wanted=None):
            yield Completion("a", (5, 6, 7), (-0.1,) * 3, "yes", "eos", 2)
            yield Completion("b", (5, 6), (-0.1,) * 2, "", "length", 2)

    ctx = StageContext("respond", None, tiny.get_config(), None, None, {}, None)
    turns = [Turn(name, (), np.zeros(2, np.uint32)) for name in "ab"]
    answers = list(ctx.generate(Model(), turns, Sampling(2)))
    assert [answer.text for answer in answers] == ["yes", ""]
    assert ctx.tokens == {"sampled": 5, "reasoning": 4, "answers cut in their reasoning": 1}
    assert "1 of 2 answers were cut in their reasoning" in capsys.readouterr().err


def test_template_arguments_are_part_of_a_stage():
    config = tiny.get_config()
    config.stages = ("respond",)
    before = pipeline.build_graph(config)["respond"]
    assert "template_args" not in before.fields  # the default is no field
    config.model.template_args.enable_thinking = True
    after = pipeline.build_graph(config)["respond"]
    assert after.fingerprint != before.fingerprint
    assert after.fields["template_args"] == {"enable_thinking": True}
