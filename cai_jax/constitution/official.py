"""The paper's official files (repository anthropics/ConstitutionalHarmlessnessPaper, prompts/) as
objects of our schema.

They hold running text; it is taken apart into turns at its headings. Only this is stripped: the
headings with the blank around them, the "\\n\\nHuman:" that ends an example and opens the next, the
newline before and the " Options:" after a comparison principle (the question adds them), and white
space around the reasoning of a chain. The chains' examples quote a conversation as "H: …", "A: …"
and the options as " (A) [[[…]]]"; they become the form in which the feedback stage asks ("Human:
…", "Assistant: …", "(A) …"), so that worked examples and the question after them agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cai_jax.errors import UserError, located

HEADINGS = {
    "Human": "human",
    "Assistant": "assistant",
    "CritiqueRequest": "critique_request",
    "Critique": "critique",
    "RevisionRequest": "revision_request",
    "Revision": "revision",
}
_HEADING = re.compile(rf"\n\n({'|'.join(HEADINGS)}):")
_CHAIN = re.compile(
    r"\n*Human: Consider the following conversation between [^:\n]*:(?P<dialogue>\n\nH:.*?)\n\n\{\}"
    r"\n *\(A\) \[\[\[(?P<a>.*?)\]\]\]\n *\(B\) \[\[\[(?P<b>.*?)\]\]\]"
    r"\n\nAssistant: Let's think step by step:(?P<reasoning>.*)"
    r"\n\nHuman:\s*So the answer is: \((?P<answer>[AB])\)\s*",
    re.DOTALL,
)
_QUOTED = re.compile(r"\n\n([HA]):\s*")
_EXAMPLE_ROLES = ["assistant", "critique_request", "critique", "revision_request", "revision"]


def read(directory: Path, read_json: Callable) -> dict[str, tuple[str, list[dict]]]:
    """Key of our schema → (file name, objects). Raises UserError `file: field …` for another
    form."""
    lists = {}
    for key, (file, make) in FILES.items():
        value = read_json(directory / file)
        is_named = isinstance(value, dict)
        if not value or not isinstance(value, dict | list):
            raise UserError(
                f"{directory / file}: expected a list or an object of items, as in the paper's "
                "repository"
            )
        objects = []
        for name, item in value.items() if is_named else enumerate(value):
            try:
                objects.append(make(item) | {"id": name if is_named else f"official{name}"})
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
                where = located(directory / file, field=name)
                raise UserError(f"{where}: not of the official form ({reason})") from error
        lists[key] = file, objects
    return lists


def _split_turns(text: str) -> list[dict]:
    """The turns of a text in the paper's form, under any of HEADINGS; one blank after a heading
    belongs to it."""
    before, *rest = _HEADING.split(text)
    if before:
        raise ValueError("expected a heading such as '\\n\\nHuman:' first")
    return [
        {"role": HEADINGS[heading], "text": words.removeprefix(" ")}
        for heading, words in zip(rest[::2], rest[1::2], strict=True)
    ]


def _critique_principle(item: dict) -> dict:
    [prompt] = item["prompt"]
    asked, answer = _split_turns(prompt)
    edit, revision = _split_turns(item["edit_request"])
    if [turn["role"] for turn in (asked, answer, edit, revision)] != _EXAMPLE_ROLES[1:]:
        raise ValueError("expected CritiqueRequest, Critique, RevisionRequest, Revision")
    if answer["text"] or revision["text"]:
        raise ValueError("expected nothing after 'Critique:' and 'Revision:'")
    return {"critique_request": asked["text"], "revision_request": edit["text"]}


def _comparison_principle(item: str) -> dict:
    return {"text": item.removeprefix("\n").removesuffix(" Options:")}


def _critique_example(item: str) -> dict:
    turns = _split_turns(item.removesuffix("\n\nHuman:"))
    if [turn["role"] for turn in turns[-5:]] != _EXAMPLE_ROLES:
        raise ValueError(
            "expected it to end in Assistant, CritiqueRequest, Critique, RevisionRequest, Revision"
        )
    names = ["response", *_EXAMPLE_ROLES[1:]]
    texts = [turn["text"] for turn in turns[-5:]]
    return {"dialogue": turns[:-5], **dict(zip(names, texts, strict=True))}


def _comparison_example(item: dict) -> dict:
    *dialogue, answer = _split_turns(item["prompt"])
    if answer != {"role": "assistant", "text": ""}:
        raise ValueError("expected a prompt that ends in 'Assistant:'")
    [chosen], [rejected] = item["corrects"], item["incorrects"]
    return {"dialogue": dialogue, "chosen": chosen, "rejected": rejected}


def _chain_example(item: dict) -> dict:
    match = _CHAIN.fullmatch(item["prompt"])
    if match is None:
        raise ValueError(
            "expected Human: Consider …, H: …, {}, (A) [[[…]]], (B) [[[…]]], Assistant: Let's "
            "think step by step:, Human: So the answer is: (A) or (B)"
        )
    _, *turns = _QUOTED.split(match["dialogue"])
    speakers = {"H": "human", "A": "assistant"}
    dialogue = [
        {"role": speakers[letter], "text": words.strip()}
        for letter, words in zip(turns[::2], turns[1::2], strict=True)
    ]
    options = [match["a"], match["b"]]
    rest = {name: match[name] for name in ("reasoning", "answer")}
    return {"dialogue": dialogue, "options": options, **rest}


# key of our schema → (the official file that it is read from, what makes an object of an item)
FILES = {
    "critique_principles": ("CritiqueRevisionInstructions.json", _critique_principle),
    "comparison_principles": ("RLMadisonInstructions.json", _comparison_principle),
    "critique_examples": ("CritiqueRevisionFewShotPrompts.json", _critique_example),
    "comparison_examples": ("RLMadisonFewShotPrompts.json", _comparison_example),
    "chain_examples": ("RLMadisonPrecogFewShotPrompts.json", _chain_example),
}
