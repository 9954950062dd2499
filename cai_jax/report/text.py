"""Texts and numbers for a page: names in print, numbers with their signs, and characters of models
and users that may not act as markup or layout."""

from __future__ import annotations

import contextlib
import contextvars
import json
import re

from cai_jax.configuration.topic import Words

# Characters that reorder, hide or break their neighbours, shown by their code point instead. The
# joiners U+200C and U+200D are kept: emoji and several scripts need them.
_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!~$])")

# Names in print of the models of the usual graphs; others keep the name that the config gives them.
MODEL_NAMES = {
    "initial": "Initial",
    "sl": "SL-CAI",
    "rl": "RL-CAI",
    "pretrained": "Pretrained",
    "rlhf": "RLHF",
}
# Sets of prompts in print; others by their name. The set "red_team" is named by the run's topic.
SETS = {
    "helpful": "helpful prompts",
    "xstest:safe": "safe prompts that look harmful",
    "T=0": "temperature 0",
    "T=1": "temperature 1",
}
ITEM_SETS = {"hhh": "HHH", "438HHHEvaluations": "438 HHH", "comparisons": "human pairs"}

# ---- Names ---------------------------------------------------------------------------------------

# How the page that is being written names the run's topic: with several runs, by the first one's.
_WORDS: contextvars.ContextVar[Words | None] = contextvars.ContextVar("words", default=None)


@contextlib.contextmanager
def speaking(words: Words):
    """Within the block, sets of prompts and qualities are named by `words`."""
    token = _WORDS.set(words)
    try:
        yield
    finally:
        _WORDS.reset(token)


def words() -> Words:
    return _WORDS.get() or Words()


def model_name(name: str) -> str:
    """In print: `@pm` of a config is the model of the stage pm."""
    return MODEL_NAMES.get(name, name.removeprefix("@"))


def set_name(on: str) -> str:
    """The name of a set of prompts, or of a set of questions and its subset."""
    name, _, subset = on.partition(":")
    if name in ITEM_SETS:
        return ITEM_SETS[name] + (f", {subset}" if subset else "")
    if on == "red_team":
        return f"{words().name} prompts"
    if name in ("revisions", "labels", "human"):
        return on.replace("_", " ").replace(":", ", ")
    return SETS.get(on, on.replace("_", " ").replace(":", ", ") + " prompts")


def headed(text: str) -> str:
    return text[:1].upper() + text[1:]


# ---- Texts ---------------------------------------------------------------------------------------


def visible(text: str) -> str:
    """`text` with control, bidi and zero-width characters written as ⟨U+202E⟩, lone surrogates as
    �."""
    text = _SURROGATE.sub("�", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text)


def plain(value) -> str:
    """Text on one line in which no character means anything to Markdown or HTML."""
    flat = " ".join(visible(str(value)).split())
    escaped = _MARKDOWN.sub(r"\\\1", flat)
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;")


def quoted(text: str, limit: int = 1500) -> str:
    """A text of a model as an indented code block: Markdown interprets nothing inside it."""
    shown = clip(visible(text), limit) or "(empty)"
    return "\n".join("    " + line for line in shown.split("\n"))


def clip(text: str, limit: int) -> str:
    """At most `limit` characters and a note of how many are left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit].rstrip()} … [{len(text) - limit:,} more characters]"


def one_line(text: str, limit: int = 120) -> str:
    flat = " ".join(visible(text[: 4 * limit]).split())
    fits = len(flat) <= limit and len(text) <= 4 * limit
    return flat if fits else flat[: limit - 1].rstrip() + "…"


def script_json(value) -> str:
    """JSON for a `<script type="application/json">`: no "<", ">" or "&" in it, so no "</script>"
    and no comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# ---- Numbers -------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 2, sign: bool = False, percent: bool = False) -> str:
    """A number with a true minus; "–" where there is none.

    Args:
        value: None and NaN are none.
        digits: after the point, before it becomes per cent.
        sign: whether a plus is shown.
        percent: whether the value is a share.

    Returns:
        The number in print.
    """
    if value is None or value != value:
        return "–"
    plus = "+" if sign else ""
    shown = f"{value:{plus},.{digits}f}"
    if percent:
        shown = f"{100 * value:{plus}.{max(0, digits - 2)}f}\u202f%"
    if not any(c in "123456789" for c in shown):
        shown = shown.lstrip("-+")  # no sign on what rounds to zero
    return shown.replace("-", "−")


def interval(row: dict, sign: bool = True, percent: bool = False, digits: int = 2) -> str:
    """A row's value with its interval.

    Args:
        row: of metrics.json.
        sign, percent, digits: see `number`.

    Returns:
        "value [low, high]", or the number of items where there is no interval.
    """
    value, low, high = (
        number(row.get(key), digits, sign=sign, percent=percent) for key in ("value", "low", "high")
    )
    if row.get("low") is None:
        return f"{value} (no interval: {row['n']} item{'s' * (row['n'] != 1)})"
    return f"{value} [{low}, {high}]"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def quantity(count: float | None) -> str:
    """1,234 · 12.3 k · 4.56 M."""
    if count is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            scaled = count / (1e3 if unit == "k" else size)
            return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:,.0f} {unit}"
    return f"{count:,.0f}"


def gigabytes(count: float | None) -> str:
    return "–" if not count else f"{count / 2**30:.1f} GiB"
