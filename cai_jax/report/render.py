"""Templates: HTML and Markdown, in which what is inserted is escaped for the language unless a
template made it, and sentences as plain text."""

from __future__ import annotations

import functools
import importlib.resources

import jinja2
from markupsafe import Markup

from cai_jax.report import text

TEMPLATES = importlib.resources.files("cai_jax.report") / "templates"


@jinja2.pass_context  # Jinja would keep the name of a constant, but it depends on the topic
def _set_name(_, on: str) -> str:
    return text.set_name(on)


FILTERS = {
    "clip": text.clip,
    "headed": text.headed,
    "interval": text.interval,
    "model_name": text.model_name,
    "number": text.number,
    "percent": lambda value, sign=False: text.number(value, sign=sign, percent=True),
    "quantity": text.quantity,
    "set_name": _set_name,
    "visible": text.visible,
    "quoted": lambda value: Markup(text.quoted(str(value))),
}


def _escaped(value):
    """For HTML, where Jinja escapes what is left of it."""
    return value if hasattr(value, "__html__") else text.visible(str(value))


def _plain(value):
    return value if hasattr(value, "__html__") else Markup(text.plain(value))


@functools.cache
def environment(language: str) -> jinja2.Environment:
    """Of "html", "md", or "txt", in which nothing is escaped."""
    finalize = {"html": _escaped, "md": _plain, "txt": None}[language]
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(TEMPLATES)),
        autoescape=language != "txt",
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined if language == "txt" else jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    env.filters |= FILTERS
    return env


def render(name: str, language: str, **values) -> str:
    return environment(language).get_template(name).render(**values)


@functools.cache
def _sentences():
    return environment("txt").get_template("sentences.j2").module


def say(sentence: str, *values) -> str:
    """A sentence of templates/sentences.j2, which a page escapes like any other text."""
    return str(getattr(_sentences(), sentence)(*values)).strip()
