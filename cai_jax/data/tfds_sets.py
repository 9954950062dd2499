"""TFDS data sets, stored as array_record and read without TensorFlow: hh-rlhf, the paper's
evaluations, and what a run made.

Rows keep the published order and text; what is unusable is dropped and counted in reading, not
here. Files are taken from `manual_dir`, in the published folders (`helpful-base/train.jsonl.gz`) or
flat (`hh_helpful_base.jsonl.gz`, `eval_HarmfulVsEthical.jsonl`), else downloaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import requests
import tensorflow_datasets as tfds

from cai_jax.core import labels
from cai_jax.data.files import Row, read_json
from cai_jax.errors import UserError

# First digits of the SHA-256 of the files in anthropics/hh-rlhf as of 2022, which tell them from a
# subset or a later version. They are reported, not enforced.
PUBLISHED_SHA256 = {
    "ebfaaed21162a4de": "harmless-base/test",
    "8be3fc1a13b27901": "helpful-base/test",
    "518a5bf288456fc9": "helpful-base/train",
    "39a475cc7e0df972": "helpful-online/test",
    "0994d18b82083f5c": "helpful-online/train",
    "abc35dbc56015db1": "helpful-rejection-sampled/test",
    "0cea2d2ab2187624": "helpful-rejection-sampled/train",
}
PAIRS = ("helpful_base", "harmless_base", "helpful_online", "helpful_rejection_sampled")
ATTEMPTS = "red_team_attempts"
# Configuration → the published file's name without its ending.
EVALS = {
    "hhh": "438HHHEvaluations",
    "harmful_vs_ethical": "HarmfulVsEthical",
    "harm_kinds": "HarmfulnessClassification",
}

_FEATURES = {
    str: tfds.features.Text(),
    float: np.float64,
    int: np.int64,
    bool: np.bool_,
    list: tfds.features.Sequence(tfds.features.Text()),
}
_PAIR = {"chosen": str, "rejected": str}
_ATTEMPT = {
    "transcript": str,
    "min_harmlessness_score_transcript": float,
    "num_params": str,
    "model_type": str,
    "rating": float,
    "task_description": str,
    "task_description_harmlessness_score": float,
    "red_team_member_id": int,
    "is_upworker": bool,
    "tags": list,
}
_OPTIONAL = ("num_params", "model_type", "tags")
_CHOICE = {"prompt": str, "corrects": list, "incorrects": list}
_TURNS = {"role": str, "text": str}
_ROUNDS = dict.fromkeys(
    ("principle_id", "critique_request", "critique", "revision_request", "revision"), str
)


@dataclasses.dataclass(frozen=True)
class Set:
    """One configuration of a data set.

    columns: of its rows, next to "id": a type, or the columns of a list of objects. remote: split →
    file at the published address. flat: other names under manual_dir → split.
    """

    columns: dict
    remote: dict[str, str] = dataclasses.field(default_factory=dict)
    flat: dict[str, str] = dataclasses.field(default_factory=dict)

    def candidates(self) -> dict[str, str]:
        """{file name under manual_dir: split}; of several for a split the first counts."""
        names = {file.removesuffix(".gz"): split for split, file in self.remote.items()} | self.flat
        return {file + end: split for file, split in names.items() for end in (".gz", "")}


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Rows of files in their order, so that offset and limit mean the same as for the files."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version: the published rows in their order."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional where this machine reaches the internet. Else copy the published files into one "
        "directory and pass it as manual_dir."
    )
    SETS: dict[str, Set] = {}
    URL = HOMEPAGE = DESCRIPTION = ""
    CITATION = "Bai et al. 2022, Constitutional AI: Harmlessness from AI Feedback, arXiv:2212.08073"

    @classmethod
    def find(cls, folder: Path, config: str) -> dict[str, Path]:
        """{split: file} of a configuration in `folder`."""
        files: dict[str, Path] = {}
        for name, split in cls.SETS[config].candidates().items():
            if (folder / name).is_file():
                files.setdefault(split, folder / name)
        return files

    @classmethod
    def expected(cls, config: str) -> str:
        """What `find` looks for, for a message."""
        return f"one of {', '.join(cls.SETS[config].candidates())}"

    def _info(self) -> tfds.core.DatasetInfo:
        columns = {"id": str} | self.SETS[self.builder_config.name].columns
        features = {name: _feature(kind) for name, kind in columns.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.DESCRIPTION} Some of it is offensive: for research only.",
            features=tfds.features.FeaturesDict(features),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        config = self.builder_config.name
        try:
            folder = Path(dl_manager.manual_dir)
        except AssertionError:  # none given, or it is empty
            folder = None
        if folder is None:
            urls = {s: f"{self.URL}/{file}" for s, file in self.SETS[config].remote.items()}
            _check_reachable(next(iter(urls.values())))
            files = {split: Path(path) for split, path in dl_manager.download(urls).items()}
        elif not (files := self.find(folder, config)):
            raise UserError(f"{folder}: no file of {config}; expected {self.expected(config)}")
        self.info.metadata["files"] = {name: _provenance(path) for name, path in files.items()}
        return self._splits(files)

    def _splits(self, files: dict[str, Path]) -> dict:
        return {split: self._generate_examples(path, split) for split, path in files.items()}

    def _generate_examples(self, path: Path, split: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config.name
        columns = self.SETS[config].columns
        for row in read_json(path):
            values = {name: _value(row, name, kind) for name, kind in columns.items()}
            yield row.line, {"id": f"{config}-{split}:{row.line}", **values}


class CaiHhRlhf(_Builder):
    """`tfds:cai_hh_rlhf/helpful_base`, …: `id`, `chosen`, `rejected` (complete dialogues); of
    `/red_team_attempts` `id`, `transcript` and the published annotations."""

    URL = "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main"
    HOMEPAGE = "https://github.com/anthropics/hh-rlhf"
    CITATION = (
        "Bai et al. 2022, Training a Helpful and Harmless Assistant with RLHF, arXiv:2204.05862; "
        "red-team attempts: Ganguli et al. 2022, arXiv:2209.07858"
    )
    DESCRIPTION = (
        "Two answers, the one that a person preferred first (helpful_…) or the less harmful one "
        "(harmless_base), and red-team attempts with their ratings (0 to 4)."
    )
    # A flat file without a split in its name is a test set: so are the subsets.
    SETS = {
        name: Set(
            _PAIR,
            {split: f"{name.replace('_', '-')}/{split}.jsonl.gz" for split in ("train", "test")},
            {f"hh_{name}_{split}.jsonl": split for split in ("train", "test")}
            | {f"hh_{name}.jsonl": "test"},
        )
        for name in PAIRS
    }
    SETS[ATTEMPTS] = Set(
        _ATTEMPT,
        {"train": f"red-team-attempts/{ATTEMPTS}.jsonl.gz"},
        {f"{ATTEMPTS}.jsonl": "train", f"hh_{ATTEMPTS}.jsonl": "train"},
    )
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SETS]


class CaiEvals(_Builder):
    """`tfds:cai_evals/hhh`, `…/harmful_vs_ethical`, `…/harm_kinds`: split "test", rows as
    the evaluations multiple_choice and preference_pairs take them."""

    URL = "https://raw.githubusercontent.com/anthropics/ConstitutionalHarmlessnessPaper/main/evals"
    HOMEPAGE = "https://github.com/anthropics/ConstitutionalHarmlessnessPaper"
    DESCRIPTION = "The paper's questions with lettered options, one of which is right."
    SETS = {
        name: Set(_CHOICE, {"test": f"{file}.jsonl"}, {f"eval_{file}.jsonl": "test"})
        for name, file in EVALS.items()
    }
    _COMPLETE = {"text_correct": str, "text_incorrect": str}  # dialogues
    SETS["hhh"] = dataclasses.replace(SETS["hhh"], columns=_CHOICE | _COMPLETE)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SETS]


class CaiRun(_Builder):
    """`tfds:cai_run/revisions`, `…/comparisons`: split "train", of the run whose directory was
    given as manual_dir.

    Revisions: `prompt` (the dialogue), `initial`, `rounds`. Comparisons: `dialogue`, `chosen`,
    `rejected` as `pm.human.source` takes them, with `probability` ≥ ½ that the first is better by
    the judge.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Pass the run's directory as manual_dir."
    DESCRIPTION = "What a run of cai_jax made: its revisions, or the labels that its judge gave."
    _COMMON = {"kind": str, "model": str}
    SETS = {
        "revisions": Set(_COMMON | {"prompt": _TURNS, "initial": str, "rounds": _ROUNDS}),
        "comparisons": Set(_COMMON | {"dialogue": _TURNS} | _PAIR | {"probability": float}),
    }
    KINDS = {"revisions": ("revise",), "comparisons": ("compare", "feedback")}  # of stages
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SETS]

    @classmethod
    def find(cls, folder: Path, config: str) -> dict[str, Path]:
        """{kind of stage: its records}, of the run's first finished stage of each, by name."""
        files: dict[str, Path] = {}
        for manifest in sorted(folder.glob("*/manifest.json")):
            fields = json.loads(manifest.read_text())
            if fields.get("kind") in cls.KINDS[config] and fields.get("done"):
                files.setdefault(fields["kind"], manifest.parent / "records.jsonl")
        return files if len(files) == len(cls.KINDS[config]) else {}

    @classmethod
    def expected(cls, config: str) -> str:
        kinds = " and ".join(f"{kind}/manifest.json" for kind in cls.KINDS[config])
        return f"a run with finished stages, such as {kinds}"

    def _splits(self, files: dict[str, Path]) -> dict:
        make = {"revisions": run_revisions, "comparisons": run_comparisons}
        return {"train": enumerate(make[self.builder_config.name](**files))}


def run_revisions(revise: Path) -> Iterator[dict]:
    for row in read_json(revise):
        values = row.values
        yield {
            "id": values["id"],
            "kind": values.get("kind") or "",
            "model": values["model"],
            "prompt": values["dialogue"],
            "initial": values["initial"],
            "rounds": [
                {key: turn.get(key) or "" for key in _ROUNDS}
                for turn in row.require("rounds", list)
            ],
        }


def run_comparisons(compare: Path, feedback: Path) -> Iterator[dict]:
    """One row a labelled pair, the better answer first; equal answers are left out."""
    by_pair: dict[tuple, list] = {}
    for row in read_json(feedback):
        key = (row.values["comparison_id"], *row.values["pair"])
        by_pair.setdefault(key, []).append(row.values)
    groups = {row.values["id"]: row.values for row in read_json(compare)}
    for (name, first, second), judgements in sorted(by_pair.items()):
        group = groups[name]
        p, pair = labels.target(judgements), [group["responses"][i] for i in (first, second)]
        if pair[0] != pair[1]:
            chosen, rejected = pair if p >= 0.5 else pair[::-1]
            yield {
                "id": f"{name}#{first}-{second}",
                "kind": group.get("kind") or "",
                "model": judgements[0]["model"],
                "dialogue": group["dialogue"],
                "chosen": chosen,
                "rejected": rejected,
                "probability": max(p, 1 - p),
            }


def _feature(kind):
    """The TFDS feature of a column; a dict of columns is a list of objects."""
    if isinstance(kind, dict):
        return tfds.features.Sequence({name: _feature(inner) for name, inner in kind.items()})
    return _FEATURES[kind]


def _value(row: Row, name: str, kind: type):
    """A field of a published row, checked. Blank texts exist in the published files and stay."""
    if name in _OPTIONAL and not row.has(name):
        return kind()
    value = row.require(name, kind)
    return [str(item) for item in value] if kind is list else kind(value)


def _check_reachable(url: str, timeout_seconds: float = 10.0) -> None:
    """UserError where `url` does not answer; TFDS itself tries again for minutes before it
    reports."""
    try:
        requests.head(url, timeout=timeout_seconds, allow_redirects=True).raise_for_status()
    except requests.RequestException as error:
        raise UserError(
            f"{url}: cannot be downloaded ({type(error).__name__}); copy the published files into "
            "a directory and pass --manual_dir"
        ) from error


def _provenance(path: Path) -> dict:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    published = PUBLISHED_SHA256.get(digest[:16])
    size = path.stat().st_size
    return {"name": path.name, "bytes": size, "sha256": digest, "published": published}
