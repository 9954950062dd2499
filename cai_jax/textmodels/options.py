"""What a server's answer says of the options of a question: log-probabilities in three tiers.

scored   log P of the option's own tokens, as the local engine computes it.
top      the option's mass among the likeliest tokens where the answer decides. After " (" the next
         token does; `outside` is the mass of all that is no option.
counted  how many of k samples chose it. Counts c of n parsed samples become (c + ½) / (n + C/2) for
         C options (Jeffreys' prior), so that no log-probability is infinite.

An answer chooses an option where it begins with it: "(A)", "A)", "A." or "A" alone, after the lead
if it repeats that. One that names several options, or none, is not parsed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from cai_jax.structs import UNPARSABLE
from cai_jax.textmodels.protocol import COUNTED, TOP, Choice, Question

AFTER_LETTER = ").:,"


class Unusable(ValueError):
    """A response that is not what was asked for; asked again, the server may do better."""


# Reading ------------------------------------------------------------------------------------------


def likeliest(choice: Mapping) -> list:
    """[[token, [[token, log-probability], …]], …]: what was generated, position by position, with
    the likeliest tokens there. Unusable where a number is missing."""
    logprobs = choice.get("logprobs")
    logprobs = logprobs if isinstance(logprobs, Mapping) else {}
    content, tops = logprobs.get("content"), logprobs.get("top_logprobs")
    if isinstance(content, list):  # of a chat
        positions = [
            (_get(at, "token"), [(_get(top, "token"), _get(top, "logprob")) for top in tops_of])
            for at in content
            if isinstance(tops_of := _get(at, "top_logprobs"), list)
        ]
    elif isinstance(tops, list) and isinstance(logprobs.get("tokens"), list):
        positions = [
            (token, list(top.items()))
            for token, top in zip(logprobs["tokens"], tops, strict=False)
            if isinstance(top, Mapping)
        ]
    else:
        positions = []
    if not positions:
        raise Unusable("no log-probabilities of the likeliest tokens")
    return [
        [_text(token), [[_text(other), _number(logprob)] for other, logprob in tops]]
        for token, tops in positions
    ]


def scored(response: Mapping, option: str) -> float:
    """log P of the tokens that write `option` at the end of the prompt. Unusable where one is
    missing."""
    tokens = _prompt_tokens(response, option)
    total, text = 0.0, ""
    # From the end: a token may begin before the option.
    for token, logprob in reversed(tokens):
        if len(text) >= len(option):
            break
        text, total = token + text, total + _number(logprob)
    if not text.endswith(option):
        raise Unusable("log-probabilities of other tokens than the option's")
    return total


def _prompt_tokens(response: Mapping, option: str) -> list[tuple[str, object]]:
    """(text, log-probability) of the prompt's tokens, which end with the option's."""
    choice = response["choices"][0]
    # vLLM: a mapping for every token of the prompt, in which the token itself comes first.
    given = response.get("prompt_logprobs", choice.get("prompt_logprobs"))
    if isinstance(given, list):
        firsts = [next(iter(at.values()), None) for at in given if isinstance(at, Mapping)]
        return [(_text(_get(at, "decoded_token")), _get(at, "logprob")) for at in firsts]
    # echo: the prompt's tokens, then the one that was generated, if any was. Offsets do not tell
    # them apart: they count the text of a BOS token that the server has put before the prompt.
    logprobs = choice.get("logprobs")
    logprobs = logprobs if isinstance(logprobs, Mapping) else {}
    fields = [logprobs.get(name) for name in ("tokens", "token_logprobs")]
    if not all(isinstance(field, list) and len(field) == len(fields[0]) for field in fields):
        raise Unusable("no log-probabilities of the prompt")
    tokens = [(_text(token), logprob) for token, logprob in zip(*fields, strict=True)]
    but_last = "".join(text for text, _ in tokens[:-1])
    return tokens[:-1] if but_last.endswith(option) else tokens


def _get(value, name: str):
    return value.get(name) if isinstance(value, Mapping) else None


def _text(value) -> str:
    if not isinstance(value, str):
        raise Unusable("a token without text")
    return value.encode("utf-8", "replace").decode()


def _number(value) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        number = math.nan
    if not math.isfinite(number) or number > 1e-3:
        raise Unusable("a log-probability is missing or none")
    return number


# Choosing -----------------------------------------------------------------------------------------


def chosen(text: str, options: Sequence[str], lead: str = "") -> int | None:
    """The index of the option that an answer chooses, None where it chooses none or several."""
    text = text.strip(" \n*").removeprefix(lead).strip(" \n*")
    texts = [option.strip() for option in options]
    letters = [shown.strip("()") for shown in texts]
    named = {index for index, shown in enumerate(texts) if shown in text}
    begun = {
        index
        for index, (shown, letter) in enumerate(zip(texts, letters, strict=True))
        if text.startswith(shown) or re.match(rf"{re.escape(letter)}([{AFTER_LETTER}]|$)", text)
    }
    return begun.pop() if len(begun) == 1 and not named - begun else None


def top(question: Question, positions: Sequence, about: Mapping) -> Choice:
    """The choice by the likeliest tokens of the answer's first positions (see `likeliest`): along
    what was generated, the mass of every token that decides for one option is that option's."""
    mass, least = [0.0] * len(question.options), 1.0
    before, path = "", 0.0  # what was generated so far, and its log-probability
    for token, tops in positions:
        for other, logprob in tops:
            indices = _consistent(before + other, question.options)
            if len(indices) == 1:
                mass[indices[0]] += math.exp(path + logprob)
            least = min(least, math.exp(path + logprob))
        still_open = len(_consistent(before + token, question.options)) > 1
        logprob = dict(map(tuple, tops)).get(token)
        if not still_open or logprob is None:
            break
        before, path = before + token, path + logprob
    outside = max(0.0, 1.0 - sum(mass))
    if not any(mass):
        return Choice(question.id, (), UNPARSABLE, outside=outside, **about)
    # An option that is not among the likeliest has at most the mass of the least likely of them.
    bound = max(min(least, outside), 1e-30)
    logprobs = tuple(math.log(value or bound) for value in mass)
    return Choice(question.id, logprobs, TOP, outside=outside, **about)


def _consistent(text: str, options: Sequence[str]) -> list[int]:
    """The options that an answer which begins so may still choose."""
    text = text.lstrip()
    indices = []
    for index, option in enumerate(options):
        shown = option.strip()
        letter = shown.strip("()")
        bare = text == letter or (text.startswith(letter) and text[len(letter)] in AFTER_LETTER)
        if shown.startswith(text) or text.startswith(shown) or bare:
            indices.append(index)
    return indices


def counted(question: Question, counts: Sequence[int], num_samples: int, about: Mapping) -> Choice:
    """The choice by counts.

    Args:
      question: what was asked.
      counts: how many samples chose each option.
      num_samples: how many there were.
      about: further fields of the choice.

    Returns:
      The choice.
    """
    n, prior = sum(counts), 0.5 * len(counts)
    fields = {"counts": tuple(counts), "num_samples": num_samples, **about}
    if n == 0:
        return Choice(question.id, (), UNPARSABLE, **fields)
    logprobs = tuple(math.log((count + 0.5) / (n + prior)) for count in counts)
    return Choice(question.id, logprobs, COUNTED, **fields)
