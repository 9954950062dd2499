"""Which answers SL-CAI learns from, and that only their tokens count."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.data.dialogue import load_format
from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig
from cai_jax.models.params import init_params
from cai_jax.stages import sl
from cai_jax.training import batching

ASKED = [{"role": "human", "text": "a: b: c?"}]
REVISIONS = [
    {
        "id": f"p{i}",
        "dialogue": ASKED,
        "initial": "bad",
        "rounds": [{"revision": f"r{i}.{number}"} for number in (1, 2, 3)],
    }
    for i in (0, 1)
]
HELPFUL = [{"id": "h0/00", "dialogue": ASKED, "response": "yes"}]


@pytest.mark.parametrize(
    "targets,max_round,want",
    [
        ("all", None, ["r0.1", "r0.2", "r0.3", "r1.1", "r1.2", "r1.3", "yes"]),
        ("all", 2, ["r0.1", "r0.2", "r1.1", "r1.2", "yes"]),
        ("final", None, ["r0.3", "r1.3", "yes"]),
        ("final", 1, ["r0.1", "r1.1", "yes"]),
    ],
)
def test_all_and_final_revisions_up_to_a_round(targets, max_round, want):
    found = sl.answers(REVISIONS, HELPFUL, targets, max_round)
    assert [dialogue[-1].text for _, dialogue in found] == want


def context(tiny_model, revisions=REVISIONS, helpful=HELPFUL, **fields):
    dropped = {}
    config = types.SimpleNamespace(
        **{
            "targets": "all",
            "max_round": None,
            "helpful_fraction": None,
            "max_length": 256,
            "cut_answers": "keep",
            **fields,
        }
    )
    directories = {
        name: types.SimpleNamespace(records=lambda rows=rows: rows)
        for name, rows in (("revisions", revisions), ("helpful", helpful))
        if rows is not None
    }

    def require(rows, what):
        if not rows:
            raise UserError(f"0 {what}")

    def drop(reason, count=1):
        if count:
            dropped[reason] = dropped.get(reason, 0) + count

    return types.SimpleNamespace(
        name="sl",
        seed=0,
        config=config,
        inputs=directories,
        dropped=dropped,
        require_rows=require,
        drop=drop,
    )


def test_only_the_answer_and_its_end_token_are_targets(tiny_model):
    format = load_format(tiny_model, "text")
    examples = sl.examples(context(tiny_model), format)
    assert [example.id for example in examples] == sorted(
        example.id for example in examples
    ) and len(examples) == 7
    for example in examples:
        assert example.tokens[example.target][-1] in format.eos_ids  # EOS is learned
        assert "a: b: c?" in format.decode(
            example.tokens[~example.target].tolist()
        )  # a colon cuts nothing
    assert format.decode(examples[0].tokens[examples[0].target].tolist()).strip() == "yes"


def test_answers_that_were_cut_have_no_end_target(tiny_model):
    """The defect: an answer that ran into the limit of tokens was learned as one that ends
    there."""
    format = load_format(tiny_model)
    rounds = [
        {"revision": "as long as", "revision_stop": "length"},
        {"revision": "short", "revision_stop": "eos"},
    ]
    revisions = [{**REVISIONS[0], "rounds": rounds}]
    helpful = [
        {**HELPFUL[0], "stop": "length"},
        {**HELPFUL[0], "id": "h1/00", "stop": "\n\nHuman:"},
    ]
    ctx = context(tiny_model, revisions=revisions, helpful=helpful)
    ends = {e.id: e.tokens[e.target][-1] in format.eos_ids for e in sl.examples(ctx, format)}
    assert ends == {
        "revision p0#1": False,
        "revision p0#2": True,
        "response h0/00": False,
        "response h1/00": True,
    }
    assert ctx.dropped == {}
    ctx = context(tiny_model, revisions=revisions, helpful=helpful, cut_answers="drop")
    assert [e.id for e in sl.examples(ctx, format)] == ["response h1/00", "revision p0#2"]
    assert ctx.dropped == {"cut at the limit of tokens": 2}


def test_what_is_left_out_is_counted(tiny_model):
    format = load_format(tiny_model, "text")
    empty = [
        {**HELPFUL[0], "id": "h1/00", "response": " \n"},
        {**HELPFUL[0], "id": "h2/00", "response": "long " * 300},
    ]
    ctx = context(tiny_model, helpful=HELPFUL + empty)
    assert len(sl.examples(ctx, format)) == 7
    assert ctx.dropped == {"empty answer": 1, "longer than max_length": 1}
    with pytest.raises(UserError, match="0 training examples"):
        sl.examples(context(tiny_model, max_length=3), format)
    with pytest.raises(UserError, match="all or final"):
        sl.examples(context(tiny_model, targets="last"), format)
    assert len(sl.examples(context(tiny_model, helpful=None), format)) == 6


def test_what_is_beyond_the_models_positions_is_left_out_and_counted(tiny_model):
    """`max_length` may be larger than what the model was made for."""
    format = load_format(tiny_model, "text")
    long = {**HELPFUL[0], "id": "h2/00", "response": "word " * 60}
    ctx = context(tiny_model, helpful=[*HELPFUL, long])
    assert len(sl.examples(ctx, format, 64)) == 7
    assert ctx.dropped == {"longer than the model's positions": 1}


def test_helpful_answers_are_mixed_in_by_their_share(tiny_model):
    format = load_format(tiny_model, "text")
    many = [{**HELPFUL[0], "id": f"h{i}/00"} for i in range(20)]
    for fraction, helpful, revised in (
        (0.25, 2, 6),
        (0.5, 6, 6),
        (0.0, 0, 6),
        (1.0, 20, 0),
        (None, 20, 6),
    ):
        ctx = context(tiny_model, helpful=many, helpful_fraction=fraction)
        names = [example.id.split()[0] for example in sl.examples(ctx, format)]
        assert (names.count("response"), names.count("revision")) == (helpful, revised)
        assert ctx.dropped.get("beyond helpful_fraction", 0) == 26 - helpful - revised


CONFIG = ModelConfig(
    family="llama",
    vocab_size=600,
    width=16,
    ffw=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
)


def test_packed_examples_are_worth_what_they_are_alone():
    """Loss and gradient of a batch do not depend on which examples share a row, nor on rows and
    places that stay empty."""
    rng = np.random.default_rng(0)
    lengths = (9, 5, 12, 4, 7)
    chosen = [
        sl.Example(str(i), rng.integers(0, 600, n).astype(np.int32), np.arange(n) >= n - 3)
        for i, n in enumerate(lengths)
    ]
    params = jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0))
    loss = jax.jit(jax.value_and_grad(sl.make_loss(CONFIG, jnp.float32, chunk=0), has_aux=True))
    alone, packed, filled = (
        sl.make_batch(chosen, batching.Shape(*shape)) for shape in ((5, 12), (2, 20, 4), (6, 20, 4))
    )
    (expected, _), gradient = loss(params, alone)
    garbled = {
        **filled,
        "tokens": np.where(filled["segments"] > 0, filled["tokens"], 599),
    }  # padding means nothing
    for batch in (packed, filled, garbled):
        (total, (count, sums)), found = loss(params, batch)
        np.testing.assert_allclose(total, expected, rtol=1e-5)
        assert (float(count), float(sums["tokens"])) == (15.0, 37.0)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, gradient)
