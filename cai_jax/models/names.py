"""Where every parameter lives in a model directory's files: names and axes, by family.

A row is our parameter → (name in the files, our axes, their axes). Our axes leave out the leading L
of the layers' stacks; the files have one tensor a layer, `{}` being its number. A dot joins axes
that the files keep as one. A projection is [out, in] there. A fourth entry is our part of an axis
"3", where they keep q, k and v in one tensor.
"""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np

from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig
from cai_jax.models.tensor_files import let_go

LLAMA = {
    "embed": ("model.embed_tokens.weight", "V D", "V D"),
    "attn_norm": ("model.layers.{}.input_layernorm.weight", "D", "D"),
    "q": ("model.layers.{}.self_attn.q_proj.weight", "D H Dh", "H.Dh D"),
    "k": ("model.layers.{}.self_attn.k_proj.weight", "D K Dh", "K.Dh D"),
    "v": ("model.layers.{}.self_attn.v_proj.weight", "D K Dh", "K.Dh D"),
    "o": ("model.layers.{}.self_attn.o_proj.weight", "H Dh D", "D H.Dh"),
    "q_bias": ("model.layers.{}.self_attn.q_proj.bias", "H Dh", "H.Dh"),
    "k_bias": ("model.layers.{}.self_attn.k_proj.bias", "K Dh", "K.Dh"),
    "v_bias": ("model.layers.{}.self_attn.v_proj.bias", "K Dh", "K.Dh"),
    "o_bias": ("model.layers.{}.self_attn.o_proj.bias", "D", "D"),
    "q_norm": ("model.layers.{}.self_attn.q_norm.weight", "Dh", "Dh"),
    "k_norm": ("model.layers.{}.self_attn.k_norm.weight", "Dh", "Dh"),
    "mlp_norm": ("model.layers.{}.post_attention_layernorm.weight", "D", "D"),
    "gate": ("model.layers.{}.mlp.gate_proj.weight", "D F", "F D"),
    "up": ("model.layers.{}.mlp.up_proj.weight", "D F", "F D"),
    "down": ("model.layers.{}.mlp.down_proj.weight", "F D", "D F"),
    "gate_bias": ("model.layers.{}.mlp.gate_proj.bias", "F", "F"),
    "up_bias": ("model.layers.{}.mlp.up_proj.bias", "F", "F"),
    "down_bias": ("model.layers.{}.mlp.down_proj.bias", "D", "D"),
    "final_norm": ("model.norm.weight", "D", "D"),
    "unembed": ("lm_head.weight", "V D", "V D"),
}
GEMMA = LLAMA | {
    "attn_post_norm": ("model.layers.{}.post_attention_layernorm.weight", "D", "D"),
    "mlp_norm": ("model.layers.{}.pre_feedforward_layernorm.weight", "D", "D"),
    "mlp_post_norm": ("model.layers.{}.post_feedforward_layernorm.weight", "D", "D"),
}
OLMO2 = LLAMA | {
    "attn_post_norm": ("model.layers.{}.post_attention_layernorm.weight", "D", "D"),
    "mlp_post_norm": ("model.layers.{}.post_feedforward_layernorm.weight", "D", "D"),
    "q_norm": ("model.layers.{}.self_attn.q_norm.weight", "H Dh", "H.Dh"),
    "k_norm": ("model.layers.{}.self_attn.k_norm.weight", "K Dh", "K.Dh"),
}
GPT_NEOX = {
    "embed": ("gpt_neox.embed_in.weight", "V D", "V D"),
    "attn_norm": ("gpt_neox.layers.{}.input_layernorm.weight", "D", "D"),
    "attn_norm_bias": ("gpt_neox.layers.{}.input_layernorm.bias", "D", "D"),
    "q": ("gpt_neox.layers.{}.attention.query_key_value.weight", "D H Dh", "H.3.Dh D", 0),
    "k": ("gpt_neox.layers.{}.attention.query_key_value.weight", "D K Dh", "K.3.Dh D", 1),
    "v": ("gpt_neox.layers.{}.attention.query_key_value.weight", "D K Dh", "K.3.Dh D", 2),
    "o": ("gpt_neox.layers.{}.attention.dense.weight", "H Dh D", "D H.Dh"),
    "q_bias": ("gpt_neox.layers.{}.attention.query_key_value.bias", "H Dh", "H.3.Dh", 0),
    "k_bias": ("gpt_neox.layers.{}.attention.query_key_value.bias", "K Dh", "K.3.Dh", 1),
    "v_bias": ("gpt_neox.layers.{}.attention.query_key_value.bias", "K Dh", "K.3.Dh", 2),
    "o_bias": ("gpt_neox.layers.{}.attention.dense.bias", "D", "D"),
    "mlp_norm": ("gpt_neox.layers.{}.post_attention_layernorm.weight", "D", "D"),
    "mlp_norm_bias": ("gpt_neox.layers.{}.post_attention_layernorm.bias", "D", "D"),
    "up": ("gpt_neox.layers.{}.mlp.dense_h_to_4h.weight", "D F", "F D"),
    "up_bias": ("gpt_neox.layers.{}.mlp.dense_h_to_4h.bias", "F", "F"),
    "down": ("gpt_neox.layers.{}.mlp.dense_4h_to_h.weight", "F D", "D F"),
    "down_bias": ("gpt_neox.layers.{}.mlp.dense_4h_to_h.bias", "D", "D"),
    "final_norm": ("gpt_neox.final_layer_norm.weight", "D", "D"),
    "final_norm_bias": ("gpt_neox.final_layer_norm.bias", "D", "D"),
    "unembed": ("embed_out.weight", "V D", "V D"),
}
NAMES = {
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "olmo2": OLMO2,
    "gpt_neox": GPT_NEOX,
}  # all others: LLAMA
# In files, but no weights: buffers of old checkpoints.
IGNORED = re.compile(r".*\.(inv_freq|masked_bias|attention\.bias)$")


PIECE = 64 * 2**20  # bytes of a file that are read at a time


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


def _slice(part: range) -> slice:
    return slice(part.start, part.stop, part.step)


class Weight:
    """One parameter of the decoder and where it lives in the files."""

    def __init__(self, path: tuple[str, ...], config: ModelConfig):
        self.path, self.stacked = path, path[0] == "layers"
        name, ours, theirs, *part = NAMES.get(config.family, LLAMA)[path[-1]]
        self.part = part[0] if part else None
        sizes = {
            "V": config.vocab_size,
            "D": config.width,
            "F": config.ffw,
            "H": config.num_heads,
            "K": config.num_kv_heads,
            "Dh": config.head_dim,
            "3": 3,
        }
        ours, split = ours.split(), theirs.replace(".", " ").split()
        self.names = [name.format(i) for i in range(config.num_layers)] if self.stacked else [name]
        self.layer_shape = tuple(sizes[axis] for axis in ours)
        self.shape = (config.num_layers, *self.layer_shape) if self.stacked else self.layer_shape
        self.split_shape = tuple(sizes[axis] for axis in split)
        self.file_shape = tuple(
            int(np.prod([sizes[axis] for axis in group.split(".")])) for group in theirs.split()
        )
        # Of the tensor in the file, split and indexed by `part`:
        self.part_index = tuple(self.part if axis == "3" else slice(None) for axis in split)
        split = [axis for axis in split if axis != "3"]
        self.to_ours = tuple(split.index(axis) for axis in ours)
        self.to_theirs = tuple(ours.index(axis) for axis in split)

    def read(self, tensors: dict[str, np.ndarray], index: tuple[slice, ...], dtype) -> np.ndarray:
        """The part `index` of our array, read and cast a piece of a file at a time: what is mapped
        beside it stays small.

        UserError where a number is NaN or infinite, in the file or after the cast.
        """
        layers = range(len(self.names))[index[0]] if self.stacked else (0,)
        inner = [
            range(size)[part]
            for size, part in zip(
                self.layer_shape, index[1:] if self.stacked else index, strict=True
            )
        ]
        out = np.empty((len(layers), *map(len, inner)), dtype)
        first = self.to_ours.index(0)  # our axis along which the file goes
        for row, layer in enumerate(layers):
            stored = tensors[self.names[layer]]
            tensor = stored.reshape(self.split_shape)[self.part_index].transpose(self.to_ours)
            count = max(1, PIECE * self.split_shape[0] // max(1, stored.nbytes))
            for start in range(0, len(inner[first]), count):
                piece = inner[first][start : start + count]
                index = tuple(
                    _slice(piece if axis == first else part) for axis, part in enumerate(inner)
                )
                place = tuple(
                    slice(start, start + count) if axis == first else slice(None)
                    for axis in range(len(inner))
                )
                with np.errstate(over="ignore"):  # numbers that the dtype cannot hold are named
                    out[(row, *place)] = tensor[index]
                if not all_finite(out[(row, *place)]):
                    raise UserError(_not_finite(self.names[layer], tensor[index], out.dtype))
                let_go(stored)
        return out if self.stacked else out[0]

    def write(self, value: np.ndarray, joined: dict[str, np.ndarray]):
        """Yields (name in the file, array) of our whole array. What is one of three parts of a
        tensor waits in `joined` until the others have come."""
        for name, layer in zip(self.names, value if self.stacked else [value], strict=True):
            tensor = layer.transpose(self.to_theirs)
            if self.part is None:
                yield name, tensor.reshape(self.file_shape)
                continue
            whole = joined.setdefault(name, np.empty(self.split_shape, value.dtype))
            whole[self.part_index] = tensor
            if self.part == 2:  # q, k, v come in this order
                yield name, joined.pop(name).reshape(self.file_shape)


def tensor_shapes(weights: list[Weight]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor in the files."""
    return {name: weight.file_shape for weight in weights for name in weight.names}
