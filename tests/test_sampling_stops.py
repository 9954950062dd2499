"""Where a completion ends."""

from cai_jax.engine.stops import Ending, find_ending

STOPS = ("\n\nHuman:", "\n\nAssistant:")


def decode(tokens):
    return "".join(chr(token) for token in tokens if token != 0)


def end(text, checked=0, limit=99, eos=False, stops=STOPS):
    return find_ending([*map(ord, text)] + [0] * eos, checked, limit, (0,), stops, decode)


def test_goes_on_until_something_ends_it():
    assert end("abc") is None
    assert end("abc\n\nHum") is None
    assert end("abc", limit=3) == Ending(3, "abc", "length")
    assert end("abc", eos=True) == Ending(4, "abc", "eos")
    assert end("abc", eos=True, limit=4) == Ending(4, "abc", "eos")


def test_a_stop_string_ends_where_it_is_complete():
    assert end("abc\n\nHuman: more of it", checked=2) == Ending(11, "abc", "\n\nHuman:")
    assert end("abc\n\nHuman:", checked=9, limit=11) == Ending(11, "abc", "\n\nHuman:")
    assert end("a\n\nAssistant: b\n\nHuman: c", eos=True) == Ending(13, "a", "\n\nAssistant:")


def test_what_comes_first_counts():
    assert end("xaby", stops=("ab", "xaby")) == Ending(3, "x", "ab")
    assert find_ending(
        [5, 6], 0, 9, (0,), ("bc", "abc"), lambda tokens: ["", "ab", "abcd"][len(tokens)]
    ) == Ending(2, "", "abc")
    assert end("", eos=True) == Ending(1, "", "eos")
