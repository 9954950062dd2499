"""What the report shows, as data: its opening and its sections of tables, figures, and folds of
both. The templates write them; a section without content is left out."""

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
from cai_jax.report.render import say
from cai_jax.report.run import Evaluation, Run
from cai_jax.report.spec import Figure
from cai_jax.report.text import duration, gigabytes, headed, quantity

OF_ANSWERS = ("answers", "harm", "ratings")
OPEN_CAUTIONS = 5
Content = dict  # the values of the page's templates


@dataclasses.dataclass(frozen=True)
class Part:
    """What one block of a section shows; a `fold` is closed at first. `heading` of a further
    evaluation; `wide` figures have two columns; `text` is preformatted."""

    tables: Sequence[tables.Table] = ()
    figures: Sequence[Figure] = ()
    fold: str = ""
    heading: str = ""
    wide: bool = True
    text: str = ""
    line: str = ""

    def __bool__(self) -> bool:
        return bool(self.tables or self.figures or self.text or self.line)


def content(runs: Sequence[Run]) -> Content:
    """The values of the templates report.html.j2 and report.md.j2."""
    parts = {
        "differences": [Part(tables=tables.differences(runs, compare.differences(runs)))],
        "results": results(runs),
        "judges": judges(runs),
        "transparency": transparency(runs),
        "training": training(runs),
        "labels": [Part(figures=curves.of_labels(runs))],
        "transcripts": [],
        "numbers": [Part(tables=[tables.every(run)], fold=f"{len(run.rows):,} numbers"
                         + _suffix(runs, run, " of ")) for run in runs if run.rows],
        "cost": [Part(tables=[tables.cost(run, _prefix(runs, run))]) for run in runs],
        "provenance": [part for run in runs for part in provenance(runs, run)],
    }  # fmt: skip
    data, encoding, count = cards.pack(runs)
    records = {"data": data, "encoding": encoding, **count} if count["total"] else None
    sections = [
        {"name": name, "parts": of, "records": records if name == "transcripts" else None}
        for name, of in parts.items()
        if any(of) or (name == "transcripts" and records)
    ]
    return {"sections": sections, **opening(runs)}


def open_figures(content: Content) -> list[Figure]:
    """The figures that are not in a fold."""
    parts = [part for section in content["sections"] for part in section["parts"] if not part.fold]
    return [*content["frontier"], *(figure for part in parts for figure in part.figures)]


# ---- What the page opens with --------------------------------------------------------------------


def opening(runs: Sequence[Run]) -> Content:
    """The first screen: what it is about, the verdicts, the cautions, three texts, and facts."""
    warned = [
        (c.level, c.anchor, _prefix(runs, run) + c.text)
        for run in runs
        for c in cautions.collect(run)
    ]
    if judge.differ(runs):
        warned.insert(0, ("stop", "", say("judges_differ")))
    out = {
        "headline": None,
        "lede": "What these runs share, with the differences to the first and their intervals.",
        "verdicts": [
            (run.name, [*story.verdict(run), story.trust(run), story.cost(run)]) for run in runs
        ],
        "cautions": (warned[:OPEN_CAUTIONS], warned[OPEN_CAUTIONS:]),
        "frontier": figures.frontier(figures.main_sources(runs)),
        "reached": [
            f"{stage.name}: {stage.summary['headline']}"
            for run in runs
            for stage in run.stages.values()
            if stage.summary.get("headline")
        ],
        "about_texts": "",
        "texts": [],
        "facts": [],
    }
    if len(runs) == 1:
        (run,) = runs
        out["headline"], out["facts"] = story.headline(run), facts(run)
        out["lede"] = " ".join(filter(None, [judge.sentence(run), *story.sentences(run)]))
        out["about_texts"], out["texts"] = transcripts.opening(run)
    return out


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


# ---- Sections ------------------------------------------------------------------------------------


def _suffix(runs: Sequence[Run], run: Run, before: str = ", ") -> str:
    return f"{before}{run.name}" if len(runs) > 1 else ""


def _prefix(runs: Sequence[Run], run: Run) -> str:
    return f"{run.name}: " if len(runs) > 1 else ""


def _of_each(runs: Sequence[Run], table_of, *arguments) -> list[tables.Table]:
    """The tables of every run's main evaluation."""
    made = [table_of(run.evaluation, *arguments, suffix=_suffix(runs, run)) for run in runs]
    return [table for of_run in made for table in of_run]


def results(runs: Sequence[Run]) -> list[Part]:
    sources = figures.main_sources(runs)
    drawn = [f for f in figures.of_columns(sources) if f.key != "judges"]
    groups = dict.fromkeys(g for run in runs for g in run.evaluation.frame["group"])
    parts = [
        Part([*_of_each(runs, tables.answers), *_of_each(runs, tables.others, ["harm"])]),
        Part(figures=[*drawn, *figures.declared(sources, OF_ANSWERS)]),
        Part(_of_each(runs, tables.win_rates), fold="Win rates of every two models"),
    ]
    for group in groups:
        if group not in ("judges", "revisions", "harm"):
            parts.append(Part(_of_each(runs, tables.others, [group]), fold=headed(group)))
    for index, run in enumerate(runs):
        for measured in run.further:
            parts += _further(runs, run, index, measured)
    return parts


def _further(runs: Sequence[Run], run: Run, index: int, measured: Evaluation) -> list[Part]:
    """A further evaluation of the run: its plots at once, its tables in a fold."""
    count = len(measured.models)
    suffix = f"{f'-{index + 1}' if len(runs) > 1 else ''}-{measured.stage}"
    source = [figures.Source(run, measured, suffix=suffix)]
    heading = f"{_prefix(runs, run)}{measured.stage}, {count} model{'s' * (count != 1)}"
    drawn = figures.frontier(source) if count > 1 else []
    drawn += figures.declared(source, OF_ANSWERS)
    rows = [*tables.answers(measured), *tables.others(measured, OF_ANSWERS)]
    rows += tables.win_rates(measured)
    numbers = figures.of_columns(source, OF_ANSWERS)
    return [Part(figures=drawn, heading=heading), Part(rows, numbers, "Its numbers")]


def judges(runs: Sequence[Run]) -> list[Part]:
    sources = figures.main_sources(runs)
    drawn = [*figures.of_columns(sources, ["judges"]), *figures.declared(sources, ["judges"])]
    return [
        Part(figures=drawn),
        Part(_of_each(runs, tables.others, ["judges"]), fold="Their numbers"),
    ]


def transparency(runs: Sequence[Run]) -> list[Part]:
    made = [tables.principles(run.evaluation, suffix=_suffix(runs, run)) for run in runs]
    return [
        Part(figures=figures.constitution(figures.main_sources(runs))),
        Part([table for of_run in made for table in of_run[:1]]),
        Part([table for of_run in made for table in of_run[1:]], fold="Principles by kind of harm"),
    ]


def training(runs: Sequence[Run]) -> list[Part]:
    main, more = curves.training(runs)
    return [
        Part(figures=main, wide=False),
        Part(figures=more, wide=False, fold=f"{len(more)} more curves"),
    ]


def provenance(runs: Sequence[Run], run: Run) -> list[Part]:
    prints = {stage.name: stage.manifest.get("fingerprint") for stage in run.stages.values()}
    about = {key: value for key, value in run.info.items() if key != "config"}
    read = ", ".join(story.data_sources(run))
    return [
        Part(line=f"Data: {read}." if read else "", heading=_suffix(runs, run, "")),
        Part(text=_json({**about, "fingerprints": prints}),
             fold="Versions, command and fingerprints"),
        Part(text=_json(run.config) if run.config else "", fold="The complete configuration"),
    ]  # fmt: skip


def _json(value) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, default=str)
