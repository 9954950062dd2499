"""The PPO learner: what is frozen of a rollout, and the epochs of minibatches that follow (section
4.3; 2204 section 4).

Log-probabilities, values and rewards are computed once for a rollout, with the weights that sampled
it, and stay as they are through all epochs. Policy and value model are two models with two
optimisers, or (`shared`) a decoder with a head and one optimiser, in which the head has the value
model's learning rate.

State items: "params" the policy; "value" {"decoder", "head"}, or the head alone where it is shared;
"optimiser" and "value_optimiser"; "controller" {"kl_coefficient"}, float32. With `Bases`, adapters
stand where decoders stood.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cai_jax import seeds
from cai_jax.core import losses, optim, ppo, sharding
from cai_jax.io import memory
from cai_jax.models import heads, lora
from cai_jax.models.config import ModelConfig
from cai_jax.models.decoder import hidden_states, unembedding
from cai_jax.training import batching
from cai_jax.training import state as state_lib

# What reads without a backward pass is always scanned: unrolled layers take no less time, and five
# times as long to compile.
FROZEN = {"scan": True}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of the rl stage that the learner reads; see configs/default.py."""

    num_epochs: int = 1
    num_minibatches: int = 1
    num_microbatches: int = 1
    clip: float = 0.2
    value_clip: float | None = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    temperature: float = 1.0
    whiten_rewards: bool = False
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


@dataclasses.dataclass(frozen=True)
class Bases:
    """The frozen decoders that adapters are trained on, in the dtype of the forward pass: arrays on
    the mesh, or their shapes for compiling. Policy and value model may have the same arrays, and
    those of the reference and the judge."""

    adapters: lora.Adapters
    policy: dict
    value: dict


@dataclasses.dataclass
class Rollouts:
    """One update's responses, on the host. All arrays [R, T]: tokens int32; mask, the real tokens;
    actions, those that were sampled; sampled, the sampler's log-probabilities of the actions.
    scores float32 [R]. ids: R names."""

    ids: list[str]
    tokens: np.ndarray
    mask: np.ndarray
    actions: np.ndarray
    sampled: np.ndarray
    scores: np.ndarray


class Learner:
    """Everything that is jitted for one pair of model shapes. `config` is the policy's,
    `value_config` the value model's."""

    def __init__(
        self,
        config: ModelConfig,
        value_config: ModelConfig,
        settings: Settings,
        mesh,
        dtype=jnp.float32,
        *,
        seed: int = 0,
        stage: str = "rl",
        bases: Bases | None = None,
    ):
        self.settings, self.mesh, self._dtype = settings, mesh, jnp.dtype(dtype)
        self._adapters = bases and bases.adapters
        self._base = {
            "params": bases and bases.policy,
            "value": bases and bases.value,
            "both": bases and bases.policy,
        }
        self._config, self._value_config, self._seed, self._stage = (
            config,
            value_config,
            seed,
            stage,
        )
        self._options = {"scan": settings.scan, "remat": settings.remat}
        per_update = settings.num_epochs * settings.num_minibatches
        self.rates = [
            optim.learning_rate(
                peak,
                schedule=settings.schedule,
                num_steps=settings.num_updates * per_update,
                warmup_steps=settings.warmup_updates * per_update,
            )
            for peak in (settings.learning_rate, settings.value_learning_rate)
        ]
        # eps 1e-5: with the usual 1e-8 the first steps, where the second moment is near 0, are too
        # large for RL.
        policy_rate, value_rate = self.rates
        both = {"decoder": policy_rate, "head": value_rate}
        self._tx, self._value_tx = (
            optim.adam(rate, max_grad_norm=settings.max_grad_norm, eps=1e-5)
            for rate in (both if settings.shared else policy_rate, value_rate)
        )
        self.abstract = self._abstract()
        compiled = {"compiler_options": state_lib.compiler_options(mesh)}
        self._read_logprobs, self._read_values, self._read_both = (
            jax.jit(self._chunked(read), static_argnums=2, **compiled)
            for read in (self._frozen_logprobs, self._frozen_values, self._frozen_both)
        )
        self._advantages = jax.jit(functools.partial(_advantages, settings=settings))
        self._policy_step = self._make_step(self._policy_loss, self._tx, ("params", "optimiser"))
        self._value_step = self._make_step(
            self._value_loss, self._value_tx, ("value", "value_optimiser")
        )
        self._shared_step = self._make_step(self._shared_loss, self._tx, ("both", "optimiser"))

    # ---- State -----------------------------------------------------------------------------------

    def _abstract(self) -> dict:
        place = sharding.replicated(self.mesh)
        policy = state_lib.abstract_params(
            self._config, "policy", self.mesh, adapters=self._adapters
        )
        value = state_lib.abstract_params(
            self._value_config, "reward", self.mesh, adapters=self._adapters
        )
        controller = {"kl_coefficient": jax.ShapeDtypeStruct((), jnp.float32, sharding=place)}
        if self.settings.shared:
            both = {"decoder": policy, "head": value["head"]}
            return {
                "params": policy,
                "value": value["head"],
                "controller": controller,
                "optimiser": state_lib.abstract_optimiser(self._tx, both, self.mesh),
            }
        return {
            "params": policy,
            "value": value,
            "controller": controller,
            "optimiser": state_lib.abstract_optimiser(self._tx, policy, self.mesh),
            "value_optimiser": state_lib.abstract_optimiser(self._value_tx, value, self.mesh),
        }

    def init(self, policy, value, kl_coefficient: float) -> dict:
        """The state of update 0. `policy` and `value` are float32 trees that the learner may keep;
        `value` as the state's item of that name."""
        state = {
            "params": policy,
            "value": value,
            "controller": {"kl_coefficient": jnp.float32(kl_coefficient)},
        }
        if self.settings.shared:
            state["optimiser"] = state_lib.init_optimiser(
                self._tx, {"decoder": policy, "head": value}, self.mesh
            )
        else:
            state["optimiser"] = state_lib.init_optimiser(self._tx, policy, self.mesh)
            state["value_optimiser"] = state_lib.init_optimiser(self._value_tx, value, self.mesh)
        return state_lib.placed(state, self.abstract)

    def policy(self, state) -> dict:
        """The policy's parameters in the dtype of the forward pass; with adapters attached, not
        added up."""
        return state_lib.cast(
            lora.attach(self._base["params"], state["params"], self._adapters), self._dtype
        )

    # ---- What is frozen --------------------------------------------------------------------------

    def _hidden(self, decoder, tokens, segments, config, options):
        return hidden_states(
            decoder, tokens, segments > 0, config, segments_BxT=segments, **options
        )

    def _logprobs(self, decoder, hidden, tokens, places, entropy: bool = False):
        return losses.next_token_logprobs(
            hidden,
            unembedding(decoder, self._config),
            tokens,
            places,
            temperature=self.settings.temperature,
            softcap=self._config.final_softcap,
            chunk=self.settings.logprob_chunk,
            entropy=entropy,
        )

    def _frozen_logprobs(self, params, tokens, segments, places):
        params = state_lib.cast(params, self._dtype)
        hidden = self._hidden(params, tokens, segments, self._config, FROZEN)
        return self._logprobs(params, hidden, tokens, places, entropy=True)

    def _frozen_values(self, params, tokens, segments, _):
        params = state_lib.cast(params, self._dtype)
        hidden = self._hidden(params["decoder"], tokens, segments, self._value_config, FROZEN)
        return heads.token_values(params["head"], hidden)

    def _frozen_both(self, params, tokens, segments, places):
        """Of a shared trunk, which is gone through once: ((log-probabilities, entropies),
        values)."""
        params = state_lib.cast(params, self._dtype)
        hidden = self._hidden(params["decoder"], tokens, segments, self._config, FROZEN)
        found = self._logprobs(params["decoder"], hidden, tokens, places, entropy=True)
        return found, heads.token_values(params["head"], hidden)

    def _chunked(self, function):
        """Works through the rows in as many parts as training does, so that memory stays that of a
        microbatch."""

        def run(params, seen: tuple, parts: int):
            if parts == 1:
                return function(params, *seen)
            split = optim.split_microbatches(seen, parts)
            out = jax.lax.map(lambda part: function(params, *part), split)
            return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), out)

        return run

    def _whole(self, function, params, rollouts: Rollouts):
        parts = self.settings.num_minibatches * self.settings.num_microbatches
        packing = self._pack(rollouts.mask.sum(axis=1), rollouts.tokens.shape[1], parts)
        count = batching.eighths(
            batching.most_in_a_row(packing, rollouts.actions.sum(axis=1)), packing.shape.length
        )
        places = batching.places(packing.spread(rollouts.actions, bool), count)
        seen = packing.spread(rollouts.tokens), packing.segments(), places
        with jax.set_mesh(self.mesh):
            out = function(params, sharding.put_batch(seen, self.mesh), parts)
        return jax.tree.map(
            lambda x: packing.collect(x, rollouts.tokens.shape[1]), sharding.fetch(out)
        )

    def _pack(self, lengths, longest: int, parts: int) -> batching.Packing:
        """Rollouts of these lengths in rows for `parts` parts. An update's lengths are not known
        before it: the number of rows is one of few."""
        ways = sharding.batch_ways(self.mesh) * parts
        length = longest if longest >= batching.LONG_ROW or len(lengths) < 2 * ways else 2 * longest
        packing = batching.pack(lengths, length=length)
        rows = min(
            batching.few(packing.shape.rows), -(-len(lengths) * longest // length)
        )  # never more than unpacked
        rows = batching.num_rows(max(rows, packing.shape.rows), ways)
        return dataclasses.replace(packing, shape=packing.shape._replace(rows=rows))

    def policy_logprobs(self, params, rollouts: Rollouts):
        """(log-probabilities, entropies) of the actions under a policy at the rollout's
        temperature, float32 [R, T]; 0 off them."""
        return self._whole(self._read_logprobs, params, rollouts)

    def _policy_and_values(self, state, rollouts: Rollouts):
        """((log-probabilities, entropies) of the actions, values) of the models that are trained,
        all float32 [R, T]."""

        def attached(name, trained):
            return lora.attach(self._base[name], trained, self._adapters)

        if self.settings.shared:
            both = attached("both", {"decoder": state["params"], "head": state["value"]})
            return self._whole(self._read_both, both, rollouts)
        return (
            self.policy_logprobs(attached("params", state["params"]), rollouts),
            self._whole(self._read_values, attached("value", state["value"]), rollouts),
        )

    def freeze(self, state, reference, rollouts: Rollouts) -> dict:
        """Everything that the epochs need and that may not change during them: old and reference
        log-probabilities, entropies, values, rewards by token, whitened advantages, returns.
        float32 [R, T], 0 off the actions."""
        (old, entropy), values = self._policy_and_values(state, rollouts)
        ref, _ = self.policy_logprobs(reference, rollouts)
        coefficient = sharding.fetch(state["controller"]["kl_coefficient"])
        rest = self._advantages(old, ref, values, rollouts.scores, rollouts.actions, coefficient)
        frozen = {
            "old": old,
            "ref": ref,
            "values": values,
            "entropy": entropy,
            **sharding.fetch(rest),
        }
        return {
            name: np.where(rollouts.actions, array, np.float32(0)) for name, array in frozen.items()
        }

    # ---- Steps -----------------------------------------------------------------------------------

    def _policy_loss(self, params, batch):
        params = state_lib.cast(params, self._dtype)
        hidden = self._hidden(
            params, batch["tokens"], batch["segments"], self._config, self._options
        )
        logprobs = self._logprobs(params, hidden, batch["tokens"], batch["places"])
        total, count, sums = ppo.policy_loss(
            logprobs, batch["old"], batch["advantages"], batch["actions"], self.settings.clip
        )
        return total, (count, sums)

    def _value_loss(self, params, batch):
        params = state_lib.cast(params, self._dtype)
        hidden = self._hidden(
            params["decoder"], batch["tokens"], batch["segments"], self._value_config, self._options
        )
        values = heads.token_values(params["head"], hidden)
        total, count, sums = ppo.value_loss(
            values, batch["values"], batch["returns"], batch["actions"], self.settings.value_clip
        )
        return total, (count, {"value_clipped": sums["clipped"]})

    def _shared_loss(self, both, batch):
        params = state_lib.cast(both, self._dtype)
        hidden = self._hidden(
            params["decoder"], batch["tokens"], batch["segments"], self._config, self._options
        )
        logprobs = self._logprobs(params["decoder"], hidden, batch["tokens"], batch["places"])
        total, count, sums = ppo.policy_loss(
            logprobs, batch["old"], batch["advantages"], batch["actions"], self.settings.clip
        )
        value_total, _, value_sums = ppo.value_loss(
            heads.token_values(params["head"], hidden),
            batch["values"],
            batch["returns"],
            batch["actions"],
            self.settings.value_clip,
        )
        sums = {
            **sums,
            "value_clipped": value_sums["clipped"],
            "value_total": value_total,
            "policy_total": total,
        }
        return total + self.settings.value_coefficient * value_total, (count, sums)

    def _make_step(self, loss, tx, names):
        def step(params, optimiser, batch, base):
            def of_trained(trained, part):
                return loss(lora.attach(base, trained, self._adapters), part)

            mean, grads, count, sums = optim.sum_gradients(
                of_trained, params, batch, self.settings.num_microbatches
            )
            params, optimiser, norm = optim.apply_gradients(tx, grads, optimiser, params)
            return params, optimiser, {"loss": mean, "grad_norm": norm, "count": count, **sums}

        if self.settings.shared:
            params = {"decoder": self.abstract["params"], "head": self.abstract["value"]}
            optimiser = self.abstract["optimiser"]
        elif names[0] == "both":
            return None
        else:
            params, optimiser = (self.abstract[name] for name in names)
        places = (*state_lib.shardings_of((params, optimiser)), sharding.replicated(self.mesh))
        return jax.jit(
            step,
            donate_argnums=(0, 1),
            out_shardings=places,
            compiler_options=state_lib.compiler_options(self.mesh),
        )

    def programs(self, num_rollouts: int, length: int) -> dict:
        """{name: (jitted function, abstract arguments)} of everything that an update of
        `num_rollouts` rollouts of `length` tokens runs on the mesh, for compiling ahead of time
        under `jax.set_mesh(mesh)`. All are as long as that here; packing leaves fewer rows of those
        that are not, and not all of a row are actions."""
        state, parts = self.abstract, self.settings.num_minibatches * self.settings.num_microbatches
        ways = sharding.batch_ways(self.mesh)
        rows = batching.num_rows(num_rollouts, ways * parts)
        step_rows = batching.num_rows(
            num_rollouts // self.settings.num_minibatches, ways * self.settings.num_microbatches
        )

        def batch(rows, **dtypes):
            arrays = {
                name: jax.ShapeDtypeStruct((rows, length), dtype) for name, dtype in dtypes.items()
            }
            return sharding.abstract_batch(arrays, self.mesh)

        seen = tuple(batch(rows, tokens=jnp.int32, segments=jnp.int32, places=jnp.int32).values())
        names = ("old", "values", "advantages", "returns")
        chosen = batch(
            step_rows,
            tokens=jnp.int32,
            segments=jnp.int32,
            places=jnp.int32,
            actions=jnp.bool_,
            **dict.fromkeys(names, jnp.float32),
        )

        def attached(trained, name):
            return lora.attached_shapes(self._base[name], trained, self._adapters)

        frozen_policy = self._base["params"] or state_lib.abstract_params(
            self._config, "policy", self.mesh, self._dtype
        )
        found = {"reference log-probs": (self._read_logprobs, (frozen_policy, seen, parts))}
        if self.settings.shared:
            both = {"decoder": state["params"], "head": state["value"]}
            step = self._shared_step, (both, state["optimiser"], chosen, self._base["both"])
            read = self._read_both, (attached(both, "both"), seen, parts)
            return {"policy log-probs and values": read, **found, "learn step": step}
        found = {
            "policy log-probs": (
                self._read_logprobs,
                (attached(state["params"], "params"), seen, parts),
            ),
            **found,
        }
        steps = {
            "policy": (self._policy_step, "params", "optimiser"),
            "value": (self._value_step, "value", "value_optimiser"),
        }
        return (
            found
            | {"values": (self._read_values, (attached(state["value"], "value"), seen, parts))}
            | {
                f"{label} step": (step, (state[name], state[optimiser], chosen, self._base[name]))
                for label, (step, name, optimiser) in steps.items()
            }
        )

    def minibatches(self, update: int, num_rows: int):
        """Row indices of every minibatch of an update: each epoch a fresh permutation from (seed,
        stage, update, epoch)."""
        for epoch in range(self.settings.num_epochs):
            order = seeds.row_rng(
                self._seed, self._stage, "minibatches", update, epoch
            ).permutation(num_rows)
            yield from np.split(order, self.settings.num_minibatches)

    def _wait(self, scalars, first: bool) -> None:
        """One step after the other on a CPU, which would begin the next beside it, and have the
        temporaries of both. Those of an update's first steps go back to the system: what is
        compiled or scored between two steps lies down in the space that the one has freed, and the
        other then finds no room for its own in one piece."""
        if self.mesh.devices.flat[0].platform == "cpu":
            jax.block_until_ready(scalars)
            if first:
                memory.give_back()

    def learn(
        self, state, rollouts: Rollouts, frozen: dict, update: int
    ) -> tuple[dict, list[dict]]:
        """All epochs of one update: (state, scalars of every minibatch). The state's trees are
        donated."""
        state, history = dict(state), []
        host = {
            "tokens": rollouts.tokens,
            "actions": rollouts.actions,
            **{name: frozen[name] for name in ("old", "values", "advantages", "returns")},
        }
        lengths, actions = rollouts.mask.sum(axis=1), rollouts.actions.sum(axis=1)
        parts = [
            (
                rows,
                self._pack(lengths[rows], rollouts.tokens.shape[1], self.settings.num_microbatches),
            )
            for rows in self.minibatches(update, len(rollouts.ids))
        ]
        count = max(
            batching.most_in_a_row(packing, actions[rows]) for rows, packing in parts
        )  # one shape an update
        self._wait(state, True)
        for rows, packing in parts:
            packed = {
                name: packing.spread(array[rows], array.dtype) for name, array in host.items()
            }
            places = batching.places(
                packed["actions"], batching.eighths(count, packing.shape.length)
            )
            batch = sharding.put_batch(
                {**packed, "segments": packing.segments(), "places": places}, self.mesh
            )
            with jax.set_mesh(self.mesh):
                if self.settings.shared:
                    both = {"decoder": state["params"], "head": state["value"]}
                    both, state["optimiser"], scalars = self._shared_step(
                        both, state["optimiser"], batch, self._base["both"]
                    )
                    state["params"], state["value"] = both["decoder"], both["head"]
                    scalars["loss"] = scalars.pop("policy_total") / scalars["count"]
                    scalars["value_loss"] = scalars.pop("value_total") / scalars["count"]
                else:
                    state["params"], state["optimiser"], scalars = self._policy_step(
                        state["params"], state["optimiser"], batch, self._base["params"]
                    )
                    self._wait(scalars, not history)
                    state["value"], state["value_optimiser"], more = self._value_step(
                        state["value"], state["value_optimiser"], batch, self._base["value"]
                    )
                    self._wait(more, not history)
                    scalars |= {
                        "value_loss": more["loss"],
                        "value_grad_norm": more["grad_norm"],
                        "value_clipped": more["value_clipped"],
                    }
            history.append(scalars)
        return state, sharding.fetch(history)


def _advantages(old, ref, values, scores, actions, coefficient, *, settings: Settings) -> dict:
    rewards = ppo.token_rewards(scores, old, ref, actions, coefficient)
    if settings.whiten_rewards:
        rewards = ppo.whiten(rewards, actions, shift=False)
    advantages, returns = ppo.gae(rewards, values, actions, settings.gamma, settings.lam)
    return {"rewards": rewards, "returns": returns, "advantages": ppo.whiten(advantages, actions)}
