"""Answers as JSON objects: complete, or chunk by chunk as their tokens come."""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections.abc import Sequence

from cai_jax.engine.stops import Ending
from cai_jax.serving.requests import Asked, Prompt
from cai_jax.serving.texts import Offsets, Texts

LOWEST = -9999.0  # what vLLM writes for a probability of 0, which JSON has no logarithm of

Top = tuple[Sequence[int], Sequence[float]]


@dataclasses.dataclass
class Span:
    """A stretch of an answer: text, its tokens, of each where it begins in the choice's text, its
    log-probability (None of a text's first) and the likeliest ones; and the ending after it."""

    text: str = ""
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float | None] = dataclasses.field(default_factory=list)
    tops: list[Top] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    ending: Ending | None = None


class Responses:
    """Objects of one request's answer."""

    def __init__(self, asked: Asked, model: str, texts: Texts):
        self._asked, self._model, self._texts = asked, model, texts
        self._id = f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def complete(self, choices: Sequence[dict], usage: dict, readings: Sequence[Span]) -> dict:
        """The answer. Of a chat the prompt's tokens are a field of the answer, otherwise of each
        choice, as vLLM has them."""
        body = self._body("chat.completion" if self._asked.chat else "text_completion")
        body |= {"choices": list(choices), "usage": usage}
        return body | (self._about_prompt(0, readings) if self._asked.chat else {})

    def choice(self, index: int, span: Span, echoed: Span | None, readings: Sequence[Span]) -> dict:
        """A choice of a complete answer.

        Args:
          index: its own.
          span: all that was sampled.
          echoed: the prompt, where it comes before that.
          readings: of the prompts, their tokens with log-probabilities, if asked for.

        Returns:
          The object.
        """
        choice: dict = {"index": index}
        if self._asked.chat:
            message = {"role": "assistant", "content": span.text, "refusal": None}
            choice |= {"message": message, "logprobs": self._chat_logprobs(span)}
        else:
            spans = [echoed, span] if echoed else [span]
            text = "".join(each.text for each in spans)
            choice |= {"text": text, "logprobs": self._plain_logprobs(spans)}
            choice |= self._about_prompt(index // self._asked.num_choices, readings)
        return choice | self._finish(span)

    def chunk(self, index: int, span: Span, first: bool, readings: Sequence[Span]) -> dict:
        """A chunk of a stream.

        Args:
          index: of the choice.
          span: what is new of it.
          first: whether nothing of it was sent before.
          readings: as in `choice`.

        Returns:
          The object.
        """
        chat = self._asked.chat
        choice: dict = {"index": index}
        about = self._about_prompt(index // self._asked.num_choices, readings) if first else {}
        if chat:
            role = {"role": "assistant"} if first else {}
            choice |= {"delta": role | {"content": span.text}}
            choice |= {"logprobs": self._chat_logprobs(span)}
        else:
            choice |= {"text": span.text, "logprobs": self._plain_logprobs([span])} | about
        body = self._body("chat.completion.chunk" if chat else "text_completion")
        body |= {"choices": [choice | self._finish(span)]} | (about if chat else {})
        return body | ({"usage": None} if self._asked.usage else {})

    def usage_chunk(self, usage: dict) -> dict:
        """The last chunk where usage is asked for."""
        kind = "chat.completion.chunk" if self._asked.chat else "text_completion"
        return self._body(kind) | {"choices": [], "usage": usage}

    def _body(self, kind: str) -> dict:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _finish(self, span: Span) -> dict:
        ids = {"token_ids": span.tokens} if self._asked.token_ids else {}
        if span.ending is None:
            return {"finish_reason": None} | ids
        stop = span.ending.stop
        reason = "length" if stop == "length" else "stop"
        by_text = stop if stop not in ("length", "eos") else None
        return {"finish_reason": reason, "stop_reason": by_text} | ids

    def _about_prompt(self, number: int, readings: Sequence[Span]) -> dict:
        prompt, about = self._asked.prompts[number], {}
        if self._asked.token_ids:
            about["prompt_token_ids"] = list(prompt.tokens)
        if self._asked.prompt_logprobs is not None:
            reading = readings[number]
            count = self._asked.prompt_logprobs
            about["prompt_logprobs"] = [
                None if logprob is None else self._by_id(token, logprob, top, count)
                for token, logprob, top in zip(
                    reading.tokens, reading.logprobs, reading.tops, strict=True
                )
            ]
        return about

    # --- Log-probabilities ------------------------------------------------------------------------

    def _by_id(self, token: int, logprob: float, top: Top, count: int) -> dict:
        """vLLM's form: the token itself, then the likeliest."""
        shown = {token: logprob} | dict(_likeliest(top, count))
        return {
            str(each): {"logprob": _number(value), "decoded_token": self._texts.name(each)}
            for each, value in shown.items()
        }

    def _chat_logprobs(self, span: Span) -> dict | None:
        if self._asked.logprobs is None:
            return None

        def entry(token: int, logprob: float) -> dict:
            name = self._texts.name(token)
            known = name == self._texts.own(token)
            return {
                "token": name,
                "logprob": _number(logprob),
                "bytes": list(name.encode()) if known else None,
            }

        tops = span.tops or [((), ())] * len(span.tokens)
        content = [
            entry(token, logprob)
            | {"top_logprobs": [entry(*pair) for pair in _likeliest(top, self._asked.logprobs)]}
            for token, logprob, top in zip(span.tokens, span.logprobs, tops, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _plain_logprobs(self, spans: Sequence[Span]) -> dict | None:
        count = self._asked.logprobs
        if count is None:
            return None
        names, logprobs, tops, offsets = [], [], [], []
        for span in spans:
            names += map(self._texts.name, span.tokens)
            logprobs += [None if value is None else _number(value) for value in span.logprobs]
            offsets += span.offsets
            for token, logprob, top in zip(
                span.tokens,
                span.logprobs,
                span.tops or [((), ())] * len(span.tokens),
                strict=True,
            ):
                likeliest = dict(_likeliest(top, count)) | {token: logprob}
                tops.append(
                    None
                    if logprob is None
                    else {self._texts.name(each): _number(x) for each, x in likeliest.items()}
                )
        return {
            "tokens": names,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def read_prompt(prompt: Prompt, texts: Texts, logprobs=(), tops=()) -> Span:
    """A prompt as a span.

    Args:
      prompt: text and tokens.
      texts: of its model.
      logprobs, tops: of its tokens but the first.

    Returns:
      The span.
    """
    text = texts.decode_prompt(prompt.tokens) if prompt.text is None else prompt.text
    tokens = list(prompt.tokens)
    return Span(text, tokens, [None, *logprobs], [((), ()), *tops], Offsets(texts).add(tokens))


def usage(asked: Asked, num_sampled: int, num_reused: int) -> dict:
    """Tokens: of every prompt once, of all choices together, and those of the prompts that were
    prefilled before."""
    read = sum(len(prompt.tokens) for prompt in asked.prompts)
    return {
        "prompt_tokens": read,
        "completion_tokens": num_sampled,
        "total_tokens": read + num_sampled,
        "prompt_tokens_details": {"cached_tokens": num_reused},
    }


def _likeliest(top: Top, count: int) -> list[tuple[int, float]]:
    ids, values = top
    return [
        (int(token), float(value)) for token, value in zip(ids[:count], values[:count], strict=True)
    ]


def _number(logprob: float) -> float:
    if math.isnan(logprob):
        raise FloatingPointError("the model gave a log-probability that is not a number")
    return max(float(logprob), LOWEST)
