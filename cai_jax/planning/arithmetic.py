"""What a piece of work needs by the formulas of the decoder: floating-point operations and
temporary memory.

Operations are what the work is worth, without anything that is computed twice: a product of [m, k]
and [k, n] is 2·m·k·n, a causal token attends to half the sequence on average, norms, softmax and
rotary positions are left out (below 1 %). Counting the compiled program (`hlo.count`) shows what is
really done. Memory is an estimate of what the compiler will need on top of the arguments, for chips
whose compiler is not at hand and for finding a layout that fits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from cai_jax.models import lora
from cai_jax.models.blocks import QUERY_CHUNK
from cai_jax.models.config import ModelConfig
from cai_jax.models.params import num_params, param_table


@dataclasses.dataclass(frozen=True)
class Work:
    """kind: "train", "forward", "decode". rows × length tokens over all chips, worked through in
    `parts`; `past` cached positions before them; head: at what share of the tokens logits are made;
    decode: `steps` tokens a row; trained: the share of the parameters that has gradients."""

    kind: str
    model: ModelConfig
    rows: int
    length: int
    parts: int = 1
    head: float = 1.0
    past: int = 0
    steps: int = 1
    trained: float = 1.0

    @property
    def passes(self) -> int:
        """How often the weights are read."""
        return self.steps if self.kind == "decode" else self.parts

    @property
    def flops(self) -> float:
        model, tokens = self.model, self.rows * self.length * self.steps
        logits = 2.0 * model.vocab_size * model.width * self.head
        keys = self.past + (self.length / 2 if self.length > 1 else 0)
        attended = 4.0 * model.num_layers * model.num_heads * model.head_dim * keys
        return (
            (2 + self.trained if self.kind == "train" else 1)
            * tokens
            * (2.0 * matrix_params(model) + logits + attended)
        )


def matrix_params(model: ModelConfig) -> int:
    """Weights that every token is multiplied with, without embedding and unembedding."""
    layers = {path[1]: p.shape for path, p in param_table(model).items() if path[0] == "layers"}
    return sum(
        math.prod(shape)
        for name, shape in layers.items()
        if "norm" not in name and "bias" not in name
    )


def trained_share(model: ModelConfig, adapters: lora.Adapters | None) -> float:
    """Of the parameters, those that training has gradients for."""
    if adapters is None:
        return 1.0
    return sum(math.prod(spec.shape) for spec in lora.table(model, adapters).values()) / num_params(
        model
    )


def temporaries(
    work: Work, mesh: Mapping[str, int], *, width: int, remat: str, chunk: int
) -> float:
    """Bytes a chip on top of the arguments.

    Args:
        work: what the program does.
        mesh: axis → size.
        width: bytes of an activation.
        remat: what the backward pass recomputes, as in `config.model.remat`.
        chunk: positions whose logits exist at the same time; 0: all.

    Returns:
        Bytes, within some ten to thirty per cent of what the TPU compiler reports.
    """
    model, tensor = work.model, mesh["tensor"]
    shards = mesh["fsdp"] * tensor
    rows = -(-work.rows // (work.parts * mesh["data"] * mesh["fsdp"]))
    tokens = rows * work.length
    layer = matrix_params(model) / model.num_layers
    stream = tokens * model.width * width
    queries = min(QUERY_CHUNK, work.length)
    scores = 4.0 * rows * max(1, model.num_heads // tensor) * queries * (work.length + work.past)
    inner = (
        tokens
        * (2 * model.ffw + (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim)
        / tensor
        * width
    )
    logits = (
        4.0 * rows * min(chunk or work.length, work.length) * model.vocab_size / tensor
        if work.head
        else 0.0
    )
    gathered = 2 * width * layer / tensor + 2 * width * model.vocab_size * model.width / tensor
    # Decoding writes the cache in place, layer by layer, and has the weights of all layers.
    if work.kind == "decode":
        return 4 * scores + 3 * logits + 2 * inner + width * model.vocab_size * model.width / tensor
    if work.kind == "forward":
        return 4 * stream + 3 * scores + 2 * inner + 3 * logits + gathered
    kept = {"full": stream, "dots": stream + inner + 2 * stream}.get(
        remat, 8 * stream + 2 * inner
    ) * model.num_layers
    # Gradients in float32, twice where they are added up over microbatches, and the weights in the
    # activations' type.
    gradients = (
        work.trained * num_params(model) / shards * (4 * (2 if work.parts > 1 else 1) + width)
    )
    return kept + 4 * stream + 4 * scores + 3 * inner + 4 * logits + 2 * gathered + gradients
