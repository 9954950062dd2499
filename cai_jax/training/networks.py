"""What reinforcement learning trains: parameters with one optimiser, what is read from them, and
their loss.

A policy reads log-probabilities, a value model values; where they share their trunk, one network
reads both. An algorithm without a value model has the policy alone. The learner goes through the
networks that `build` returns, whichever they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from cai_jax.core import losses, optim, ppo
from cai_jax.core.algorithms import Algorithm
from cai_jax.models import heads, lora
from cai_jax.models.config import ModelConfig
from cai_jax.models.decoder import hidden_states, unembedding
from cai_jax.training import state as state_lib

# What reads without a backward pass is always scanned: unrolled layers take no less time, and five
# times as long to compile.
FORWARD_ONLY = {"scan": True}
# With Adam's usual 1e-8 the first steps of RL, where the second moment is near 0, are too large.
ADAM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of the rl stage that learning depends on."""

    num_epochs: int = 1
    num_minibatches: int = 1
    num_microbatches: int = 1
    clip: float = 0.2
    value_clip: float | None = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    temperature: float = 1.0
    whiten_rewards: bool = False
    group_normalisation: str = "mean_std"
    loss_aggregation: str = "token_mean"
    max_new_tokens: int = 0  # what loss_aggregation="fixed_length" divides by
    kl_in: str = "reward"
    kl_estimator: str = "k1"
    kl_coefficient: float = 0.0  # where the KL is in the loss; in the reward it is a state's item
    correction: str = "none"  # of what another sampler drew: none, token or sequence
    correction_cap: float = 2.0
    learning_rate: float = 1e-6
    value_learning_rate: float = 1e-6
    schedule: str = "constant"  # of both rates
    warmup_updates: int = 0
    num_updates: int = 0  # how long a schedule that is not constant takes to reach 0
    max_grad_norm: float = 1.0
    shared: bool = False
    value_coefficient: float = 0.1  # weight of the value loss where the trunk is shared
    logprob_chunk: int = 128
    scan: bool = True
    remat: str = "none"

    @property
    def steps_per_update(self) -> int:
        return self.num_epochs * self.num_minibatches

    def rate(self, peak: float):
        """Step → learning rate; steps are those of all minibatches."""
        return optim.learning_rate(
            peak,
            schedule=self.schedule,
            num_steps=self.num_updates * self.steps_per_update,
            warmup_steps=self.warmup_updates * self.steps_per_update,
        )


@dataclasses.dataclass(frozen=True)
class Bases:
    """The frozen decoders that adapters are trained on, in the dtype of the forward pass: arrays on
    the mesh, or their shapes for compiling. Policy and value model may have the same arrays, and
    those of the reference and the judge."""

    adapters: lora.Adapters
    policy: dict
    value: dict


class Forward:
    """What is read from a decoder: log-probabilities of tokens, values, or both.

    With values the parameters are {"decoder", "head"}, else a decoder.
    """

    def __init__(
        self, config: ModelConfig, settings: Settings, dtype, reads: tuple[str, ...], mesh
    ):
        self.config, self.reads = config, reads
        self._settings, self._dtype = settings, dtype
        options = state_lib.compiler_options(mesh)
        self.read = jax.jit(self._read, static_argnums=2, compiler_options=options)

    def __call__(self, params, batch: Mapping, entropy: bool = False, **options) -> dict:
        """{"logprobs", "entropy" if asked for, "values"}, each float32 [B, T], as far as read."""
        params = state_lib.cast(params, self._dtype)
        decoder = params["decoder"] if "values" in self.reads else params
        tokens, segments = batch["tokens"], batch["segments"]
        hidden = hidden_states(
            decoder, tokens, segments > 0, self.config, segments_BxT=segments, **options
        )
        outputs = {}
        if "logprobs" in self.reads:
            outputs["logprobs"] = losses.next_token_logprobs(
                hidden,
                unembedding(decoder, self.config),
                tokens,
                batch["positions"],
                temperature=self._settings.temperature,
                softcap=self.config.final_softcap,
                chunk=self._settings.logprob_chunk,
                entropy=entropy,
            )
            if entropy:
                outputs["logprobs"], outputs["entropy"] = outputs["logprobs"]
        if "values" in self.reads:
            outputs["values"] = heads.token_values(params["head"], hidden)
        return outputs

    def _read(self, params, batch: Mapping, num_microbatches: int) -> dict:
        """Without a backward pass, in as many microbatches as training does, so that memory stays
        that of one of them."""

        def forward(microbatch):
            return self(params, microbatch, entropy=True, **FORWARD_ONLY)

        if num_microbatches == 1:
            return forward(batch)
        outputs = jax.lax.map(forward, optim.split_microbatches(batch, num_microbatches))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), outputs)


@dataclasses.dataclass(frozen=True)
class Network:
    """Parameters with one optimiser.

    `layout` names the state's item that holds them, or items by key; `prefix` begins the names of
    its numbers; `value_weight` is that of the value loss; `abstract` are its parameters' shapes.
    """

    name: str
    forward: Forward
    layout: str | Mapping[str, str]
    optimiser: str
    tx: optax.GradientTransformation
    abstract: dict
    base: dict | None
    adapters: lora.Adapters | None
    prefix: str = ""
    value_weight: float = 1.0

    def of(self, state: Mapping):
        """The parameters in a state."""
        if isinstance(self.layout, str):
            return state[self.layout]
        return {key: state[item] for key, item in self.layout.items()}

    def put(self, params) -> dict:
        """The state's items that hold `params`."""
        if isinstance(self.layout, str):
            return {self.layout: params}
        return {item: params[key] for key, item in self.layout.items()}

    def attached(self, state: Mapping):
        """The parameters in a state, adapters on their base."""
        return lora.attach(self.base, self.of(state), self.adapters)

    def loss(self, params, batch: Mapping, algorithm: Algorithm, settings: Settings):
        """The loss over the actions of a microbatch, for `optim.sum_gradients`.

        Args:
          params: with adapters attached.
          batch: what `Learner.learn` packs, [B, T] each; `positions` [B, N].
          algorithm: whose policy loss it is.
          settings: of algorithm and value loss.
        Returns:
          (sum, (count, sums for the metrics)), scalars.
        """
        outputs = self.forward(params, batch, scan=settings.scan, remat=settings.remat)
        mask, how = batch["actions"], algorithm.aggregation or settings.loss_aggregation
        aggregate = functools.partial(
            ppo.aggregate,
            mask_BxT=mask,
            segments_BxT=batch["segments"],
            how=how,
            length=settings.max_new_tokens,
        )
        total, sums = 0.0, {"actions": jnp.sum(mask, dtype=jnp.float32)}
        if "logprobs" in outputs:
            token_losses, policy_sums = algorithm.policy_loss(outputs["logprobs"], batch, settings)
            if settings.kl_in == "loss":
                reference = batch["ref"], mask, settings.kl_estimator
                kl = ppo.kl_estimate(outputs["logprobs"], *reference)
                if algorithm.aggregation:  # one loss an answer: its KL is the sum of its tokens'
                    kl = losses.sequence_sum(kl, batch["segments"])
                token_losses += settings.kl_coefficient * kl
            if settings.correction != "none":
                token_losses *= batch["weights"]
            total, count = aggregate(token_losses)
            sums |= {"loss": total, **policy_sums}
        if "values" in outputs:
            value_losses, value_sums = ppo.value_loss(
                outputs["values"], batch["values"], batch["returns"], mask, settings.value_clip
            )
            value_total, count = aggregate(value_losses)
            total = total + self.value_weight * value_total
            sums |= {"value_loss": value_total} | {f"value_{k}": v for k, v in value_sums.items()}
        return total, (count, sums)

    def make_step(self, algorithm: Algorithm, settings: Settings, mesh):
        """The step of `state.jit_step`."""

        def loss(params, batch):
            return self.loss(params, batch, algorithm, settings)

        return state_lib.jit_step(
            loss, self.tx, self.abstract, mesh, settings.num_microbatches, self.adapters
        )


def build(
    algorithm: Algorithm,
    settings: Settings,
    config: ModelConfig,
    value_config: ModelConfig | None,
    mesh,
    dtype,
    bases: Bases | None = None,
) -> tuple[Forward, tuple[Network, ...]]:
    """The networks of an algorithm.

    Args:
      algorithm, settings: whether there is a value model, and whether it shares the trunk.
      config, value_config: of policy and value model.
      mesh, dtype: where, and in which precision the forward passes are.
      bases: the frozen decoders where adapters are trained.
    Returns:
      (what reads log-probabilities from a policy, the networks that are trained).
    """
    adapters = bases and bases.adapters

    def abstract(model: ModelConfig, kind: str):
        return state_lib.abstract_params(model, kind, mesh, adapters=adapters)

    def adam(rate):
        return optim.adam(rate, max_grad_norm=settings.max_grad_norm, eps=ADAM_EPS)

    def forward(model, *reads):
        return Forward(model, settings, dtype, reads, mesh)

    rate = settings.rate(settings.learning_rate)
    reads, shapes = forward(config, "logprobs"), abstract(config, "policy")
    base = bases and bases.policy
    policy = Network("policy", reads, "params", "optimiser", adam(rate), shapes, base, adapters)
    if not algorithm.needs_value:
        return policy.forward, (policy,)
    value_rate = settings.rate(settings.value_learning_rate)
    if settings.shared:
        both = dataclasses.replace(
            policy,
            name="learn",
            forward=forward(config, "logprobs", "values"),
            layout={"decoder": "params", "head": "value"},
            tx=adam({"decoder": rate, "head": value_rate}),  # the head alone has the value's rate
            abstract={"decoder": policy.abstract, "head": abstract(config, "reward")["head"]},
            value_weight=settings.value_coefficient,
        )
        return policy.forward, (both,)
    value = dataclasses.replace(
        policy,
        name="value",
        forward=forward(value_config, "values"),
        layout="value",
        optimiser="value_optimiser",
        tx=adam(value_rate),
        abstract=abstract(value_config, "reward"),
        base=bases and bases.value,
        prefix="value_",
    )
    return policy.forward, (policy, value)
