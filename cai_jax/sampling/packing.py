"""Questions to score, laid out for one forward pass: a question's options side by side after its prompt, and several short
questions side by side in one row. Pure host arithmetic.

A token sees what comes before it in its own question: the prompt, and of the options its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

PACK = 512  # tokens of a row of several questions
OPTIONS = 4096  # more than a question has; a token's segment is OPTIONS · question + option, the option of a prompt being 0


@dataclasses.dataclass
class Row:
    """tokens, segments, offsets: one a token, offsets counting from where the token's own text begins in the row; places and
    targets: one a token to score, the place being that of the token before it."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    segments: list[int] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    places: list[int] = dataclasses.field(default_factory=list)
    targets: list[int] = dataclasses.field(default_factory=list)

    def add(self, prompt: Sequence[int], options: Sequence[Sequence[int]], question: int = 0) -> None:
        """Appends the end of a prompt and, of each option, all but its last token."""
        self.tokens += prompt
        self.segments += [OPTIONS * question] * len(prompt)
        self.offsets += range(len(prompt))
        end = len(self.tokens) - 1
        for number, option in enumerate(options, 1):
            self.places += [end, *range(len(self.tokens), len(self.tokens) + len(option) - 1)][: len(option)]
            self.targets += option
            self.tokens += option[:-1]
            self.segments += [OPTIONS * question + number] * len(option[:-1])
            self.offsets += range(len(prompt), len(prompt) + len(option[:-1]))


def fed(options: Sequence[Sequence[int]]) -> int:
    """How many tokens of the options are read: all but each one's last."""
    return sum(max(len(option) - 1, 0) for option in options)


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices of lengths, every group of them at most `size` together: the longest first, each into the fullest group that has
    room (best fit, decreasing). It depends on the lengths and their order alone."""
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
