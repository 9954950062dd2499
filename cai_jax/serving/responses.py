"""Answers as JSON objects: complete, or chunk by chunk as their tokens come."""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections.abc import Iterator, Sequence

from cai_jax.engine.stops import Ending
from cai_jax.serving.fields import ApiError
from cai_jax.serving.requests import CompletionRequest, Prompt
from cai_jax.serving.texts import Offsets, Texts

LOWEST = -9999.0  # what vLLM writes for a probability of 0, which JSON has no logarithm of

Top = tuple[Sequence[int], Sequence[float]]


@dataclasses.dataclass
class Span:
    """A stretch of an answer: text, its tokens, of each where it begins in the choice's text, its
    log-probability (None of a text's first) and, if wanted, the likeliest ones; and the ending
    after it."""

    text: str = ""
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float | None] = dataclasses.field(default_factory=list)
    tops: list[Top] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    ending: Ending | None = None

    def each(self) -> Iterator[tuple[int, float | None, Top]]:
        """(token, log-probability, likeliest ones) of each token."""
        tops = self.tops or [((), ())] * len(self.tokens)
        return zip(self.tokens, self.logprobs, tops, strict=True)


class Responses:
    """Objects of one request's answer."""

    def __init__(self, request: CompletionRequest, model: str, texts: Texts):
        self._request, self._model, self._texts = request, model, texts
        self._id = f"{'chatcmpl' if request.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._kind = "chat.completion" if request.chat else "text_completion"
        self._chunk_kind = f"{self._kind}.chunk" if request.chat else self._kind
        self._created = int(time.time())
        self._prompts: list[Span] = []

    def add_prompts(self) -> list[Span]:
        """The prompts, where the answer shows them; the caller adds their log-probabilities, of all
        tokens but the first."""
        if self._request.echo or self._request.prompt_top is not None:
            self._prompts = [self._prompt_span(prompt) for prompt in self._request.prompts]
        return self._prompts

    def echoed(self, index: int) -> Span | None:
        """The prompt of a choice, where it comes before what is sampled."""
        return self._prompts[index // self._request.num_choices] if self._request.echo else None

    def complete(self, choices: Sequence[dict], usage: dict) -> dict:
        """The answer. Of a chat the prompt's tokens are a field of the answer, otherwise of each
        choice, as vLLM has them."""
        body = self._body(self._kind) | {"choices": list(choices), "usage": usage}
        return body | (self._about_prompt(0) if self._request.chat else {})

    def choice(self, index: int, span: Span) -> dict:
        """A choice of a complete answer: `span` is all that was sampled."""
        choice: dict = {"index": index}
        if self._request.chat:
            message = {"role": "assistant", "content": span.text, "refusal": None}
            choice |= {"message": message, "logprobs": self._chat_logprobs(span)}
        else:
            echoed = self.echoed(index)
            spans = [echoed, span] if echoed else [span]
            text = "".join(each.text for each in spans)
            choice |= {"text": text, "logprobs": self._plain_logprobs(spans)}
            choice |= self._about_prompt(index)
        return choice | self._finish(span)

    def chunk(self, index: int, span: Span, first: bool) -> dict:
        """A chunk of a stream: `span` is what is new of a choice; `first`: nothing of it was sent
        before."""
        choice: dict = {"index": index}
        about = self._about_prompt(index) if first else {}
        body = self._body(self._chunk_kind)
        if self._request.chat:
            role = {"role": "assistant"} if first else {}
            choice |= {"delta": role | {"content": span.text}}
            choice |= {"logprobs": self._chat_logprobs(span)}
            body |= about
        else:
            choice |= {"text": span.text, "logprobs": self._plain_logprobs([span])} | about
        body |= {"choices": [choice | self._finish(span)]}
        return body | ({"usage": None} if self._request.usage else {})

    def usage_chunk(self, usage: dict) -> dict:
        """The last chunk where usage is asked for."""
        return self._body(self._chunk_kind) | {"choices": [], "usage": usage}

    def usage(self, num_sampled: int, num_reused: int) -> dict:
        """Tokens: of every prompt once, of all choices together, and those of the prompts that were
        prefilled before."""
        read = sum(len(prompt.tokens) for prompt in self._request.prompts)
        return {
            "prompt_tokens": read,
            "completion_tokens": num_sampled,
            "total_tokens": read + num_sampled,
            "prompt_tokens_details": {"cached_tokens": num_reused},
        }

    def _prompt_span(self, prompt: Prompt) -> Span:
        text, tokens = prompt.text, list(prompt.tokens)
        if text is None:
            text = self._texts.decode_prompt(tokens)
        tops = [((), ())] if self._request.prompt_top else []
        return Span(text, tokens, [None], tops, Offsets(self._texts).add(tokens))

    def _body(self, kind: str) -> dict:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _finish(self, span: Span) -> dict:
        ids = {"token_ids": span.tokens} if self._request.token_ids else {}
        if span.ending is None:
            return {"finish_reason": None} | ids
        stop = span.ending.stop
        reason = "length" if stop == "length" else "stop"
        by_text = stop if stop not in ("length", "eos") else None
        return {"finish_reason": reason, "stop_reason": by_text} | ids

    def _about_prompt(self, index: int) -> dict:
        """Of the prompt of a choice."""
        number, count, about = index // self._request.num_choices, self._request.prompt_logprobs, {}
        if self._request.token_ids:
            about["prompt_token_ids"] = list(self._request.prompts[number].tokens)
        if count is not None:
            about["prompt_logprobs"] = [
                None if logprob is None else self._by_id(token, logprob, top, count)
                for token, logprob, top in self._prompts[number].each()
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
        if self._request.logprobs is None:
            return None

        def entry(token: int, logprob: float) -> dict:
            name = self._texts.name(token)
            known = name == self._texts.own(token)
            return {
                "token": name,
                "logprob": _number(logprob),
                "bytes": list(name.encode()) if known else None,
            }

        content = [
            entry(token, logprob)
            | {"top_logprobs": [entry(*pair) for pair in _likeliest(top, self._request.logprobs)]}
            for token, logprob, top in span.each()
        ]
        return {"content": content, "refusal": None}

    def _plain_logprobs(self, spans: Sequence[Span]) -> dict | None:
        count = self._request.logprobs
        if count is None:
            return None
        names, logprobs, tops, offsets = [], [], [], []
        for span in spans:
            names += map(self._texts.name, span.tokens)
            logprobs += [None if value is None else _number(value) for value in span.logprobs]
            offsets += span.offsets
            for token, logprob, top in span.each():
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


def _likeliest(top: Top, count: int) -> list[tuple[int, float]]:
    ids, values = top
    return [
        (int(token), float(value)) for token, value in zip(ids[:count], values[:count], strict=True)
    ]


def _number(logprob: float) -> float:
    if math.isnan(logprob):
        raise ApiError("the model gave a log-probability that is not a number", status=500)
    return max(float(logprob), LOWEST)
