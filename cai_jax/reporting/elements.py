"""Pieces of HTML that sections are made of."""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.reporting import svg
from cai_jax.reporting.figure import Forest, Panel
from cai_jax.reporting.text import escape


def section(name: str, title: str, about: str, *parts: str) -> str:
    """A section with its heading; "" where all parts are empty."""
    body = "".join(part for part in parts if part)
    if not body:
        return ""
    lead = f'<p class="about">{about}</p>' if about else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 '
        f'id="{name}-h">{title}</h2>{lead}{body}</section>'
    )


def figure(drawn: Panel | Forest | None, heading: bool = True) -> str:
    if drawn is None:
        return ""
    title = f'<p class="figure-title">{escape(drawn.title)}</p>' if heading else ""
    caption = f"<figcaption>{escape(drawn.caption)}</figcaption>" if drawn.caption else ""
    return f"<figure>{title}{svg.draw(drawn)}{caption}</figure>"


def grid(drawn: Sequence[Panel | Forest | None], wide: bool = False) -> str:
    shown = [figure(one) for one in drawn if one is not None]
    return f'<div class="figures{" wide" if wide else ""}">{"".join(shown)}</div>' if shown else ""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    caption: str = "",
    css: str = "",
) -> str:
    """`head` and cells are HTML already. The first column is the row's heading."""
    if not rows:
        return ""
    align = [' class="num"' if i in numeric else "" for i in range(len(head))]
    top = "".join(f'<th scope="col"{c}>{h}</th>' for h, c in zip(head, align, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{cell}</th>' if i == 0 else f"<td{align[i]}>{cell}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    label = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll {css}" tabindex="0" role="region" '
        f'aria-label="{escape(caption or "table")}"><table>{label}'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def swatch(tone: int) -> str:
    return f'<span class="swatch t{tone % svg.NUM_TONES}" aria-hidden="true"></span>'


def unbroken(text: str) -> str:
    """No line ends at the hyphen of a model's name. `text` is HTML already."""
    for name in ("SL-CAI", "RL-CAI"):
        text = text.replace(name, f'<span class="nb">{name}</span>')
    return text


def fold(title: str, body: str) -> str:
    """`body` behind a summary; "" where there is nothing."""
    return (
        f'<details class="fold"><summary>{escape(title)}</summary>{body}</details>' if body else ""
    )
