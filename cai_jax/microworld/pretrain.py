"""Makes the base model of the microworld from nothing: a small Llama on generated documents, in
minutes on a CPU.

python -m cai_jax.microworld.pretrain [--out configs/models/microworld]
"""

from __future__ import annotations

import functools
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as optax_muon
from tokenizers import Tokenizer

from cai_jax.core import losses, optim
from cai_jax.data.dialogue import load_format
from cai_jax.errors import Parser, command
from cai_jax.microworld import documents, score
from cai_jax.microworld import tokenizer as tokenizer_lib
from cai_jax.models import hf
from cai_jax.models.config import ModelConfig
from cai_jax.models.decoder import hidden_states, unembedding
from cai_jax.models.params import init_params, num_params

LENGTH = 192  # tokens a row; longer documents are not drawn


def model_config(vocab_size: int, width: int, num_layers: int) -> ModelConfig:
    """A Llama of this width and depth, with heads of 32."""
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        width=width,
        ffw=3 * width,
        num_layers=num_layers,
        num_heads=width // 32,
        num_kv_heads=width // 32,
        head_dim=32,
        max_length=512,
        norm_eps=1e-5,
        rope_theta=10000.0,
        tied_embeddings=True,
        init_std=0.02 if width >= 128 else 0.03,
    )


def encode(tokenizer: Tokenizer, document: documents.Document) -> tuple[list[int], list[float]]:
    """Token ids of a document and the weight of each in the loss."""
    tokens, weights = [], []
    for text, weight in document:
        ids = tokenizer.encode(text).ids
        tokens += ids
        weights += [weight] * len(ids)
    return tokens, weights


def batches(
    tokenizer: Tokenizer, seed: int, rows: int, length: int = LENGTH
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of packed documents, first fit; a document is never cut.

    Args:
        tokenizer: of the language.
        seed: of the documents.
        rows: sequences in a batch.
        length: tokens in a sequence.

    Yields:
        tokens and segments (int32, segment 0 is padding) and weights (float32), all [rows, length].
    """
    dice = documents.Dice(seed)
    waiting: list = []
    while True:
        batch = {
            name: np.zeros((rows, length), kind)
            for name, kind in (
                ("tokens", np.int32),
                ("segments", np.int32),
                ("weights", np.float32),
            )
        }
        # A batch is full once a dozen documents did not fit; they wait for the next batch.
        used, count, failures, skipped = [0] * rows, [0] * rows, 0, []
        while failures < 12:
            tokens, weights = (
                waiting.pop() if waiting else encode(tokenizer, documents.document(dice))
            )
            # Rare, and cutting it would teach an answer without an end.
            if len(tokens) > length:
                continue
            row = next((row for row in range(rows) if used[row] + len(tokens) <= length), None)
            if row is None:
                failures += 1
                skipped.append((tokens, weights))
                continue
            where = slice(used[row], used[row] + len(tokens))
            count[row] += 1
            batch["tokens"][row, where] = tokens
            batch["weights"][row, where] = weights
            batch["segments"][row, where] = count[row]
            batch["weights"][row, where.start] = 0.0  # nothing predicts a document's first token
            used[row] = where.stop
        waiting = skipped
        yield batch


def loss(params, batch, config: ModelConfig):
    """Weighted next-token loss: (sum, (sum of weights, {})), in nats."""
    hidden = hidden_states(
        params, batch["tokens"], batch["segments"] > 0, config, segments_BxT=batch["segments"]
    )
    logprobs = losses.next_token_logprobs(
        hidden, unembedding(params, config), batch["tokens"], softcap=config.final_softcap, chunk=0
    )
    return -jnp.sum(logprobs * batch["weights"]), (jnp.sum(batch["weights"]), {})


@functools.partial(jax.jit, static_argnames=("config", "tx"), donate_argnums=(0, 1))
def step(params, optimiser, batch, config: ModelConfig, tx):
    """One update.

    Args:
        params, optimiser: the state, donated.
        batch: of `batches`.
        config: of the decoder.
        tx: the optimiser's transformation.

    Returns:
        (params, optimiser, mean loss, gradient norm).
    """
    mean, grads, _, _ = optim.sum_gradients(functools.partial(loss, config=config), params, batch)
    params, optimiser, norm = optim.apply_gradients(tx, grads, optimiser, params)
    return params, optimiser, mean, norm


def matrices(params):
    """The axes that each stacked matrix maps from and to; None for embeddings and norms, which Adam
    trains."""
    axes = {
        "q": (1, (2, 3)),
        "k": (1, (2, 3)),
        "v": (1, (2, 3)),
        "o": ((1, 2), 3),
        "gate": (1, 2),
        "up": (1, 2),
        "down": (1, 2),
    }

    def of(path, _):
        name = path[-1].key
        return MuonDimensionNumbers(*axes[name]) if name in axes else None

    return jax.tree_util.tree_map_with_path(of, params)


def muon(peak: float, num_steps: int) -> optax.GradientTransformation:
    """Muon for the matrices, which learns this language in less than half of Adam's steps, and Adam
    for the rest, at 0.15 of the rate; both decay linearly to 0."""

    def rate(scale):
        return optim.learning_rate(
            scale * peak,
            schedule="linear",
            warmup_steps=min(20, num_steps // 5),
            num_steps=num_steps,
        )

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax_muon(
            rate(1.0),
            weight_decay=0.1,
            adam_learning_rate=rate(0.15),
            adam_b2=0.98,
            muon_weight_dimension_numbers=matrices,
        ),
    )


def train(
    tokenizer: Tokenizer,
    config: ModelConfig,
    *,
    seed: int,
    num_steps: int,
    rows: int,
    peak: float,
    log=print,
):
    """Trains from random weights.

    Args:
        tokenizer: of the language.
        config: of the decoder.
        seed: of the weights and the documents.
        num_steps: updates.
        rows: sequences in a batch.
        peak: the learning rate of Muon.
        log: takes a line of progress every 50 steps.

    Returns:
        float32 parameters.
    """
    params = jax.jit(functools.partial(init_params, config))(jax.random.key(seed))
    tx = muon(peak, num_steps)
    optimiser = jax.jit(tx.init)(params)
    started, seen = time.time(), []
    for number, batch in zip(range(1, num_steps + 1), batches(tokenizer, seed, rows), strict=False):
        params, optimiser, mean, _ = step(params, optimiser, batch, config, tx)
        seen.append(mean)
        if number % 50 == 0 or number == num_steps:
            log(
                f"step {number}/{num_steps}  loss {float(np.mean(jax.device_get(seen))):.4f}  "
                f"{time.time() - started:.0f} s"
            )
            seen = []
    return params


@command
def main(arguments=None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", default="configs/models/microworld")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--score", type=int, default=128, help="requests a mode in the closing table; 0: no table"
    )
    options = parser.parse_args(arguments)
    out = pathlib.Path(options.out)
    vocab_size = tokenizer_lib.write(out)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    config = model_config(vocab_size, options.width, options.layers)
    print(f"{num_params(config):,} parameters, {vocab_size} tokens")
    params = train(
        tokenizer,
        config,
        seed=options.seed,
        num_steps=options.steps,
        rows=options.rows,
        peak=options.rate,
    )
    hf.save_hf(out, config, params, dtype=jnp.bfloat16)
    if options.score:
        rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)
        print(score.report(score.Subject(rounded, config, load_format(out)), options.score))


if __name__ == "__main__":
    sys.exit(main())
