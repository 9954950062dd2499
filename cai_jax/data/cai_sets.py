"""The official evaluations and a run's own revisions and comparisons as TFDS data sets, read
without TensorFlow.

`cai_evals` holds the files of the paper's repository: the 438 HHH comparisons and the two sets that
identify and classify harm. `cai_run` holds what a run made, so that it can be published, or used as
prompts and comparisons of another run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from cai_jax.core import labels
from cai_jax.data.hh_rlhf import check_reachable
from cai_jax.data.jsonl import field, read_jsonl
from cai_jax.errors import UserError

URL = "https://raw.githubusercontent.com/anthropics/ConstitutionalHarmlessnessPaper/main/evals"
# Configuration → (the published file's name without its ending, what it is).
EVALS = {
    "hhh": (
        "438HHHEvaluations",
        "Which of two answers is more helpful, honest and harmless? With both whole dialogues.",
    ),
    "harmful_vs_ethical": (
        "HarmfulVsEthical",
        "Does a dialogue show harmful or ethical behaviour?",
    ),
    "harm_kinds": (
        "HarmfulnessClassification",
        "Which of nine kinds of harm does a dialogue show?",
    ),
}
RUN = {
    "revisions": "Answers with their critiques and revisions, round by round.",
    "comparisons": (
        "Pairs of answers with p, the label that the run's judge gave: the better one first."
    ),
}
CITATION = """@article{bai2022constitutional,
  title={Constitutional {AI}: Harmlessness from {AI} Feedback},
  author={Bai, Yuntao and Kadavath, Saurav and Kundu, Sandipan and Askell, Amanda and others},
  journal={arXiv:2212.08073}, year={2022}}"""
text = tfds.features.Text
DIALOGUE = {"role": text(), "text": text()}


class _Rows(tfds.core.GeneratorBasedBuilder):
    """One split of rows in their order."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    HOMEPAGE = ""
    FEATURES: dict = {}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                f"{self.builder_config.description} Some of it is offensive: for research only."
            ),
            features=tfds.features.FeaturesDict(self.FEATURES[self.builder_config.name]),
            homepage=self.HOMEPAGE,
            citation=CITATION,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _provenance(self, **files: Path) -> None:
        self.info.metadata["files"] = {
            name: {
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for name, path in files.items()
        }


class CaiEvals(_Rows):
    """`tfds:cai_evals/hhh`, `…/harmful_vs_ethical`, `…/harm_kinds`: split "test", rows as
    `evaluate.choices` takes them."""

    HOMEPAGE = "https://github.com/anthropics/ConstitutionalHarmlessnessPaper"
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=what) for name, (_, what) in EVALS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Optional where this machine reaches the internet. Else copy the .jsonl files of {URL}."
    )
    CHOICE = {
        "id": text(),
        "prompt": text(),
        "corrects": tfds.features.Sequence(text()),
        "incorrects": tfds.features.Sequence(text()),
    }
    FEATURES = dict.fromkeys(EVALS, CHOICE) | {
        "hhh": CHOICE | {"text_correct": text(), "text_incorrect": text()}
    }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        name = EVALS[self.builder_config.name][0]
        try:
            folder = Path(dl_manager.manual_dir)
        except AssertionError:  # none given, or it is empty
            folder = None
        if folder:
            path = find_files(folder, self.builder_config.name).get("test")
            if path is None:
                names = ", ".join(candidates(self.builder_config.name))
                raise UserError(
                    f"{folder}: no file of {self.builder_config.name}; expected one of {names}"
                )
        else:
            check_reachable(f"{URL}/{name}.jsonl")
            path = Path(dl_manager.download(f"{URL}/{name}.jsonl"))
        self._provenance(test=path)
        return {"test": self._generate_examples(path)}

    def _generate_examples(self, path: Path) -> Iterator[tuple[int, dict]]:
        features = self.FEATURES[self.builder_config.name]
        for line, row in read_jsonl(path):
            kinds = {
                key: list if key in ("corrects", "incorrects") else str
                for key in features
                if key != "id"
            }
            row = {key: field(row, key, kind, path, line) for key, kind in kinds.items()}
            yield line, {"id": f"{self.builder_config.name}:{line}", **row}


def candidates(config: str) -> list[str]:
    """File names under manual_dir, of which the first that is there counts; for a run, what it must
    hold."""
    if config in RUN:
        return (
            ["revise/manifest.json"]
            if config == "revisions"
            else ["compare/manifest.json", "feedback/manifest.json"]
        )
    return [
        f"{start}{EVALS[config][0]}.jsonl{ending}"
        for start in ("", "eval_")
        for ending in ("", ".gz")
    ]


def find_files(folder: Path, config: str) -> dict[str, Path]:
    """{what it is: file} of a configuration in `folder`; empty where something is missing."""
    if config in EVALS:
        found = [folder / file for file in candidates(config) if (folder / file).is_file()]
        return {"test": found[0]} if found else {}
    kinds = (
        {"revisions": "revise"}
        if config == "revisions"
        else {"comparisons": "compare", "judgements": "feedback"}
    )
    files = {name: run_records(folder, kind) for name, kind in kinds.items()}
    return {} if None in files.values() else files


class CaiRun(_Rows):
    """`tfds:cai_run/revisions`, `…/comparisons`: split "train", of the run whose directory was
    given as manual_dir.

    Revisions: `prompt` (the dialogue), `initial`, `rounds`. Comparisons: `dialogue`, `chosen`,
    `rejected` as `pm.human.source` takes them, with `probability` ≥ ½ that the first is better by
    the judge.
    """

    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=what) for name, what in RUN.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Pass the run's directory as manual_dir."
    TURN = {
        key: text()
        for key in ("principle_id", "critique_request", "critique", "revision_request", "revision")
    }
    FEATURES = {
        "revisions": {
            "id": text(),
            "kind": text(),
            "model": text(),
            "prompt": tfds.features.Sequence(DIALOGUE),
            "initial": text(),
            "rounds": tfds.features.Sequence(TURN),
        },
        "comparisons": {
            "id": text(),
            "kind": text(),
            "model": text(),
            "dialogue": tfds.features.Sequence(DIALOGUE),
            "chosen": text(),
            "rejected": text(),
            "probability": np.float64,
        },
    }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        run = Path(dl_manager.manual_dir)
        files = find_files(run, self.builder_config.name)
        if not files:
            raise UserError(
                f"{run}: no finished stages of the kinds that '{self.builder_config.name}' is "
                "made of"
            )
        self._provenance(**files)
        return {"train": self._generate_examples(**files)}

    def _generate_examples(self, **files: Path) -> Iterator[tuple[int, dict]]:
        yield from enumerate(
            run_revisions(**files) if "revisions" in files else run_comparisons(**files)
        )


def run_records(run: Path, kind: str) -> Path | None:
    """The records of the run's first finished stage of a kind, by name."""
    for manifest in sorted(run.glob("*/manifest.json")):
        value = json.loads(manifest.read_text())
        if value.get("kind") == kind and value.get("done"):
            return manifest.parent / "records.jsonl"
    return None


def run_revisions(revisions: Path) -> Iterator[dict]:
    for line, row in read_jsonl(revisions):
        turns = [
            {key: turn.get(key) or "" for key in CaiRun.TURN}
            for turn in field(row, "rounds", list, revisions, line)
        ]
        yield {
            "id": row["id"],
            "kind": row.get("kind") or "",
            "model": row["model"],
            "prompt": row["dialogue"],
            "initial": row["initial"],
            "rounds": turns,
        }


def run_comparisons(comparisons: Path, judgements: Path) -> Iterator[dict]:
    """One row a labelled pair, the better answer first; equal answers are left out."""
    by_pair: dict[tuple, list] = {}
    for _, row in read_jsonl(judgements):
        by_pair.setdefault((row["comparison_id"], *row["pair"]), []).append(row)
    groups = {row["id"]: row for _, row in read_jsonl(comparisons)}
    for (name, first, second), rows in sorted(by_pair.items()):
        group = groups[name]
        p, pair = labels.target(rows), [group["responses"][first], group["responses"][second]]
        if pair[0] != pair[1]:
            chosen, rejected = pair if p >= 0.5 else pair[::-1]
            yield {
                "id": f"{name}#{first}-{second}",
                "kind": group.get("kind") or "",
                "model": rows[0]["model"],
                "dialogue": group["dialogue"],
                "chosen": chosen,
                "rejected": rejected,
                "probability": max(p, 1 - p),
            }
