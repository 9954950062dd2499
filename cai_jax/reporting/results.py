"""A finished run as published results: every number with its interval, the tables, and a run
directory to compare with.

Nothing here knows a config: which stages there are, and what they are called, is read from the run.
"""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from cai_jax.evals import agreement
from cai_jax.evals.intervals import bootstrap_mean, net_wins, wilson
from cai_jax.evals.rows import find, row
from cai_jax.evals.text_statistics import words
from cai_jax.io import artefacts
from cai_jax.reporting import copied, pairwise
from cai_jax.reporting.cautions import interval
from cai_jax.reporting.markdown import plain, table
from cai_jax.reporting.run_data import Run, Stage
from cai_jax.reporting.text import (
    duration,
    gigabytes,
    headed,
    model_name,
    number,
    place_name,
    quantity,
)

REFERENCE_FILES = ("manifest.json", "metrics.jsonl", "metrics.json")
PROVENANCE = (
    "git_revision",
    "versions",
    "python",
    "devices",
    "num_devices",
    "num_processes",
    "command",
)


def collect(run: Run, counted: Sequence[dict] = ()) -> dict:
    """{"rows", "pairwise", "curves", "cost", "about"}: what the evaluate stages measured, labels
    beside people, revisions by the judge, and `counted`, rows from reading by hand; all pairs of
    policies and of judges."""
    seed = run.config.get("seed", 0)
    rows, curves = [dict(r) for r in run.evaluation["rows"]], {}
    for stage in run.of_kind("evaluate"):
        found = artefacts.read_json(stage.path / "metrics.json") or {}
        whose = stage.fields.get("reward") or stage.name
        curves |= {
            f"{key}/{whose}" if key.startswith("pm/") else key: points
            for key, points in found.get("curves", {}).items()
        }
    for stage in run.of_kind("feedback"):
        source = (stage.fields.get("inputs") or {}).get("comparisons")
        if stage.done and source in run.stages:
            rows += [
                {**r, "stage": stage.name}
                for r in agreement.rows(
                    stage.name, run.records(stage.name), run.records(source), curves, seed=seed
                )
            ]
    for stage in run.of_kind("revise"):
        rows += [
            {**r, "stage": stage.name}
            for r in (*revised(run, stage, seed), *copied.rows(run, stage))
        ]
    about = {**{key: run.info.get(key) for key in PROVENANCE}, "seed": seed}
    return {
        "rows": [*rows, *counted],
        "pairwise": pairwise.rows(run, seed),
        "curves": curves,
        "cost": cost(run),
        "about": about,
    }


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
        ends = [scores.get(f"{record['id']}#{count}") for count in (0, len(record["rounds"]))]
        if None not in ends:
            moved.append(ends[1] - ends[0])
    out = [
        row(
            "revision_changed",
            "revisions",
            stage.name,
            wilson(sum(changed), len(changed)),
            unit="share",
        )
    ]
    if moved:
        out.append(
            row(
                "revision_moved",
                "revisions",
                stage.name,
                bootstrap_mean(moved, seed=seed),
                against="initial",
                unit="PM score",
                good="higher",
            )
        )
        out.append(
            row(
                "revision_net_rise",
                "revisions",
                stage.name,
                net_wins(moved),
                against="initial",
                unit="share",
                good="higher",
            )
        )
    for name, side in (("initial", 0), (stage.name, 1)):
        out.append(
            row(
                f"revision_words_{('before', 'after')[side]}",
                "revisions",
                stage.name,
                bootstrap_mean([pair[side] for pair in lengths], seed=seed),
                unit="words",
                note=name,
            )
        )
    return out


def cost(run: Run) -> dict:
    """Seconds by the clock and of the processors, tokens and peak memory by stage, and the sums."""
    stages = {
        s.name: {
            "kind": s.kind,
            "seconds": s.seconds,
            "cpu_seconds": s.cpu_seconds,
            "tokens": s.tokens,
            "peak_bytes": s.manifest.get("peak_bytes"),
            "done": s.done,
        }
        for s in run.stages.values()
    }
    return {
        "stages": stages,
        "seconds": run.seconds,
        "cpu_seconds": run.cpu_seconds,
        "peak_bytes": run.peak_bytes,
        "tokens": {kind: run.tokens(kind) for kind in ("sampled", "scored", "trained")},
    }


# ---- Tables. A difference is called higher or lower only where its interval leaves out zero. -----


def verdict(r: dict | None) -> str:
    if r is None or r["value"] is None or r["low"] is None:
        return "–"
    return (
        "no difference shown"
        if r["low"] <= 0 <= r["high"]
        else "**higher**"
        if r["value"] > 0
        else "**lower**"
    )


def one(rows, metric, on, model, against=None) -> dict | None:
    return next(iter(find(rows, metric, on, model, against)), None)


def shown(r: dict | None, *, percent: bool = False, sign: bool = False) -> str:
    """The value with its interval; counts of tokens and words without decimals."""
    if r is None or r["value"] is None:
        return "–"
    if r["unit"] in ("tokens", "words"):
        value, low, high = (number(r[key], 0, sign=sign) for key in ("value", "low", "high"))
        return f"{value} (no interval)" if r["low"] is None else f"{value} [{low}, {high}]"
    return interval(r, sign=sign, percent=percent)


def tables(found: dict) -> str:
    """All of it as Markdown."""
    rows = found["rows"]
    places = sorted(
        {r["on"] for r in find(rows, "num_tokens")}, key=lambda on: (on != "red_team", on)
    )
    parts = [_policies(rows, on) for on in places]
    parts += [
        _preference_models(rows),
        _labels(rows),
        pairwise.tables(found["pairwise"]),
        _revisions(rows),
        _choices(rows),
        _critiques(rows),
        _cost(found["cost"]),
        _about(found["about"]),
    ]
    return "\n".join(part for part in parts if part)


def _policies(rows: Sequence[dict], on: str) -> str:
    models = list(dict.fromkeys(r["model"] for r in find(rows, "num_tokens", on)))
    first, body = models[0], []
    for name in models:
        difference, even, wins = (
            one(rows, metric, on, name, first)
            for metric in ("pm_score", "pm_score_at_equal_length", "net_wins_at_equal_length")
        )
        body.append(
            [
                plain(name),
                shown(one(rows, "pm_score", on, name)),
                shown(difference, sign=True),
                verdict(difference) if name != first else "–",
                shown(even, sign=True),
                verdict(even) if name != first else "–",
                shown(wins, sign=True, percent=True),
                shown(one(rows, "num_tokens", on, name)),
                shown(one(rows, "refusal_rate", on, name), percent=True),
                shown(one(rows, "repetition", on, name), percent=True),
            ]
        )
    head = [
        "policy",
        "judge's score",
        f"− {plain(first)}",
        "verdict",
        "at equal length",
        "verdict",
        "net wins at equal length",
        "tokens",
        "refusals",
        "repeated 4-grams",
    ]
    count = find(rows, "num_tokens", on)[0]["n"]
    return f"### {headed(plain(place_name(on)))} ({count})\n\n{table(head, body)}"


def _preference_models(rows: Sequence[dict]) -> str:
    body = []
    for r in find(rows, "pm_accuracy"):
        difference = one(rows, "pm_accuracy", r["on"], r["model"], "longer")
        ece = one(rows, "pm_ece", r["on"], r["model"])
        body.append(
            [
                plain(model_name(r["model"])),
                plain(place_name(r["on"])),
                shown(r, percent=True),
                number(r["baseline"]["longer"], percent=True),
                shown(difference, percent=True, sign=True),
                verdict(difference),
                verdict(r | _less(r, 0.5)),
                _error(ece),
                str(r["n"]),
            ]
        )
    head = [
        "preference model",
        "on",
        "accuracy",
        "always the longer",
        "− longer",
        "against it",
        "against chance",
        "calibration error",
        "n",
    ]
    return "### Preference models on held-out pairs\n\n" + table(head, body) if body else ""


def _error(r: dict | None) -> str:
    """A calibration error; where a correction could only bound it ("derived"), the bounds."""
    if r and r.get("derived"):
        low, high = (number(r["derived"][end]) for end in ("low", "high"))
        return f"{low if low == high else f'{low} to {high}'} (derived)"
    return number(r["value"]) if r else "–"


def _less(r: dict, amount: float) -> dict:
    """The row's numbers less an amount: "is it above chance?" asked as "is it above zero?"."""
    return {key: None if r[key] is None else r[key] - amount for key in ("value", "low", "high")}


def _labels(rows: Sequence[dict]) -> str:
    body = []
    for r in find(rows, "label_agreement"):
        difference = one(rows, "label_agreement", r["on"], r["model"], "longer")
        pairs = "human pairs" + (f", {r['on']}" if r["on"] != "human" else "")
        body.append(
            [
                plain(r["model"]),
                plain(pairs),
                shown(r, percent=True),
                verdict(r | _less(r, 0.5)),
                shown(one(rows, "label_agreement_one_order", r["on"], r["model"]), percent=True),
                number(r["baseline"]["longer"], percent=True),
                verdict(difference),
                number((one(rows, "label_ece", r["on"], r["model"]) or {}).get("value")),
                str(r["n"]),
            ]
        )
    head = [
        "labels",
        "pairs",
        "agree with people, both orders",
        "against chance",
        "one order",
        "always the longer",
        "against it",
        "calibration error",
        "n",
    ]
    out = "### AI labels beside people's\n\n" + table(head, body) if body else ""
    body = [
        [
            plain(r["model"]),
            shown(one(rows, "label_flip_rate", None, r["model"]), percent=True),
            shown(one(rows, "label_first_option", None, r["model"]), percent=True),
            shown(r),
            str(r["n"]),
        ]
        for r in find(rows, "label_confidence")
    ]
    head = ["labels", "flip rate", "option (A) chosen", "mean confidence", "n"]
    return out + ("\n### Position\n\n" + table(head, body) if body else "")


def _revisions(rows: Sequence[dict]) -> str:
    body = []
    for r in find(rows, "revision_changed"):
        moved, rise = (
            one(rows, metric, "revisions", r["model"], "initial")
            for metric in ("revision_moved", "revision_net_rise")
        )
        lengths = [
            one(rows, f"revision_words_{side}", "revisions", r["model"])
            for side in ("before", "after")
        ]
        body.append(
            [
                plain(r["model"]),
                shown(r, percent=True),
                shown(moved, sign=True),
                verdict(moved),
                shown(rise, sign=True, percent=True),
                *(shown(length) for length in lengths),
                *(
                    shown(one(rows, name, "revisions", r["model"]), percent=True)
                    for name in (
                        "revision_echoes_critique",
                        "revision_critiques_copied",
                        "revision_copied",
                    )
                ),
                str(r["n"]),
            ]
        )
    head = [
        "revisions",
        "text changed",
        "judge's score moved",
        "verdict",
        "rose − fell",
        "words before",
        "words after",
        "revisions that repeat their critique",
        "critiques that repeat a worked example",
        "revisions that do",
        "n",
    ]
    return "### Revisions\n\n" + table(head, body) if body else ""


def _choices(rows: Sequence[dict]) -> str:
    body = [
        [
            plain(r["metric"].removeprefix("choice_")),
            plain(place_name(r["on"])),
            shown(r, percent=True),
            number(r["baseline"].get("chance"), percent=True),
            number(r["baseline"].get("longer"), percent=True),
            str(r["n"]),
        ]
        for metric in ("choice_zero_shot", "choice_few_shot", "choice_chain_of_thought")
        for r in find(rows, metric)
    ]
    head = ["asked", "questions", "accuracy", "chance", "always the longer", "n"]
    return "### The feedback model on multiple choice\n\n" + table(head, body) if body else ""


def _critiques(rows: Sequence[dict]) -> str:
    body = [
        [plain(r["note"]), shown(r, percent=True), str(r["n"])]
        for r in find(rows, "critiques_read")
    ]
    return (
        "### Critiques read by hand\n\n" + table(["of the critiques read", "share", "n"], body)
        if body
        else ""
    )


def _cost(found: dict) -> str:
    kinds = ("sampled", "scored", "trained")
    body = [
        [
            plain(name),
            s["kind"],
            duration(s["seconds"]),
            duration(s["cpu_seconds"]),
            *(quantity(s["tokens"].get(kind)) for kind in kinds),
            gigabytes(s["peak_bytes"]),
        ]
        for name, s in found["stages"].items()
    ]
    head = [
        "stage",
        "kind",
        "by the clock",
        "of the processors",
        "tokens sampled",
        "scored",
        "trained",
        "peak of the process until then",
    ]
    return (
        f"### Cost: {duration(found['seconds'])} by the clock, "
        f"{duration(found['cpu_seconds'])} of the processors, at most "
        f"{gigabytes(found['peak_bytes'])}\n\n" + table(head, body)
    )


def _about(found: dict) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in sorted((found["versions"] or {}).items())
    )
    where = (
        f"{found['num_devices']} × {plain(', '.join(found['devices'] or ()))}, processes: "
        f"{found['num_processes']}"
    )
    command = " ".join(["python -m cai_jax.main", *(found["command"] or ())])
    return (
        f"### Made with\n\n{where}; Python {plain(found['python'])}, {plain(versions)}; revision "
        f"{plain(found['git_revision'])}; seed {found['seed']}:\n\n    {command}\n"
    )


def write_reference(run: Run, out) -> int:
    """Copies what `cai_jax.report` needs to lay another run over this one (no weights, no texts);
    returns the bytes."""
    out, size = epath.Path(out), 0
    sources = [(run.path / "config.json", out / "config.json")]
    sources += [
        (stage.path / name, out / stage.name / name)
        for stage in run.stages.values()
        for name in REFERENCE_FILES
    ]
    for source, target in sources:
        if source.exists():
            artefacts.write_text(target, source.read_text())
            size += len(source.read_bytes())
    return size
