"""Questions to score, laid out for one forward pass: a question's options side by side after its
prompt, and several questions side by side in one row. Pure host arithmetic.

A row is a tree of texts in depth-first order: a token sees those tokens before it whose branch it
stands on, which are those whose `ends` lie behind it. So what questions begin with together, and
what options do, need stand there only once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

PACK = 512  # tokens of a row of several questions, where all of a row is multiplied
ROW = 2048  # the same where a row is read in blocks, as far as it is filled (row_reader.py)
# tokens that two questions must have in common, beyond what all have, for being kept together
WORTH = 16

Tokens = Sequence[int]
Question = tuple[Tokens, Sequence[Tokens]]  # prompt and options


@dataclasses.dataclass
class Row:
    """tokens, ends, offsets: one a token; its end is where the part of the row stops that sees it,
    its offset counts from where its own text begins. places and targets: one a token to score, the
    place being that of the token before it. found: of each question's options, for each of their
    tokens, the index into `targets`."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    places: list[int] = dataclasses.field(default_factory=list)
    targets: list[int] = dataclasses.field(default_factory=list)
    found: list[list[list[int]]] = dataclasses.field(default_factory=list)

    def padded(self, size: int, num_targets: int) -> list[np.ndarray]:
        """tokens, ends, offsets int32 [1, size]; places, targets int32 [1, num_targets]. Padding
        sees, of the row, only itself."""
        return [
            padded(self.tokens, size),
            padded(self.ends, size, size),
            padded(self.offsets, size),
            padded(self.places, num_targets),
            padded(self.targets, num_targets),
        ]


def padded(values: Sequence[int], size: int, fill: int = 0) -> np.ndarray:
    out = np.full((1, size), fill, np.int32)
    out[0, : len(values)] = values
    return out


def single(prompt: Tokens, options: Sequence[Tokens] = ()) -> Row:
    """The end of a prompt and, of each option, all but its last token, none of them shared."""
    total = len(prompt) + fed(options)
    row = Row(list(prompt), [total] * len(prompt), list(range(len(prompt))), found=[[]])
    for option in options:
        start, count = len(row.tokens), len(option[:-1])
        row.found[0].append(list(range(len(row.targets), len(row.targets) + len(option))))
        row.places += [len(prompt) - 1, *range(start, start + count)][: len(option)]
        row.targets += option
        row.tokens += option[:-1]
        row.ends += [start + count] * count
        row.offsets += range(len(prompt), len(prompt) + count)
    return row


def several(questions: Sequence[Question]) -> Row:
    """The tree of the questions' prompts and of all but the last token of each of their options."""
    row = Row(found=[[[] for _ in options] for _, options in questions])
    texts = sorted(
        (*prompt, *option[:-1], -1, number, index)
        for number, (prompt, options) in enumerate(questions)
        for index, option in enumerate(options)
    )
    path: list[int] = []  # the places of the last text's tokens
    last: Tokens = ()
    scored: dict[tuple[int, int], int] = {}
    for *text, _, number, index in texts:
        common = shared(last, text)
        for place in path[common:]:
            row.ends[place] = len(row.tokens)
        del path[common:]
        for token in text[common:]:
            row.offsets.append(len(path))
            path.append(len(row.tokens))
            row.tokens.append(token)
            row.ends.append(0)
        prompt, options = questions[number]
        asked = zip(
            path[len(prompt) - 1 :], options[index], strict=False
        )  # of an empty option nothing is asked
        row.found[number][index] = [scored.setdefault(pair, len(scored)) for pair in asked]
        last = text
    for place in path:
        row.ends[place] = len(row.tokens)
    row.places, row.targets = (
        (list(part) for part in zip(*scored, strict=True)) if scored else ([], [])
    )
    return row


def shared(one: Tokens, other: Tokens) -> int:
    """With how many tokens both begin."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def fed(options: Sequence[Tokens]) -> int:
    """How many tokens of the options are read where none is shared: all but each one's last."""
    return sum(max(len(option) - 1, 0) for option in options)


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of lengths, every group of them at most `size` together: the longest first, each into
    the fullest group that has room (best fit, decreasing). It depends on the lengths and their
    order alone."""
    groups, room = [], []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        places = [place for place, left in enumerate(room) if left >= lengths[index]]
        place = min(places, key=lambda place: room[place], default=len(groups))
        if place == len(groups):
            groups.append([])
            room.append(size)
        groups[place].append(index)
        room[place] -= lengths[index]
    return groups


def together(questions: Sequence[Question], size: int) -> list[list[int]]:
    """Indices of questions, every group of them a row of at most `size` tokens; what is longer is
    left out. Questions that begin alike are kept together. It depends on the questions and their
    order alone."""
    lengths = [len(several([question]).tokens) for question in questions]
    order = sorted(
        (index for index, length in enumerate(lengths) if length <= size),
        key=lambda i: (tuple(questions[i][0]), i),
    )
    if not order:
        return []
    prompts = [questions[index][0] for index in order]
    common = shared(prompts[0], prompts[-1])  # by all of them: once a row
    parts, sizes = [[order[0]]], [lengths[order[0]] - common]
    for before, prompt, index in zip(prompts, prompts[1:], order[1:], strict=False):
        alike = shared(before, prompt)
        if alike - common >= WORTH and sizes[-1] + lengths[index] - alike <= size - common:
            parts[-1].append(index)
            sizes[-1] += lengths[index] - alike
        else:
            parts.append([index])
            sizes.append(lengths[index] - common)
    return [
        [index for part in group for index in parts[part]] for group in pack(sizes, size - common)
    ]
