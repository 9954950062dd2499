"""Rates by hand: operations of a small decoder, and their share of a published peak."""

import dataclasses
import types

import jax
import pytest

from cai_jax.core import sharding
from cai_jax.models import lora
from cai_jax.planning import chips, throughput
from tests.small_config import SMALL

CONFIG = dataclasses.replace(
    SMALL, vocab_size=11, width=16, ffw=24, num_layers=3, num_heads=2, num_kv_heads=1
)
MATRICES = 3 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24)  # q and o, k and v, gate and up and down
FORWARD = (
    2 * MATRICES + 4 * 3 * 16 * 10 / 2
)  # a token, in sequences of 10: products, and half of them attended to
LOGITS = 2 * 16 * 11


def fake_mesh(kind, count, stats):
    device = types.SimpleNamespace(device_kind=kind, process_index=0, memory_stats=lambda: stats)
    return types.SimpleNamespace(devices=types.SimpleNamespace(flat=[device] * count))


def test_a_supervised_step():
    mesh = fake_mesh("TPU v5 lite", 4, {"bytes_in_use": 5, "peak_bytes_in_use": 7})
    found = throughput.training(mesh, CONFIG, 10)({"tokens": 200.0, "count": 50.0}, 0.5)
    done = 200 * 3 * (FORWARD + LOGITS / 4) / 0.5  # logits at the tokens that are learned
    assert found == {
        "tokens_per_second": 400,
        "flops_per_second": pytest.approx(done),
        "memory_bytes": 5,
        "peak_memory_bytes": 7,
        "mfu": pytest.approx(done / (4 * 197e12)),
    }


def test_adapters_have_fewer_gradients_and_heads_no_logits():
    mesh = fake_mesh("TPU v4", 1, {"bytes_in_use": 5})
    adapters = lora.Adapters(1, 1.0, ("q",))
    found = throughput.training(mesh, CONFIG, 10, adapters, head=False)({"tokens": 1.0}, 1.0)
    share = 3 * (16 + 16) / (MATRICES + 11 * 16 + 7 * 16)
    assert found["flops_per_second"] == pytest.approx((2 + share) * FORWARD)


def test_an_update_of_ppo():
    mesh = fake_mesh("NVIDIA H200", 1, {"bytes_in_use": 5})
    sizes = {"num_rollouts": 4, "num_epochs": 3}
    want = 40 * (
        3 * (FORWARD + LOGITS / 2) + 2 * FORWARD + 3 * 3 * (FORWARD + LOGITS / 2) + 3 * 3 * FORWARD
    )
    values = {"tokens": 40.0, "response_tokens": 5.0}  # of 10 a rollout
    found = throughput.ppo(mesh, CONFIG, CONFIG, [CONFIG], **sizes)(values, 1.0)
    assert found["flops_per_second"] == pytest.approx(want)
    found = throughput.ppo(mesh, CONFIG, None, [], **sizes)(values, 1.0)
    assert found["flops_per_second"] == pytest.approx(
        want - 40 * 11 * FORWARD
    )  # no judge, and one trunk
    found = throughput.ppo(mesh, CONFIG, CONFIG, [CONFIG, CONFIG], **sizes)(values, 1.0)
    assert found["flops_per_second"] == pytest.approx(want + 40 * FORWARD)


@pytest.mark.parametrize(
    "kind,name",
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_chips_by_what_jax_calls_them(kind, name):
    chip = chips.of_kind(kind)
    assert (chip and chip.name) == name


def test_a_process_tells_its_memory_where_devices_do_not():
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    found = throughput.memory(list(mesh.devices.flat))
    assert found["peak_memory_bytes"] >= found["memory_bytes"] > 2**20
