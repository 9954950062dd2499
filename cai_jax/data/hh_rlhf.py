"""The published hh-rlhf data as a TFDS data set, stored as array_record and read without
TensorFlow.

Five configurations: four sets of human comparisons (the base and online models' answers, rejection
sampling, and harmlessness) and the transcripts of red-team attempts. Rows keep the published order
and text; what is unusable is dropped and counted by `load_comparisons`, not here.

Files are taken from `manual_dir` where they lie there, in the published folders
(`helpful-base/train.jsonl.gz`) or flat (`hh_helpful_base.jsonl.gz`,
`hh_helpful_base_train.jsonl.gz`), else downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import requests
import tensorflow_datasets as tfds

from cai_jax.data.jsonl import field, read_json, read_jsonl
from cai_jax.errors import UserError

URL = "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main"
PAIRS = ("helpful_base", "harmless_base", "helpful_online", "helpful_rejection_sampled")
ATTEMPTS = "red_team_attempts"

_DESCRIPTIONS = {
    "helpful_base": "Helpfulness: two answers of base models, the one preferred by a person first.",
    "harmless_base": (
        "Harmlessness: two answers of base models to red-team dialogues, the less "
        "harmful one first."
    ),
    "helpful_online": (
        "Helpfulness: answers of models that were updated while the data were collected."
    ),
    "helpful_rejection_sampled": (
        "Helpfulness: the best of several answers by an early preference model."
    ),
    ATTEMPTS: (
        "Transcripts of people who tried to make a model say harmful things, with their "
        "ratings (0 to 4)."
    ),
}
_CITATIONS = {
    "pairs": """@article{bai2022training,
  title={Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback},
  author={Bai, Yuntao and Jones, Andy and Ndousse, Kamal and Askell, Amanda and others},
  journal={arXiv:2204.05862}, year={2022}}""",
    ATTEMPTS: """@article{ganguli2022red,
  title={Red Teaming Language Models to Reduce Harms: Methods, Scaling Behaviors, and Lessons Learned},
  author={Ganguli, Deep and Lovitt, Liane and Kernion, Jackson and Askell, Amanda and others},
  journal={arXiv:2209.07858}, year={2022}}""",
}
# Digests of the files in the repository anthropics/hh-rlhf as of 2022, so that a reader can tell
# them from a subset or a later version. They are reported, not enforced.
PUBLISHED_SHA256 = {
    "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03": "harmless-base/test.jsonl.gz",
    "8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b": "helpful-base/test.jsonl.gz",
    "518a5bf288456fc9f3b7c980c54116fba0c52f274d3f4d344675d83e4058f6f4": "helpful-base/train.jsonl.gz",
    "39a475cc7e0df972902f8e3a0972726fce826ac65369bda8c671de4330c60a10": "helpful-online/test.jsonl.gz",
    "0994d18b82083f5c084ce04071b683958a724df8c7215ab1d851986642d36a2a": "helpful-online/train.jsonl.gz",
    "abc35dbc56015db1dae0faa484514ccbc3eee0133bfcd557fc69250619b028bb": "helpful-rejection-sampled/test.jsonl.gz",
    "0cea2d2ab2187624ec1314e8cc6fb579f0fa987b3a33e8102b7556ed4d255f64": "helpful-rejection-sampled/train.jsonl.gz",
}


class CaiHhRlhf(tfds.core.GeneratorBasedBuilder):
    """`tfds.builder("cai_hh_rlhf/helpful_base", file_format="array_record")`; the module says where
    its files are from.

    Pairs have `id`, `chosen`, `rejected` (whole dialogues); attempts `id`, `transcript` and the
    published annotations.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version: the published rows in their order."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=n, description=text) for n, text in _DESCRIPTIONS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Optional where this machine reaches the internet. Else copy the folders of {URL} "
        "(helpful-base, …,"
        " red-team-attempts) into one directory and pass it as manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        if self.builder_config.name == ATTEMPTS:
            features = {
                "id": text(),
                "transcript": text(),
                "min_harmlessness_score_transcript": np.float64,
                "num_params": text(),
                "model_type": text(),
                "rating": np.float64,
                "task_description": text(),
                "task_description_harmlessness_score": np.float64,
                "red_team_member_id": np.int64,
                "is_upworker": np.bool_,
                "tags": tfds.features.Sequence(text()),
            }
        else:
            features = {"id": text(), "chosen": text(), "rejected": text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                f"{_DESCRIPTIONS[self.builder_config.name]} Some of it is offensive: "
                "for research only."
            ),
            features=tfds.features.FeaturesDict(features),
            homepage="https://github.com/anthropics/hh-rlhf",
            citation=_CITATIONS.get(self.builder_config.name, _CITATIONS["pairs"]),
            license="MIT",
            # the published order, so that offset and limit mean the same as for the file
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        name = self.builder_config.name
        try:
            folder = Path(dl_manager.manual_dir)
        except AssertionError:  # none given, or it is empty
            folder = None
        files = find_files(folder, name) if folder else {}
        if folder and not files:
            raise UserError(
                f"{folder}: no file of {name}; expected one of {', '.join(candidates(name))}"
            )
        if not files:
            check_reachable(next(iter(urls(name).values())))
            files = {split: Path(path) for split, path in dl_manager.download(urls(name)).items()}
        self.info.metadata["files"] = {split: _provenance(path) for split, path in files.items()}
        return {split: self._generate_examples(path, split) for split, path in files.items()}

    def _generate_examples(self, path: Path, split: str) -> Iterator[tuple[int, dict]]:
        name = self.builder_config.name
        rows, convert = (
            (read_json(path), _attempt) if name == ATTEMPTS else (read_jsonl(path), _pair)
        )
        for line, row in rows:
            yield line, {"id": f"{name}-{split}:{line}", **convert(row, path, line)}


def urls(name: str) -> dict[str, str]:
    """{split: address} of a configuration."""
    folder = name.replace("_", "-")
    if name == ATTEMPTS:
        return {"train": f"{URL}/{folder}/{name}.jsonl.gz"}
    return {split: f"{URL}/{folder}/{split}.jsonl.gz" for split in ("train", "test")}


def check_reachable(url: str, timeout_seconds: float = 10.0) -> None:
    """UserError where `url` does not answer; TFDS itself tries again for minutes before it says
    so."""
    try:
        requests.head(url, timeout=timeout_seconds, allow_redirects=True).raise_for_status()
    except requests.RequestException as error:
        raise UserError(
            f"{url}: cannot be downloaded ({type(error).__name__}); copy the published files "
            "into a directory and pass"
            " --manual_dir"
        ) from error


def candidates(name: str) -> dict[str, str]:
    """{file name under manual_dir: split}. A flat file without a split in its name is a test set:
    so are the subsets."""
    folder = name.replace("_", "-")
    if name == ATTEMPTS:
        names = {
            f"{folder}/{name}.jsonl": "train",
            f"{name}.jsonl": "train",
            f"hh_{name}.jsonl": "train",
        }
    else:
        names = {f"{folder}/{split}.jsonl": split for split in ("train", "test")}
        names |= {f"hh_{name}_{split}.jsonl": split for split in ("train", "test")}
        names[f"hh_{name}.jsonl"] = "test"
    return {file + ending: split for file, split in names.items() for ending in (".gz", "")}


def find_files(folder: Path, name: str) -> dict[str, Path]:
    """{split: file} in `folder`; of several candidates for a split the first counts."""
    found: dict[str, Path] = {}
    for file, split in candidates(name).items():
        if (folder / file).is_file():
            found.setdefault(split, folder / file)
    return found


def _pair(row: dict, path: Path, line: int) -> dict:
    return {key: _text(row, key, path, line) for key in ("chosen", "rejected")}


def _attempt(row: dict, path: Path, line: int) -> dict:
    number = {
        key: float(field(row, key, float, path, line))
        for key in (
            "min_harmlessness_score_transcript",
            "rating",
            "task_description_harmlessness_score",
        )
    }
    text = {key: _text(row, key, path, line) for key in ("transcript", "task_description")}
    text |= {key: str(row.get(key) or "") for key in ("num_params", "model_type")}
    return {
        **number,
        **text,
        "red_team_member_id": field(row, "red_team_member_id", int, path, line),
        "is_upworker": field(row, "is_upworker", bool, path, line),
        "tags": [str(t) for t in row.get("tags") or []],
    }


def _text(row: dict, key: str, path: Path, line: int) -> str:
    """Blank texts exist in the published files and stay; anything but a text is an error."""
    return row[key] if isinstance(row.get(key), str) else field(row, key, str, path, line)


def _provenance(path: Path) -> dict:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    published = PUBLISHED_SHA256.get(digest)
    return {
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256": digest,
        "published": published,
    }
