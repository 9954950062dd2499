"""What weights in 8 bits cost: `python -m benchmarks.rounding --json out.json`.

The distributions of the next token under the model's own weights and under the rounded ones, at every position of the
embedded prompts: Kullback-Leibler divergence in nats, and how often the most probable token is the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.data.dialogue import load_format
from cai_jax.data.prompts import load_prompts
from cai_jax.models import decoder, hf
from cai_jax.models.config import ModelConfig
from cai_jax.sampling import weights


def rounded_params(params: dict, config: ModelConfig) -> tuple[dict, jax.Array]:
    """(parameters with the layers' matrices rounded, the unembedding rounded), each as float32 again."""

    def back(weight, axes_in):
        found = weights.rounded(weight, axes_in)
        return found.values * found.scale

    matrices = ("q", "k", "v", "o", "gate", "up", "down")
    layers = {name: jax.lax.map(functools.partial(back, axes_in=2 if name == "o" else 1), weight) if name in matrices else weight
              for name, weight in params["layers"].items()}  # fmt: skip
    return {**params, "layers": layers}, back(decoder.unembedding(params, config).T, 1).T


@functools.partial(jax.jit, static_argnames=("config",))
def compare(params, unembed, other, other_unembed, tokens_BxT, mask_BxT, config: ModelConfig):
    """(KL in nats, whether the most probable token is the same) at every position, [B, T]."""

    def logprobs(params, unembed):
        hidden = decoder.hidden_states(params, tokens_BxT, mask_BxT, config)
        return jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, unembed, preferred_element_type=jnp.float32))

    p, q = logprobs(params, unembed), logprobs(other, other_unembed)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1), jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=32, help="so many of red_team, and of helpful")
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    config, params = hf.load_hf(args.model)
    form = load_format(args.model)
    other, other_unembed = rounded_params(params, config)
    texts = [form.prompt(prompt.dialogue)[0] for name in ("red_team", "helpful")
             for prompt in load_prompts(f"embedded:{name}")[: args.prompts]]  # fmt: skip
    longest, divergences, same = max(map(len, texts)), [], []
    for start in range(0, len(texts), 8):
        part = texts[start : start + 8]
        tokens, mask = np.zeros((8, longest), np.int32), np.zeros((8, longest), bool)
        for row, text in enumerate(part):
            tokens[row, : len(text)], mask[row, : len(text)] = text, True
        kl, agrees = compare(params, decoder.unembedding(params, config), other, other_unembed, tokens, mask, config)
        divergences += np.asarray(kl)[mask].tolist()
        same += np.asarray(agrees)[mask].tolist()
    bytes_of = {"float32": 4 * matrix_size(params), "int8": matrix_size(params)}
    found = {"prompts": len(texts), "positions": len(same), "kl_mean": float(np.mean(divergences)),
             "kl_99th_percentile": float(np.quantile(divergences, 0.99)), "argmax_agreement": float(np.mean(same)),
             "layer_bytes": bytes_of}  # fmt: skip
    print(json.dumps(found, indent=1))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def matrix_size(params: dict) -> int:
    """How many numbers the layers' matrices hold."""
    return sum(int(weight.size) for weight in params["layers"].values() if weight.ndim > 2)


if __name__ == "__main__":
    main()
