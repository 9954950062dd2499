"""DPO's losses by hand, and the dpo stage's pairs, batches and reference."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cai_jax.core import dpo, ppo
from cai_jax.core.losses import sequence_sum
from cai_jax.data.dialogue import load_format
from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.models import heads
from cai_jax.stages import dpo as stage_dpo
from cai_jax.textmodels.loader import LoadedModel
from cai_jax.training import batching
from cai_jax.training import pairs as pairs_lib
from configs import default
from tests.recording import TINY, human, stage
from tests.test_training_learner import CONFIG, PARAMS

LOGPROBS = jnp.array([[-3.0, -4.0], [-5.0, -2.0], [9.0, 9.0]])
REFERENCE = jnp.array([[-4.0, -3.0], [-5.0, -4.0], [0.0, 9.0]])
LENGTHS = jnp.array([[2.0, 4.0], [1.0, 2.0], [0.0, 0.0]])
TARGET, MASK = jnp.array([1.0, 0.25, 0.5]), jnp.array([True, True, False])


def pair_loss(**fields):
    given = LOGPROBS, REFERENCE, LENGTHS, TARGET, MASK
    return [float(x) for x in jax.jit(lambda: dpo.pair_loss(*given, **fields))()]


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_sigmoid_by_hand():
    """h = 1 − (−1) = 2 and 0 − 2 = −2; β = ½."""
    total = -log_sigmoid(1) - 0.25 * log_sigmoid(-1) - 0.75 * log_sigmoid(1)
    assert pair_loss(beta=0.5) == pytest.approx([total, 2])


def test_ipo_is_by_the_token():
    """h = 1/2 − (−1/4) = 3/4 and 0 − 2/2 = −1; 1/(2β) = 2."""
    total = (0.75 - 2) ** 2 + 0.25 * (-1 - 2) ** 2 + 0.75 * (-1 + 2) ** 2
    assert pair_loss(kind="ipo", beta=0.25) == pytest.approx([total, 2])


def test_the_better_answer_is_learned_by_the_token():
    plain, more = pair_loss(), pair_loss(nll_coefficient=0.1)
    assert more[0] - plain[0] == pytest.approx(0.1 * (3 / 2 + 2 / 2), rel=1e-5)


def test_smoothing():
    np.testing.assert_allclose(dpo.smoothed(TARGET, 0.1), [0.9, 0.3, 0.5], rtol=1e-6)


def test_what_is_logged_by_hand():
    sums = dpo.pair_sums(LOGPROBS, REFERENCE, LENGTHS, TARGET, MASK, 0.5)
    wanted = {
        "accuracy": 2,
        "margin": 1 + 1,
        "chosen_logprob": -3 - 2,
        "rejected_logprob": -4 - 5,
        "chosen_tokens": 2 + 2,
        "rejected_tokens": 4 + 1,
    }
    assert {name: float(x) for name, x in sums.items()} == pytest.approx(wanted)


def test_a_pair_without_a_better_answer_is_half_right_at_no_margin():
    sums = dpo.pair_sums(LOGPROBS, REFERENCE, LENGTHS, jnp.full(3, 0.5), MASK, 0.5)
    assert [float(sums[name]) for name in ("accuracy", "margin")] == [1, 0]


def a_set(num=5):
    """Pairs of different lengths; the prompt's three tokens are no part of the answers."""
    rng, tokens, answers, pairs = np.random.default_rng(0), {}, {}, []
    for number in range(num):
        pairs.append(pairs_lib.Pair(f"p{number}", "ai", "g", (), ("a", "b"), number / num))
        for side in (0, 1):
            length = int(rng.integers(5, 14))
            tokens[f"p{number}", side] = rng.integers(0, 11, length).astype(np.int32)
            answers[f"p{number}", side] = np.arange(length) >= 3
    return pairs_lib.PairSet(pairs, [], tokens, answers, True)


def test_log_probabilities_of_packed_answers_are_those_of_single_ones():
    check_packed(5, batching.Shape(3, 64, 3))


def test_more_answers_than_a_row_has_tokens_keep_their_log_probabilities():
    """80 answers in rows of 32 tokens; the reference's records are made by the same function."""
    check_packed(40, batching.Shape(40, 32, 1))


def check_packed(num, shape):
    data = a_set(num)
    reference = {pair.id: (float(n), -float(n)) for n, pair in enumerate(data.train)}
    batch = stage_dpo.make_batch(data.train, data, shape, 0, reference)
    read = jax.jit(lambda batch: stage_dpo.answer_logprobs(PARAMS, batch, CONFIG, jnp.float32))
    sums, lengths = map(np.asarray, read(batch))
    names = list(data.tokens)
    tokens, mask = batching.pad_tokens([data.tokens[name] for name in names], len(names), 16)
    alone = jax.jit(lambda *given: heads.dialogue_logprobs(PARAMS, *given, CONFIG))(tokens, mask)
    alone = np.where(mask & (np.arange(16) >= 3), alone, 0).sum(1).reshape(-1, 2)
    where = np.argwhere(batch["valid"])
    assert len(where) == num
    for slot in map(tuple, where):
        number = int(batch["numbers"][slot][0])
        pair = data.train[number]
        assert tuple(batch["numbers"][slot]) == reference[pair.id]
        assert batch["target"][slot] == pytest.approx(pair.target)
        np.testing.assert_allclose(sums[slot], alone[number], rtol=1e-4)
        assert lengths[slot].tolist() == [len(data.tokens[pair.id, side]) - 3 for side in (0, 1)]


def of_reference(path, config, tokens, reference="x"):
    """The log-probabilities of `a_set` under a reference of that config and vocabulary."""
    ctx, _ = stage(path, "dpo", default.dpo("compare", reference=reference))

    def load(name, config=config, tokens=tokens):
        hf = types.SimpleNamespace(get_vocab=lambda: tokens)
        format = types.SimpleNamespace(tokenizer=types.SimpleNamespace(hf=hf))
        return LoadedModel(name, config, PARAMS, format)

    ctx.models = types.SimpleNamespace(load=load)
    init = load("init", config if not reference else CONFIG, {"a": 0})
    return stage_dpo.reference_logprobs(ctx, init, a_set())


def test_a_reference_is_read_with_its_own_config_and_has_the_tokens_of_init(tmp_path):
    """The defect: its weights were read with the config of init, and its tokens were not looked
    at."""
    other = dataclasses.replace(CONFIG, rope_theta=10.0)
    got = of_reference(tmp_path / "a", other, {"a": 0})
    assert got == of_reference(tmp_path / "b", other, {"a": 0}, "")
    assert got != of_reference(tmp_path / "c", CONFIG, {"a": 0})
    with pytest.raises(UserError, match="graph.dpo.reference: 'x' has other tokens than 'init'"):
        of_reference(tmp_path / "d", other, {"a": 1})


class Killed(BaseException):
    """The process ends here: nothing after it is written."""


def test_the_reference_is_the_same_after_a_kill(tmp_path, monkeypatch):
    """Killed at the fourth record, in the middle of a batch of three, when the first two are on
    disk."""
    monkeypatch.setattr(artefacts, "FLUSH_ROWS", 2)
    data, append = a_set(), artefacts.Journal.append
    model = LoadedModel("tiny", CONFIG, PARAMS, load_format(TINY), "policy")
    fields = default.dpo(batch_size=3, num_microbatches=1)

    def logprobs(path):
        ctx, _ = stage(path, "dpo", fields)
        return stage_dpo.reference_logprobs(ctx, model, data)

    def dying(journal, row):
        if len(journal.finished) == 3:
            raise Killed
        append(journal, row)

    undisturbed = logprobs(tmp_path / "a")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(artefacts.Journal, "append", dying)
        logprobs(tmp_path / "b")
    kept = artefacts.StageDirectory(epath.Path(tmp_path / "b" / "dpo")).journal().finished
    assert len(kept) == 2 and not (tmp_path / "b" / "dpo" / "records.jsonl").exists()
    assert logprobs(tmp_path / "b") == undisturbed and len(undisturbed) == 5
    records = [(tmp_path / name / "dpo" / "records.jsonl").read_bytes() for name in "ab"]
    assert records[0] == records[1]


def test_sums_are_of_sequences():
    values, segments = jnp.array([[1.0, 2.0, 4.0, 8.0]]), jnp.array([[1, 2, 2, 0]])
    np.testing.assert_array_equal(sequence_sum(values, segments), [[1, 6, 6, 8]])


def test_sums_are_of_sequences_whatever_their_numbers():
    """100 sequences of 8 tokens in rows of 32: the batch numbers them up to 100."""
    packing = batching.pack([8] * 100, length=32)
    segments = jnp.asarray(packing.segments())
    mask = segments > 0
    np.testing.assert_array_equal(sequence_sum(mask.astype(jnp.float32), segments)[mask], 8)
    mean = ppo.aggregate(jnp.ones(mask.shape), mask, segments, "sequence_mean", 0)
    assert [float(x) for x in mean] == [100, 100]


@pytest.mark.parametrize("which", ["final", "each"])
def test_pairs_of_revisions(tmp_path, which):
    rounds = [("better", "eos"), ("better", "eos"), ("best", "length")]
    row = {
        "id": "r1",
        "dialogue": human("Asked"),
        "initial": "first",
        "initial_stop": "length",
        "rounds": [{"revision": text, "revision_stop": stop} for text, stop in rounds],
    }
    config = default.dpo("", "", "revise", revision_pairs=which)
    ctx, _ = stage(tmp_path, "dpo", config, inputs={"revisions": [row]})
    got = [(pair.texts, pair.stops, pair.target) for pair in pairs_lib.revision_pairs(ctx)]
    last = ("best", "first"), ("length", "length"), 1.0
    steps = [
        (("better", "first"), ("eos", "length"), 1.0),
        (("best", "better"), ("length", "eos"), 1.0),
    ]
    assert got == ([last] if which == "final" else steps)
    assert sum(ctx.dropped.values()) == (which == "each")
