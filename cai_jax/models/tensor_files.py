"""safetensors files, read lazily (memory-mapped, bfloat16 included) and written tensor by tensor.

The format: a little-endian uint64 header length, a JSON header {name: {dtype, shape,
data_offsets}}, then the bytes. Reading touches only the pages that are asked for; writing never
holds more than one tensor.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Mapping

import ml_dtypes
import numpy as np

from cai_jax.errors import UserError

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_header(path) -> tuple[dict[str, dict], int]:
    """(name → {dtype, shape, data_offsets}, where the data begins). UserError for a truncated or
    damaged file."""
    path = pathlib.Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else size
        try:
            header = json.loads(file.read(length)) if 8 + length <= size else None
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise UserError(
            f"{path}: truncated or not a safetensors file ({size} bytes); fetch or convert the "
            "model again"
        )
    header.pop("__metadata__", None)
    if wrong := next((name for name, entry in header.items() if not _is_entry(entry)), None):
        raise UserError(
            f"{path}: the header's entry '{wrong[:80]}' is damaged; fetch or convert the model "
            "again"
        )
    spans = sorted(entry["data_offsets"] for entry in header.values())
    if any(before[1] > after[0] for before, after in zip(spans, spans[1:], strict=False)):
        raise UserError(
            f"{path}: the header is damaged, tensors overlap; fetch or convert the model again"
        )
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end > size:
        raise UserError(
            f"{path}: truncated, {size} of {end} bytes; fetch or convert the model again"
        )
    return header, 8 + length


def open_tensors(path) -> dict[str, np.ndarray]:
    """name → read-only array backed by the file. UserError when the file is truncated or not
    safetensors.

    Tensors of other than floating-point dtypes (index buffers of old checkpoints) are left out.
    """
    path = pathlib.Path(path)
    header, start = read_header(path)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapped, np.uint8)[start:]
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] in DTYPES:
            begin, end = entry["data_offsets"]
            tensors[name] = data[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _is_entry(entry) -> bool:
    """Whether a header's entry has dtype, shape and a place in the file of just that size."""

    def counts(value):
        return isinstance(value, list) and all(
            isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value
        )

    if (
        not isinstance(entry, dict)
        or not counts(entry.get("shape"))
        or not counts(offsets := entry.get("data_offsets"))
    ):
        return False
    if not isinstance(entry.get("dtype"), str) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return False
    kind = DTYPES.get(entry["dtype"])
    return kind is None or offsets[1] - offsets[0] == math.prod(entry["shape"]) * kind.itemsize


def let_go(tensor: np.ndarray) -> None:
    """Gives the pages of the tensor's file that were read back to the system, which else would
    count as this process's memory as long as the file is open; they are mapped again when they are
    read again."""
    base = tensor
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = getattr(base, "obj", base)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def write_tensors(
    path, shapes: Mapping[str, tuple[int, ...]], dtype, tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes one file. `tensors` yields (name, array) in any order; `shapes` holds the names of
    this file."""
    write_files({path: shapes}, dtype, tensors)


def write_files(
    files: Mapping[str, Mapping[str, tuple[int, ...]]],
    dtype,
    tensors: Iterable[tuple[str, np.ndarray]],
):
    """Writes several files at once from one pass over `tensors`; a file appears under its name only
    when complete."""
    dtype = np.dtype(dtype)
    places: dict[str, tuple[Callable, int, tuple[int, ...]]] = {}
    opened = []
    try:
        for path, shapes in files.items():
            header, offset = {"__metadata__": {"format": "pt"}}, 0
            for name, shape in shapes.items():
                end = offset + int(np.prod(shape)) * dtype.itemsize
                header[name] = {
                    "dtype": _NAMES[dtype],
                    "shape": list(shape),
                    "data_offsets": [offset, end],
                }
                offset = end
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
            file = open(f"{path}.partial", "wb")  # noqa: SIM115 (closed below)
            opened.append((path, file))
            file.write(struct.pack("<Q", len(text)) + text)
            for name, shape in shapes.items():
                places[name] = (file, 8 + len(text) + header[name]["data_offsets"][0], tuple(shape))
        for name, value in tensors:
            file, offset, shape = places.pop(name)
            if value.shape != shape:
                raise ValueError(f"{name}: {value.shape} where {shape} was announced")
            file.seek(offset)
            file.write(np.ascontiguousarray(value, dtype).view(np.uint8).data)
        if places:
            raise ValueError(f"never written: {sorted(places)[:3]}")
    except BaseException:
        for path, file in opened:
            file.close()
            os.unlink(f"{path}.partial")
        raise
    for path, file in opened:
        file.close()
        os.replace(f"{path}.partial", path)
