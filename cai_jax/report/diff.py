"""What a revision changed, by words. The browser gets counts only and cuts the two texts it already
has."""

from __future__ import annotations

import difflib
import re

# The same expression as in report.js: a word with the white space before it. Spelled out because
# \s differs there.
TOKEN = re.compile(r"[ \t\n]*[^ \t\n]+|[ \t\n]+$")
MIN_KEPT = 3  # words in a row that make a kept passage between two changes
MAX_TOKENS = 1500  # difflib is quadratic; a longer text is shown as one cut and one addition


def word_diff(before: str, after: str) -> list[int]:
    """Flat [kept, cut, added, kept, cut, added, …] counts of tokens; kept and cut run through
    `before`, kept and added through `after`."""
    a, b = TOKEN.findall(before), TOKEN.findall(after)
    blocks = [(len(a), len(b), 0)]
    if max(len(a), len(b)) <= MAX_TOKENS:
        blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    triples, i, j = [[0, 0, 0]], 0, 0
    for x, y, size in blocks:
        at_an_end = (x, y) == (0, 0) or (x + size, y + size) == (len(a), len(b))
        if size < MIN_KEPT and not at_an_end:
            # A lone common word in a rewritten passage means nothing and breaks the reading.
            continue
        if x > i or y > j:
            triples[-1][1:] = [x - i, y - j]
            triples.append([0, 0, 0])
        triples[-1][0] += size
        i, j = x + size, y + size
    return [count for triple in triples if any(triple) for count in triple]
