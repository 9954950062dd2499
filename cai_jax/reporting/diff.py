"""What a revision changed, by words. The browser gets counts only and cuts the two texts it already
has."""

from __future__ import annotations

import difflib
import re

# The same expression stands in report.js: a word with the white space before it. Spelled out
# because \s differs there.
TOKEN = re.compile(r"[ \t\n]*[^ \t\n]+|[ \t\n]+$")
MIN_KEPT = 3  # words in a row that make a kept passage between two changes
MAX_TOKENS = (
    1500  # difflib is quadratic; a longer changed middle is shown as one cut and one addition
)


def tokens(text: str) -> list[str]:
    return TOKEN.findall(text)


def word_diff(before: str, after: str) -> list[int]:
    """Flat [kept, cut, added, kept, cut, added, …] counts of tokens; kept and cut run through
    `before`, kept and added through `after`."""
    a, b = tokens(before), tokens(after)
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


def segments(before: str, after: str) -> list[tuple[str, str]]:
    """("=" kept, "-" cut, "+" added) with their text, for renderers without the browser."""
    a, b, ops = tokens(before), tokens(after), word_diff(before, after)
    out, i, j = [], 0, 0
    for kept, cut, added in zip(ops[0::3], ops[1::3], ops[2::3], strict=True):
        out += [
            ("=", "".join(b[j : j + kept])),
            ("-", "".join(a[i + kept : i + kept + cut])),
            ("+", "".join(b[j + kept : j + kept + added])),
        ]
        i, j = i + kept + cut, j + kept + added
    return [(kind, text) for kind, text in out if text]


def share_changed(before: str, after: str) -> float:
    """0 for equal texts, 1 where no word is kept."""
    ops = word_diff(before, after)
    touched = sum(ops[1::3]) + sum(ops[2::3])
    return touched / max(1, touched + 2 * sum(ops[0::3]))
