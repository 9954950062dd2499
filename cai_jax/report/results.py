"""A finished run as published results: every number with its interval, the tables, and a run
directory to compare with.

Nothing here knows a config: which stages there are, and what they are called, is read from the run.
"""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from cai_jax.configuration.topic import Words
from cai_jax.core.intervals import bootstrap_mean, net_wins, wilson
from cai_jax.data.text_statistics import words
from cai_jax.errors import UserError
from cai_jax.evals import agreement
from cai_jax.evals import figures as evals_figures
from cai_jax.evals.rows import SCHEMA, Column
from cai_jax.io import artefacts
from cai_jax.report import (
    build,
    compare,
    copied,
    critiques,
    curves,
    figures,
    numbers,
    tables,
    text,
    transcripts,
)
from cai_jax.report.render import render
from cai_jax.report.run import Evaluation, Run, Stage

REFERENCE_FILES = ("manifest.json", "metrics.jsonl", "metrics.json")
PROVENANCE = ("git_revision", "versions", "python", "devices", "num_devices", "num_processes",
              "command")  # fmt: skip
# Of the numbers that are counted here and not by an evaluation.
COLUMNS = (
    *agreement.COLUMNS,
    Column("revision_changed", "text changed", "share", None, "revised"),
    Column("revision_moved", "judge's score", "PM score", "higher", "revised"),
    Column("revision_net_rise", "rose − fell", "share", "higher", "revised"),
    Column("revision_words_before", "words before", "words", None, "revised", digits=0),
    Column("revision_words_after", "words after", "words", None, "revised", digits=0),
    Column("revision_echoes_critique", "repeat their critique", "share", "lower", "revised"),
    Column("revision_critiques_copied", "critiques that repeat a worked example", "share", "lower",
           "revised"),
    Column("revision_copied", "revisions that do", "share", "lower", "revised"),
    Column("critiques_read", "of the critiques read", "share", None, "critiques read by hand"),
)  # fmt: skip
BY_NAME = {column.name: column for column in COLUMNS}

# ---- What is counted -----------------------------------------------------------------------------


def collect(run: Run, counted: Sequence[dict] = ()) -> Evaluation:
    """What the evaluate stages measured, labels next to people, revisions by the judge, and
    `counted`, rows from reading by hand."""
    seed, measured = run.config.get("seed", 0), run.evaluation
    rows, curves = list(measured.rows), {}
    for stage in run.of_kind("feedback"):
        source = stage.inputs.get("comparisons")
        if stage.done and source in run.stages:
            both = run.records(stage.name), run.records(source)
            labels = agreement.rows(stage.name, *both, curves, seed=seed)
            rows += [{**r, "stage": stage.name} for r in labels]
    for stage in run.of_kind("revise"):
        both = (*revised(run, stage, seed), *copied.rows(run, stage))
        rows += [{**r, "stage": stage.name} for r in both]
    rows += [{**r, "stage": ""} for r in counted]
    there = {r["metric"] for r in rows}
    own = [column.to_json() for column in COLUMNS if column.name in there]
    human = {
        name.rpartition("/")[2]: bins
        for name, bins in curves.items()
        if bins and name.startswith("labels/human/")
    }
    names = {"name": "calibration_labels", "title": "AI labels: calibration on human pairs"}
    drawn = [figure | names | {"group": "labels"} for figure in evals_figures.calibration(human)]
    values = {r["name"]: r.pop("values") for r in rows if "values" in r}
    return Evaluation(
        measured.stage,
        rows,
        measured.columns | numbers.columns(own, []),
        [*measured.figures, *drawn],
        measured.notes,
        values,
    )


def revised(run: Run, stage: Stage, seed: int) -> list[dict]:
    """Of one revise stage, first response against last revision: the judge's score moved, how often
    it rose rather than fell, how often the text changed at all, and the words of both."""
    scores, moved, changed, lengths = run.revision_scores(stage.name), [], [], []
    for record in run.records(stage.name):
        if not record["rounds"]:
            continue
        last = record["rounds"][-1]["revision"]
        changed.append(last != record["initial"])
        lengths.append((len(words(record["initial"])), len(words(last))))
        first, *_, final = scores[record["id"]]
        if None not in (first, final):
            moved.append(final - first)
    before, after = ([pair[side] for pair in lengths] for side in (0, 1))
    means = {
        "revision_changed": wilson(sum(changed), len(changed)),
        "revision_words_before": bootstrap_mean(before, seed=seed),
        "revision_words_after": bootstrap_mean(after, seed=seed),
    }
    of_scores = {}
    if moved:
        of_scores["revision_moved"] = bootstrap_mean(moved, seed=seed)
        of_scores["revision_net_rise"] = net_wins(moved)
    on = ("revisions", stage.name)
    return [
        *(BY_NAME[name].row(*on, mean) for name, mean in means.items()),
        *(BY_NAME[name].row(*on, mean, against="initial") for name, mean in of_scores.items()),
    ]


def cost(run: Run) -> dict:
    """Seconds by the clock and of the processors, tokens and peak memory by stage, and the sums."""
    own = ("kind", "seconds", "cpu_seconds", "tokens", "peak_bytes", "done")
    return {
        "stages": {s.name: {key: getattr(s, key) for key in own} for s in run.stages.values()},
        "seconds": run.seconds,
        "cpu_seconds": run.cpu_seconds,
        "peak_bytes": run.peak_bytes,
        "tokens": {kind: run.tokens(kind) for kind in ("sampled", "scored", "trained")},
    }


# ---- What is written -----------------------------------------------------------------------------


def write(
    run_path, out, count: int = 60, of: str = "", others: Sequence = (), prompts: bool = True
) -> dict[str, int]:
    """Writes the results of a run.

    Args:
        run_path: the run.
        out: the directory to write.
        count: how many critiques are drawn to be read.
        of: the revise stage that they are drawn from ("" for the first).
        others: runs with other seeds.
        prompts: whether texts show prompts, or only name them.

    Returns:
        File name → bytes.

    Raises:
        UserError: where a path is no run, or `of` no revise stage with critiques.
    """
    run = Run(run_path)
    with text.speaking(Words.of(run.config)):
        return _write(run, epath.Path(out), count, of, others, prompts)


def _write(run: Run, out, count: int, of: str, others: Sequence, prompts: bool) -> dict[str, int]:
    files, counted = _critiques(run, out, count, of, prompts)
    measured, seed = collect(run, counted), run.config.get("seed", 0)
    pairs = compare.pairwise(run, measured, seed)
    runs = [measured, *(collect(Run(path)) for path in others)]
    seeds = compare.over_seeds(runs) if others else []
    columns = numbers.columns([vars(c) for c in measured.columns.values()], pairs)
    about = {key: run.info.get(key) for key in PROVENANCE} | {"seed": seed}
    shown = [
        *tables.answers(measured),
        *tables.others(measured),
        *tables.pairwise(pairs, columns),
        *tables.principles(measured)[:1],
        tables.cost(run),
        *tables.over_seeds(seeds, columns),
    ]
    files["tables.md"] = render("tables.md.j2", "md", tables=shown, about=about)
    texts = {"transcripts": transcripts.selected(run), "prompts": prompts}
    files["transcripts.md"] = render("transcripts.md.j2", "md", **texts)
    metrics = {
        "schema": SCHEMA,
        "rows": measured.rows,
        "columns": [vars(column) for column in measured.columns.values()],
        "figures": measured.figures,
        "notes": measured.notes,
        "pairwise": pairs,
        "cost": cost(run),
        "about": about,
        **({"over_seeds": seeds} if seeds else {}),
    }
    artefacts.write_json(out / "metrics.json", metrics)
    for name, value in files.items():
        artefacts.write_text(out / name, value if value.endswith("\n") else value + "\n")
    sizes = {name: len(value) for name, value in files.items()}
    sizes["metrics.json"] = len((out / "metrics.json").read_bytes())
    sizes |= build.write_figures(build.drawings(drawn(run, measured)), out)
    return {**sizes, "reference/": write_reference(run, out / "reference")}


def _critiques(run: Run, out, count: int, of: str, prompts: bool) -> tuple[dict, list[dict]]:
    """({file name: text} of the critiques to be read, rows of those that were read and marked)."""
    stages = [stage.name for stage in run.of_kind("revise") if stage.fields.get("critique")]
    if of and of not in stages:
        there = ", ".join(stages) or "none"
        raise UserError(f"--of {of}: not a revise stage with critiques; there are {there}")
    to_read = critiques.drawn(run, of or stages[0], count) if stages else []
    if not to_read:
        return {}, []
    path, counted = out / "critiques_to_read.csv", []
    if path.exists():
        counted = critiques.count(path.read_text(), to_read, str(path))
    texts = {"critiques": to_read, "prompts": prompts}
    files = {"critiques_to_read.md": render("critiques.md.j2", "md", **texts)}
    return files if counted else files | {path.name: critiques.blank(to_read)}, counted


def drawn(run: Run, measured: Evaluation) -> list:
    """The figures of published results: those of the report's page, and each model's difference to
    the first."""
    sources = [figures.Source(run, measured)]
    return [
        *figures.frontier(sources),
        *figures.of_columns(sources),
        *figures.declared(sources, ("answers", "harm", "judges", "labels")),
        *figures.differences(sources),
        *figures.constitution(sources),
        *curves.training([run])[0],
    ]


def write_reference(run: Run, out) -> int:
    """Copies what `cai_jax.report` needs to compare another run with this one (no weights, no
    texts); returns the bytes."""
    out, size = epath.Path(out), 0
    names = ["config.json"]
    names += [f"{stage}/{name}" for stage in run.stages for name in REFERENCE_FILES]
    for name in names:
        if (run.path / name).exists():
            content = (run.path / name).read_text()
            artefacts.write_text(out / name, content)
            size += len(content.encode())
    return size
