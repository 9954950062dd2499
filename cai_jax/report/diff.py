"""What a revision changed, by words. The browser gets counts only and cuts the two texts it already
has."""

from __future__ import annotations

import difflib
import re

# The same expression as in report.js: a word with the white space before it. Spelled out because
# \s differs there.
TOKEN = re.compile(r"[ \t\n]*[^ \t\n]+|[ \t\n]+$")
MIN_KEPT = 3  # words in a row that make a kept passage between two changes
MAX_TOKENS = (
    1500  # difflib is quadratic; a longer changed middle is shown as one cut and one addition
)


def word_diff(before: str, after: str) -> list[int]:
    """Flat [kept, cut, added, kept, cut, added, …] counts of tokens; kept and cut run through
    `before`, kept and added through `after`."""
    a, b = TOKEN.findall(before), TOKEN.findall(after)
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[len(a) - 1 - end] == b[len(b) - 1 - end]:
        end += 1
    middle_a, middle_b = a[start : len(a) - end], b[start : len(b) - end]
    if max(len(middle_a), len(middle_b)) > MAX_TOKENS:
        blocks = [(0, 0, 0), (len(middle_a), len(middle_b), 0)]
    else:
        blocks = difflib.SequenceMatcher(
            None, middle_a, middle_b, autojunk=False
        ).get_matching_blocks()
    triples, i, j = [[start, 0, 0]], 0, 0
    for x, y, size in blocks:
        if 0 < size < MIN_KEPT:
            # a lone common word inside a rewritten passage says nothing and breaks the reading
            continue
        if x > i or y > j:
            triples[-1][1:] = [x - i, y - j]
            triples.append([0, 0, 0])
        triples[-1][0] += size
        i, j = x + size, y + size
    triples[-1][0] += end
    return [count for triple in triples if any(triple) for count in triple]
