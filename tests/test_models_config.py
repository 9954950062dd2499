"""config.json to ModelConfig and back; every refusal is one line that says what works."""

import dataclasses
import json

import pytest
from parity import cases

from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig, RopeScaling

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_reads_smollm2():
    config = ModelConfig.from_hf(SMOLLM2)
    assert (config.width, config.ffw, config.num_layers) == (576, 1536, 30)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
    assert config.rope_theta == 100000.0 and config.rope_scaling is None and config.tied_embeddings
    assert not config.qkv_bias and not config.mlp_bias and config.windows == ()
    assert hash(config) == hash(ModelConfig.from_hf(dict(SMOLLM2)))


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"rope_scaling": LLAMA3},
        {"rope_scaling": {"type": "linear", "factor": 2}},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 32},
    ],
)
def test_round_trip(extra, tmp_path):
    config = ModelConfig.from_hf(SMOLLM2 | extra)
    config.to_json(tmp_path / "config.json")
    assert ModelConfig.from_json(tmp_path) == config


def test_both_spellings_of_rope_are_read():
    old = ModelConfig.from_hf(SMOLLM2 | {"rope_scaling": LLAMA3})
    new = {key: value for key, value in SMOLLM2.items() if key != "rope_theta"}
    new["rope_parameters"] = {"rope_theta": 100000.0, **LLAMA3}
    assert ModelConfig.from_hf(new) == old
    assert old.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("change", "windows", "switches"),
    [
        ({"model_type": "mistral", "sliding_window": 4}, (4, 4, 4), ()),
        ({"model_type": "mistral", "sliding_window": None}, (), ()),
        ({"model_type": "mistral"}, (4096,) * 3, ()),
        ({"model_type": "qwen2", "sliding_window": 4}, (), ("qkv_bias",)),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 4,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            (0, 4, 4),
            ("qkv_bias",),
        ),
        ({"model_type": "qwen3", "sliding_window": None}, (), ("qk_norm",)),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 5,
                "use_sliding_window": True,
                "attention_bias": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (5, 0, 5),
            ("qk_norm", "qkv_bias", "o_bias"),
        ),
    ],
)
def test_families(change, windows, switches):
    config = ModelConfig.from_hf(SMOLLM2 | {"num_hidden_layers": 3} | change)
    assert config.windows == windows
    on = {name for name in ("qkv_bias", "o_bias", "mlp_bias", "qk_norm") if getattr(config, name)}
    assert on == set(switches)
    assert config.head_dim == (
        128 if config.family == "qwen3" else 64
    )  # Qwen 3's default is not width / heads
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("name", cases.CASES)
def test_every_case_comes_back(name):
    config = ModelConfig.from_hf(cases.CASES[name])
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_what_absent_fields_mean_by_family():
    gemma = ModelConfig.from_hf(
        SMOLLM2
        | {
            "model_type": "gemma3_text",
            "num_hidden_layers": 7,
            "head_dim": 256,
            "rope_theta": None,
            "tie_word_embeddings": True,
        }
    )
    assert gemma.ropes == ("local",) * 5 + ("global", "local") and gemma.windows == (4096,) * 5 + (
        0,
        4096,
    )
    assert (gemma.rope_theta, gemma.local_rope_theta, gemma.final_softcap) == (1e6, 1e4, None)
    new = {
        "full_attention": {"rope_theta": 5e5, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"},
    }  # as transformers 5 writes it
    gemma = ModelConfig.from_hf(SMOLLM2 | {"model_type": "gemma3_text", "rope_parameters": new})
    assert (gemma.rope_theta, gemma.local_rope_theta, gemma.rope_scaling) == (
        5e5,
        2e4,
        RopeScaling("linear", 8.0),
    )
    gemma = ModelConfig.from_hf(SMOLLM2 | {"model_type": "gemma2"})
    assert (gemma.attention_softcap, gemma.final_softcap, gemma.query_scalar) == (50.0, 30.0, 256.0)
    smollm3 = ModelConfig.from_hf(SMOLLM2 | {"model_type": "smollm3", "num_hidden_layers": 4})
    assert smollm3.ropes == ("global",) * 3 + ("none",) and smollm3.tied_embeddings
    neox = ModelConfig.from_hf(
        SMOLLM2 | {"model_type": "gpt_neox", "rotary_emb_base": 500, "rope_theta": None}
    )
    assert (neox.rotary_dim, neox.rope_theta, neox.activation, neox.parallel_blocks) == (
        16,
        500.0,
        "gelu",
        True,
    )


def test_defaults_of_absent_fields():
    config = ModelConfig.from_hf(
        {key: value for key, value in SMOLLM2.items() if key != "num_key_value_heads"}
    )
    assert config.num_kv_heads == config.num_heads
    assert dataclasses.replace(config, vocab_size=5).vocab_size == 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"model_type": "mamba", "architectures": ["MambaForCausalLM"]},
            "MambaForCausalLM.*not supported.*llama",
        ),
        ({"model_type": None, "architectures": None}, "no architecture"),
        ({"hidden_size": None}, "field 'hidden_size': expected a positive integer, not None"),
        ({"vocab_size": "many"}, "field 'vocab_size'"),
        ({"hidden_size": 577}, "not a multiple of num_attention_heads"),
        ({"num_key_value_heads": 2}, "not a multiple of num_key_value_heads"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
            "'yarn' is not supported; default, linear and llama3",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 4}},
            "field 'original_max_position_embeddings'",
        ),
        ({"hidden_act": "relu2"}, "field 'hidden_act'"),
        (
            {"model_type": "mistral", "layer_types": ["full_attention"]},
            "field 'layer_types': 1 entries for 30 layers",
        ),
        (
            {"model_type": "mistral", "sliding_window": 0},
            "field 'sliding_window': expected a positive integer",
        ),
    ],
)
def test_refusals(change, says):
    with pytest.raises(UserError, match="^DIR/config.json: .*" + says) as caught:
        ModelConfig.from_hf(SMOLLM2 | change, "DIR/config.json")
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        ModelConfig.from_json(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2)[:50])
    with pytest.raises(UserError, match="not JSON"):
        ModelConfig.from_json(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="expected a JSON object"):
        ModelConfig.from_json(tmp_path)
