"""What weights in 8 bits cost: `python -m benchmarks.rounding [--base] --json out.json`.

Of the sampler's copy, or (--base) of the frozen base under adapters, where the unembedding stays as
it is. The distributions of the next token under the model's own weights and under the rounded ones,
at every position of the embedded prompts: Kullback-Leibler divergence in nats, and how often the
most probable token is the same. With --base also supervised steps of adapters on either base, from
the same start, on the better answers of the embedded comparisons.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax.core import losses, optim, sharding
from cai_jax.data.comparisons import load_comparisons
from cai_jax.data.dialogue import load_format
from cai_jax.data.prompts import read_prompts
from cai_jax.engine import weights
from cai_jax.errors import command
from cai_jax.models import decoder, heads, hf, lora, rounding
from cai_jax.models.config import ModelConfig
from cai_jax.structs import Message
from cai_jax.training import state as state_lib


def rounded_params(params: dict, config: ModelConfig) -> tuple[dict, jax.Array]:
    """(parameters with the layers' matrices rounded, the unembedding rounded), each as float32
    again."""

    def back(weight, axes_in):
        integers = weights.rounded(weight, axes_in)
        return integers.values * integers.scale

    matrices = ("q", "k", "v", "o", "gate", "up", "down")
    layers = {
        name: jax.lax.map(functools.partial(back, axes_in=2 if name == "o" else 1), weight)
        if name in matrices
        else weight
        for name, weight in params["layers"].items()
    }
    return {**params, "layers": layers}, back(decoder.unembedding(params, config).T, 1).T


@functools.partial(jax.jit, static_argnames=("config",))
def compare(params, unembed, other, other_unembed, tokens_BxT, mask_BxT, config: ModelConfig):
    """Two models on the same tokens.

    Args:
        params, unembed: a decoder and its unembedding [V, D].
        other, other_unembed: the other's.
        tokens_BxT, mask_BxT: sequences.
        config: of both.

    Returns:
        (KL in nats, whether the most probable token is the same), each [B, T].
    """

    def logprobs(params, unembed):
        hidden = decoder.hidden_states(params, tokens_BxT, mask_BxT, config)
        return jax.nn.log_softmax(
            jnp.einsum("btd,vd->btv", hidden, unembed, preferred_element_type=jnp.float32)
        )

    p, q = logprobs(params, unembed), logprobs(other, other_unembed)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1), jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)


def learn(
    config: ModelConfig, params: dict, form, steps: int, rows: int = 4, rank: int = 16
) -> dict:
    """Supervised steps of adapters on the base as it is and on the rounded base.

    Args:
        config, params: of the base.
        form: its dialogue format.
        steps: of training.
        rows: sequences a step.
        rank: of the adapters.

    Returns:
        {"float32" or "int8": losses of the steps, and the loss on examples that neither has seen}.
    """
    mesh, tx, result = sharding.make_mesh({"data": 1}, jax.devices()[:1]), optim.adam(1e-3), {}
    # --- examples
    items = load_comparisons("embedded:helpful_comparisons")[0]
    encoded = [form.example((*item.dialogue, Message("assistant", item.chosen))) for item in items]
    encoded = [example for example in encoded if len(example.tokens) <= 128]

    def batch(start):
        out = {
            "tokens": np.zeros((rows, 128), np.int32),
            **{name: np.zeros((rows, 128), bool) for name in ("mask", "target")},
        }
        for row in range(rows):
            example = encoded[(start + row) % len(encoded)]
            out["tokens"][row, : len(example.tokens)], out["mask"][row, : len(example.tokens)] = (
                example.tokens,
                True,
            )
            out["target"][row, : len(example.tokens)] = example.target_mask
        return out

    # --- the loss
    def loss(params, batch):
        logprobs = heads.dialogue_logprobs(
            params, batch["tokens"], batch["mask"], config, scan=True
        )
        total, count = losses.response_loss(logprobs, batch["target"])
        return total, (count, {})

    params = sharding.put(
        params, state_lib.shardings_of(state_lib.abstract_params(config, "policy", mesh))
    )
    # --- both bases in turn
    for name, base in (("float32", params), ("int8", rounding.round_layers(params))):
        adapters = lora.Adapters(rank, 16.0, base_dtype="int8" if name == "int8" else "")
        abstract = state_lib.abstract_params(config, "policy", mesh, adapters=adapters)
        abstract = {
            "params": abstract,
            "optimiser": state_lib.abstract_optimiser(tx, abstract, mesh),
        }
        update = state_lib.make_update(loss, tx, abstract, mesh, 1, adapters, base)
        trained = state_lib.start(config, base, mesh, np.array([0, 1], np.uint32), adapters)
        state, seen = (
            {"params": trained, "optimiser": state_lib.init_optimiser(tx, trained, mesh)},
            [],
        )
        for step in range(steps):
            state, scalars = update(state, batch(step * rows))
            seen.append(float(scalars["loss"]))
        total = [
            jax.jit(loss)(lora.attach(base, state["params"], adapters), batch((steps + i) * rows))
            for i in range(4)
        ]
        apart = sum(float(value) for value, _ in total) / sum(
            float(count) for _, (count, _) in total
        )
        result[name] = {"losses": seen, "unseen": apart}
    return result


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument(
        "--prompts", type=int, default=32, help="so many of red_team, and of helpful"
    )
    parser.add_argument(
        "--base",
        action="store_true",
        help="the frozen base under adapters instead of the sampler's copy",
    )
    parser.add_argument(
        "--steps", type=int, default=20, help="with --base: supervised steps on either base"
    )
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    config, params = hf.load_hf(args.model)
    form = load_format(args.model)
    other, other_unembed = rounded_params(params, config)
    other_unembed = decoder.unembedding(params, config) if args.base else other_unembed
    texts = [
        form.prompt(prompt.dialogue)[0]
        for name in ("red_team", "helpful")
        for prompt in read_prompts(f"embedded:{name}")[0][: args.prompts]
    ]
    longest, divergences, same = max(map(len, texts)), [], []
    for start in range(0, len(texts), 8):
        part = texts[start : start + 8]
        tokens, mask = np.zeros((8, longest), np.int32), np.zeros((8, longest), bool)
        for row, text in enumerate(part):
            tokens[row, : len(text)], mask[row, : len(text)] = text, True
        kl, agrees = compare(
            params, decoder.unembedding(params, config), other, other_unembed, tokens, mask, config
        )
        divergences += np.asarray(kl)[mask].tolist()
        same += np.asarray(agrees)[mask].tolist()
    bytes_of = {"float32": 4 * matrix_size(params), "int8": matrix_size(params)}
    result = {
        "prompts": len(texts),
        "positions": len(same),
        "kl_mean": float(np.mean(divergences)),
        "kl_99th_percentile": float(np.quantile(divergences, 0.99)),
        "argmax_agreement": float(np.mean(same)),
        "layer_bytes": bytes_of,
    }
    if args.base and args.steps:
        result["adapters"] = learn(config, params, form, args.steps)
    print(json.dumps(result, indent=1))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def matrix_size(params: dict) -> int:
    """How many numbers the layers' matrices hold."""
    return sum(int(weight.size) for weight in params["layers"].values() if weight.ndim > 2)


if __name__ == "__main__":
    sys.exit(main())
