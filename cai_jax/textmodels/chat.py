"""Requests to an OpenAI-compatible server and its answers, as JSON: pure, for whatever carries them
(HTTP, batch files, recorded answers).

    asked = chat.sample(turn, sampling, wire)          # Request: path, body, key
    answer = chat.read(asked, chat.parse(data))        # what is kept of a response; may be Unusable
    completion = chat.completion(turn, asked, answer)

Under the format "chat" a request is a chat completion; under "text" it is the paper's text form as
a plain completion. A question is asked by its tier: *scored* has a request for each option, *top*
one for the likeliest tokens at the beginning of the answer, *counted* asks for samples.

A request's key is a digest of all that decides its answer: server, model and body, never a secret.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cai_jax.data import dialogue, templates
from cai_jax.structs import LENGTH, REFUSED, Completion, Message, Sampling
from cai_jax.textmodels import options as options_lib
from cai_jax.textmodels import wording
from cai_jax.textmodels.options import Unusable
from cai_jax.textmodels.protocol import (
    CONCLUSION,
    SCORED,
    TOP,
    TURNS,
    Choice,
    Question,
    Turn,
)

CHAT, TEXT = "chat", "text"
# How the beginning of an answer ("The answer is:") is given: by vLLM's and SGLang's fields that
# continue the last turn; by a last turn of the assistant, which llama.cpp, Ollama and Anthropic
# continue without being asked; or in words, which any server understands.
FIELDS, PLAIN, WORDS = "fields", "plain", "words"
LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
PATHS = {CHAT: "/chat/completions", TEXT: "/completions"}
NUM_TOP = {CHAT: 20, TEXT: 5}  # the most that OpenAI's API gives of a position's likeliest tokens
ANSWER_TOKENS = 8  # of an answer that is one of the options
BEGIN = "Begin your answer with: "
ONE_OF = "Answer with one of {} and nothing else."
STOPS = {"stop": "eos", "eos": "eos", "length": LENGTH, "content_filter": REFUSED}


@dataclasses.dataclass(frozen=True)
class Wire:
    """How requests are written for a server.

    Attributes:
      url: of the server, up to and including /v1.
      model: its name there.
      format: CHAT or TEXT.
      continue_turns: FIELDS, PLAIN or WORDS.
      limit_field: what the server calls the most tokens of an answer.
      samples_per_request: of a counted question, the most that one request asks for.
      extra_body: further fields of every body, which take precedence.
    """

    url: str
    model: str
    format: str = CHAT
    continue_turns: str = WORDS
    limit_field: str = "max_tokens"
    samples_per_request: int = 16
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Request:
    """path: after the server's URL; reads: what of the response is kept: "text", "top" or "scored";
    option: the text that is scored. key: the request's identity."""

    path: str
    body: Mapping[str, Any]
    url: str
    reads: str = TEXT
    option: str = ""

    @functools.cached_property
    def key(self) -> str:
        value = {"url": self.url, "path": self.path, "body": self.body}
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def num_choices(self) -> int:
        return self.body.get("n", 1)

    @property
    def limit(self) -> int:
        """The most tokens of a choice."""
        return next((self.body[field] for field in LIMIT_FIELDS if field in self.body), 0)

    @property
    def text(self) -> str:
        """All that the model reads."""
        messages = self.body.get("messages", ())
        return self.body.get("prompt", "") + "".join(message["content"] for message in messages)

    @property
    def most_bytes(self) -> int:
        """What a response to it may have at most; a longer one is not read to its end."""
        prompt = len(self.text) if self.reads == SCORED else 0
        per_token = 4096 if self.reads == TOP else 256
        return 2**17 + 256 * prompt + per_token * self.limit * self.num_choices


# Requests -----------------------------------------------------------------------------------------


def sample(turn: Turn, sampling: Sampling, wire: Wire) -> Request:
    """The request for a turn of a dialogue; its seed comes from the turn's key. What is not drawn
    has none, so that equal requests are one."""
    limit = min(turn.max_new_tokens or sampling.max_new_tokens, sampling.max_new_tokens)
    drawn = {"temperature": sampling.temperature}
    if sampling.temperature:
        drawn["seed"] = int(turn.key[1]) & 0x7FFFFFFF
    if sampling.top_p < 1:
        drawn["top_p"] = sampling.top_p
    if sampling.top_k:
        drawn["top_k"] = sampling.top_k
    return _request(turn, wire, {wire.limit_field: limit, **drawn})


def ask(question: Question, tier: str, wire: Wire, num_samples: int = 0) -> list[Request]:
    """The requests that a question takes.

    Args:
      question: what is asked.
      tier: SCORED, TOP or COUNTED.
      wire: how requests are written.
      num_samples: of COUNTED, over all requests.

    Returns:
      One request for each option, one, or as many as the samples need.
    """
    greedy = {wire.limit_field: ANSWER_TOKENS, "temperature": 0}
    if tier == SCORED:
        return [_score(question, option, wire) for option in question.options]
    if tier == TOP:
        top = {"logprobs": True, "top_logprobs": NUM_TOP[CHAT]}
        if wire.format == TEXT:
            top = {"logprobs": NUM_TOP[TEXT]}
        return [_request(question, wire, {**greedy, **top}, TOP)]
    each, drawn = wire.samples_per_request, {wire.limit_field: ANSWER_TOKENS, "temperature": 1.0}
    sizes = [min(each, num_samples - first) for first in range(0, num_samples, each)]
    return [
        _request(question, wire, {**drawn, "seed": number, **({"n": size} if size > 1 else {})})
        for number, size in enumerate(sizes)
    ]


def _score(question: Question, option: str, wire: Wire) -> Request:
    """The request that tells the log-probability of an option's tokens. vLLM tells it of a chat's
    last turn, servers with `echo` of a text."""
    drawn = {wire.limit_field: 1, "temperature": 0}
    if wire.format == CHAT:
        drawn["prompt_logprobs"] = 0  # of the prompt's own tokens alone
    else:
        drawn |= {"echo": True, "logprobs": 1}
    return _request(question, wire, drawn, SCORED, option)


def _request(
    request: Turn | Question, wire: Wire, drawn: Mapping, reads: str = TEXT, option: str = ""
) -> Request:
    """A request with its dialogue as the wire's format writes it, and `option` at its end."""
    if wire.format == TEXT:
        body = {"prompt": _clean(_text(request) + option)}
        if not option:
            body["stop"] = list(dialogue.stop_strings(request.role))
    else:
        body = _messages(request, wire, option)
    body = {"model": wire.model, **body, **drawn, **wire.extra_body}
    return Request(PATHS[wire.format], body, wire.url, reads, option)


def _text(request: Turn | Question) -> str:
    """The paper's text form, up to the answer."""
    count = len(request.examples)
    if wording.is_running(request, TEXT):
        return wording.running(request, count)[0]
    asked = wording.turns(request, count, TEXT)
    messages, _ = dialogue.system_first(asked.messages, asked.shared)
    return dialogue.render_text(messages, asked.role, asked.lead)


def _messages(request: Turn | Question, wire: Wire, option: str) -> dict:
    """`messages` of a chat, with the lead of the answer, and what makes the server continue it."""
    if wire.continue_turns == WORDS and not option:
        request = _in_words(request)
    asked = wording.turns(request, len(request.examples), CHAT)
    messages, _ = dialogue.system_first(asked.messages, asked.shared)
    written = [
        {"role": dialogue.chat_role(message.role), "content": _clean(message.text)}
        for message in messages
    ]
    body: dict[str, Any] = {"messages": written}
    if lead := asked.lead + option:
        written.append({"role": "assistant", "content": _clean(lead)})
        if wire.continue_turns == FIELDS or option:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def _in_words(request: Turn | Question) -> Turn | Question:
    """The request with its lead as an instruction at the end of the last human turn."""
    if isinstance(request, Turn):
        if not request.lead:
            return request
        *before, last = request.dialogue
        last = Message(last.role, f"{last.text}\n\n{BEGIN}{request.lead}")
        return dataclasses.replace(request, dialogue=(*before, last), lead="")
    named = [f'"{option.strip()}"' for option in request.options]
    words = ONE_OF.format(f"{', '.join(named[:-1])} or {named[-1]}")

    def asked(messages):
        """Each question with the words, each answer without its lead."""
        for message in messages:
            if message.role == CONCLUSION:
                yield Message("human", words)
                yield Message("assistant", message.text.removeprefix(request.lead).strip())
            elif request.form != TURNS and message.role == "human":
                message = wording.without_lead(request, message)
                yield Message("human", f"{message.text}\n\n{words}")
            else:
                text = message.text if request.form == TURNS else message.text.strip()
                yield Message(message.role, text)

    last = (Message("human", words),) if request.role == CONCLUSION else ()
    return dataclasses.replace(
        request,
        dialogue=(*asked(request.dialogue), *last),
        examples=tuple(tuple(asked(example)) for example in request.examples),
        lead="",
        role="assistant",
        form=TURNS,
    )


def _clean(text: str) -> str:
    """The text without halves of characters (lone surrogates), which UTF-8 does not have."""
    return text.encode("utf-8", "replace").decode()


# Responses ----------------------------------------------------------------------------------------


def parse(data: bytes) -> dict:
    """The JSON object of a response; Unusable where it is none. JSON has no NaN."""

    def refuse(constant: str):
        raise Unusable(f"{constant} in a response")

    try:
        value = json.loads(data.decode(), parse_constant=refuse)
    except UnicodeDecodeError:
        raise Unusable("not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Unusable(str(error) if isinstance(error, Unusable) else "not JSON") from None
    if not isinstance(value, dict):
        raise Unusable("not a JSON object")
    return value


def read(request: Request, response: Mapping, served_as: Sequence[str] = ()) -> dict:
    """What is kept of a response, and all that `completion` and `choice` read.

    Args:
      request: what was asked.
      response: the parsed body.
      served_as: other names that the server may give the model.

    Returns:
      {"choices": [{"text", "stop"}, …], "usage": [read, written] or None}; of top "tokens" in its
      choice, [[token, [[token, log-probability], …]], …] by position; of scored "logprob".

    Raises:
      Unusable: it is none of these.
    """
    model, asked = response.get("model"), request.body["model"]
    if model is not None and model not in served_as and not _is_name_of(str(model), asked):
        raise Unusable(f"an answer by the model '{_clean(str(model)[:80])}'")
    choices = response.get("choices")
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise Unusable("no choices")
    if len(choices) != request.num_choices:
        hint = "; samples_per_request=1 for a server that ignores n" if choices else ""
        raise Unusable(f"{len(choices)} choices, {request.num_choices} were asked for{hint}")
    answer = {"choices": [_choice(each) for each in choices], "usage": usage_of(response)}
    if request.reads == TOP and answer["choices"][0]["stop"] != REFUSED:
        answer["choices"][0]["tokens"] = options_lib.likeliest(choices[0])
    if request.reads == SCORED:
        answer["logprob"] = options_lib.scored(response, request.option)
    return answer


def _is_name_of(model: str, asked: str) -> bool:
    """Whether a server may call the model `asked` so: with a date, or with one for "-latest"."""
    stem = model.removesuffix("-latest")
    return model.startswith(asked.removesuffix("-latest")) or (
        stem != model and asked.startswith(stem)
    )


def _choice(choice: Mapping) -> dict:
    message = choice.get("message", {})
    if not isinstance(message, dict):
        raise Unusable("no message")
    refusal = message.get("refusal") if "message" in choice else None
    text = message.get("content") if "message" in choice else choice.get("text")
    reason = choice.get("finish_reason")
    stop = STOPS.get(reason) if isinstance(reason, str) else None
    if refusal or stop == REFUSED:
        return {"text": _clean(str(refusal or text or "")), "stop": REFUSED}
    # Thoughts that a server has taken out leave nothing where they met the limit of tokens.
    text = "" if text is None and stop == LENGTH else text
    if not isinstance(text, str):
        raise Unusable("no text")
    if stop is None:
        raise Unusable(f"finish_reason {str(reason)[:80]!r}")
    return {"text": _clean(text), "stop": stop}


def usage_of(response: Mapping) -> list[int] | None:
    """[read, written] tokens of a response, None where it does not say."""
    usage = response.get("usage")
    if not isinstance(usage, dict):
        return None
    numbers = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    if not all(type(number) is int and 0 <= number < 2**53 for number in numbers):
        return None
    return numbers


# Results ------------------------------------------------------------------------------------------


def completion(turn: Turn, request: Request, answer: Mapping | str) -> Completion:
    """The turn that an answer of `read` gives, or one of structs.WITHOUT_ANSWER in its place."""
    if reason := missing(answer):
        return Completion(turn.id, (), (), "", reason)
    (reply,) = answer["choices"]
    text, stop = _spoken(reply["text"]).strip(), reply["stop"]
    if turn.lead and _is_led(request):
        text = text.removeprefix(turn.lead).strip()
    usage = tuple(answer["usage"]) if answer["usage"] else None
    shown = len(turn.examples)
    return Completion(turn.id, (), (), text, stop, num_examples=shown, usage=usage)


def choice(question: Question, tier: str, answers: Sequence[Mapping | str]) -> Choice:
    """The choice that a question's answers give.

    Args:
      question: what was asked.
      tier: by which.
      answers: what `read` kept of the responses, in the order of `ask`; or one of
        structs.WITHOUT_ANSWER.

    Returns:
      The choice.
    """
    if reasons := list(filter(None, map(missing, answers))):
        return Choice(question.id, (), reasons[0])
    usages = [answer["usage"] for answer in answers if answer["usage"]]
    usage = tuple(map(sum, zip(*usages, strict=True))) if usages else None
    about = {"num_examples": len(question.examples), "usage": usage}
    about["num_tokens"] = usage[0] if usage else 0
    if tier == SCORED:
        logprobs = tuple(answer["logprob"] for answer in answers)
        return Choice(question.id, logprobs, SCORED, **about)
    replies = [each for answer in answers for each in answer["choices"]]
    if all(each["stop"] == REFUSED for each in replies):
        return Choice(question.id, (), REFUSED, **about)
    if tier == TOP and "tokens" in replies[0]:  # a batch's answer may have none: it is a sample
        return options_lib.top(question, replies[0]["tokens"], about)
    chosen = [
        options_lib.chosen(_spoken(each["text"]), question.options, question.lead)
        for each in replies
        if each["stop"] != REFUSED
    ]
    counts = tuple(chosen.count(index) for index in range(len(question.options)))
    return options_lib.counted(question, counts, len(replies), about)


def without(reason: str) -> dict:
    """What is kept of a response that says why there is no answer, now and always."""
    return {"choices": [], "usage": None, "without": reason}


def missing(answer: Mapping | str) -> str:
    """Why there is no answer: one of structs.WITHOUT_ANSWER; "" where there is one."""
    return answer if isinstance(answer, str) else answer.get("without", "")


def _is_led(request: Request) -> bool:
    """Whether the lead was asked for in words, so that the answer repeats it."""
    messages = request.body.get("messages") or [{}]
    return messages[-1].get("role") == "user"


def _spoken(text: str) -> str:
    """The answer without the thoughts before it."""
    for begin, end in templates.REASONING_TAGS:
        if text.lstrip().startswith(begin):
            return templates.without_reasoning(text, [(begin, end)])
    return text
