"""DPO, GRPO and RLOO beside TRL 1.16: losses, and gradients by the log-probabilities of tokens.

TRL's own `_compute_loss` runs, on a trainer without models: what its forward pass would give is a
table of log-probabilities.
"""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl import DPOTrainer, GRPOTrainer, RLOOTrainer

from cai_jax.core import dpo, ppo
from cai_jax.core.algorithms import ALGORITHMS
from cai_jax.training.networks import Settings

B, T, GROUP, LIMIT = 6, 7, 3, 9
RNG = np.random.default_rng(0)
LENGTHS = np.array([7, 2, 5, 1, 6, 4])
MASK = np.arange(T) < LENGTHS[:, None]
NOW, OLD, REF = (np.where(MASK, -2 + 0.3 * RNG.normal(size=(B, T)), 0).astype("f4") for _ in "abc")
SCORES = RNG.normal(size=B).astype(np.float32)
GROUPS = np.arange(B) // GROUP


class Accelerator:
    """One process."""

    num_processes, sync_gradients, device, process_index = 1, True, "cpu", 0

    def gather(self, x):
        return x.reshape(-1)

    def reduce(self, x, reduction):
        return x

    gather_for_metrics = gather


def trainer(kind, logprobs, **fields):
    """A trainer whose model's log-probabilities are `logprobs`."""
    made = object.__new__(kind)
    fields |= {
        "accelerator": Accelerator(),
        "aux_loss_enabled": False,
        "max_completion_length": LIMIT,
    }
    fields |= {"_metrics": collections.defaultdict(lambda: collections.defaultdict(list))}
    fields |= {
        "model": types.SimpleNamespace(training=True),
        "current_gradient_accumulation_steps": 1,
    }
    vars(made).update(fields)
    zeros = torch.zeros(logprobs.shape)
    made._get_per_token_logps_and_entropies = lambda *a, **k: (logprobs, zeros, None)
    return made


def theirs(loss, *starts):
    """(loss, gradient by the log-probabilities) of torch."""
    value = loss()
    value.backward()
    return value.item(), starts[0].grad.numpy()


def group_settings(**fields):
    return Settings(clip=0.2, max_new_tokens=LIMIT, **fields)


def ours(algorithm, settings, beta=0.0):
    """(loss, gradient, advantages) of ours."""
    penalty = beta if settings.kl_in == "reward" else 0.0
    rewards = ppo.token_rewards(jnp.asarray(SCORES), OLD, REF, MASK, penalty)
    made = ALGORITHMS[algorithm].advantages(rewards, None, MASK, jnp.asarray(GROUPS), settings)
    batch = {**made, "old": OLD, "actions": MASK, "segments": MASK.astype(np.int32)}
    how = ALGORITHMS[algorithm].aggregation or settings.loss_aggregation

    def loss(now):
        losses, _ = ALGORITHMS[algorithm].policy_loss(now, batch, settings)
        if settings.kl_in == "loss":
            losses += beta * ppo.kl_estimate(now, REF, MASK, "k3")
        total, count = ppo.aggregate(losses, MASK, batch["segments"], how, LIMIT)
        return total / count

    return (*jax.value_and_grad(loss)(jnp.asarray(NOW)), np.asarray(made["advantages"][:, 0]))


def inputs(advantages):
    ids = torch.zeros(B, T, dtype=torch.long)
    tensors = {"old_per_token_logps": OLD, "ref_per_token_logps": REF, "advantages": advantages}
    given = {name: torch.tensor(array) for name, array in tensors.items()}
    given |= {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids}
    mask = torch.tensor(MASK).long()
    return given | {"completion_mask": mask, "num_items_in_batch": mask.sum()}


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("loss_type,how", [
    ("grpo", "sequence_mean"), ("bnpo", "token_mean"), ("dapo", "token_mean"),
    ("dr_grpo", "fixed_length"),
])  # fmt: skip
def test_grpo(loss_type, how, beta):
    settings = group_settings(loss_aggregation=how, kl_in="loss", kl_estimator="k3")
    value, grad, advantages = ours("grpo", settings, beta)
    grouped = torch.tensor(SCORES).view(-1, GROUP)
    wanted = (grouped - grouped.mean(1, True)) / (grouped.std(1, keepdim=True) + 1e-4)
    np.testing.assert_allclose(advantages, wanted.reshape(-1), atol=1e-5)
    now = torch.tensor(NOW, requires_grad=True)
    args = types.SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
    made = trainer(
        GRPOTrainer, now, loss_type=loss_type, beta=beta, epsilon_low=0.2, epsilon_high=0.2,
        importance_sampling_level="token", top_entropy_quantile=1.0, args=args, use_vllm=False,
        off_policy_mask_threshold=None, _entropy_bonus_enabled=False,
    )  # fmt: skip
    wanted, slope = theirs(lambda: made._compute_loss(made.model, inputs(advantages)), now)
    np.testing.assert_allclose(value, wanted, atol=1e-5)
    np.testing.assert_allclose(grad, slope, atol=1e-5)


def test_rloo():
    """Its KL is in the reward: k1 of the tokens, summed."""
    value, grad, advantages = ours("rloo", group_settings(), beta=0.3)
    rewards = torch.tensor(SCORES - 0.3 * (OLD - REF).sum(1)).view(-1, GROUP)
    others = (rewards.sum(1, True) - rewards) / (GROUP - 1)
    np.testing.assert_allclose(advantages, (rewards - others).reshape(-1), atol=1e-5)
    now = torch.tensor(NOW, requires_grad=True)
    made = trainer(RLOOTrainer, now, epsilon_low=0.2, epsilon_high=0.2)
    given = inputs(advantages) | {"old_logps": torch.tensor(OLD.sum(1))}
    wanted, slope = theirs(lambda: made._compute_loss(made.model, given), now)
    np.testing.assert_allclose(value, wanted, atol=1e-5)
    np.testing.assert_allclose(grad, slope, atol=1e-5)


@pytest.mark.parametrize("loss_type,fields,smoothing", [
    ("sigmoid", {}, 0.0), ("ipo", {"kind": "ipo"}, 0.0), ("aot", {}, 0.1), ("robust", {}, 0.1),
])  # fmt: skip
def test_dpo(loss_type, fields, smoothing):
    """One pair, for which TRL's "aot" sorts nothing and is DPO with smoothed labels; "robust"
    divides by 1 − 2ε and turns the sign of the flipped label's share."""
    rows, beta = np.array([0, 2]), 0.3
    now = torch.tensor(NOW[rows], requires_grad=True)
    zeros = torch.zeros(2, T)
    outputs = types.SimpleNamespace(
        log_probs=now, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=None
    )
    made = trainer(
        DPOTrainer, now, beta=beta, ld_alpha=None, precompute_ref_logps=True,
        loss_types=[loss_type], loss_weights=[1.0], f_divergence_type="reverse_kl",
        label_smoothing=smoothing,
        use_weighting=False, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    completion = torch.tensor(np.pad(MASK[rows], ((0, 0), (1, 0)))).long()
    ref = torch.tensor(REF[rows].sum(1))
    given = {"input_ids": completion, "attention_mask": completion, "completion_mask": completion}
    given |= {"ref_chosen_logps": ref[:1], "ref_rejected_logps": ref[1:]}

    class Model:
        training = True

        def __call__(self, **_):
            return outputs

    made.model = Model()
    wanted, slope = theirs(lambda: made._compute_loss(made.model, given, False), now)
    target = dpo.smoothed(jnp.ones(1), smoothing)
    if loss_type == "robust":
        target = jnp.array([(1 - smoothing) / (1 - 2 * smoothing)])

    def loss(now):
        reference, lengths = jnp.asarray(REF[rows].sum(1))[None], jnp.asarray(LENGTHS[rows], float)
        given = now.sum(1)[None], reference, lengths[None], target, jnp.ones(1, bool)
        return dpo.pair_loss(*given, beta=beta, **fields)[0]

    value, grad = jax.value_and_grad(loss)(jnp.asarray(NOW[rows]))
    np.testing.assert_allclose(value, wanted, atol=1e-5)
    np.testing.assert_allclose(grad, slope, atol=1e-5)
