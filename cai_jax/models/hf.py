"""Hugging Face model directories in and out: config.json + safetensors ↔ the decoder's stacked
parameters.

Weights go from the files straight into the shard that needs them, one stacked array after the
other, cast on the way: the host never holds more than one shard next to what its devices hold.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from cai_jax.core import sharding
from cai_jax.errors import UserError
from cai_jax.io import contents
from cai_jax.models import params as params_lib
from cai_jax.models import rounding, weight_files
from cai_jax.models.config import FAMILIES, ModelConfig
from cai_jax.models.remote import hub_name, resolve
from cai_jax.models.weight_files import Stored

__all__ = ["hub_name", "resolve"]  # used as hf.resolve

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
SCORE = "score.weight"
CHUNK = 64 * 2**20  # bytes of a file that are read at a time


# Between our arrays and the files' ----------------------------------------------------------------


class Weight:
    """A parameter of the decoder and the tensors in the files that hold it (see `params.AXES`)."""

    def __init__(self, path: params_lib.Path, config: ModelConfig):
        self.path, self.stacked = path, path[0] == "layers"
        name, self.part = params_lib.file_name(path[-1], config)
        ours, theirs = params_lib.axes_of(path[-1], config)
        if self.part is not None:  # q, k and v of a head in one tensor
            theirs = theirs.replace(".", ".3.")
        sizes = {axis: size for axis, (size, _) in params_lib.sizes(config).items()} | {"3": 3}
        ours, split = ours.split(), theirs.replace(".", " ").split()
        self.names = [name.format(i) for i in range(config.num_layers)] if self.stacked else [name]
        self.layer_shape = tuple(sizes[axis] for axis in ours)
        self.shape = (config.num_layers, *self.layer_shape) if self.stacked else self.layer_shape
        self.split_shape = tuple(sizes[axis] for axis in split)
        self.file_shape = tuple(
            math.prod(sizes[axis] for axis in group.split(".")) for group in theirs.split()
        )
        # Of the tensor in the file, split and indexed by `part`:
        self.part_index = tuple(self.part if axis == "3" else slice(None) for axis in split)
        split = [axis for axis in split if axis != "3"]
        self.to_ours = tuple(split.index(axis) for axis in ours)
        self.to_theirs = tuple(ours.index(axis) for axis in split)

    def read(self, tensors: dict[str, Stored], index: tuple[slice, ...], dtype) -> np.ndarray:
        """The part `index` of our array, read and cast CHUNK bytes of a file at a time.

        Raises:
          UserError: a number is NaN or infinite, in the file or after the cast.
        """
        layers = range(len(self.names))[index[0]] if self.stacked else (0,)
        inner = index[1:] if self.stacked else index
        shape = [
            len(range(*part.indices(n))) for part, n in zip(inner, self.layer_shape, strict=True)
        ]
        out = np.empty((len(layers), *shape), dtype)
        along = self.to_ours.index(0)  # our axis that is the first in the files
        start, stop, _ = inner[along].indices(self.layer_shape[along])
        rows = self.file_shape[0] // self.split_shape[0]  # of the file, for a step along that axis
        others = tuple(slice(None) if axis == along else part for axis, part in enumerate(inner))
        for number, layer in enumerate(layers):
            stored = tensors[self.names[layer]]
            count = max(1, CHUNK * self.split_shape[0] // max(1, stored.nbytes))
            for first in range(start, stop, count):
                last = min(first + count, stop)
                values = stored.read(first * rows, last * rows)
                values = values.reshape(last - first, *self.split_shape[1:])[self.part_index]
                values = values.transpose(self.to_ours)[others]
                target = [slice(None)] * len(inner)
                target[along] = slice(first - start, last - start)
                with np.errstate(over="ignore"):  # numbers that the dtype cannot hold are named
                    out[number, *target] = values
                if not all_finite(out[number, *target]):
                    raise UserError(_not_finite(self.names[layer], values, out.dtype))
        return out if self.stacked else out[0]

    def write(self, value: np.ndarray, joined: dict[str, np.ndarray]):
        """Yields (name in the file, array) of our complete array. What is one of three parts of a
        tensor waits in `joined` for the others."""
        for name, layer in zip(self.names, value if self.stacked else [value], strict=True):
            tensor = layer.transpose(self.to_theirs)
            if self.part is None:
                yield name, tensor.reshape(self.file_shape)
                continue
            fused = joined.setdefault(name, np.empty(self.split_shape, value.dtype))
            fused[self.part_index] = tensor
            if self.part == 2:  # q, k, v come in this order
                yield name, joined.pop(name).reshape(self.file_shape)


def weights_of(config: ModelConfig) -> list[Weight]:
    """Every parameter with its tensors in the files."""
    return [Weight(path, config) for path in params_lib.param_table(config)]


def tensor_shapes(weights: list[Weight]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor in the files."""
    return {name: weight.file_shape for weight in weights for name in weight.names}


def all_finite(values: np.ndarray) -> bool:
    """Whether no number is NaN or infinite, by the exponents' bits where numpy has no fast test."""
    largest = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}.get(values.dtype)
    if largest is None:
        return bool(np.isfinite(values).all())
    return not values.size or int((values.view(np.uint16) & 0x7FFF).max()) < largest


def _not_finite(name: str, stored: np.ndarray, dtype) -> str:
    wide = stored.astype(np.float32)
    if np.isfinite(wide).all():
        return (
            f"tensor '{name}' has numbers beyond {np.dtype(dtype)}; set "
            "--config.model.dtype=bfloat16 or float32"
        )
    counts = f"{np.isnan(wide).sum()} NaN and {np.isinf(wide).sum()} infinite"
    return (
        f"tensor '{name}' has {counts} numbers; these weights are damaged: fetch or train "
        "the model again"
    )


# In -----------------------------------------------------------------------------------------------


def load_hf(
    directory, *, dtype=jnp.float32, mesh: Mesh | None = None, int8: bool = False
) -> tuple[ModelConfig, dict]:
    """The configuration and parameters of a model directory.

    Args:
      directory: holds config.json and model.safetensors, or shards with
        model.safetensors.index.json.
      dtype: what the parameters are cast to.
      mesh: places every array by its logical axes (`sharding.RULES`); without it, on the default
        device.
      int8: the layers' matrices are rounded to 8 bits as they come in (`rounding.py`): no device
        holds them all in full.
    Returns:
      (config, params): params as in `params.param_table`.
    Raises:
      UserError: no or broken config.json, missing or truncated weight files, missing, superfluous
      or misshapen tensors.
    """
    directory = pathlib.Path(directory)
    config = ModelConfig.from_json(directory)
    tensors = open_weights(directory, config)
    return config, _load(directory, config, tensors, dtype, mesh, int8)


def load_classifier(
    directory, *, dtype=jnp.float32, mesh: Mesh | None = None, int8: bool = False
) -> tuple[ModelConfig, dict, dict]:
    """(config, decoder's parameters, head) of a `…ForSequenceClassification` directory with one
    label: a preference model.

    Args:
      directory, dtype, mesh, int8: as in `load_hf`.
    Returns:
      The head is {"weight": float32 [D], "bias": float32 []} on the host, the bias being
      config.json's `score_offset` (see `save_hf`), 0 where there is none. There is no unembedding:
      the config says that it is tied.
    Raises:
      UserError: as `load_hf`, or there is no such head.
    """
    directory = pathlib.Path(directory)
    config = dataclasses.replace(ModelConfig.from_json(directory), tied_embeddings=True)
    tensors = open_weights(directory, config, classifier=True)
    score = tensors.pop(SCORE, None)
    if score is None or score.shape != (1, config.width):
        has = "no tensor 'score.weight'"
        has = has if score is None else f"'score.weight' has shape {score.shape}"
        raise UserError(
            f"{directory}: {has}; a preference model has one of shape (1, {config.width})"
        )
    fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    offset = fields.get("score_offset", 0.0)
    head = {
        "weight": np.asarray(score.read()[0], np.float32),
        "bias": np.asarray(offset, np.float32),
    }
    if not (np.isfinite(head["weight"]).all() and np.isfinite(head["bias"])):
        raise UserError(
            f"{directory}: tensor 'score.weight' or config.json's score_offset is NaN or "
            "infinite; these weights are "
            "damaged: fetch or train the model again"
        )
    return config, _load(directory, config, tensors, dtype, mesh, int8), head


def open_weights(directory, config: ModelConfig, classifier: bool = False) -> dict[str, Stored]:
    """name → tensor of a model directory, under the decoder's names where a known prefix is
    before them all.

    Reads headers only. UserError where the weights are incomplete, quantised or not those that
    config.json describes.
    """
    shapes = tensor_shapes(weights_of(config))
    tensors = weight_files.renamed(weight_files.open_directory(directory), shapes)
    body = {name: item for name, item in tensors.items() if not classifier or name != SCORE}
    try:
        _check(shapes, body, config, directory)
    except UserError:
        if method := weight_files.quantised(directory):
            raise UserError(weight_files.quantised_line(directory, method)) from None
        raise
    return tensors


def is_classifier(directory) -> bool:
    """Whether config.json in `directory` names a sequence classifier."""
    try:
        fields = json.loads(pathlib.Path(directory, "config.json").read_text(encoding="utf-8"))
        names = fields.get("architectures") or ()
        return any("ForSequenceClassification" in name for name in names)
    except (OSError, ValueError, AttributeError, TypeError):  # loading it reports what is wrong
        return False


def _load(
    directory, config: ModelConfig, tensors: dict, dtype, mesh: Mesh | None, int8: bool = False
) -> dict:
    weights = weights_of(config)
    shardings = {}
    if mesh is not None:
        tree = sharding.tree_shardings(
            params_lib.param_axes(config), params_lib.abstract_params(config, dtype), mesh
        )
        shardings = traverse_util.flatten_dict(tree)
    params = {}
    for weight in weights:
        everything = tuple(slice(0, size) for size in weight.shape)
        try:
            if mesh is None:
                params[weight.path] = jnp.asarray(weight.read(tensors, everything, dtype))
            else:
                params[weight.path] = _place(weight, tensors, dtype, shardings[weight.path])
        except UserError as error:
            raise UserError(f"{directory}: {error}") from None
        if int8 and weight.stacked:
            params[weight.path] = jax.block_until_ready(
                rounding.rounded_matrix(weight.path[-1], params[weight.path])
            )
    return params_lib.nest(params)


def _place(weight: Weight, tensors: dict, dtype, to) -> jax.Array:
    """An array in the sharding `to`, shard by shard: each is read once, goes to the devices that
    hold it, and is freed before the next."""
    shards: dict = {}
    for device, index in to.addressable_devices_indices_map(weight.shape).items():
        key = tuple((part.start, part.stop) for part in index)
        shards.setdefault(key, (index, []))[1].append(device)
    arrays = []
    for index, devices in shards.values():
        shard = weight.read(tensors, index, dtype)
        arrays += [jax.block_until_ready(jax.device_put(shard, device)) for device in devices]
        del shard
    return jax.make_array_from_single_device_arrays(weight.shape, to, arrays)


def _check(expected: dict, tensors: dict, config: ModelConfig, directory) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise UserError(
            f"{directory}: {len(missing)} of {len(expected)} tensors are missing, first "
            f"'{missing[0]}'"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{directory}: tensor '{name}' has shape {tensors[name].shape}, config.json "
                f"asks for {shape}"
            )
    extra = [
        name for name in tensors if name not in expected and not params_lib.IGNORED.match(name)
    ]
    if config.tied_embeddings:
        extra = [name for name in extra if name not in params_lib.UNEMBEDDINGS]
    if extra:
        raise UserError(
            f"{directory}: {len(extra)} tensors have no place in a {config.family} model, "
            f"first '{extra[0]}'"
        )


def load_params(
    reference: str,
    *,
    seed: int = 0,
    dtype=jnp.float32,
    mesh: Mesh | None = None,
    int8: bool = False,
):
    """(config, params) of a model reference.

    Args:
      reference: a directory, a hub name, a gs:// path, or "random:DIR": weights drawn for
        DIR/config.json.
      seed: of drawn weights.
      dtype, mesh, int8: as in `load_hf`.
    Returns:
      As `load_hf`.
    """
    directory = resolve(reference)
    if not reference.startswith("random:"):
        return load_hf(directory, dtype=dtype, mesh=mesh, int8=int8)
    config = ModelConfig.from_json(directory)
    params = _initialiser(config, jnp.dtype(dtype), mesh)(jax.random.key(seed))
    return config, rounding.round_layers(params) if int8 else params


@functools.lru_cache(maxsize=8)
def _initialiser(config: ModelConfig, dtype, mesh: Mesh | None):
    """key → random parameters, made in place on the mesh; compiled once for all seeds."""
    placed = None
    if mesh is not None:
        abstract = params_lib.abstract_params(config, dtype)
        placed = sharding.tree_shardings(params_lib.param_axes(config), abstract, mesh)
    return jax.jit(lambda key: params_lib.init_params(config, key, dtype), out_shardings=placed)


def fingerprint(reference: str, seed: int = 0) -> str:
    """16 hexadecimal digits of the weights of a reference: of the contents of config.json and of
    every weight file; of random weights, of config.json and seed."""
    is_random = reference.startswith("random:")
    files = contents.of_model(resolve(reference), weights=not is_random, tokenizer=False)
    return contents.combined(files | {"seed": str(seed)} if is_random else files)


# Out ----------------------------------------------------------------------------------------------


def save_hf(
    directory,
    config: ModelConfig,
    params,
    tokenizer_dir=None,
    *,
    dtype=None,
    shard_bytes: int = 5 * 10**9,
    score=None,
    fields: dict | None = None,
) -> None:
    """Writes a directory that transformers' AutoModelForCausalLM loads, or, with `score`,
    AutoModelForSequenceClassification.

    Args:
      directory: is made where it is missing; its old weights are removed.
      config: of the decoder.
      params: as in `params.param_table`, on any mesh; every process must call, the first one
        writes.
      tokenizer_dir: where tokenizer, chat template, generation config and the special token ids are
        copied from.
      dtype: of the file, float32 or bfloat16; None keeps that of the parameters.
      shard_bytes: above this the weights are split over several files with an index.
      score: float [D], what the hidden state of the last token is multiplied with: the one label of
        a classifier. Such a model has no unembedding, and no bias: what is added to its scores is a
        field (`score_offset`).
      fields: further fields of config.json.
    """
    directory = pathlib.Path(directory)
    flat, weights = traverse_util.flatten_dict(params), weights_of(config)
    weights = [w for w in weights if score is None or w.path != ("unembed",)]
    dtype = np.dtype(flat[weights[0].path].dtype if dtype is None else dtype)

    def tensors():  # one stacked array on the host at a time
        joined = {}
        for weight in weights:
            value = np.asarray(sharding.fetch(flat[weight.path])).astype(dtype, copy=False)
            yield from weight.write(value, joined)
        if score is not None:
            yield SCORE, np.asarray(sharding.fetch(score))[None].astype(dtype)

    if jax.process_index() != 0:
        list(map(type, tensors()))  # takes part in fetching, holds nothing
        return
    directory.mkdir(parents=True, exist_ok=True)
    token_ids = copy_tokenizer(tokenizer_dir, directory) if tokenizer_dir is not None else {}
    written = config.to_hf() | token_ids | {"torch_dtype": dtype.name}
    shapes = tensor_shapes(weights)
    if score is not None:
        shapes[SCORE] = (1, config.width)
        written |= {
            "architectures": [FAMILIES[config.family].classifier],
            "num_labels": 1,
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
        }
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    weight_files.write_directory(directory, sizes, tensors(), shard_bytes)
    text = json.dumps(written | (fields or {}), indent=2)
    (directory / "config.json").write_text(text + "\n", encoding="utf-8")


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
    return {
        key: fields[key]
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        if fields.get(key) is not None
    }
