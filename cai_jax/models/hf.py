"""Hugging Face model directories in and out: config.json + safetensors ↔ the decoder's stacked
parameters.

Weights go from the memory-mapped files straight into the shard that needs them, one stacked array
after the other, cast on the way: the host never holds more than one shard beside what its devices
hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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

from cai_jax.core import sharding
from cai_jax.errors import UserError
from cai_jax.io import contents, progress
from cai_jax.models import names, rounding, tensor_files, weight_files
from cai_jax.models import params as params_lib
from cai_jax.models.config import FAMILIES, ModelConfig

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


SCORE = "score.weight"


def _weights(config: ModelConfig) -> list[names.Weight]:
    return [names.Weight(path, config) for path in params_lib.param_table(config)]


def load_hf(
    directory, *, dtype=jnp.float32, mesh: Mesh | None = None, int8: bool = False
) -> tuple[ModelConfig, dict]:
    """The configuration and parameters of a model directory.

    Args:
      directory: holds config.json and model.safetensors, or shards with
      model.safetensors.index.json. dtype: what the parameters are cast to. mesh: places every array
      by its logical axes (`sharding.RULES`); without it, on the default device. int8: the layers'
      matrices are rounded to 8 bits as they come in (`rounding.py`): no device holds them all
      whole.
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

    Head: {"weight": float32 [D], "bias": float32 []} on the host, the bias being config.json's
    `score_offset` (see `save_hf`), 0 where there is none. There is no unembedding: the config says
    that it is tied.
    """
    directory = pathlib.Path(directory)
    config = dataclasses.replace(ModelConfig.from_json(directory), tied_embeddings=True)
    tensors = open_weights(directory, config, classifier=True)
    score = tensors.pop(SCORE, None)
    if score is None or score.shape != (1, config.width):
        found = (
            "no tensor 'score.weight'"
            if score is None
            else f"'score.weight' has shape {score.shape}"
        )
        raise UserError(
            f"{directory}: {found}; a preference model has one of shape (1, {config.width})"
        )
    offset = json.loads((directory / "config.json").read_text(encoding="utf-8")).get(
        "score_offset", 0.0
    )
    head = {"weight": np.asarray(score[0], np.float32), "bias": np.asarray(offset, np.float32)}
    if not (np.isfinite(head["weight"]).all() and np.isfinite(head["bias"])):
        raise UserError(
            f"{directory}: tensor 'score.weight' or config.json's score_offset is NaN or "
            "infinite; these weights are "
            "damaged: fetch or train the model again"
        )
    return config, _load(directory, config, tensors, dtype, mesh, int8), head


def open_weights(directory, config: ModelConfig, classifier: bool = False) -> dict[str, np.ndarray]:
    """name → tensor of a model directory, under the decoder's names where a known prefix stands
    before them all.

    Reads headers only. UserError where the weights are incomplete, quantised or not those that
    config.json describes.
    """
    shapes = names.tensor_shapes(_weights(config))
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
        return any(
            "ForSequenceClassification" in name for name in fields.get("architectures") or ()
        )
    except (
        OSError,
        ValueError,
        AttributeError,
        TypeError,
    ):  # what is wrong there is told when it is loaded
        return False


def _load(
    directory, config: ModelConfig, tensors: dict, dtype, mesh: Mesh | None, int8: bool = False
) -> dict:
    weights = _weights(config)
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


def _place(weight: names.Weight, tensors: dict, dtype, place) -> jax.Array:
    """One array, part by part: each is read once, goes to the devices that hold it, and is let go
    of before the next."""
    parts: dict = {}
    for device, index in place.addressable_devices_indices_map(weight.shape).items():
        parts.setdefault(tuple((part.start, part.stop) for part in index), (index, []))[1].append(
            device
        )
    arrays = []
    for index, devices in parts.values():
        part = weight.read(tensors, index, dtype)
        arrays += [jax.block_until_ready(jax.device_put(part, device)) for device in devices]
        del part
    return jax.make_array_from_single_device_arrays(weight.shape, place, arrays)


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
    extra = [name for name in tensors if name not in expected and not names.IGNORED.match(name)]
    if config.tied_embeddings:
        extra = [name for name in extra if name not in ("lm_head.weight", "embed_out.weight")]
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
    """(config, params) of a directory, a hub name, a gs:// path, or "random:DIR": fresh weights for
    DIR/config.json."""
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


def resolve(reference: str) -> str:
    """The local directory of a model reference, fetched first where it is remote.

    A path, `random:DIR`, `gs://bucket/path` (copied once into a cache), `org/name[@REVISION]` or
    `hf://org/name[@REVISION]` (from the hub).
    """
    reference = reference.removeprefix("random:")
    if pathlib.Path(reference).expanduser().is_dir():
        return str(pathlib.Path(reference).expanduser())
    if "://" in reference and not reference.startswith("hf://"):
        return _copy_remote(reference)
    if (named := hub_name(reference)) is not None:
        return _download(*named)
    raise UserError(
        f"{reference}: no such model directory (it holds config.json and model.safetensors); "
        "`make model` converts "
        "SmolLM2, org/name is fetched from the Hugging Face hub"
    )


def hub_name(reference: str) -> tuple[str, str] | None:
    """("org/name", revision or "") of a reference to the hub, None for everything else."""
    reference = reference.removeprefix("random:")
    if pathlib.Path(reference).expanduser().is_dir():
        return None
    name, _, revision = reference.removeprefix("hf://").partition("@")
    first = pathlib.Path(name).parts[:1]
    local = not reference.startswith("hf://") and (
        first in (("models",), ("runs",)) or pathlib.Path(*first).exists()
    )
    return (name, revision) if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not local else None


def fingerprint(reference: str, seed: int = 0) -> str:
    """16 hexadecimal digits of the weights of a reference: of the contents of config.json and of
    every weight file; of random weights, of config.json and seed."""
    is_random = reference.startswith("random:")
    files = contents.of_model(resolve(reference), weights=not is_random, tokenizer=False)
    return contents.combined(files | {"seed": str(seed)} if is_random else files)


def _download(name: str, revision: str = "") -> str:
    import huggingface_hub

    options = {"revision": revision} if revision else {}
    try:
        return huggingface_hub.snapshot_download(
            name, allow_patterns=["*.json", "*.safetensors", "*.jinja"], **options
        )
    except Exception as error:  # the hub client raises its own, httpx's and the system's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name}: no such directory, and the Hugging Face hub did not give it: {reason}"
        ) from error


def _copy_remote(url: str) -> str:
    """A local copy of a remote model directory. Its name holds what the store says of the files, so
    that files which were replaced there are copied again; where the store cannot be asked, the last
    copy is used with a warning."""
    home = contents.user_cache() or pathlib.Path(tempfile.gettempdir()) / "cai_jax"
    last = home / f"{contents.combined([url])}.last"
    try:
        files = _remote_files(url)
        state = {name: _remote_state(file) for name, file in files.items()}
    except Exception as error:  # each kind of store raises its own
        if last.is_file() and (target := home / last.read_text(encoding="ascii")).is_dir():
            progress.warn(f"{_unreadable(url, error)}; the last copy of it, {target}, is used")
            return str(target)
        raise UserError(_unreadable(url, error)) from error
    target = home / contents.combined({url: contents.combined(state)})
    if not target.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(dir=home)
        try:
            for name, file in files.items():
                os.makedirs(os.path.dirname(os.path.join(partial, name)), exist_ok=True)
                file.copy(os.path.join(partial, name))
            os.replace(partial, target)
        except Exception as error:  # another process may have been faster
            shutil.rmtree(partial, ignore_errors=True)
            if not target.is_dir():
                raise UserError(_unreadable(url, error)) from error
    with contextlib.suppress(OSError):
        last.write_text(target.name, encoding="ascii")
    return str(target)


def _remote_files(url: str) -> dict:
    """relative name → path of the files of a remote directory that a model is read from."""
    from etils import epath

    found = {}
    for file in epath.Path(url).iterdir():
        if file.name == contents.TEMPLATES:
            found |= {f"{file.name}/{inner.name}": inner for inner in file.glob("*.jinja")}
        elif file.suffix in contents.MODEL_SUFFIXES:
            found[file.name] = file
    if not found:
        raise FileNotFoundError("no files of a model there")
    return dict(sorted(found.items()))


def _remote_state(file) -> str:
    state = file.stat()
    return f"{state.length} {state.mtime}"


def _unreadable(url: str, error: Exception) -> str:
    return f"{url}: could not be read ({type(error).__name__}: {error}); gs:// needs gcsfs"


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
):
    """Writes a directory that transformers' AutoModelForCausalLM loads, or, with `score`,
    AutoModelForSequenceClassification.

    Args:
      params: as in `params.param_table`, on any mesh; every process must call, the first one
      writes. tokenizer_dir: where tokenizer, chat template, generation config and the special token
      ids are copied from. dtype: of the file, float32 or bfloat16; None keeps that of the
      parameters. shard_bytes: above this the weights are split over several files with an index.
      score: float [D], what the hidden state of the last token is multiplied with: the one label of
      a classifier. Such a
        model has no unembedding, and no bias: what is added to its scores is a field
        (`score_offset`).
      fields: further fields of config.json.
    """
    directory = pathlib.Path(directory)
    flat, weights = traverse_util.flatten_dict(params), _weights(config)
    if score is not None:
        weights = [weight for weight in weights if weight.path != ("unembed",)]
    dtype = np.dtype(flat[weights[0].path].dtype if dtype is None else dtype)

    def tensors():  # one stacked array on the host at a time
        joined = {}
        for weight in weights:
            yield from weight.write(
                np.asarray(sharding.fetch(flat[weight.path])).astype(dtype, copy=False), joined
            )
        if score is not None:
            yield "score.weight", np.asarray(sharding.fetch(score))[None].astype(dtype)

    if jax.process_index() != 0:
        for _ in tensors():
            pass
        return
    directory.mkdir(parents=True, exist_ok=True)
    token_ids = copy_tokenizer(tokenizer_dir, directory) if tokenizer_dir is not None else {}
    written = config.to_hf() | token_ids | {"torch_dtype": dtype.name}
    shapes = names.tensor_shapes(weights)
    if score is not None:
        shapes["score.weight"] = (1, config.width)
        written |= {
            "architectures": [FAMILIES[config.family].classifier],
            "num_labels": 1,
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
        }
    written |= fields or {}
    shards, size = [{}], 0
    for name, shape in shapes.items():
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if size + nbytes > shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name], size = shape, size + nbytes
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [
            f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
            for number in range(len(shards))
        ]
    for stale in (
        *directory.glob("model*.safetensors"),
        directory / "model.safetensors.index.json",
    ):
        stale.unlink(missing_ok=True)
    tensor_files.write_files(
        {directory / f: shard for f, shard in zip(files, shards, strict=True)}, dtype, tensors()
    )
    if len(shards) > 1:
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(int(np.prod(shape)) for shape in shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )
    (directory / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


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
