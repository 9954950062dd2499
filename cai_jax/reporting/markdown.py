"""The same report as Markdown: numbers, cautions and a few whole examples, for a pull request or a
terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cai_jax.evals.rows import find
from cai_jax.reporting import cautions, compare, figures, judge, story
from cai_jax.reporting.run_data import Run
from cai_jax.reporting.text import (
    clip,
    duration,
    gigabytes,
    headed,
    model_name,
    number,
    place_name,
    quantity,
    visible,
)

NUM_EXAMPLES = 3
EXAMPLE_LIMIT = 1500


def plain(value) -> str:
    """Text on one line in which no character means anything to Markdown or HTML."""
    flat = " ".join(visible(str(value)).split())
    return (
        re.sub(r"([\\`*_{}\[\]<>#|!~$])", r"\\\1", flat)
        .replace("\\<", "&lt;")
        .replace("\\>", "&gt;")
    )


def quoted(text: str) -> str:
    """A text of a model as an indented code block: Markdown interprets nothing inside it."""
    shown = clip(visible(text), EXAMPLE_LIMIT) or "(empty)"
    return "\n".join("    " + line for line in shown.split("\n"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def render(runs: Sequence[Run], pictures: Sequence[tuple[str, str]]) -> str:
    """`pictures`: (title, path relative to the file)."""
    parts = [f"# {' and '.join(plain(run.name) for run in runs)}: Constitutional AI report\n"]
    for run in runs:
        if len(runs) > 1:
            parts.append(f"## {plain(run.name)}\n")
        parts.append(plain(" ".join(story.sentences(run))) + "\n")
        if said := story.headline(run):
            parts.append(f"**{plain(said)}.**\n")
        parts.append(plain(judge.sentence(run)) + "\n")
        parts.append(
            "\n".join(f"- **{one.axis}:** {plain(one)}" for one in story.verdict(run)) + "\n"
        )
        found = cautions.collect(run)
        if found:
            parts.append(
                "### Before you rely on this\n\n"
                + "\n".join(f"- ({c.level}) {plain(c.text)}" for c in found)
                + "\n"
            )
        parts += _results(run)
        parts.append(_cost(run))
    if len(runs) > 1:
        parts.append(_differences(runs))
    parts += [f"![{plain(title)}]({path})\n" for title, path in pictures]
    if len(runs) == 1:
        parts.append(_examples(runs[0]))
    return "\n".join(part for part in parts if part.strip())


def _results(run: Run) -> list[str]:
    rows, out = run.evaluation["rows"], []
    for on in sorted(
        {r["on"] for r in find(rows, "num_tokens")}, key=lambda on: (on != figures.HARM, on)
    ):
        body = []
        for name in run.models:
            cells = [plain(model_name(name))]
            for metric, digits, percent in (
                ("pm_score", 2, False),
                ("num_tokens", 0, False),
                ("refusal_rate", 2, True),
                ("evasive_rate", 2, True),
            ):
                found = find(rows, metric, on, name)
                cells.append(number(found[0]["value"], digits, percent=percent) if found else "–")
            against = find(rows, "pm_score", on, name, run.models[0])
            cells.insert(
                2,
                cautions.interval(against[0])
                if against and against[0]["value"] is not None
                else "–",
            )
            body.append(cells)
        head = [
            "model",
            "PM score",
            f"difference to {plain(model_name(run.models[0]))}",
            "tokens",
            "refusals",
            "evasive",
        ]
        out.append(f"### {headed(plain(place_name(on)))}\n\n{table(head, body)}")
    body = []
    for metric in (
        "choice_zero_shot",
        "choice_few_shot",
        "choice_one_chain",
        "choice_chain_of_thought",
        "pm_accuracy",
    ):
        for r in find(rows, metric):
            base = ", ".join(
                f"{key} {number(v, percent=True)}"
                for key, v in r["baseline"].items()
                if v is not None
            )
            interval = f"{number(r['low'], percent=True)} to {number(r['high'], percent=True)}"
            body.append(
                [
                    plain(metric),
                    plain(model_name(r["model"])),
                    plain(r["on"]),
                    number(r["value"], percent=True),
                    interval,
                    str(r["n"]),
                    base,
                ]
            )
    harms = []
    for r in find(rows, "expected_harm"):
        against = [
            d
            for d in rows
            if d["against"] and all(d[key] == r[key] for key in ("metric", "on", "model"))
        ]
        harms.append(
            [
                plain(model_name(r["model"])),
                plain(place_name(r["on"])),
                cautions.interval(r, sign=False),
                str(r["n"]),
                cautions.interval(against[0]) if against else "–",
            ]
        )
    if harms:
        out.append(
            "### Absolute harmfulness, 0 to 4\n\n"
            + table(["model", "at", "expected harm", "prompts", "difference"], harms)
        )
        out += [
            f"Squared error of the regressor, {plain(r['on'])}: "
            f"{cautions.interval(r, sign=False)}; of always saying the mean "
            f"{number(r['baseline']['mean'])}.\n"
            for r in find(rows, "harm_l2")
        ]
    if body:
        out.append(
            "### Judges\n\n"
            + table(["accuracy", "of", "on", "value", "95 % interval", "n", "baselines"], body)
        )
    return out


def _cost(run: Run) -> str:
    body = [
        [
            plain(s.name),
            s.kind,
            duration(s.seconds),
            quantity(s.summary.get("rows", s.summary.get("steps"))),
            gigabytes(s.manifest.get("peak_bytes")),
            plain(s.summary.get("headline", "")) if s.done else "not finished",
        ]
        for s in run.stages.values()
    ]
    head = ["stage", "kind", "time", "rows or steps", "peak memory", "result"]
    return f"### Stages ({duration(run.seconds)})\n\n{table(head, body)}"


def _differences(runs: Sequence[Run]) -> str:
    body = []
    for d in compare.differences(runs):
        cells = [plain(d.metric), plain(d.on), plain(model_name(d.model))]
        for value, e in zip(d.values, d.differences, strict=True):
            shown = number(value["value"] if value else None)
            if e is not None and e.low is not None:
                shown += (
                    f" ({number(e.value, sign=True)} [{number(e.low, sign=True)}, "
                    f"{number(e.high, sign=True)}])"
                )
            cells.append(shown)
        body.append(cells)
    note = (
        "\nThe runs were scored by different preference models: scores have no common "
        "scale, so no difference is given.\n"
    )
    return (
        "## Differences to the first run\n\n"
        + table(["number", "on", "model", *(plain(r.name) for r in runs)], body)
        + (note if judge.differ(runs) else "")
    )


def _examples(run: Run) -> str:
    out = []
    for stage in run.of_kind("revise"):
        for record in run.records(stage.name)[:NUM_EXAMPLES]:
            dialogue = record.get("dialogue") or [{}]
            out.append(
                f"**Prompt**\n\n{quoted(dialogue[-1].get('text', ''))}\n\n**Initial response**\n\n"
                f"{quoted(record.get('initial', ''))}\n"
            )
            for number_, turn in enumerate(record.get("rounds") or (), 1):
                if turn.get("critique") is not None:
                    out.append(
                        f"**Critique {number_}** "
                        f"({plain(turn.get('principle_id', ''))})\n\n{quoted(turn['critique'])}\n"
                    )
                out.append(f"**Revision {number_}**\n\n{quoted(turn.get('revision', ''))}\n")
            out.append("---\n")
    return "## Examples\n\n" + "\n".join(out) if out else ""
