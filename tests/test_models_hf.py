"""Model directories in and out: round trips, placement on a mesh, and one line for everything that
can be wrong."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cai_jax.core import sharding
from cai_jax.errors import UserError
from cai_jax.models import hf, weight_files
from cai_jax.models import params as params_lib
from cai_jax.models.config import ModelConfig

CONFIG = ModelConfig(
    family="llama",
    vocab_size=768,
    width=16,
    ffw=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=1e4,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
)


@pytest.fixture(scope="module")
def params():
    table = params_lib.param_table(CONFIG)
    rng = np.random.default_rng(0)
    return params_lib.nest(
        {path: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for path, p in table.items()}
    )


@pytest.fixture
def directory(params, tmp_path):
    hf.save_hf(tmp_path / "model", CONFIG, params)
    return tmp_path / "model"


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize("shard_bytes", [10**9, 5000])
def test_round_trip(params, tmp_path, shard_bytes):
    hf.save_hf(tmp_path, CONFIG, params, shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors").exists() == (shard_bytes == 10**9)
    config, loaded = hf.load_hf(tmp_path)
    assert config == CONFIG
    assert_equal(loaded, params)


def test_names_and_orientation(params, directory):
    """What the safetensors library reads from our file, by index arithmetic."""
    tensors = load_file(directory / "model.safetensors")
    q, o = (
        tensors["model.layers.2.self_attn.q_proj.weight"],
        tensors["model.layers.2.self_attn.o_proj.weight"],
    )
    assert q.shape == (16, 16) and tensors["model.layers.0.mlp.down_proj.weight"].shape == (16, 24)
    assert q[3 * 4 + 1, 5] == params["layers"]["q"][2, 5, 3, 1]  # [head · Dh + i, input]
    assert o[5, 3 * 4 + 1] == params["layers"]["o"][2, 3, 1, 5]
    assert (
        tensors["model.layers.1.self_attn.k_proj.bias"][1 * 4 + 2]
        == params["layers"]["k_bias"][1, 1, 2]
    )
    assert tensors["model.layers.0.mlp.gate_proj.weight"][7, 5] == params["layers"]["gate"][0, 5, 7]


def test_writing_over_a_directory_leaves_no_old_shards(params, tmp_path):
    hf.save_hf(tmp_path, CONFIG, params, shard_bytes=5000)
    hf.save_hf(tmp_path, CONFIG, params)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_bfloat16_file(params, tmp_path):
    hf.save_hf(tmp_path, CONFIG, params, dtype=jnp.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    _, loaded = hf.load_hf(tmp_path)
    rounded = jax.tree.map(
        lambda x: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32), params
    )
    assert_equal(loaded, rounded)
    assert {
        leaf.dtype for leaf in jax.tree.leaves(hf.load_hf(tmp_path, dtype=jnp.bfloat16)[1])
    } == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("config", [CONFIG])
def test_parts_of_an_array_are_read_alone(params, directory, config):
    """What a device asks for is that part of the whole, for every parameter."""
    tensors = weight_files.open_directory(directory)
    for weight in hf.weights_of(config):
        index = tuple(slice(size // 2, None) if size > 1 else slice(None) for size in weight.shape)
        leaf = params
        for name in weight.path:
            leaf = leaf[name]
        np.testing.assert_array_equal(
            weight.read(tensors, index, np.float32), np.asarray(leaf)[index]
        )


def test_on_a_mesh(params, directory):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    _, loaded = hf.load_hf(directory, mesh=mesh)
    assert_equal(loaded, params)
    assert loaded["layers"]["q"].sharding.spec == sharding.spec(
        ("layers", "embed", "heads", "head_dim"), (3, 16, 4, 4), mesh
    )


def test_random_models_depend_on_the_seed_only(tiny_model):
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    config, first = hf.load_params(f"random:{tiny_model}", seed=1, mesh=mesh)
    assert config == ModelConfig.from_json(tiny_model)
    assert_equal(first, hf.load_params(f"random:{tiny_model}", seed=1, mesh=mesh)[1])
    other = hf.load_params(f"random:{tiny_model}", seed=2, mesh=mesh)[1]
    assert not np.array_equal(first["embed"], other["embed"])


def test_save_copies_the_tokenizer(params, tmp_path, tiny_model):
    hf.save_hf(tmp_path, CONFIG, params, tiny_model)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == pathlib.Path(tiny_model, name).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 2


def test_old_buffers_are_ignored_and_tied_copies_too(params, directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(tensors, directory / "model.safetensors")
    assert_equal(hf.load_hf(directory)[1], params)
    fields = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(fields))
    assert "unembed" not in hf.load_hf(directory)[1]


def truncate(directory):
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[: len(data) // 2])


def empty(directory):
    (directory / "model.safetensors").write_bytes(b"")


def noise(directory):
    (directory / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"not json at all!")


def no_weights(directory):
    (directory / "model.safetensors").unlink()


def no_config(directory):
    (directory / "config.json").unlink()


def missing_shard(directory):
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def broken_index(directory):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text("{")


def change_config(**fields):
    def change(directory):
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | fields))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "model.safetensors: truncated or not a safetensors file .[0-9]+ bytes"),
        (empty, "truncated or not a safetensors file"),
        (noise, "truncated or not a safetensors file"),
        (no_weights, "no model.safetensors"),
        (no_config, "config.json: no such file"),
        (missing_shard, "1 of 1 weight files are missing, first model-00002-of-00002"),
        (broken_index, "expected a JSON object with 'weight_map'"),
        (change_config(num_hidden_layers=4), "16 of 67 tensors are missing, first 'model.layers.3"),
        (
            change_config(num_hidden_layers=2),
            "16 tensors have no place in a llama model, first 'model.layers.2",
        ),
        (
            change_config(vocab_size=800),
            r"'model.embed_tokens.weight' has shape \(768, 16\), config.json asks for \(800, 16",
        ),
        (change_config(mlp_bias=False), "9 tensors have no place in a llama model"),
        (change_config(model_type="mamba"), "'mamba'. is not supported"),
    ],
)
def test_damage_is_named_in_one_line(directory, damage, says):
    damage(directory)
    with pytest.raises(UserError, match=says) as caught:
        hf.load_hf(directory)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match="dtype"):
        weight_files.write_file(tmp_path / "x.safetensors", {"a": np.array(["text"])})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="never came"):
        weight_files.write_directory(tmp_path, {"a": 4, "b": 4}, [("a", np.zeros(1))], 100)
    assert list(tmp_path.iterdir()) == []


def test_references(tmp_path, tiny_model, monkeypatch):
    assert hf.resolve(tiny_model) == hf.resolve(f"random:{tiny_model}") == tiny_model
    for missing in ("models/absent", str(tmp_path / "absent"), "absent", "./a/b"):
        with pytest.raises(UserError, match="no such model directory.*make model"):
            hf.resolve(missing)

    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path)
    )
    assert (
        hf.resolve("some-org/some-model") == hf.resolve("hf://some-org/some-model") == str(tmp_path)
    )
    assert asked == ["some-org/some-model"] * 2

    def offline(name, **_):
        raise OSError("no connection\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="some-org/some-model.*did not give it: no connection$"):
        hf.resolve("some-org/some-model")


def test_remote_directories_are_copied_once_and_again_when_replaced(
    tmp_path, tiny_model, monkeypatch
):
    from etils import epath

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = tmp_path / "bucket"
    shutil.copytree(tiny_model, bucket)
    (bucket / "notes.txt").write_text("not copied")
    local = epath.Path
    monkeypatch.setattr(
        epath, "Path", lambda url: local(str(url).replace("gs://bucket", str(bucket)))
    )
    copy = pathlib.Path(hf.resolve("gs://bucket"))
    assert sorted(p.name for p in copy.iterdir()) == sorted(
        p.name for p in pathlib.Path(tiny_model).iterdir()
    )
    assert hf.resolve("gs://bucket") == str(copy)
    edited = (bucket / "config.json").read_text() + " "
    (bucket / "config.json").write_text(edited)
    copy = pathlib.Path(hf.resolve("gs://bucket"))  # replaced there: copied again
    assert (copy / "config.json").read_text() == edited
    shutil.rmtree(bucket)
    assert hf.resolve("gs://bucket") == str(copy)
    with pytest.raises(UserError, match="gs://bucket/other: could not be read"):
        hf.resolve("gs://bucket/other")
