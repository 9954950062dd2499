"""The policy-gradient learner: what is frozen of a rollout, and the epochs of minibatches that
follow (section 4.3; 2204 section 4).

Log-probabilities, values and rewards are computed once for a rollout, with the weights that sampled
it, and stay as they are through all epochs.

State items: "params", the policy; "value", a value model {"decoder", "head"} or the head alone
where the trunk is shared, if the algorithm has one; an optimiser for each network; "controller"
{"kl_coefficient"}, float32. With `Bases`, adapters replace decoders.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax import seeds
from cai_jax.core import ppo, sharding
from cai_jax.core.algorithms import PPO, Algorithm
from cai_jax.io import memory
from cai_jax.models import lora
from cai_jax.models.config import ModelConfig
from cai_jax.training import batching, networks
from cai_jax.training import state as state_lib
from cai_jax.training.networks import Bases, Forward, Settings
from cai_jax.training.rollouts import Rollouts


class Learner:
    """Everything that is jitted for one pair of model shapes."""

    def __init__(
        self,
        config: ModelConfig,
        value_config: ModelConfig | None,
        settings: Settings,
        mesh,
        dtype=jnp.float32,
        *,
        algorithm: Algorithm = PPO,
        seed: int = 0,
        stage: str = "rl",
        bases: Bases | None = None,
        reference: ModelConfig | None = None,
    ):
        """
        Args:
          config, value_config: of policy and value model.
          settings: of the algorithm and its optimisers.
          mesh, dtype: where, and in which precision the forward passes are.
          algorithm: how rewards become a loss.
          seed, stage: what the order of minibatches depends on.
          bases: the frozen decoders where adapters are trained.
          reference: the config of the reference; None: the policy's.
        """
        self.settings, self.mesh, self._dtype = settings, mesh, jnp.dtype(dtype)
        self._seed, self._stage = seed, stage
        self._policy, self.networks = networks.build(
            algorithm, settings, config, value_config, mesh, self._dtype, bases
        )
        self._reference = self._policy
        if reference not in (None, config):
            self._reference = Forward(reference, settings, self._dtype, ("logprobs",), mesh)
        self.rate = settings.rate(settings.learning_rate)
        # What of the frozen arrays a step reads.
        self._learned = ["old", "advantages"]
        self._learned += ["values", "returns"] if algorithm.needs_value else []
        self._learned += ["ref"] if settings.kl_in == "loss" else []
        self._learned += ["weights"] if settings.correction != "none" else []
        # Of a value model with a trunk of its own, if there is one.
        self.value_config = value_config if len(self.networks) > 1 else None
        self.abstract = self._abstract()
        self._targets = jax.jit(functools.partial(targets, algorithm=algorithm, settings=settings))
        self._steps = [network.make_step(algorithm, settings, mesh) for network in self.networks]

    # ---- State -----------------------------------------------------------------------------------

    def _abstract(self) -> dict:
        replicated = sharding.replicated(self.mesh)
        coefficient = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
        state = {"controller": {"kl_coefficient": coefficient}}
        for network in self.networks:
            state |= network.put(network.abstract)
            state[network.optimiser] = state_lib.abstract_optimiser(
                network.tx, network.abstract, self.mesh
            )
        return state

    def init(self, policy, value, kl_coefficient: float) -> dict:
        """The state of update 0. `policy` and `value` are float32 trees that the learner may keep;
        `value` as the state's item of that name, None where there is none."""
        state = {"params": policy, "controller": {"kl_coefficient": jnp.float32(kl_coefficient)}}
        if value is not None:
            state["value"] = value
        for network in self.networks:
            state[network.optimiser] = state_lib.init_optimiser(
                network.tx, network.of(state), self.mesh
            )
        return state_lib.put_like(state, self.abstract)

    def policy(self, state) -> dict:
        """The policy's parameters in the dtype of the forward pass; adapters stay apart."""
        network = self.networks[0]
        params = lora.attach(network.base, state["params"], network.adapters)
        return state_lib.cast(params, self._dtype)

    # ---- What is frozen --------------------------------------------------------------------------

    def freeze(self, state, reference, rollouts: Rollouts) -> dict:
        """Everything that the epochs need and that may not change during them: old and reference
        log-probabilities, entropies, rewards by token and what the algorithm makes of them; values
        if there are any. float32 [R, T], 0 off the actions."""
        outputs = {}
        for network in self.networks:
            outputs |= self._read(network.forward, network.attached(state), rollouts)
        old = outputs.pop("logprobs")
        ref = self._read(self._reference, reference, rollouts)["logprobs"]
        coefficient = sharding.fetch(state["controller"]["kl_coefficient"])
        made = self._targets(
            old,
            ref,
            outputs.get("values"),
            rollouts.scores,
            rollouts.actions,
            rollouts.groups,
            coefficient,
            rollouts.sampled,
        )
        frozen = {"old": old, "ref": ref, **outputs, **sharding.fetch(made)}
        return {
            name: np.where(rollouts.actions, array, np.float32(0)) for name, array in frozen.items()
        }

    def policy_logprobs(self, params, rollouts: Rollouts):
        """(log-probabilities, entropies) of the actions under a policy at the rollout's
        temperature, float32 [R, T]; 0 off them."""
        outputs = self._read(self._policy, params, rollouts)
        return outputs["logprobs"], outputs["entropy"]

    def _read(self, forward: Forward, params, rollouts: Rollouts) -> dict:
        num_microbatches = self.settings.num_minibatches * self.settings.num_microbatches
        packing = self._pack(rollouts.lengths, rollouts.tokens.shape[1], num_microbatches)
        most = packing.most(rollouts.actions.sum(axis=1))
        actions = packing.spread(rollouts.actions, bool)
        batch = {
            "tokens": packing.spread(rollouts.tokens),
            "segments": packing.segments(),
            "positions": batching.positions(actions, batching.eighths(most, packing.shape.length)),
        }
        with jax.set_mesh(self.mesh):
            out = forward.read(params, sharding.put_batch(batch, self.mesh), num_microbatches)
        return jax.tree.map(
            lambda x: packing.collect(x, rollouts.tokens.shape[1]), sharding.fetch(out)
        )

    def _pack(self, lengths, longest: int, num_microbatches: int) -> batching.Packing:
        """Rollouts of these lengths packed for so many microbatches. An update's lengths are not
        known before it: the number of sequences is one of few."""
        ways = sharding.batch_ways(self.mesh) * num_microbatches
        length = longest if longest >= batching.LONG or len(lengths) < 2 * ways else 2 * longest
        packing = batching.pack(lengths, length=length)
        unpacked = -(-len(lengths) * longest // length)
        count = min(batching.few(packing.shape.count), unpacked)
        count = batching.round_up(max(count, packing.shape.count), ways)
        return dataclasses.replace(packing, shape=packing.shape._replace(count=count))

    # ---- Steps -----------------------------------------------------------------------------------

    def minibatches(self, update: int, num_rollouts: int):
        """Indices of the rollouts of every minibatch of an update: each epoch has a permutation of
        its own, from (seed, stage, update, epoch)."""
        for epoch in range(self.settings.num_epochs):
            order = seeds.row_rng(
                self._seed, self._stage, "minibatches", update, epoch
            ).permutation(num_rollouts)
            yield from np.split(order, self.settings.num_minibatches)

    def learn(
        self, state, rollouts: Rollouts, frozen: dict, update: int
    ) -> tuple[dict, list[dict]]:
        """All epochs of an update.

        Args:
          state: its trees are donated.
          rollouts: the update's responses.
          frozen: what `freeze` returned for them.
          update: its number, from 0.
        Returns:
          (state, numbers of every minibatch).
        """
        state, history = dict(state), []
        host = {"tokens": rollouts.tokens, "actions": rollouts.actions}
        host |= {name: frozen[name] for name in self._learned}
        lengths, counts = rollouts.lengths, rollouts.actions.sum(axis=1)
        width, num_microbatches = rollouts.tokens.shape[1], self.settings.num_microbatches
        packed = [
            (chosen, self._pack(lengths[chosen], width, num_microbatches))
            for chosen in self.minibatches(update, len(rollouts.ids))
        ]
        # One shape an update.
        most = max(packing.most(counts[chosen]) for chosen, packing in packed)
        self._wait(state, True)
        for chosen, packing in packed:
            batch = {name: packing.spread(x[chosen], x.dtype) for name, x in host.items()}
            batch["segments"] = packing.segments()
            num_positions = batching.eighths(most, packing.shape.length)
            batch["positions"] = batching.positions(batch["actions"], num_positions)
            batch, scalars = sharding.put_batch(batch, self.mesh), {}
            for network, step in zip(self.networks, self._steps, strict=True):
                with jax.set_mesh(self.mesh):
                    params, state[network.optimiser], numbers = step(
                        network.of(state), state[network.optimiser], batch, network.base
                    )
                state |= network.put(params)
                self._wait(numbers, not history)
                numbers[f"{network.prefix}grad_norm"] = numbers.pop("grad_norm")
                scalars = {**numbers, **scalars}
            history.append(scalars)
        return state, sharding.fetch(history)

    def _wait(self, numbers, first: bool) -> None:
        """On a CPU one step ends before the next begins, or both have their temporaries at a time.
        After an update's first steps free memory goes back to the system: what is compiled or
        scored between two steps takes space that the one has freed, and the other then has no
        contiguous space for its own."""
        if self.mesh.devices.flat[0].platform == "cpu":
            jax.block_until_ready(numbers)
            if first:
                memory.give_back()

    # ---- For compiling ahead of time -------------------------------------------------------------

    def programs(self, num_rollouts: int, length: int) -> dict:
        """{name: (jitted function, abstract arguments)} of everything that an update runs, for
        lowering under `jax.set_mesh(mesh)`. All rollouts have `length` tokens here, all of them
        actions; packing leaves fewer sequences of real ones."""
        settings, ways = self.settings, sharding.batch_ways(self.mesh)
        num_microbatches = settings.num_minibatches * settings.num_microbatches

        def abstract_batch(count: int, num_microbatches: int, **dtypes):
            count = batching.round_up(count, ways * num_microbatches)
            arrays = {
                name: jax.ShapeDtypeStruct((count, length), dtype) for name, dtype in dtypes.items()
            }
            return sharding.abstract_batch(arrays, self.mesh)

        seen = dict.fromkeys(("tokens", "segments", "positions"), jnp.int32)
        batch = abstract_batch(num_rollouts, num_microbatches, **seen)
        learned = {"actions": jnp.bool_, **dict.fromkeys(self._learned, jnp.float32)}
        minibatch = abstract_batch(
            num_rollouts // settings.num_minibatches, settings.num_microbatches, **seen, **learned
        )
        reads, steps = {}, {}
        for network, step in zip(self.networks, self._steps, strict=True):
            params = network.of(self.abstract)
            attached = lora.attached_shapes(network.base, params, network.adapters)
            name = READS[network.forward.reads]
            reads[name] = network.forward.read, (attached, batch, num_microbatches)
            arguments = params, self.abstract[network.optimiser], minibatch, network.base
            steps[f"{network.name} step"] = step, arguments
        own = self._reference is self._policy and self.networks[0].base
        reference = own or state_lib.abstract_params(
            self._reference.config, "policy", self.mesh, self._dtype
        )
        reads["reference log-probs"] = self._reference.read, (reference, batch, num_microbatches)
        return {**reads, **steps}


READS = {
    ("logprobs",): "policy log-probs",
    ("values",): "values",
    ("logprobs", "values"): "policy log-probs and values",
}


def targets(
    old,
    ref,
    values,
    scores,
    actions,
    groups,
    coefficient,
    sampled,
    *,
    algorithm: Algorithm,
    settings,
) -> dict:
    """Rewards by token and what the algorithm makes of them.

    Args:
      old, ref: log-probabilities of the actions under policy and reference, [R, T].
      values: [R, T]; None where there is no value model.
      scores: the reward of each response, [R].
      actions: the mask, [R, T].
      groups: the prompt of each response, [R].
      coefficient: of the KL penalty.
      sampled: log-probabilities under the sampler, [R, T].
      algorithm, settings: how advantages are made, and whether losses are corrected.
    Returns:
      {"rewards", "advantages", and as far as there are any "returns" and "weights"}, [R, T].
    """
    if settings.kl_in == "loss":
        coefficient = 0.0
    rewards = ppo.token_rewards(scores, old, ref, actions, coefficient, settings.kl_estimator)
    if settings.whiten_rewards:
        rewards = ppo.whiten(rewards, actions, shift=False)
    made = {"rewards": rewards, **algorithm.advantages(rewards, values, actions, groups, settings)}
    if settings.correction != "none":
        how = settings.correction, settings.correction_cap
        made["weights"] = ppo.importance_weights(old, sampled, actions, *how)
    return made
