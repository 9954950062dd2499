"""Counts from compiled programs against numbers worked by hand: products, loops, collectives."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp

from cai_jax.models import heads
from cai_jax.models.params import abstract_params
from cai_jax.planning import hlo
from cai_jax.planning.arithmetic import Work
from tests.small_config import SMALL

CONFIG = dataclasses.replace(SMALL, num_layers=3)


def counts(function, *arguments):
    return hlo.count(jax.jit(function).lower(*arguments).compile().as_text())


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_in_nested_loops():
    def function(x, w):
        def inner(x, w):
            return jnp.tanh(x @ w), None

        def outer(x, _):
            return jax.lax.scan(inner, x, w)[0], None

        return jax.lax.scan(outer, x, None, length=5)[0]

    found = counts(function, array(8, 16), array(7, 16, 16))
    assert found.flops == 5 * 7 * 2 * 8 * 16 * 16 and found.unknown_loops == 0 and found.moved == 0


def test_a_while_loop_that_may_end_early_counts_its_most():
    def function(x, w):
        return jax.lax.while_loop(
            lambda c: (c[0] < 12) & (c[1].sum() > 0), lambda c: (c[0] + 1, c[1] @ w), (0, x)
        )[1]

    assert counts(function, array(4, 8), array(8, 8)).flops == 12 * 2 * 4 * 8 * 8


def test_training_step_of_the_decoder_is_three_forward_passes():
    """Every product of the analytic formula is in the program, and none beside it but the full
    attention square."""
    B, T = 2, 16

    def loss(params, tokens, mask):
        return jnp.sum(heads.dialogue_logprobs(params, tokens, mask, CONFIG, chunk=0))

    arguments = (
        abstract_params(CONFIG),
        jax.ShapeDtypeStruct((B, T), jnp.int32),
        jax.ShapeDtypeStruct((B, T), jnp.bool_),
    )
    work = Work("forward", CONFIG, B, T)
    square = (
        4 * CONFIG.num_layers * CONFIG.num_heads * CONFIG.head_dim * B * T * T
    )  # half of it is masked
    unpredicted = 2 * B * CONFIG.vocab_size * CONFIG.width  # nothing predicts the first token
    assert counts(loss, *arguments).flops == work.flops + square / 2 - unpredicted
    logits = 2 * B * (T - 1) * CONFIG.vocab_size * CONFIG.width
    again = (
        square / 2 + logits
    )  # the backward pass makes the scores again, and the logits block by block
    assert (
        counts(jax.grad(loss), *arguments).flops
        == 3 * (work.flops + square / 2 - unpredicted) + again
    )


TPU_CONVOLUTION = """
HloModule m
ENTRY %main (a: f32[4,1024,512,2], b: f32[4,1024,64,2]) -> f32[4,2,512,64] {
  %a = f32[1024,4,512,2] parameter(0)
  %b = f32[1024,64,4,2] parameter(1)
  ROOT %c = f32[512,64,4,2] convolution(%a, %b), window={WINDOW}, dim_labels=f0b1_io01->bf01
}
""".replace("WINDOW", "size=4x2 stride=3x1 pad=0_0x1_1 lhs_dilate=4x1 rhs_reversal=0x1")


def test_a_convolution_that_stands_for_a_batched_product():
    """Four batch dimensions as a window with holes: of every window one place is real."""
    # axis 0: windows at 0, 3, 6, 9 of size 4, holes of 4 → each finds one element. axis 1: sizes 2
    # and 2, padded by one: outputs 0, 1, 2 would be 1 + 2 + 1 pairs; only the first two are kept.
    assert hlo.count(TPU_CONVOLUTION).flops == 2 * 512 * 64 * 1024 * 4 * 3


COLLECTIVES = """
import json, jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from cai_jax.planning import hlo

mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def put(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))


def count(function, *arguments, out):
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, out))
    found = hlo.count(jitted.lower(*arguments).compile().as_text(), 4)
    return {"flops": found.flops, "moved": found.collectives, "crossing": found.crossing}


print(
    json.dumps(
        [
            count(lambda x: x * 2, put((8, 16), "a"), out=P()),
            count(lambda x, w: x @ w, put((8, 64), None, "b"), put((64, 16), "b"), out=P()),
            count(
                lambda x, w: jax.lax.scan(lambda c, w: (c @ w, None), x, w)[0],
                put((8, 16)),
                put((5, 16, 16)),
                out=P(),
            ),
        ]
    )
)
"""


def test_collectives_on_eight_devices():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", COLLECTIVES]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    gathered, reduced, local = json.loads(done.stdout.splitlines()[-1])
    # All-gather of 4 shards of 2×16 floats: three of four arrive. The ring of four goes over both
    # slices of four chips.
    assert (
        gathered["moved"] == {"all-gather": 3 * 2 * 16 * 4}
        and gathered["crossing"] == 3 * 2 * 16 * 4
    )
    # All-reduce of an 8×16 result over two chips: twice the array times (2 − 1)/2.
    assert (
        reduced["moved"] == {"all-reduce": 8 * 16 * 4}
        and reduced["flops"] == 2 * 8 * 32 * 16
        and reduced["crossing"] == 0
    )
    assert local["moved"] == {} and local["flops"] == 5 * 2 * 8 * 16 * 16
