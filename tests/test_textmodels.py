"""A local model as a text model: worked examples that fit, what is wanted, what does not fit; and
what the names of models mean."""

import numpy as np
import pytest

from cai_jax import references
from cai_jax.data.dialogue import load_format
from cai_jax.errors import UserError
from cai_jax.structs import TOO_LONG, Completion, Message, Sampling, Score
from cai_jax.textmodels import questions
from cai_jax.textmodels.local import LocalTextModel
from cai_jax.textmodels.protocol import Question, Turn
from tests.recording import TINY

KEY = np.zeros(2, np.uint32)
EXAMPLES = tuple(
    (Message("human", f"Shown {n} " * 8), Message("assistant", "Yes.")) for n in range(3)
)


class Engine:
    """Answers everything with its own id, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def generate(self, requests, sampling):
        self.asked += requests
        for request in requests:
            yield Completion(request.id, (1,), (-1.0,), f" {request.id}\n", "eos")

    def score(self, requests, together=False, wanted=None):
        self.asked += requests
        for request in requests:
            if wanted is None or request.id in wanted:
                yield Score(request.id, tuple((-1.0,) for _ in request.options))


def model(limit):
    engine = Engine()
    return LocalTextModel("m", load_format(TINY, "text"), limit, lambda: engine), engine


def test_a_released_engine_is_made_anew_by_the_next_request():
    made = []
    asked = [turn("t")]
    text_model = LocalTextModel(
        "m", load_format(TINY, "text"), 60, lambda: made.append(Engine()) or made[-1]
    )
    for _ in range(2):
        list(text_model.generate(asked, Sampling(8)))
        list(text_model.generate(asked, Sampling(8)))
        text_model.release()
    assert [len(engine.asked) for engine in made] == [2, 2]


def turn(name, text="Hello?", **fields):
    return Turn(name, (Message("human", text),), KEY, examples=EXAMPLES, **fields)


def test_every_request_has_one_result_and_no_prompt_is_cut():
    text_model, engine = model(60)
    asked = [turn("fits"), turn("long", "word " * 60)]
    done = {item.id: item for item in text_model.generate(asked, Sampling(8))}
    assert done["fits"].text == "fits" and done["fits"].answered
    assert done["long"].stop == TOO_LONG and not done["long"].answered
    assert [request.id for request in engine.asked] == ["fits"]
    options = Question("q", (Message("human", "word " * 60),), (" a", " b"))
    (choice,) = text_model.choose([options])
    assert not choice.answered and choice.logprobs == ()


def test_requests_of_a_group_have_the_same_examples_wanted_or_not():
    text_model, _ = model(205)
    asked = [turn("short", group="g"), turn("long", "word " * 8, group="g"), turn("apart")]
    shown = {d.id: d.num_examples for d in text_model.generate(asked, Sampling(8))}
    assert shown["short"] == shown["long"] < shown["apart"]
    (left,) = text_model.generate(asked, Sampling(8), wanted={"short"})
    assert left.num_examples == shown["short"]
    (room,) = text_model.generate([turn("apart", room=100)], Sampling(8))
    assert room.num_examples < shown["apart"]


def test_the_most_examples_that_fit_are_shown():
    """Also where prompt and answer fill the context to its last token."""
    text_model, _ = model(1000)
    for count in range(4):
        needed = sum(map(len, text_model.prompt(turn("a"), count))) + 8
        for limit, expected in ((needed, count), (needed - 1, count - 1)):
            (done,) = model(limit)[0].generate([turn("a")], Sampling(8))
            assert (done.num_examples if done.answered else -1) == expected


def test_examples_are_a_segment_of_their_own_where_they_are_shared():
    text_model, engine = model(1000)
    list(text_model.generate([turn("a"), turn("b", shared=False)], Sampling(8)))
    shared, alone = (request.segments for request in engine.asked)
    assert len(shared) == 2 and len(alone) == 1 and sum(shared, ()) == alone[0]


def test_a_chat_template_concludes_in_the_turn_of_the_chain():
    asked = questions.after_chain("q", "Which?", "Because.")
    for kind, expected in (
        ("text", "\n\nAssistant: Let's think step by step: Because.\n\nHuman: So the answer is:"),
        ("chat", "assistant\nLet's think step by step: Because.\n\nSo the answer is:"),
    ):
        text_model = LocalTextModel("m", load_format(TINY, kind), 1000, lambda: None)
        segments, _ = text_model.question(asked, 0)
        assert text_model.format.tokenizer.hf.decode(sum(segments, ())).endswith(expected)


def test_names_of_models():
    assert references.parse("@sl:200") == references.Reference(references.STAGE, "sl", "200")
    assert references.parse("random:a:b").name == "a:b" and references.stage_of("models/x") == ""
    for text in ("@sl", "@sl:200", "random:d", "python:m.f", "responses:f", "org/name@main"):
        assert str(references.parse(text)) == text
    roles = {"critic": "helpful", "helpful": "@sl"}
    assert references.resolve(roles, "critic") == "@sl"
    with pytest.raises(UserError, match="points at itself"):
        references.resolve({"a": "b", "b": "a"}, "a")
