"""The sections of the report as data: tables, figures, and folds of both. The templates write them;
a section without content is left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from cai_jax.report import (
    cards,
    cautions,
    compare,
    curves,
    figures,
    judge,
    story,
    tables,
    transcripts,
)
from cai_jax.report.plot import Forest, Panel
from cai_jax.report.run import Run
from cai_jax.report.text import duration, gigabytes, headed, quantity

OF_ANSWERS = ("answers", "harm")
OPEN_CAUTIONS = 5


@dataclasses.dataclass(frozen=True)
class Part:
    """What one block of a section shows; a `fold` is closed at first. `heading` of a further
    evaluation; `wide` figures have two columns; `text` is preformatted."""

    tables: Sequence[tables.Table] = ()
    figures: Sequence[Panel | Forest] = ()
    fold: str = ""
    heading: str = ""
    wide: bool = True
    text: str = ""
    line: str = ""

    def __bool__(self) -> bool:
        return bool(self.tables or self.figures or self.text or self.line)


@dataclasses.dataclass(frozen=True)
class Section:
    """A section; its title and what it says about itself are in templates/titles.j2."""

    name: str
    parts: Sequence[Part]
    records: dict | None = None

    def __bool__(self) -> bool:
        return any(self.parts) or self.records is not None


def every(runs: Sequence[Run]) -> list[Section]:
    """The sections that the runs have something for, in the order of the page."""
    parts = {
        "differences": differences,
        "results": results,
        "judges": judges,
        "transparency": transparency,
        "training": training,
        "labels": labels,
        "transcripts": lambda runs: [],
        "numbers": every_number,
        "cost": cost,
        "provenance": provenance,
    }
    sections = [Section(name, of(runs), records(runs) if name == "transcripts" else None)
                for name, of in parts.items()]  # fmt: skip
    return [section for section in sections if section]


def _grouped(runs: Sequence[Run], groups: Sequence[str]) -> list[tables.Table]:
    return [t for run in runs for t in tables.others(run.evaluation, groups, _suffix(runs, run))]


def _suffix(runs: Sequence[Run], run: Run) -> str:
    return f", {run.name}" if len(runs) > 1 else ""


def _prefix(runs: Sequence[Run], run: Run) -> str:
    return f"{run.name}: " if len(runs) > 1 else ""


def differences(runs: Sequence[Run]) -> list[Part]:
    """For several runs: values next to each other and the difference to the first."""
    measured = compare.differences(runs) if len(runs) > 1 else []
    return [Part(tables=[tables.differences(runs, measured)])] if measured else []


def results(runs: Sequence[Run]) -> list[Part]:
    sources = figures.main_sources(runs)
    measured = [t for run in runs for t in tables.answers(run.evaluation, _suffix(runs, run))]
    harm = _grouped(runs, ["harm"])
    drawn = [f for f in figures.of_columns(sources) if f.key != "judges"]
    wins = [t for run in runs for t in tables.win_rates(run.evaluation, _suffix(runs, run))]
    groups = dict.fromkeys(g for run in runs for g in run.evaluation.frame["group"])
    parts = [
        Part(tables=[*measured, *harm]),
        Part(figures=[*drawn, *figures.declared(sources, OF_ANSWERS)]),
        Part(tables=wins, fold="Win rates of every two models"),
        *[
            Part(tables=own, fold=headed(group))
            for group in groups
            if group not in ("judges", "revisions", "harm") and (own := _grouped(runs, [group]))
        ],
    ]
    for index, run in enumerate(runs):
        for measured in run.further:
            parts += _further(runs, run, index, measured)
    return parts


def _further(runs: Sequence[Run], run: Run, index: int, measured) -> list[Part]:
    """A further evaluation of the run: its plots at once, its tables in a fold."""
    count = len(measured.models)
    suffix = f"{f'-{index + 1}' if len(runs) > 1 else ''}-{measured.stage}"
    source = [figures.Source(run, measured, suffix=suffix)]
    heading = f"{_prefix(runs, run)}{measured.stage}, {count} model{'s' * (count != 1)}"
    first = figures.frontier(source) if count > 1 else []
    numbers = [
        *tables.answers(measured),
        *tables.others(measured, ["harm"]),
        *tables.win_rates(measured),
    ]
    return [
        Part(figures=[*first, *figures.declared(source, OF_ANSWERS)], heading=heading),
        Part(tables=numbers, figures=figures.of_columns(source, OF_ANSWERS), fold="Its numbers"),
    ]


def judges(runs: Sequence[Run]) -> list[Part]:
    sources = figures.main_sources(runs)
    accuracy = [f for f in figures.of_columns(sources, ["judges"]) if f.key == "judges"]
    return [
        Part(figures=[*accuracy, *figures.declared(sources, ["judges"])]),
        Part(tables=_grouped(runs, ["judges"]), fold="Their numbers"),
    ]


def transparency(runs: Sequence[Run]) -> list[Part]:
    measured = [(run, tables.principles(run.evaluation, _suffix(runs, run))) for run in runs]
    return [
        Part(figures=figures.constitution(figures.main_sources(runs))),
        Part(tables=[table for _, of in measured for table in of[:1]]),
        Part(
            tables=[table for _, of in measured for table in of[1:]],
            fold="Principles by kind of harm",
        ),
    ]


def training(runs: Sequence[Run]) -> list[Part]:
    main, more = curves.training(runs)
    parts = [Part(figures=main, wide=False)]
    parts += [Part(figures=more, wide=False, fold=f"{len(more)} more curves")] if more else []
    return parts


def labels(runs: Sequence[Run]) -> list[Part]:
    return [Part(figures=curves.of_labels(runs))]


def records(runs: Sequence[Run]) -> dict | None:
    """The browsable records: data for the script, and how many of them the page has."""
    data, encoding, count = cards.pack(runs)
    return {"data": data, "encoding": encoding, **count} if count["total"] else None


def every_number(runs: Sequence[Run]) -> list[Part]:
    """All rows of metrics.json, folded: what the figures show, for a screen reader and for
    copying."""
    several = len(runs) > 1
    return [
        Part(
            tables=[tables.every(run)],
            fold=f"{len(run.rows):,} numbers" + (f" of {run.name}" if several else ""),
        )
        for run in runs
        if run.rows
    ]


def cost(runs: Sequence[Run]) -> list[Part]:
    measured = [tables.cost(run, f"{run.name}, " if len(runs) > 1 else "") for run in runs]
    return [Part(tables=measured)]


def provenance(runs: Sequence[Run]) -> list[Part]:
    parts = []
    for run in runs:
        info = {key: value for key, value in run.info.items() if key != "config"}
        prints = {stage.name: stage.manifest.get("fingerprint") for stage in run.stages.values()}
        read = ", ".join(story.data_sources(run))
        heading = run.name if len(runs) > 1 else ""
        about = _json({**info, "fingerprints": prints})
        parts += [
            Part(line=f"Data: {read}." if read else "", heading=heading),
            Part(text=about, fold="Versions, command and fingerprints"),
            Part(text=_json(run.config) if run.config else "", fold="The complete configuration"),
        ]
    return parts


def _json(value) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, default=str)


# ---- What the page opens with --------------------------------------------------------------------


def opening(runs: Sequence[Run]) -> dict:
    """The first screen: what it is about, the verdicts, the cautions, three texts, and facts."""
    alone = runs[0] if len(runs) == 1 else None
    about, texts = transcripts.opening(alone) if alone else ("", [])
    lede = "What these runs share, with the differences to the first and their intervals."
    if alone:
        sentences = [judge.sentence(alone), *story.sentences(alone)]
        lede = " ".join(sentence for sentence in sentences if sentence)
    warned = [
        (c.level, c.anchor, _prefix(runs, run) + c.text)
        for run in runs
        for c in cautions.collect(run)
    ]
    if judge.differ(runs):
        text = (
            "The runs were scored by different preference models: their scores have no common "
            "scale, so no difference between runs is shown of them."
        )
        warned.insert(0, ("stop", "", text))
    reached = [
        f"{stage.name}: {stage.summary['headline']}"
        for run in runs
        for stage in run.stages.values()
        if stage.summary.get("headline")
    ]
    return {
        "headline": story.headline(alone) if alone else None,
        "lede": lede,
        "verdicts": [
            (run.name, [*story.verdict(run), story.trust(run), story.cost(run)]) for run in runs
        ],
        "cautions": (warned[:OPEN_CAUTIONS], warned[OPEN_CAUTIONS:]),
        "frontier": figures.frontier(figures.main_sources(runs)),
        "reached": reached,
        "about_texts": about,
        "texts": texts,
        "facts": facts(alone) if alone else [],
    }


def facts(run: Run) -> list[tuple[str, str, str]]:
    """(what, value, note)."""
    size, cpu = run.num_parameters, run.cpu_seconds
    stages = f"{len(run.stages)} stages" + (f", {duration(cpu)} of the processors" if cpu else "")
    trained = run.tokens("trained")
    return [
        ("Model", story.base_model(run) or "–", f"{quantity(size)} parameters" if size else ""),
        ("Constitution", story.constitution(run) or "–", ""),
        ("Time", duration(run.seconds), stages),
        ("Sampled", quantity(run.tokens("sampled")), "tokens"),
        ("Trained on", quantity(trained) if trained else "–", "tokens"),
        *_servers(run),
        ("Compute", f"{quantity(run.flops)}FLOP" if run.flops else "–", "2N a token, 6N trained"),
        ("Peak memory", gigabytes(run.peak_bytes), story.devices(run)),
        ("Seed", str(run.config.get("seed", "–")), ""),
    ]


def _servers(run: Run) -> list[tuple[str, str, str]]:
    """What models behind servers were asked, and what that cost."""
    served = [stage.served for stage in run.stages.values() if stage.served]
    if not served:
        return []
    answers = sum(each["requests"].get("answered", 0) for each in served)
    tokens = sum(sum(each["tokens"].values()) for each in served)
    cost = sum(each["cost"] for each in served)
    note = f"{quantity(tokens)} tokens" + (f", cost {cost:.2f}" if cost else "")
    return [("Answers of servers", quantity(answers), note)]
