"""What the page opens with: the verdict in a sentence, its judge, the warnings, and three texts
drawn by a rule."""

from __future__ import annotations

from collections.abc import Sequence

from cai_jax.reporting import cautions as cautions_lib
from cai_jax.reporting import figures, judge, shown, story
from cai_jax.reporting.elements import figure, fold, swatch, unbroken
from cai_jax.reporting.run_data import Run
from cai_jax.reporting.text import (
    clip,
    duration,
    escape,
    gigabytes,
    headed,
    number,
    quantity,
)

SHOWN_CAUTIONS = 5
SHOWN_CHARACTERS = 320  # of a text; the rest is behind a fold


def masthead(runs: Sequence[Run]) -> str:
    names = " and ".join(escape(run.name) for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    if len(runs) == 1:
        told = [judge.sentence(runs[0]), *story.sentences(runs[0])]
        lede = " ".join(escape(sentence) for sentence in told if sentence)
    else:
        lede = "What these runs share, with the differences to the first and their intervals."
    kind = "Constitutional AI, report of runs"
    if len(runs) == 1 and (said := story.headline(runs[0])):
        kind, names = f"Constitutional AI, run <b>{names}</b>", f"{escape(said)}."
    return (
        f'<header class="masthead"><p class="kicker">{kind}</p><h1>{unbroken(names)}</h1>'
        f'<p class="lede">{unbroken(lede)}</p></header>'
    )


def first_screen(runs: Sequence[Run]) -> str:
    left = "".join(
        figure(drawn, heading=judge.differ(runs))
        for drawn in figures.each_scale(runs, figures.frontier)
    )
    if not left:
        reached = [
            f"{stage.name}: {stage.summary['headline']}"
            for run in runs
            for stage in run.stages.values()
            if stage.summary.get("headline")
        ]
        left = "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in reached) + "</ul>"
    verdicts = ""
    for place, run in enumerate(runs):
        found = story.verdict(run)
        items = "".join(
            f"<dt>{escape(one.axis)}</dt><dd><b "
            f'class="{one.tone or "flat"}">{escape(headed(one.word))}</b> '
            f"<span>{escape(one.detail)}</span></dd>"
            for one in (*found, story.trust(run), story.cost(run))
        )
        name = (
            f'<p class="figure-title">{swatch(place + 1)}{escape(run.name)}</p>'
            if len(runs) > 1
            else ""
        )
        verdicts += f'{name}<dl class="verdicts">{unbroken(items)}</dl>'
    return (
        f'<div class="first"><div class="lead">{verdicts}</div><div class="drawn">{left}</div>'
        '<aside class="aside" aria-labelledby="cautions-h"><h2 id="cautions-h">Before you rely '
        "on this</h2>"
        f"{caution_list(runs)}</aside>{texts(runs)}</div>{facts(runs)}"
    )


def texts(runs: Sequence[Run]) -> str:
    """The three transcripts of `shown`, side by side; "" for several runs."""
    what, found = shown.transcripts(runs[0]) if len(runs) == 1 else ("", [])
    if not found:
        return ""
    columns = "".join(
        f'<article class="text">{"".join(map(_turn, one))}</article>' for one in found
    )
    return (
        '<div class="texts"><h2 class="figure-title">Three texts, to read first</h2><p '
        f'class="about">{escape(what)}. '
        f'{escape(shown.RULE)} Some are offensive.</p><div class="columns">{columns}</div></div>'
    )


def _turn(turn: shown.Turn) -> str:
    score = "" if turn.score is None else f'<span class="num">PM score {number(turn.score)}</span>'
    text = turn.text if turn.text.strip() else "(empty)"
    said = f'<p class="said">{escape(text)}</p>'
    if len(text) > SHOWN_CHARACTERS:
        said = f'<p class="said">{escape(clip(text, SHOWN_CHARACTERS))}</p>' + fold(
            "All of it", said
        )
    return (
        f'<div class="turn {turn.kind}"><div '
        f'class="who"><b>{escape(turn.who)}</b>{score}</div>{said}</div>'
    )


def caution_list(runs: Sequence[Run]) -> str:
    words = {"stop": "Serious: ", "care": "Careful: ", "note": "Note: "}
    items = []
    if len(runs) > 1 and judge.differ(runs):
        items.append(
            '<li class="stop"><span class="level">Serious: </span>The runs were scored by '
            "different preference models: "
            "their scores have no common scale, so no difference between runs is shown of "
            "them.</li>"
        )
    for run in runs:
        for c in cautions_lib.collect(run):
            name = f"{escape(run.name)}: " if len(runs) > 1 else ""
            items.append(
                f'<li class="{c.level}"><a href="#{c.anchor}"><span '
                f'class="level">{words[c.level]}</span>{name}'
                f"{unbroken(escape(c.text))}</a></li>"
            )
    if not items:
        return "<p>Nothing was noticed by the rules that this page applies.</p>"
    head = f'<ul class="cautions">{"".join(items[:SHOWN_CAUTIONS])}</ul>'
    rest = items[SHOWN_CAUTIONS:]
    more = (
        f"<details><summary>{len(rest)} more</summary><ul "
        f'class="cautions">{"".join(rest)}</ul></details>'
    )
    return head + (more if rest else "")


def facts(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return ""
    run = runs[0]
    size = run.num_parameters
    devices = run.info.get("devices") or []
    pairs = [
        (
            "Model",
            escape(story.base_model(run) or "–"),
            f"{quantity(size)} parameters" if size else "",
        ),
        ("Constitution", escape(story.constitution(run) or "–"), ""),
        (
            "Time",
            duration(run.seconds),
            f"{len(run.stages)} stages"
            + (f", {duration(run.cpu_seconds)} of the processors" if run.cpu_seconds else ""),
        ),
        ("Sampled", quantity(run.tokens("sampled")), "tokens"),
        ("Trained on", quantity(run.tokens("trained")) if run.tokens("trained") else "–", "tokens"),
        ("Compute", f"{quantity(run.flops)}FLOP" if run.flops else "–", "2N a token, 6N trained"),
        (
            "Peak memory",
            gigabytes(run.peak_bytes),
            escape(f"{run.info.get('num_devices', 1)} × {', '.join(devices)}" if devices else ""),
        ),
        ("Seed", escape(run.config.get("seed", "–")), ""),
    ]
    items = (
        f"<div><dt>{name}</dt><dd>{value}{f'<small>{note}</small>' if note else ''}</dd></div>"
        for name, value, note in pairs
    )
    return f'<dl class="facts">{"".join(items)}</dl>'
