"""Bodies of requests and what is read of responses, against bodies worked by hand."""

import json
import math

import pytest

from cai_jax import seeds
from cai_jax.structs import LENGTH, REFUSED, UNPARSABLE, Message, Sampling
from cai_jax.textmodels import chat, options, questions
from cai_jax.textmodels.protocol import COUNTED, SCORED, TOP, Turn

WORDS = chat.Wire("http://x/v1", "m")
FIELDS = chat.Wire("http://x/v1", "m", continue_turns=chat.FIELDS)
RUNNING = chat.Wire("http://x/v1", "m", format=chat.TEXT)
QUESTION = questions.choice("q", "Which?", examples=(questions.worked_choice("Ex?", " (B)"),))

HI = (Message("human", "Hi"),)


def turn(lead="", role="assistant", dialogue=HI, **fields):
    return Turn("t", dialogue, seeds.row_key(0, "t"), role, lead=lead, **fields)


def said(text="A cat.", stop="stop", **fields):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": stop, **fields}
    return {
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }


# --- Requests -------------------------------------------------------------------------------------


def test_a_turn_is_a_chat_of_system_examples_and_dialogue():
    example = (Message("human", "1?"), Message("assistant", "One."))
    asked = turn(
        dialogue=(Message("system", "Be kind."), Message("human", "Hi")), examples=(example,)
    )
    body = chat.sample(asked, Sampling(9, temperature=0.5, top_p=0.9, top_k=3), WORDS).body
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": "One."},
            {"role": "user", "content": "Hi"},
        ],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "seed": int(asked.key[1]) & 0x7FFFFFFF,
    }


def test_the_lead_is_continued_or_asked_for_in_words():
    body = chat.sample(turn("Well:"), Sampling(9), FIELDS).body
    assert body["messages"][-1] == {"role": "assistant", "content": "Well:"}
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    body = chat.sample(turn("Well:"), Sampling(9), WORDS).body
    assert body["messages"] == [{"role": "user", "content": "Hi\n\nBegin your answer with: Well:"}]
    assert "continue_final_message" not in body


def test_a_question_is_asked_by_its_tier():
    (top,) = chat.ask(QUESTION, TOP, FIELDS)
    assert [m["content"] for m in top.body["messages"]] == [
        "Ex?",
        "The answer is: (B)",
        "Which?",
        "The answer is:",
    ]
    assert (top.body["logprobs"], top.body["top_logprobs"], top.reads) == (True, 20, TOP)
    a, b = chat.ask(QUESTION, SCORED, WORDS)
    assert a.body["messages"][-1]["content"] == "The answer is: (A)" and a.option == " (A)"
    assert b.body["messages"][-1]["content"] == "The answer is: (B)"
    assert a.body["prompt_logprobs"] == 0 and a.body["continue_final_message"] is True
    counted = chat.ask(QUESTION, COUNTED, WORDS, 33)
    assert [r.num_choices for r in counted] == [16, 16, 1]
    assert len({r.key for r in counted}) == 3
    words = 'Answer with one of "(A)" or "(B)" and nothing else.'
    assert counted[0].body["messages"][0]["content"] == f"Ex?\n\n{words}"
    assert counted[0].body["messages"][1]["content"] == "(B)"


def test_the_text_form_is_the_papers():
    body = chat.sample(turn(role="critique"), Sampling(9), RUNNING).body
    assert body["prompt"] == "\n\nHuman: Hi\n\nCritique:"
    assert body["stop"] == [
        "\n\nHuman:",
        "\n\nAssistant:",
        "\n\nCritiqueRequest:",
        "\n\nRevisionRequest:",
    ]
    a, _ = chat.ask(QUESTION, SCORED, RUNNING)
    assert a.path == "/completions" and a.body["echo"] is True
    assert a.body["prompt"] == "Ex?\nThe answer is: (B)\n\nWhich?\nThe answer is: (A)"


def test_greedy_requests_that_are_equal_are_one():
    twins = [Turn(name, HI, seeds.row_key(0, name)) for name in "ab"]
    assert len({chat.sample(twin, Sampling(9, temperature=0.0), WORDS).key for twin in twins}) == 1
    assert len({chat.sample(twin, Sampling(9), WORDS).key for twin in twins}) == 2


def test_the_key_is_that_of_what_decides_the_answer():
    ask = chat.sample
    asked = ask(turn(), Sampling(9), WORDS)
    assert asked.key == ask(turn(), Sampling(9), WORDS).key and len(asked.key) == 32
    other_model = chat.Wire("http://x/v1", "n")
    other_url = chat.Wire("http://y/v1", "m")
    others = [
        ask(turn(), Sampling(8), WORDS),
        ask(turn(), Sampling(9), other_model),
        ask(turn(), Sampling(9), other_url),
        ask(turn(), Sampling(9), RUNNING),
        ask(turn("Well:"), Sampling(9), WORDS),
    ]
    assert len({asked.key, *(other.key for other in others)}) == 6


def test_half_characters_are_replaced():
    request = chat.sample(turn(dialogue=(Message("human", "a\ud83d b"),)), Sampling(9), WORDS)
    assert request.body["messages"][0]["content"] == "a? b"


# --- Responses ------------------------------------------------------------------------------------


def completed(response, asked=None, wire=WORDS):
    asked = asked or turn()
    request = chat.sample(asked, Sampling(9), wire)
    return chat.completion(asked, request, chat.read(request, response))


def test_a_response_becomes_a_completion():
    done = completed(said(" A cat.\n"))
    assert (done.text, done.stop, done.usage, done.num_tokens) == ("A cat.", "eos", (7, 3), 3)
    assert done.logprob is None and done.answered
    assert completed(said(stop="length")).stop == LENGTH
    led = completed(said("Well: a cat."), turn("Well:"))
    assert led.text == "a cat."
    thought = completed(said("<think>hm\n</think>\n\nA cat."))
    assert thought.text == "A cat."


@pytest.mark.parametrize(
    "response, reason",
    [
        ({"choices": []}, "0 choices, 1 were"),
        ({"error": {"message": "x"}}, "no choices"),
        (said() | {"model": "other"}, "by the model 'other'"),
        (said(text=None), "no text"),
        (said(stop="tool_calls"), "finish_reason"),
        (said(stop=None), "finish_reason"),
        (said(stop={}), "finish_reason"),
        (said(stop=["stop"]), "finish_reason"),
        (said() | {"model": "\ud800"}, r"by the model '\?'"),
        ({"model": "m", "choices": [{"message": "x"}]}, "no message"),
    ],
)
def test_what_is_no_answer_is_named(response, reason):
    with pytest.raises(chat.Unusable, match=reason):
        completed(response)


@pytest.mark.parametrize(
    "asked, answered, is_right",
    [
        ("x", "x-20241022", True),
        ("x-latest", "x-20241022", True),
        ("x-20241022", "x-latest", True),
        ("x-latest", "y-20241022", False),
        ("x-20241022", "x", False),
        ("x", "", False),
    ],
)
def test_a_model_may_be_called_by_its_date(asked, answered, is_right):
    wire = chat.Wire("http://x/v1", asked)
    if is_right:
        assert completed(said() | {"model": answered}, wire=wire).text == "A cat."
    else:
        with pytest.raises(chat.Unusable, match="by the model"):
            completed(said() | {"model": answered}, wire=wire)


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "not JSON"),
        (b'{"choices": [', "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b"[1]", "not a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_bytes_that_are_no_response_are_named(data, reason):
    with pytest.raises(chat.Unusable, match=reason):
        chat.parse(data)


def test_refusals_are_recognised_by_finish_reason_and_field():
    assert completed(said("", "content_filter")).stop == REFUSED
    refusal = said()
    refusal["choices"][0]["message"] |= {"content": None, "refusal": "I can't help with that."}
    assert completed(refusal).stop == REFUSED


# --- Tiers ----------------------------------------------------------------------------------------


def at(token, **tops):
    tops = [{"token": text, "logprob": math.log(p)} for text, p in tops.items()]
    return {"token": token, "top_logprobs": tops}


def chosen(tier, responses, wire=FIELDS, num_samples=0):
    requests = chat.ask(QUESTION, tier, wire, num_samples)
    answers = [chat.read(*pair) for pair in zip(requests, responses, strict=True)]
    json.dumps(answers, allow_nan=False)
    return chat.choice(QUESTION, tier, answers)


def test_top_sums_the_mass_of_each_option_where_the_answer_decides():
    content = [
        at(" (", **{" (": 0.8, " A": 0.1, " Both": 0.06, " B": 0.02}),
        at("B", A=0.25, B=0.7, C=0.05),
        at(")", **{")": 1.0}),
    ]
    choice = chosen(TOP, [said("(B)", logprobs={"content": content})])
    a, b = 0.1 + 0.8 * 0.25, 0.02 + 0.8 * 0.7
    assert choice.logprobs == pytest.approx((math.log(a), math.log(b)))
    assert choice.how == TOP and choice.outside == pytest.approx(1 - a - b)
    # A plain completion has a dict for every position.
    tops = [{" (": math.log(0.8), " A": math.log(0.1)}, {"A": math.log(0.25), "B": math.log(0.7)}]
    written = {"model": "m", "choices": [{"text": " (B", "finish_reason": "length"}]}
    written["choices"][0]["logprobs"] = {"tokens": [" (", "B"], "top_logprobs": tops}
    choice = chosen(TOP, [written], RUNNING)
    assert choice.logprobs == pytest.approx((math.log(0.1 + 0.2), math.log(0.56)))


def test_top_bounds_an_option_that_is_not_among_the_likeliest():
    choice = chosen(TOP, [said("A", logprobs={"content": [at("A", A=0.9, C=0.04)]})])
    assert choice.logprobs == pytest.approx((math.log(0.9), math.log(0.04)))
    none = chosen(TOP, [said("I", logprobs={"content": [at("I", I=0.9, We=0.04)]})])
    assert none.how == UNPARSABLE and none.logprobs == () and not none.answered


@pytest.mark.parametrize("logprob", [None, math.nan, 0.5, "-1", True, -(10**400)])
def test_a_log_probability_is_a_number_of_0_or_less(logprob):
    bad = {"content": [{"token": "A", "top_logprobs": [{"token": "A", "logprob": logprob}]}]}
    with pytest.raises(chat.Unusable):
        chosen(TOP, [said("A", logprobs=bad)])


@pytest.mark.parametrize("logprobs", [None, {"content": []}, {"content": [{"token": "A"}]}])
def test_top_without_log_probabilities_is_unusable(logprobs):
    with pytest.raises(chat.Unusable):
        chosen(TOP, [said("A", logprobs=logprobs)])


def test_scored_sums_the_options_own_tokens():
    def response(letter, logprob):
        tokens = [
            ("The", -9.0),
            (" is", -8.0),
            (":", -7.0),
            (" (", -0.5),
            (letter, logprob),
            (")", -0.1),
        ]
        given = [
            None,
            *({str(n): {"decoded_token": t, "logprob": p}} for n, (t, p) in enumerate(tokens)),
        ]
        return said("x", "length") | {"prompt_logprobs": given}

    choice = chosen(SCORED, [response("A", -1.0), response("B", -2.0)])
    assert choice.logprobs == pytest.approx((-1.6, -2.6)) and choice.how == SCORED
    with pytest.raises(chat.Unusable):
        chosen(SCORED, [response("A", None), response("B", -2.0)])
    with pytest.raises(chat.Unusable):
        chosen(SCORED, [response("B", -1.0), response("B", -2.0)])


@pytest.mark.parametrize("first", [[], ["<s>"]])
@pytest.mark.parametrize("generated", [[], [")"], ["\n"], [""]])
def test_scored_by_echo_leaves_out_what_was_generated(first, generated):
    def response(request):
        prompt = request.body["prompt"]
        before = prompt[: -len(" (A)")]
        tokens = [*first, before, request.option[:3], ")", *generated]
        logprobs = [-9.0, -1.5, -0.25, -3.0][: len(tokens) - len(first)]
        offsets = [len("".join(tokens[:index])) for index in range(len(tokens))]
        logprobs = {
            "tokens": tokens,
            "token_logprobs": [None] * len(first) + logprobs,
            "text_offset": offsets,
        }
        return {
            "model": "m",
            "choices": [{"text": prompt, "finish_reason": "length", "logprobs": logprobs}],
        }

    requests = chat.ask(QUESTION, SCORED, RUNNING)
    answers = [chat.read(request, response(request)) for request in requests]
    assert chat.choice(QUESTION, SCORED, answers).logprobs == (-1.75, -1.75)


def test_counted_counts_what_can_be_parsed():
    texts = ["(A)", "A", "B.", "Both", "", "(A) or (B)", "The answer is: (A)", "A cat"]
    response = said()
    response["choices"] = [said(text)["choices"][0] for text in texts]
    choice = chosen(COUNTED, [response], WORDS, 8)
    assert choice.counts == (3, 1) and choice.num_samples == 8
    assert choice.logprobs == pytest.approx((math.log(3.5 / 5), math.log(1.5 / 5)))
    assert choice.obtained() == {"how": "counted", "counts": [3, 1], "samples": 8}
    with pytest.raises(chat.Unusable, match="7 choices, 8 were asked for"):
        chosen(COUNTED, [response | {"choices": response["choices"][1:]}], WORDS, 8)
    response["choices"] = [said("Neither")["choices"][0] for _ in texts]
    assert chosen(COUNTED, [response], WORDS, 8).how == UNPARSABLE
    response["choices"] = [said("", "content_filter")["choices"][0] for _ in texts]
    assert chosen(COUNTED, [response], WORDS, 8).how == REFUSED


def test_other_options_than_letters_are_chosen_by_their_text():
    assert options.chosen("Yes, it is", (" Yes", " No")) == 0
    assert options.chosen("Yes and No", (" Yes", " No")) is None
    assert options.chosen("**(B)**", (" (A)", " (B)")) == 1
