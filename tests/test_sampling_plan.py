"""Shapes and memory, chosen on the host."""

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai_jax.engine import plan
from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig

CONFIG = ModelConfig(
    family="llama",
    vocab_size=64,
    width=24,
    ffw=40,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=1e4,
)


@given(st.integers(0, 3000))
def test_pieces_hold_the_prompt_in_few_shapes(count):
    pieces = plan.cut(count)
    assert sum(real for real, _ in pieces) == count
    assert all(0 < real <= size and size in plan.CHUNKS for real, size in pieces)
    assert all(real == size for real, size in pieces[:-1])  # padding only at the end
    assert sum(size for _, size in pieces) - count < plan.CHUNKS[0] + 2 * plan.CALL_TOKENS


@given(st.integers(1, 5000))
def test_sizes_grow_by_half_at_most(count):
    size = plan.round_size(count)
    assert size >= count and size % 64 == 0 and (size == 64 or size <= 2 * count)
    assert plan.block_size(count) >= sum(size for _, size in plan.cut(count))


def test_the_first_of_several_segments_is_the_header():
    a, b, c = (1,) * 100, (2,) * 80, (3,) * 5
    assert plan.split_prompt((a, b, c)) == plan.Prompt(a, (b[1:], b[:1] + c))
    assert plan.split_prompt((a,)) == plan.Prompt((), (a,))
    assert plan.split_prompt((c, a, b)) == plan.Prompt(
        (), (c + a[1:], a[:1] + b)
    )  # too short to share
    assert plan.split_prompt((a, c, c, (), b)) == plan.Prompt(a, (c + c + b,))


def test_a_prompt_that_continues_another_has_its_pieces():
    header, asked, answer = (1,) * 100, tuple(range(90)), (3,) * 40
    *_, first = plan.split_prompt((header, asked)).segments
    before, second = plan.split_prompt((header, asked, answer)).segments
    assert before == first[:-1]  # what is prefilled; decoding feeds the last token
    assert before + second == asked + answer


def test_the_batch_is_what_the_memory_holds():
    assert plan.token_bytes(CONFIG, jnp.float32) == 2 * 30 * 3 * 64 * 4
    row = plan.token_bytes(CONFIG, jnp.float32) * 1000
    assert plan.plan_batch(CONFIG, jnp.float32, 1000, 9 * row, "cpu") == 8
    assert plan.plan_batch(CONFIG, jnp.float32, 1000, 1000 * row, "cpu") == plan.MAX_BATCH["cpu"]
    assert plan.plan_batch(CONFIG, jnp.bfloat16, 1000, 9 * row, "cpu", multiple=3) == 12
    with pytest.raises(UserError, match="config.sampling.max_length"):
        plan.plan_batch(CONFIG, jnp.float32, 1000, row - 1, "cpu")
