"""Questions to score, laid out for one forward pass: a question's options side by side after its
prompt, and several questions side by side in one sequence. Pure host arithmetic.

A packed sequence is a tree of texts in depth-first order: a token sees those tokens before it whose
branch it is on, which are those whose `ends` come after it. So what questions begin with in common,
and what options do, is there only once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

PACK = 512  # tokens of a sequence of several questions, where all of it is multiplied
BLOCKWISE = 2048  # the same where it is read in blocks, as far as it is filled (packed_reader.py)
# tokens that two questions must have in common, beyond what all have, to be kept together
WORTH = 16

Tokens = Sequence[int]
Question = tuple[Tokens, Sequence[Tokens]]  # prompt and options


@dataclasses.dataclass
class Packed:
    """A packed sequence.

    Attributes:
      tokens: of the texts.
      ends: for each token where its branch stops: from there on no token sees it.
      offsets: for each token its position in its own text.
      indices, targets: for each token to score, the index of the token before it, and the token.
      scored: of each question's options, for each of their tokens, the index into `targets`.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    indices: list[int] = dataclasses.field(default_factory=list)
    targets: list[int] = dataclasses.field(default_factory=list)
    scored: list[list[list[int]]] = dataclasses.field(default_factory=list)

    def padded(self, size: int, num_targets: int) -> list[np.ndarray]:
        """tokens, ends, offsets int32 [1, size]; indices, targets int32 [1, num_targets]. Padding
        sees, of the sequence, only itself."""
        return [
            padded(self.tokens, size),
            padded(self.ends, size, size),
            padded(self.offsets, size),
            padded(self.indices, num_targets),
            padded(self.targets, num_targets),
        ]


def padded(values: Sequence[int], size: int, fill: int = 0) -> np.ndarray:
    out = np.full((1, size), fill, np.int32)
    out[0, : len(values)] = values
    return out


def single(prompt: Tokens, options: Sequence[Tokens] = ()) -> Packed:
    """The end of a prompt and, of each option, all but its last token, none of them shared."""
    total = len(prompt) + fed(options)
    packed = Packed(list(prompt), [total] * len(prompt), list(range(len(prompt))), scored=[[]])
    for option in options:
        start, count = len(packed.tokens), len(option[:-1])
        targets = range(len(packed.targets), len(packed.targets) + len(option))
        packed.scored[0].append(list(targets))
        packed.indices += [len(prompt) - 1, *range(start, start + count)][: len(option)]
        packed.targets += option
        packed.tokens += option[:-1]
        packed.ends += [start + count] * count
        packed.offsets += range(len(prompt), len(prompt) + count)
    return packed


def several(questions: Sequence[Question]) -> Packed:
    """The tree of the questions' prompts and of all but the last token of each of their options."""
    packed = Packed(scored=[[[] for _ in options] for _, options in questions])
    # In sorted order every text begins with as much of the last one as it shares with any before.
    texts = sorted(
        (*prompt, *option[:-1], -1, number, index)
        for number, (prompt, options) in enumerate(questions)
        for index, option in enumerate(options)
    )
    path: list[int] = []  # indices of the last text's tokens
    last: Tokens = ()
    scored: dict[tuple[int, int], int] = {}
    for *text, _, number, index in texts:
        common = shared(last, text)
        # The branch that is left ends here.
        for left in path[common:]:
            packed.ends[left] = len(packed.tokens)
        del path[common:]
        for token in text[common:]:
            packed.offsets.append(len(path))
            path.append(len(packed.tokens))
            packed.tokens.append(token)
            packed.ends.append(0)
        prompt, options = questions[number]
        # Of an empty option nothing is asked.
        asked = zip(path[len(prompt) - 1 :], options[index], strict=False)
        packed.scored[number][index] = [scored.setdefault(pair, len(scored)) for pair in asked]
        last = text
    for left in path:
        packed.ends[left] = len(packed.tokens)
    packed.indices, packed.targets = ([pair[side] for pair in scored] for side in (0, 1))
    return packed


def shared(first: Tokens, second: Tokens) -> int:
    """With how many tokens both begin."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
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
        able = [group for group, left in enumerate(room) if left >= lengths[index]]
        group = min(able, key=lambda group: room[group], default=len(groups))
        if group == len(groups):
            groups.append([])
            room.append(size)
        groups[group].append(index)
        room[group] -= lengths[index]
    return groups


def together(questions: Iterable[Question], size: int) -> list[list[int]]:
    """Indices of questions, every group of them a sequence of at most `size` tokens; what is longer
    is left out. Questions that begin alike are kept together. It depends on the questions and their
    order alone."""
    questions = list(questions)
    lengths = [len(several([question]).tokens) for question in questions]
    order = sorted(
        (index for index, length in enumerate(lengths) if length <= size),
        key=lambda i: (tuple(questions[i][0]), i),
    )
    if not order:
        return []
    prompts = [questions[index][0] for index in order]
    common = shared(prompts[0], prompts[-1])  # by all of them: once a sequence
    runs, sizes = [[order[0]]], [lengths[order[0]] - common]
    for before, prompt, index in zip(prompts, prompts[1:], order[1:], strict=False):
        alike = shared(before, prompt)
        if alike - common >= WORTH and sizes[-1] + lengths[index] - alike <= size - common:
            runs[-1].append(index)
            sizes[-1] += lengths[index] - alike
        else:
            runs.append([index])
            sizes.append(lengths[index] - common)
    return [[index for run in group for index in runs[run]] for group in pack(sizes, size - common)]
