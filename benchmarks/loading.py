"""What loading costs a host beyond what its devices hold: a synthetic checkpoint on eight virtual
devices.

    python -m benchmarks.loading [--gigabytes 4] [--dtype float32] [--directory DIR]

The checkpoint is written file by file, of 1 GB each, and removed afterwards. Each mesh is
loaded in a process of its own; its peak is that of the resident memory (VmHWM, pages of mapped
files included) while `load_hf` runs.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zlib

import numpy as np

from cai_jax.models import hf, weight_files
from cai_jax.models.config import ModelConfig

MESHES = ((8, 1), (1, 8), (2, 4))  # (fsdp, tensor)
LIMIT = 1.2  # times the largest tensor


def architecture(gigabytes: float) -> ModelConfig:
    """A Llama of about that many 10⁹ bytes in float32, at least one layer; its largest tensor is
    the embedding."""
    layers = max(1, round((gigabytes * 1e9 / 4 - 64000 * 2048) / 62.9e6))
    return ModelConfig(
        family="llama",
        vocab_size=64000,
        width=2048,
        ffw=8192,
        num_layers=layers,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        max_length=4096,
        norm_eps=1e-5,
        rope_theta=1e4,
        tied_embeddings=True,
    )


def value(name: str, shape) -> np.ndarray:
    """Numbers that anybody can make again: by name and place."""
    size = int(np.prod(shape))
    out = np.resize(np.arange(8191, dtype=np.float32) * np.float32(1e-4), size)
    out += np.float32(zlib.crc32(name.encode()) % 997)
    return out.reshape(shape)


def write(directory: pathlib.Path, config: ModelConfig, shard_bytes: int = 10**9) -> int:
    """Writes the checkpoint; returns the bytes of the largest tensor."""
    shapes = hf.tensor_shapes(hf.weights_of(config))
    sizes = {name: 4 * int(np.prod(shape)) for name, shape in shapes.items()}
    tensors = ((name, value(name, shape)) for name, shape in shapes.items())
    weight_files.write_directory(directory, sizes, tensors, shard_bytes)
    config.to_json(directory / "config.json")
    return max(sizes.values())


def _status(field: str) -> int:
    line = next(
        line
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) * 1024


def measure(directory: str, fsdp: int, tensor: int, dtype: str) -> dict:
    """Loads a checkpoint in this process.

    Args:
        directory: of the checkpoint.
        fsdp, tensor: sizes of the mesh's axes.
        dtype: of the weights.

    Returns:
        Bytes held by the devices and at the peak, above what the process had before.
    """
    import jax

    from cai_jax.core import sharding

    mesh = sharding.make_mesh({"data": 1, "fsdp": fsdp, "tensor": tensor})
    jax.block_until_ready(jax.device_put(np.zeros(8), sharding.replicated(mesh)))
    before = _status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    config, params = hf.load_hf(directory, dtype=dtype, mesh=mesh)
    jax.block_until_ready(params)
    peak = _status("VmHWM") - before
    held = sum(
        shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards
    )
    for weight in hf.weights_of(config):  # what was loaded is what was written
        leaf = params
        for name in weight.path:
            leaf = leaf[name]
        complete = (
            value(weight.names[-1], weight.file_shape)
            .reshape(weight.split_shape)
            .transpose(weight.to_ours)
        )
        shard = leaf.addressable_shards[-1]
        index = shard.index[1:] if weight.stacked else shard.index
        loaded = np.asarray(shard.data)[-1] if weight.stacked else np.asarray(shard.data)
        np.testing.assert_array_equal(loaded, complete[index].astype(loaded.dtype))
    return {"held": held, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--directory", default=None, help="where the checkpoint is written for a while"
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        directory, fsdp, tensor = arguments.child
        print(json.dumps(measure(directory, int(fsdp), int(tensor), arguments.dtype)))
        return
    for row in run(arguments.gigabytes, arguments.dtype, arguments.directory):
        beyond = row["peak"] - row["held"]
        print(
            f"{row['tensors'] / 1e9:.2f} GB, fsdp {row['fsdp']}, tensor {row['tensor']}: "
            "devices hold "
            f"{row['held'] / 1e9:.2f} GB, peak {row['peak'] / 1e9:.2f} GB: beyond it "
            f"{beyond / 1e9:.2f} GB, "
            f"{beyond / row['largest']:.2f} × the largest tensor (limit {LIMIT})"
        )


def run(gigabytes: float, dtype: str = "float32", where: str | None = None):
    """A row a mesh: bytes of the checkpoint and of its largest tensor, and what `measure` gives."""
    with tempfile.TemporaryDirectory(dir=where) as directory:
        config = architecture(gigabytes)
        largest = write(pathlib.Path(directory), config)
        size = sum(file.stat().st_size for file in pathlib.Path(directory).glob("*.safetensors"))
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
        for fsdp, tensor in MESHES:
            command = [
                sys.executable,
                "-m",
                "benchmarks.loading",
                "--dtype",
                dtype,
                "--child",
                directory,
                str(fsdp),
                str(tensor),
            ]
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            yield {"tensors": size, "largest": largest, "fsdp": fsdp, "tensor": tensor, **row}


if __name__ == "__main__":
    main()
