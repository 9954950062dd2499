"""Hostile text stays text; numbers read well; the word diff rebuilds both sides."""

import html.parser
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_jax.report import diff, render, text

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)",
    "<!-- <script>",
    "]]>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    "\u202egnp.exe\u202c",
    "\u2066x\u2069",
    "\ud800 lone",
    "a\x00b\x1b[31m",
    "x" * 1_000_000,
    "{{7*7}}",
    "javascript:alert(1)",
]


class Collector(html.parser.HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.data = [], {}, ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.update(attrs)

    def handle_data(self, data):
        self.data += data


@pytest.mark.parametrize("value", HOSTILE)
def test_escaped_text_is_only_text(value):
    parser = Collector()
    template = '<p title="{{ value }}">{{ value }}</p>'
    parser.feed(render.environment("html").from_string(template).render(value=value))
    parser.close()
    assert parser.tags == ["p"] and list(parser.attributes) == ["title"]
    assert parser.data == parser.attributes["title"] == text.visible(value)
    parser.data.encode()  # no lone surrogate


@pytest.mark.parametrize("value", HOSTILE)
def test_markdown_is_escaped_by_the_templates(value):
    template = render.environment("md").from_string("{{ value }} {{ value | quoted }}")
    shown, _, block = template.render(value=value).partition("     ")
    assert shown == text.plain(value) and "\n" not in shown
    assert not re.search(r"(?<!\\)[<>`*\[\]|]", shown), "nothing means anything to Markdown"
    assert all(line.startswith("    ") for line in f"     {block}".split("\n"))


@pytest.mark.parametrize("value", HOSTILE)
def test_json_in_a_script_element(value):
    encoded = text.script_json({"t": text.visible(value)})
    assert not set("<>&") & set(encoded)
    assert json.loads(encoded)["t"] == text.visible(value)


def test_bidi_and_controls_are_shown():
    assert text.visible("a\u202eb\u2069c\u200f") == "a⟨U+202E⟩b⟨U+2069⟩c⟨U+200F⟩"
    assert text.visible("tab\tline\nnext\r\nend") == "tab\tline\nnext\nend"
    ordinary = (
        "\U0001f469\u200d\U0001f467 naïve "
        "שלום"
    )  # joiners and right-to-left letters are ordinary text
    assert text.visible(ordinary) == ordinary


def test_clip_and_one_line():
    assert text.clip("abc", 3) == "abc" and text.clip("abcdef", 3) == "abc … [3 more characters]"
    assert text.one_line("a\n\n b  c") == "a b c" and len(text.one_line("word " * 99_999)) <= 120


def test_numbers():
    assert (
        text.number(-0.123) == "−0.12"
        and text.number(0.5, sign=True) == "+0.50"
        and text.number(None) == "–"
    )
    assert text.number(-0.001) == "0.00" and text.number(0.614, 3, percent=True) == "61.4\u202f%"
    assert [text.duration(s) for s in (3.21, 42, 305, 900, 3_900)] == [
        "3.2 s",
        "42 s",
        "5 min 05 s",
        "15 min",
        "1 h 05 min",
    ]
    assert [text.quantity(n) for n in (12, 1_234, 12_345, 4_560_000, 2e9)] == [
        "12",
        "1,234",
        "12.3 k",
        "4.56 M",
        "2 G",
    ]


def segments(before, after):
    """("=" kept, "-" cut, "+" added) with their text, as report.js cuts the two texts."""
    a, b, ops = diff.TOKEN.findall(before), diff.TOKEN.findall(after), diff.word_diff(before, after)
    out, i, j = [], 0, 0
    for kept, cut, added in zip(ops[0::3], ops[1::3], ops[2::3], strict=True):
        out += [
            ("=", "".join(b[j : j + kept])),
            ("-", "".join(a[i + kept : i + kept + cut])),
            ("+", "".join(b[j + kept : j + kept + added])),
        ]
        i, j = i + kept + cut, j + kept + added
    return [(kind, text) for kind, text in out if text]


def rebuilt(before, after):
    parts = segments(before, after)
    return (
        "".join(t for kind, t in parts if kind != "+"),
        "".join(t for kind, t in parts if kind != "-"),
    )


@settings(max_examples=200, deadline=None)
@given(st.text("ab \n", max_size=40), st.text("ab \n", max_size=40))
def test_diff_rebuilds_both_texts(before, after):
    assert rebuilt(before, after) == (before, after)
    assert len(diff.word_diff(before, after)) % 3 == 0


def test_diff_by_hand():
    assert diff.word_diff("the quick fox", "the slow fox") == [1, 1, 1, 1, 0, 0]
    assert segments("a b", "a c") == [("=", "a"), ("-", " b"), ("+", " c")]
    assert diff.word_diff("same", "same") == [1, 0, 0]
    island = segments("one two three four five", "six two seven eight nine")
    assert island == [("-", "one two three four five"), ("+", "six two seven eight nine")], (
        "no island of one word"
    )
    assert diff.word_diff("", "new words") == [0, 0, 2]


def test_diff_of_long_texts_is_quick():
    start = time.monotonic()
    diff.word_diff("a b " * 200_000, "c d " * 200_000)
    assert time.monotonic() - start < 5
