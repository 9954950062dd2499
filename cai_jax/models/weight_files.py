"""Which files of a model directory hold its weights, and whether these can be read as they are.

The rule for two truths in one directory is that of transformers: model.safetensors is read where it
is there, else the shards that model.safetensors.index.json names. A complete set of shards without
an index is read as well. Whatever is incomplete, quantised or an adapter without its base is
refused with a line that says what it is and what to do.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Collection, Iterable

import numpy as np

from cai_jax.errors import UserError
from cai_jax.io import progress
from cai_jax.models import tensor_files

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
# (what wrappers put before the names, what stands there without them): the first that explains
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
OTHER_FORMATS = {
    "*.gguf": "python -m cai_jax.models.gguf --gguf FILE --out DIR converts it",
    "*.bin": "save them as safetensors (transformers: from_pretrained(DIR).save_pretrained(OUT))",
    "*.pth": "save them as safetensors (transformers: from_pretrained(DIR).save_pretrained(OUT))",
    "*.h5": "save them as safetensors (transformers: from_pretrained(DIR).save_pretrained(OUT))",
    "*.msgpack": (
        "save them as safetensors (transformers: from_pretrained(DIR).save_pretrained(OUT))"
    ),
}
_warned: set[str] = set()


def open_directory(directory) -> dict[str, np.ndarray]:
    """name → read-only array of every floating-point tensor of a model directory. UserError for
    incomplete weights."""
    directory = pathlib.Path(directory)
    single, index = directory / SINGLE, directory / INDEX
    if single.exists():
        shards = _other_shards(directory)
        if (index.exists() or shards) and str(directory) not in _warned:
            _warned.add(str(directory))
            progress.warn(
                f"{directory}: {SINGLE} is read, as transformers does; "
                f"{INDEX if index.exists() else shards[0]} "
                "is there as well and is not: delete what does not belong there"
            )
        return tensor_files.open_tensors(single)
    if index.exists():
        return _open_index(index)
    names = _other_shards(directory)
    if not names:
        raise UserError(f"{directory}: {_without_weights(directory)}")
    _require_all(directory, names)
    return _merged(directory, names)


def _other_shards(directory: pathlib.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if SHARD.fullmatch(path.name))


def _require_all(directory: pathlib.Path, names: Iterable[str]) -> None:
    """UserError where the shards that are there are not all of one set."""
    numbers = [tuple(map(int, SHARD.fullmatch(name).groups())) for name in names]
    totals = sorted({total for _, total in numbers})
    if len(totals) > 1:
        raise UserError(
            f"{directory}: shards of different sets (of {' and of '.join(map(str, totals))}) "
            f"and no {INDEX}; "
            "fetch the model again into an empty directory"
        )
    there = sorted(number for number, _ in numbers)
    if there != list(range(1, totals[0] + 1)):
        raise UserError(
            f"{directory}: only shards {_listed(there)} of {totals[0]} are there, and no "
            f"{INDEX}; fetch the others"
        )


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _open_index(index: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
        if any(not isinstance(name, str) or pathlib.Path(name).name != name for name in names):
            raise ValueError("a shard's name")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(
            f"{index}: expected a JSON object with 'weight_map', tensor → file in this "
            "directory; fetch the model again"
        ) from None
    if missing := [name for name in names if not (index.parent / name).exists()]:
        there = [number for number, name in enumerate(names, 1) if name not in missing]
        have = f"only shards {_listed(there)} of {len(names)} are" if there else "no shard is"
        raise UserError(
            f"{index.parent}: {len(missing)} of {len(names)} weight files are missing, first "
            f"{missing[0]} "
            f"({have} there); fetch the others"
        )
    headers = {name: tensor_files.read_header(index.parent / name)[0] for name in names}
    lost = [name for name, place in places.items() if name not in headers[place]]
    if lost:
        raise UserError(
            f"{index}: {len(lost)} of {len(places)} tensors are not in the shards that it "
            f"names, first '{lost[0][:80]}' "
            f"in {places[lost[0]]}; index and shards do not belong together, fetch the model again"
        )
    return _merged(index.parent, names, places)


def _merged(directory, names: Iterable[str], places: dict | None = None) -> dict[str, np.ndarray]:
    """The tensors of several files; one that several files hold is taken from where the index says
    it is."""
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        for tensor, value in tensor_files.open_tensors(directory / name).items():
            if places is None and tensor in tensors:
                raise UserError(
                    f"{directory}: tensor '{tensor[:80]}' is in two shards and no {INDEX} says "
                    "which counts; "
                    "fetch the model again"
                )
            if places is None or places.get(tensor) == name:
                tensors[tensor] = value
    return tensors


def _without_weights(directory: pathlib.Path) -> str:
    """What a directory without safetensors weights is, and what to do."""
    if (directory / ADAPTER).exists():
        return adapter_line(directory)
    for pattern, advice in OTHER_FORMATS.items():
        if found := sorted(path.name for path in directory.glob(pattern)):
            return f"its weights ({found[0]}) are not {SINGLE}; {advice}"
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


def renamed(tensors: dict[str, np.ndarray], expected: Collection[str]) -> dict[str, np.ndarray]:
    """The tensors under the names that the decoder expects, where one known prefix explains all the
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


def quantised(directory, headers: dict[str, dict] | None = None) -> str | None:
    """What the weights of a directory are quantised with, None where they are not."""
    directory = pathlib.Path(directory)
    if headers is None:
        headers = {}
        for path in sorted(directory.glob("*.safetensors")):
            headers |= tensor_files.read_header(path)[0]
    try:
        fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        method = (fields.get("quantization_config") or fields.get("compression_config") or {}).get(
            "quant_method"
        )
    except (OSError, ValueError, AttributeError):
        method = None
    kinds = {entry["dtype"] for name, entry in headers.items() if name.endswith(".weight")}
    marks = {
        what for name in headers for end, what in QUANTISED.items() if name.endswith(f".{end}")
    }
    if not marks and not any(kind.startswith(("F8", "F4", "I8", "U8", "I4")) for kind in kinds):
        return None
    return str(method)[:40] if method else min(marks, default=f"{', '.join(sorted(kinds))} weights")


def quantised_line(directory, method: str) -> str:
    return (
        f"{directory}: the weights are quantised ({method}), which is not read; name the "
        "checkpoint that they were made "
        "from, or save it dequantised (transformers: model.dequantize(), save_pretrained)"
    )
