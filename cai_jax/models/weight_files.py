"""The safetensors files of a model directory: which of them hold its weights, whether these can be
read as they are, and reading and writing them.

The rule for two truths in one directory is that of transformers: model.safetensors is read where it
is there, else the shards that model.safetensors.index.json names. A complete set of shards without
an index is read as well. Whatever is incomplete, quantised or an adapter without its base is
refused with a line that says what it is and what to do.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping

import ml_dtypes  # noqa: F401 (gives numpy the dtype "bfloat16", which safetensors reads into)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cai_jax.errors import UserError
from cai_jax.io import progress

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
SHARD_NAME = "model-{:05d}-of-{:05d}.safetensors"
# (what wrappers put before the names, what is there without them): the first that explains
# every name is taken.
PREFIXES = (
    ("base_model.model.", ""),  # PEFT
    ("_orig_mod.", ""),  # torch.compile
    ("module.", ""),  # data parallel training
    ("model.language_model.", "model."),  # the text part of a model that also reads images
    ("language_model.model.", "model."),
    ("language_model.", ""),
    ("", "model."),  # saved without the unembedding
    ("", "gpt_neox."),
)
# Tensors that only quantised checkpoints have → what wrote them.
QUANTISED = {
    "weight_scale_inv": "FP8",
    "weight_scale": "FP8 or compressed-tensors",
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "weight.absmax": "bitsandbytes",
    "weight.quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_blocks": "MXFP4",
}
SAVE_AGAIN = "save them as safetensors (transformers: from_pretrained(DIR).save_pretrained(OUT))"
OTHER_FORMATS = {
    "*.gguf": "python -m cai_jax.models.gguf --gguf FILE --out DIR converts it",
    **dict.fromkeys(("*.bin", "*.pth", "*.h5", "*.msgpack"), SAVE_AGAIN),
}
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # the dtypes of weights
_warned: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file; dtype as the format names it."""

    path: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The tensor, or that range of its first axis."""
        with safe_open(self.path, "numpy", backend="pread") as file:
            return file.get_slice(self.name)[start:stop]


def open_file(path) -> dict[str, Stored]:
    """name → tensor of a safetensors file; reads its head only. UserError for a
    truncated or damaged file."""
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            return {
                name: Stored(pathlib.Path(path), name, tuple(item.get_shape()), item.get_dtype())
                for name, item in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        size = pathlib.Path(path).stat().st_size
        raise UserError(
            f"{path}: truncated or not a safetensors file ({size} bytes; {error}); fetch or "
            "convert the model again"
        ) from None


def write_file(path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file; it appears under its name only when complete."""
    partial = pathlib.Path(f"{path}.partial")
    try:
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(contiguous, partial, metadata={"format": "pt"})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_directory(
    directory, sizes: Mapping[str, int], tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> None:
    """Writes the weights of a model directory in place of those that are there.

    Args:
      directory: exists.
      sizes: name → bytes of every tensor; in this order they fill the files.
      tensors: (name, value) in any order; a file is written once all of its tensors have come.
      shard_bytes: above this there are several files with an index.
    Raises:
      ValueError: a tensor never came.
    """
    directory, shards, size = pathlib.Path(directory), [[]], 0
    for name, nbytes in sizes.items():
        if size + nbytes > shard_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    files = [SINGLE]
    if len(shards) > 1:
        files = [SHARD_NAME.format(number + 1, len(shards)) for number in range(len(shards))]
    for stale in (*directory.glob("model*.safetensors"), directory / INDEX):
        stale.unlink(missing_ok=True)
    shard_of = {name: number for number, names in enumerate(shards) for name in names}
    waiting: list[dict[str, np.ndarray]] = [{} for _ in shards]
    for name, value in tensors:
        number = shard_of[name]
        waiting[number][name] = value
        if len(waiting[number]) == len(shards[number]):
            write_file(directory / files[number], waiting[number])
            waiting[number] = {}
    if any(waiting):
        raise ValueError(f"{directory}: tensors that never came")
    if len(shards) > 1:
        places = {name: files[number] for name, number in shard_of.items()}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def open_directory(directory) -> dict[str, Stored]:
    """name → floating-point tensor of a model directory (index buffers of old checkpoints are left
    out). UserError for incomplete weights."""
    directory = pathlib.Path(directory)
    shards = sorted(path.name for path in directory.iterdir() if SHARD.fullmatch(path.name))
    if not (directory / SINGLE).exists():
        tensors = _open_shards(directory, shards)
    else:
        others = [INDEX] * (directory / INDEX).exists() + shards
        if others and str(directory) not in _warned:
            _warned.add(str(directory))
            progress.warn(
                f"{directory}: {SINGLE} is read, as transformers does; {others[0]} is there as "
                "well and is not: delete what does not belong there"
            )
        tensors = open_file(directory / SINGLE)
    return {name: item for name, item in tensors.items() if item.dtype in ITEM_BYTES}


def _open_shards(directory: pathlib.Path, there: list[str]) -> dict[str, Stored]:
    """The tensors of the files that the index names, or of a complete set of shards."""
    index = directory / INDEX
    file_of = _file_of(index) if index.exists() else {}
    # Without an index, what a shard's own name says of its set.
    totals = {int(SHARD.fullmatch(name)[2]) for name in there}
    names = sorted(set(file_of.values())) or [
        SHARD_NAME.format(number + 1, total) for total in sorted(totals) for number in range(total)
    ]
    if not names:
        raise UserError(f"{directory}: {_without_weights(directory)}")
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        have = [str(number) for number, name in enumerate(names, 1) if name not in missing]
        raise UserError(
            f"{directory}: {len(missing)} of {len(names)} weight files are missing, first "
            f"{missing[0]} (shards that are there: {', '.join(have) or 'none'}); fetch the others"
        )
    shards = {name: open_file(directory / name) for name in names}
    lost = [name for name, shard in file_of.items() if name not in shards[shard]]
    if lost:
        raise UserError(
            f"{index}: {len(lost)} of {len(file_of)} tensors are not in the shards that it "
            f"names, first '{lost[0][:80]}' in {file_of[lost[0]]}; index and shards do not belong "
            "together, fetch the model again"
        )
    if file_of:
        return {name: shards[shard][name] for name, shard in file_of.items()}
    tensors: dict[str, Stored] = {}
    for shard in shards.values():
        if twice := sorted(shard.keys() & tensors.keys()):
            raise UserError(
                f"{directory}: tensor '{twice[0][:80]}' is in two shards and no {INDEX} says "
                "which counts; fetch the model again"
            )
        tensors |= shard
    return tensors


def _file_of(index: pathlib.Path) -> dict[str, str]:
    """Tensor → file in the index's directory."""
    try:
        file_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if all(pathlib.Path(name).name == name for name in file_of.values()) and file_of:
            return file_of
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise UserError(
        f"{index}: expected a JSON object with 'weight_map', tensor → file in this directory; "
        "fetch the model again"
    )


def _without_weights(directory: pathlib.Path) -> str:
    """What a directory without safetensors weights is, and what to do."""
    if (directory / ADAPTER).exists():
        return adapter_line(directory)
    for pattern, advice in OTHER_FORMATS.items():
        if files := sorted(path.name for path in directory.glob(pattern)):
            return f"its weights ({files[0]}) are not {SINGLE}; {advice}"
    return f"no {SINGLE} and no {INDEX}; fetch or convert the model again"


def adapter_line(directory) -> str:
    """What to say of a directory that holds adapters alone."""
    try:
        fields = json.loads(pathlib.Path(directory, ADAPTER).read_text(encoding="utf-8"))
        base = str(fields.get("base_model_name_or_path") or "not named")[:200]
    except (OSError, ValueError, AttributeError):
        base = "not readable"
    return (
        f"a PEFT adapter without its base (base: {base}); merge the two (peft: "
        "merge_and_unload, save_pretrained) "
        "and name the merged directory"
    )


def renamed(tensors: dict[str, Stored], expected: Collection[str]) -> dict[str, Stored]:
    """The tensors under the names that the decoder expects, where a known prefix explains all the
    difference."""
    if all(name in tensors for name in expected):
        return tensors
    for theirs, ours in PREFIXES:
        if theirs and not any(name.startswith(theirs) for name in tensors):
            continue
        mapped = {
            ours + name.removeprefix(theirs) if name.startswith(theirs) else name: name
            for name in tensors
        }
        if len(mapped) == len(tensors) and all(name in mapped for name in expected):
            return {name: tensors[source] for name, source in mapped.items()}
    return tensors


def quantised(directory) -> str | None:
    """What the weights of a directory are quantised with, None where they are not."""
    directory = pathlib.Path(directory)
    tensors: dict[str, Stored] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= open_file(path)
    kinds = {item.dtype for name, item in tensors.items() if name.endswith(".weight")}
    marks = {
        what for name in tensors for end, what in QUANTISED.items() if name.endswith(f".{end}")
    }
    if not marks and not any(kind.startswith(("F8", "F4", "I8", "U8", "I4")) for kind in kinds):
        return None
    return min(marks, default=f"{', '.join(sorted(kinds))} weights")


def quantised_line(directory, method: str) -> str:
    return (
        f"{directory}: the weights are quantised ({method}), which is not read; name the "
        "checkpoint that they were made "
        "from, or save it dequantised (transformers: model.dequantize(), save_pretrained)"
    )
