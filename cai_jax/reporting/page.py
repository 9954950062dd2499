"""The report as one self-contained HTML file: no request leaves it, and nothing that a model wrote
acts in it."""

from __future__ import annotations

import base64
import hashlib
import pathlib
from collections.abc import Sequence

from cai_jax.reporting import cards, elements, opening, sections
from cai_jax.reporting.run_data import Run
from cai_jax.reporting.text import escape

HERE = pathlib.Path(__file__).parent
TITLES = {
    "differences": "Differences",
    "results": "Results",
    "judges": "Judges",
    "transparency": "Constitution",
    "training": "Training",
    "labels": "Labels",
    "transcripts": "Records",
    "numbers": "Numbers",
    "cost": "Cost",
    "provenance": "Provenance",
}


def render(runs: Sequence[Run]) -> str:
    """The page for one run or several side by side."""
    css, script = ((HERE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
        f"'sha256-{digest}'"
    )
    body = {
        name: build(runs)
        for name, build in (
            ("differences", sections.differences),
            ("results", sections.results),
            ("judges", sections.judges),
            ("transparency", sections.transparency),
            ("training", sections.training),
            ("labels", sections.labels),
            ("transcripts", transcripts),
            ("numbers", sections.every_number),
            ("cost", sections.cost),
            ("provenance", sections.provenance),
        )
    }
    links = "".join(
        f'<li><a href="#{name}">{TITLES[name]}</a></li>' for name, html in body.items() if html
    )
    title = escape(" and ".join(run.name for run in runs))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f'<title>{title}: Constitutional AI report</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{css}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the report</a>\n'
        f'<div class="wrap">{opening.masthead(runs)}</div>\n'
        f'<nav aria-label="Sections"><div class="wrap"><ul>{links}</ul></div></nav>\n'
        '<main id="main" '
        f'class="wrap">\n{opening.first_screen(runs)}\n{chr(10).join(html for html in body.values() if html)}\n'
        "<footer>Written by cai_jax from the files of the run; nothing on this page was loaded "
        "from elsewhere. Intervals are "
        "95 %. Some of the text is offensive: the prompts are meant to provoke "
        "it.</footer>\n</main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def transcripts(runs: Sequence[Run]) -> str:
    """The browsable records: controls, an empty list that the script fills, and the data."""
    data, encoding, count = cards.pack(runs)
    if not count["total"]:
        return ""
    cut = (
        ""
        if count["shown"] == count["total"]
        else f" The first {count['shown']:,} of {count['total']:,} prompts are here."
    )
    about = (
        "Each prompt with everything the run made of it. On the right stands how the "
        "preference model's score changed: last "
        "revision against initial response, or last model against first. Texts beyond "
        f"{count['limit']:,} characters are cut here and whole in the run's records.jsonl "
        f"files.{cut}"
    )
    kinds = {
        "rev": "Critiques and revisions",
        "ans": "Answers of the models",
        "cmp": "Comparisons and labels",
        "res": "Responses not revised",
        "roll": "RL rollouts",
    }
    controls = (
        _select("show", "Show", {"": "Everything", **kinds})
        + _select("kind", "Kind of harm", {"": "All"})
        + _select("principle", "Principle", {"": "All"})
        + _select(
            "change", "Score", {"": "Any", "up": "Rose", "down": "Fell", "same": "Did not move"}
        )
        + _select(
            "sort",
            "Order",
            {"": "As in the run", "up": "Largest rise first", "down": "Largest fall first"},
        )
        + (
            '<label>Search<input id="f-text" type="search" autocomplete="off" '
            'spellcheck="false"></label>'
        )
    )
    browser = (
        "<noscript><p>The records are shown by a script in this file. Without scripts, read "
        "the records.jsonl files of the run."
        '</p></noscript><div id="browser" hidden><form class="filters" '
        f'role="search">{controls}</form>'
        '<p class="count" id="count" role="status" aria-live="polite"></p><div id="cards"></div>'
        '<div class="pager"><button type="button" id="previous">Previous</button><span '
        'id="where"></span>'
        '<button type="button" id="next">Next</button></div></div>'
        '<script type="application/json" id="records-data" '
        f'data-encoding="{encoding}">{data}</script>'
    )
    return elements.section("transcripts", "The records", about, browser)


def _select(name: str, label: str, options: dict[str, str]) -> str:
    choices = "".join(
        f'<option value="{escape(value)}">{escape(text)}</option>'
        for value, text in options.items()
    )
    return f'<label>{label}<select id="f-{name}">{choices}</select></label>'
