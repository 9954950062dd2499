"""Hugging Face model directories in and out: config.json + safetensors ↔ the decoder's stacked parameters.

Weights go from the memory-mapped files straight into the shard that needs them, one stacked array after the other, cast
on the way: the host never holds more than one shard beside what its devices hold.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from cai_jax import sharding
from cai_jax.errors import UserError
from cai_jax.models import params as params_lib
from cai_jax.models import tensor_files
from cai_jax.models.config import ModelConfig

# Our parameter → (Hugging Face name, our axes, their axes). A dot joins axes that they keep as one. Those of the layers
# get a leading L with us, and a file name `model.layers.<layer>.…` each with them. A projection is [out, in] with them.
WEIGHTS = {
    "embed": ("model.embed_tokens.weight", "V D", "V D"),
    "final_norm": ("model.norm.weight", "D", "D"),
    "unembed": ("lm_head.weight", "V D", "V D"),
}
LAYER_WEIGHTS = {
    "attn_norm": ("input_layernorm.weight", "D", "D"),
    "q": ("self_attn.q_proj.weight", "D H Dh", "H.Dh D"),
    "k": ("self_attn.k_proj.weight", "D K Dh", "K.Dh D"),
    "v": ("self_attn.v_proj.weight", "D K Dh", "K.Dh D"),
    "o": ("self_attn.o_proj.weight", "H Dh D", "D H.Dh"),
    "q_bias": ("self_attn.q_proj.bias", "H Dh", "H.Dh"),
    "k_bias": ("self_attn.k_proj.bias", "K Dh", "K.Dh"),
    "v_bias": ("self_attn.v_proj.bias", "K Dh", "K.Dh"),
    "o_bias": ("self_attn.o_proj.bias", "D", "D"),
    "q_norm": ("self_attn.q_norm.weight", "Dh", "Dh"),
    "k_norm": ("self_attn.k_norm.weight", "Dh", "Dh"),
    "mlp_norm": ("post_attention_layernorm.weight", "D", "D"),
    "gate": ("mlp.gate_proj.weight", "D F", "F D"),
    "up": ("mlp.up_proj.weight", "D F", "F D"),
    "down": ("mlp.down_proj.weight", "F D", "D F"),
    "gate_bias": ("mlp.gate_proj.bias", "F", "F"),
    "up_bias": ("mlp.up_proj.bias", "F", "F"),
    "down_bias": ("mlp.down_proj.bias", "D", "D"),
}
# In files, but no weights: buffers of old checkpoints; a copy of the embedding where it is tied.
IGNORED = re.compile(r".*\.(inv_freq|masked_bias)$")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip


class _Weight:
    """One parameter of the decoder and where it lives in the files."""

    def __init__(self, path: tuple[str, ...], config: ModelConfig):
        self.path, self.stacked = path, path[0] == "layers"
        name, ours, theirs = LAYER_WEIGHTS[path[1]] if self.stacked else WEIGHTS[path[0]]
        sizes = {"V": config.vocab_size, "D": config.width, "F": config.ffw, "H": config.num_heads,
                 "K": config.num_kv_heads, "Dh": config.head_dim}  # fmt: skip
        ours, split = ours.split(), theirs.replace(".", " ").split()
        self.names = [f"model.layers.{i}.{name}" for i in range(config.num_layers)] if self.stacked else [name]
        self.layer_shape = tuple(sizes[axis] for axis in ours)
        self.shape = (config.num_layers, *self.layer_shape) if self.stacked else self.layer_shape
        self.split_shape = tuple(sizes[axis] for axis in split)
        self.file_shape = tuple(int(np.prod([sizes[axis] for axis in group.split(".")])) for group in theirs.split())
        self.to_ours = tuple(split.index(axis) for axis in ours)
        self.to_theirs = tuple(ours.index(axis) for axis in split)

    def read(self, tensors: dict[str, np.ndarray], index: tuple[slice, ...], dtype) -> np.ndarray:
        """The part `index` of our array. Views of the files until the last line of the loop, which reads and casts."""
        layers = range(len(self.names))[index[0]] if self.stacked else (0,)
        inner = index[1:] if self.stacked else index
        shape = tuple(len(range(size)[part]) for size, part in zip(self.layer_shape, inner, strict=True))
        out = np.empty((len(layers), *shape), dtype)
        for row, layer in enumerate(layers):
            out[row] = tensors[self.names[layer]].reshape(self.split_shape).transpose(self.to_ours)[inner]
        return out if self.stacked else out[0]

    def write(self, value: np.ndarray):
        """Yields (name in the file, array) of our whole array."""
        for name, layer in zip(self.names, value if self.stacked else [value], strict=True):
            yield name, layer.transpose(self.to_theirs).reshape(self.file_shape)


def _weights(config: ModelConfig) -> list[_Weight]:
    return [_Weight(path, config) for path in params_lib.param_table(config)]


def load_hf(directory, *, dtype=jnp.float32, mesh: Mesh | None = None) -> tuple[ModelConfig, dict]:
    """The configuration and parameters of a model directory.

    Args:
      directory: holds config.json and model.safetensors, or shards with model.safetensors.index.json.
      dtype: what the parameters are cast to.
      mesh: places every array by its logical axes (`sharding.RULES`); without it, on the default device.
    Returns:
      (config, params): params as in `params.param_table`.
    Raises:
      UserError: no or broken config.json, missing or truncated weight files, missing, superfluous or misshapen tensors.
    """
    directory = pathlib.Path(directory)
    config = ModelConfig.from_json(directory)
    tensors = tensor_files.open_directory(directory)
    weights = _weights(config)
    _check(weights, tensors, config, directory)
    shardings = {}
    if mesh is not None:
        tree = sharding.tree_shardings(params_lib.param_axes(config), params_lib.abstract_params(config, dtype), mesh)
        shardings = traverse_util.flatten_dict(tree)
    params = {}
    for weight in weights:
        everything = tuple(slice(0, size) for size in weight.shape)
        if mesh is None:
            params[weight.path] = jnp.asarray(weight.read(tensors, everything, dtype))
        else:
            read = _once(lambda index, weight=weight: weight.read(tensors, index, dtype))
            params[weight.path] = jax.make_array_from_callback(weight.shape, shardings[weight.path], read)
    return config, params_lib.nest(params)


def _once(read):
    """Remembers the last part read: devices that hold the same part ask for it one after the other."""
    last = []

    def reader(index):
        if not last or last[0] != index:
            last[:] = [index, read(index)]
        return last[1]

    return reader


def _check(weights: list[_Weight], tensors: dict, config: ModelConfig, directory) -> None:
    expected = {name: weight.file_shape for weight in weights for name in weight.names}
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise UserError(f"{directory}: {len(missing)} of {len(expected)} tensors are missing, first '{missing[0]}'")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{directory}: tensor '{name}' has shape {tensors[name].shape}, config.json asks for {shape}"
            )
    extra = [name for name in tensors if name not in expected and not IGNORED.match(name)]
    if config.tied_embeddings:
        extra = [name for name in extra if name != "lm_head.weight"]
    if extra:
        raise UserError(
            f"{directory}: {len(extra)} tensors have no place in a {config.family} model, first '{extra[0]}'"
        )


def load_params(reference: str, *, seed: int = 0, dtype=jnp.float32, mesh: Mesh | None = None):
    """(config, params) of a directory, a hub name, a gs:// path, or "random:DIR": fresh weights for DIR/config.json."""
    directory = resolve(reference)
    if not reference.startswith("random:"):
        return load_hf(directory, dtype=dtype, mesh=mesh)
    config = ModelConfig.from_json(directory)
    return config, _initialiser(config, jnp.dtype(dtype), mesh)(jax.random.key(seed))


@functools.lru_cache(maxsize=8)
def _initialiser(config: ModelConfig, dtype, mesh: Mesh | None):
    """key → random parameters, made in place on the mesh; compiled once for all seeds."""
    placed = None
    if mesh is not None:
        abstract = params_lib.abstract_params(config, dtype)
        placed = sharding.tree_shardings(params_lib.param_axes(config), abstract, mesh)
    return jax.jit(lambda key: params_lib.init_params(config, key, dtype), out_shardings=placed)


def resolve(reference: str) -> str:
    """The local directory of a model reference, fetched first where it is remote.

    A path, `random:DIR`, `gs://bucket/path` (copied once into a cache), `org/name` or `hf://org/name` (from the hub).
    """
    reference = reference.removeprefix("random:")
    if pathlib.Path(reference).expanduser().is_dir():
        return str(pathlib.Path(reference).expanduser())
    if "://" in reference and not reference.startswith("hf://"):
        return _copy_remote(reference)
    name = reference.removeprefix("hf://")
    first = pathlib.Path(name).parts[:1]
    local = name == reference and (first in (("models",), ("runs",)) or pathlib.Path(*first).exists())
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not local:
        return _download(name)
    raise UserError(
        f"{reference}: no such model directory (it holds config.json and model.safetensors); `make model` converts "
        "SmolLM2, org/name is fetched from the Hugging Face hub"
    )


def _download(name: str) -> str:
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja"])
    except Exception as error:  # the hub client raises its own, httpx's and the system's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{name}: no such directory, and the Hugging Face hub did not give it: {reason}") from error


def _copy_remote(url: str) -> str:
    from etils import epath

    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cai_jax"
    target = home / hashlib.sha256(url.encode()).hexdigest()[:16]
    if target.is_dir():
        return str(target)
    home.mkdir(parents=True, exist_ok=True)
    partial = tempfile.mkdtemp(dir=home)
    try:
        for file in epath.Path(url).iterdir():
            if file.suffix in (".json", ".safetensors", ".jinja"):
                file.copy(os.path.join(partial, file.name))
        os.replace(partial, target)
    except Exception as error:  # each kind of store raises its own; another process may have been faster
        shutil.rmtree(partial, ignore_errors=True)
        if not target.is_dir():
            raise UserError(f"{url}: could not be read ({type(error).__name__}: {error}); gs:// needs gcsfs") from error
    return str(target)


def save_hf(directory, config: ModelConfig, params, tokenizer_dir=None, *, dtype=None, shard_bytes: int = 5 * 10**9):
    """Writes a directory that transformers' AutoModelForCausalLM loads.

    Args:
      params: as in `params.param_table`, on any mesh; every process must call, the first one writes.
      tokenizer_dir: where tokenizer, chat template, generation config and the special token ids are copied from.
      dtype: of the file, float32 or bfloat16; None keeps that of the parameters.
      shard_bytes: above this the weights are split over several files with an index.
    """
    directory = pathlib.Path(directory)
    flat, weights = traverse_util.flatten_dict(params), _weights(config)
    dtype = np.dtype(flat[weights[0].path].dtype if dtype is None else dtype)

    def tensors():  # one stacked array on the host at a time
        for weight in weights:
            yield from weight.write(np.asarray(sharding.fetch(flat[weight.path])).astype(dtype, copy=False))

    if jax.process_index() != 0:
        for _ in tensors():
            pass
        return
    directory.mkdir(parents=True, exist_ok=True)
    token_ids = copy_tokenizer(tokenizer_dir, directory) if tokenizer_dir is not None else {}
    fields = config.to_hf() | token_ids | {"torch_dtype": dtype.name}
    shards, size = [{}], 0
    for name, shape in ((name, weight.file_shape) for weight in weights for name in weight.names):
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if size + nbytes > shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name], size = shape, size + nbytes
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    for stale in (*directory.glob("model*.safetensors"), directory / "model.safetensors.index.json"):
        stale.unlink(missing_ok=True)
    tensor_files.write_files({directory / f: shard for f, shard in zip(files, shards, strict=True)}, dtype, tensors())
    if len(shards) > 1:
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = params_lib.num_params(config) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(source, directory) -> dict:
    """Copies the tokenizer's files; returns the special token ids that belong into config.json."""
    source = pathlib.Path(source)
    for name in TOKENIZER_FILES:
        if (source / name).exists() and source.resolve() != pathlib.Path(directory).resolve():
            shutil.copyfile(source / name, pathlib.Path(directory) / name)
    try:
        fields = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {key: fields[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if fields.get(key) is not None}
