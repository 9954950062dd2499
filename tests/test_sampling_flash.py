"""The kernels of accelerators beside the products that a CPU runs: the same keys, values and
scores."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_plan import has_compiler
from test_sampling_engine import CONFIG, model, some_tokens

from cai_jax.engine import cached, flash, weights
from cai_jax.errors import UserError

CAPPED = dataclasses.replace(CONFIG, attention_softcap=2.0)
WINDOW = dataclasses.replace(CONFIG, windows=(5, 0))
KERNELS = ("splash_interpreted", "xla")


@functools.cache
def held(config):
    """(weights, a header of 70 tokens in 128 places, a past of 30 in 64): keys and values as the
    engine keeps them."""
    prepared = weights.prepare(model(), config, True)
    header = padded(some_tokens(70), 128)
    keys, values = cached.prefill(prepared, None, None, header, config)
    header = cached.KeyValues(tuple(x[0] for x in keys), tuple(x[0] for x in values), np.int32(70))
    past = cached.prefill(prepared, header, None, padded(some_tokens(30), 64), config)
    return prepared, header, cached.KeyValues(*past, np.array([30], np.int32))


def padded(tokens, size):
    return np.array([list(tokens) + [0] * (size - len(tokens))], np.int32)


PIECE = padded(some_tokens(50), 64)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("config", [CONFIG, WINDOW, CAPPED], ids=["full", "window", "cap"])
def test_a_piece_behind_a_header_and_a_past_has_the_same_keys_and_values(kernel, config):
    if kernel == "xla" and config is CAPPED:
        return  # cuDNN has no cap: `choose` never takes it then
    found = cached.prefill(*held(config), PIECE, config, kernel=kernel)
    wanted = cached.prefill(*held(config), PIECE, config)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got[:, :, :50], want[:, :, :50], atol=2e-5)
    assert not np.allclose(
        wanted[0][1], cached.prefill(*held(config)[:2], None, PIECE, config)[0][1]
    )  # the past is seen


@pytest.mark.parametrize("kernel", KERNELS)
def test_options_side_by_side_have_the_same_logprobs(kernel):
    ends = np.array([[64] * 30 + [40] * 10 + [50] * 10 + [64] * 14], np.int32)
    offsets = np.concatenate(
        [np.arange(30), 30 + np.arange(10), 30 + np.arange(10), 30 + np.arange(14)]
    )[None].astype(np.int32)
    places, targets = np.array([[29, 35, 45, 20]], np.int32), np.array([[9, 10, 11, 12]], np.int32)
    arguments = (*held(CONFIG), PIECE, ends, offsets, places, targets, CONFIG)
    (found, _), (wanted, _) = cached.score(*arguments, kernel=kernel), cached.score(*arguments)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    other, _ = cached.score(*arguments[:4], 0 * ends + 64, *arguments[5:])
    assert abs(float(other[0, 2] - wanted[0, 2])) > 1e-3  # ends count


def test_several_rows_and_sizes_that_are_no_multiple_of_the_lanes():
    rng = np.random.default_rng(1)
    q, keys, values = (
        jnp.asarray(rng.normal(size=(2, 2, *rest, 8)), jnp.float32)
        for rest in [(3, 50), (90,), (90,)]
    )
    allowed = jnp.asarray(rng.random((2, 50, 90)) < 0.3).at[:, :, 0].set(True)
    scores = np.where(allowed[:, None, None], np.einsum("bkgtd,bksd->bkgts", q, keys), -np.inf)
    mass = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = np.einsum("bkgts,bksd->bkgtd", mass / mass.sum(-1, keepdims=True), values)
    for kernel in KERNELS:
        np.testing.assert_allclose(
            flash.attend(q, [(keys, values, allowed)], None, kernel), wanted, atol=2e-6
        )


def test_the_kernel_follows_from_platform_and_model():
    assert flash.choose("tpu", jnp.float32, CAPPED) == "splash"
    assert (
        flash.choose("cpu", jnp.bfloat16, CONFIG) == flash.choose("gpu", jnp.float32, CONFIG) == ""
    )
    assert flash.choose("gpu", jnp.bfloat16, CAPPED) == ""
    assert flash.choose("gpu", jnp.bfloat16, dataclasses.replace(CONFIG, head_dim=256)) == ""


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="cuDNN is here")
def test_a_gpu_without_cudnn_is_one_line():
    with pytest.raises(UserError, match="config.sampling.flash=False"):
        flash.choose("gpu", jnp.bfloat16, CONFIG)


TPU = """
import dataclasses, json
from cai_jax.planning import chips

topology = chips.parse_topology("v5e:2x2")
chips.work_offline(topology)
import jax, jax.numpy as jnp
from cai_jax.core import sharding
from tests.small_config import SMALL
from cai_jax.planning import programs
from cai_jax.engine import cached

devices, found = chips.devices(topology), {}
meshes = {
    "float32": sharding.make_mesh({}, devices[:1]),
    "bfloat16": sharding.make_mesh({"data": 2, "tensor": 2}, devices),
}
for dtype, mesh in meshes.items():
    for Dh in (64, 128):
        config = dataclasses.replace(
            SMALL,
            vocab_size=512,
            width=256,
            ffw=512,
            num_heads=8,
            head_dim=Dh,
            max_length=4096,
            windows=(0, 100),
        )
        whole = sharding.replicated(mesh)

        def number(shape, dtype="int32"):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

        weights = programs.decode_weights(config, mesh, jnp.dtype(dtype))[1]
        past = cached.KeyValues(
            *programs.key_values(config, mesh, (1, 192), jnp.dtype(dtype)), number((1,))
        )
        part = jax.ShapeDtypeStruct((2, 2048, Dh), dtype, sharding=whole)
        header = cached.KeyValues((part,) * 2, (part,) * 2, number(()))
        piece, asked = [number((1, 128))] * 3, [number((1, 64))] * 2
        with jax.set_mesh(mesh):
            prefill = cached.prefill.lower(
                weights, header, past, number((1, 256)), config, kernel="splash"
            ).compile()
            score = cached.score.lower(
                weights, header, past, *piece, *asked, config, kernel="splash"
            ).compile()
        found[f"{dtype} {Dh}"] = [
            text.count('"tpu_custom_call"') for text in (prefill.as_text(), score.as_text())
        ]
print(json.dumps(found))
"""


def test_splash_compiles_for_tpus():
    """On one chip and on four, the kernel is in the program: in prefill once a layer but the last,
    whose context nobody reads."""
    if not has_compiler():
        pytest.skip("libtpu is absent: pip install 'cai_jax[plan]', or run `make test-plan`")
    done = subprocess.run([sys.executable, "-c", TPU], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4 and all(
        prefill == 1 and score == 2 for prefill, score in found.values()
    ), found
