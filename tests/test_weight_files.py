"""Model directories with two truths, with parts missing, under other names, quantised, or with NaN
in them."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cai_jax.errors import UserError
from cai_jax.models import hf
from cai_jax.models import params as params_lib
from cai_jax.models.config import ModelConfig

CONFIG = ModelConfig(
    family="llama",
    vocab_size=32,
    width=8,
    ffw=12,
    num_layers=3,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=1e4,
)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def parameters(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    table = params_lib.param_table(CONFIG)
    return params_lib.nest(
        {path: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for path, p in table.items()}
    )


@pytest.fixture
def directory(tmp_path):
    """Seed 0 in one file."""
    hf.save_hf(tmp_path / "model", CONFIG, parameters(0))
    return tmp_path / "model"


@pytest.fixture
def shards(tmp_path):
    """Seed 1 in three files or more, with an index."""
    hf.save_hf(tmp_path / "shards", CONFIG, parameters(1), shard_bytes=3000)
    return tmp_path / "shards"


def norm_of(directory) -> np.ndarray:
    return np.asarray(hf.load_hf(directory)[1]["final_norm"])


def total(shards) -> int:
    return len(list(shards.glob("model-*.safetensors")))


def refused(directory, match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        hf.load_hf(directory)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)


@pytest.mark.parametrize("with_shards", [True, False])
def test_the_single_file_wins_over_a_stale_index_and_a_line_says_so(
    directory, shards, with_shards, capsys
):
    shutil.copy(shards / INDEX, directory)
    for path in shards.glob("model-*") if with_shards else ():
        shutil.copy(path, directory)
    np.testing.assert_array_equal(norm_of(directory), parameters(0)["final_norm"])
    norm_of(directory)
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and SINGLE in told and INDEX in told


def test_missing_shards_are_named_with_their_count(shards):
    count = total(shards)
    (shards / f"model-00003-of-{count:05d}.safetensors").unlink()
    there = ", ".join(str(n) for n in range(1, count + 1) if n != 3)
    for _ in range(2):
        refused(shards, f"1 of {count} weight files are missing.*shards that are there: {there}.;")
        (shards / INDEX).unlink(missing_ok=True)


def test_all_shards_without_an_index_are_read(shards):
    (shards / INDEX).unlink()
    np.testing.assert_array_equal(norm_of(shards), parameters(1)["final_norm"])
    count = total(shards)
    shutil.copy(
        shards / f"model-00001-of-{count:05d}.safetensors",
        shards / "model-00001-of-00002.safetensors",
    )
    refused(shards, f"1 of {count + 2} weight files are missing, first model-00002-of-00002")
    shutil.copy(
        shards / f"model-00002-of-{count:05d}.safetensors",
        shards / "model-00002-of-00002.safetensors",
    )
    refused(shards, "is in two shards and no")


def test_an_index_that_does_not_fit_its_shards_is_refused(shards):
    index = json.loads((shards / INDEX).read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    moved = next(name for name, place in index["weight_map"].items() if place == last)
    index["weight_map"][moved] = first
    (shards / INDEX).write_text(json.dumps(index))
    refused(
        shards,
        f"1 of {len(index['weight_map'])} tensors are not in the shards.*'{moved}' in {first}",
    )


def test_an_index_names_files_of_its_own_directory_only(shards):
    index = json.loads((shards / INDEX).read_text())
    places = {name: "../" + place for name, place in index["weight_map"].items()}
    (shards / INDEX).write_text(json.dumps({"weight_map": places}))
    refused(shards, "tensor → file in this directory")


def test_of_two_copies_of_a_tensor_the_index_decides(shards):
    index = json.loads((shards / INDEX).read_text())
    stale = next(
        p for p in shards.glob("model-*") if p.name != index["weight_map"]["model.norm.weight"]
    )
    save_file(load_file(stale) | {"model.norm.weight": np.zeros(8, np.float32)}, stale)
    np.testing.assert_array_equal(norm_of(shards), parameters(1)["final_norm"])


def rename(directory, change) -> None:
    tensors = load_file(directory / SINGLE)
    save_file({change(name): value for name, value in tensors.items()}, directory / SINGLE)


@pytest.mark.parametrize(
    "change",
    [
        lambda name: "base_model.model." + name,
        lambda name: "_orig_mod." + name,
        lambda name: "module." + name,
        lambda name: name.replace("model.", "model.language_model."),
        lambda name: "language_model." + name,
    ],
)
def test_a_prefix_before_all_names_is_taken_off(directory, change):
    rename(directory, change)
    np.testing.assert_array_equal(norm_of(directory), parameters(0)["final_norm"])


def test_a_prefix_that_does_not_explain_every_name_is_not(directory):
    rename(directory, lambda name: "module." + name.replace("layers.2", "layers.9"))
    refused(directory, "tensors are missing, first")


def test_tied_weights_saved_without_the_unembedding(directory):
    config = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(directory / SINGLE)
    del tensors["lm_head.weight"]
    save_file(
        {name.removeprefix("model."): value for name, value in tensors.items()}, directory / SINGLE
    )
    np.testing.assert_array_equal(norm_of(directory), parameters(0)["final_norm"])


def quantise(tensors: dict, method: str) -> dict:
    """The tensors as a quantising program leaves them: dtypes and names, not numbers."""
    out = {}
    for name, value in tensors.items():
        stem = name.removesuffix(".weight")
        if "_proj" not in name:
            out[name] = value
        elif method == "fp8":
            out |= {name: value.astype(ml_dtypes.float8_e4m3fn), f"{name}_scale_inv": value[:1]}
        elif method == "bitsandbytes":
            out |= {name: value.astype(np.uint8), f"{name}.absmax": value[0]}
        else:
            out |= {
                f"{stem}.qweight": value.astype(np.int32),
                f"{stem}.qzeros": value.astype(np.int32),
            }
    return out


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "gptq"])
def test_quantised_weights_are_named_as_such(directory, method, named):
    tensors = quantise(load_file(directory / SINGLE), method)
    header, data = {}, b""
    kinds = {"float8_e4m3fn": "F8_E4M3", "uint8": "U8", "int32": "I32", "float32": "F32"}
    for name, value in tensors.items():
        place = [len(data), len(data) + value.nbytes]
        header[name] = {
            "dtype": kinds[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": place,
        }
        data += value.tobytes()
    text = json.dumps(header).encode()
    (directory / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    if named:
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method}
        (directory / "config.json").write_text(json.dumps(config))
    refused(directory, rf"the weights are quantised \((?i:.*{method}.*)\).*dequantised")


def test_a_config_that_still_names_a_quantisation_is_no_obstacle(directory):
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (directory / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(norm_of(directory), parameters(0)["final_norm"])


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_without_its_base(directory, with_config):
    (directory / SINGLE).rename(directory / "adapter_model.safetensors")
    fields = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    (directory / "adapter_config.json").write_text(json.dumps(fields))
    if not with_config:
        (directory / "config.json").unlink()
    refused(directory, r"a PEFT adapter without its base \(base: org/base\); merge")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-q4.gguf"])
def test_weights_of_another_format_are_named(directory, name):
    (directory / SINGLE).rename(directory / name)
    refused(directory, name.replace(".", r"\."))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_names_its_tensor(directory, dtype, bad):
    tensors = {name: value.copy() for name, value in load_file(directory / SINGLE).items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = bad
    save_file(tensors, directory / SINGLE)
    kind = "1 NaN and 0 infinite" if np.isnan(bad) else "0 NaN and 1 infinite"
    with pytest.raises(UserError, match=f"'model.layers.1.mlp.up_proj.weight' has {kind}") as error:
        hf.load_hf(directory, dtype=dtype)
    assert str(directory) in str(error.value)


def test_a_number_that_the_dtype_cannot_hold(directory):
    tensors = {name: value.copy() for name, value in load_file(directory / SINGLE).items()}
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, directory / SINGLE)
    assert norm_of(directory)[0] == 1e6
    with pytest.raises(
        UserError, match="'model.norm.weight' has numbers beyond float16; set --config.model.dtype"
    ):
        hf.load_hf(directory, dtype=jnp.float16)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_finite_numbers_of_every_size_pass(dtype):
    limits = ml_dtypes.finfo(dtype)
    values = np.array(
        [[0, -0.0, float(limits.max)], [float(limits.min), float(limits.tiny), 1]], dtype
    )
    assert hf.all_finite(values) and hf.all_finite(values.T) and hf.all_finite(values[:0])
    for bad in (np.nan, np.inf, -np.inf):
        values[1, 2] = bad
        assert not hf.all_finite(values) and hf.all_finite(values[:1])
