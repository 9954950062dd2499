"""What a training step did a second: tokens, useful floating-point operations, and their share of
what the chips could do (model FLOPs utilisation, 2204.02311). Useful is what `arithmetic` counts:
nothing that is computed twice, no padding."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence

import jax

from cai_jax.models import lora
from cai_jax.models.config import ModelConfig
from cai_jax.planning import arithmetic, chips
from cai_jax.planning.arithmetic import Work

Meter = Callable[[Mapping[str, float], float], dict[str, float]]


def meter(mesh, flops: Callable[[Mapping[str, float]], float]) -> Meter:
    """(a step's numbers, its seconds) → its rates, for timing.jsonl. `flops`: of all chips
    together, from those numbers.

    "mfu" is there where the chips' peak is published: always that of dense bfloat16, whatever the
    run computes in.
    """
    devices = list(mesh.devices.flat)
    chip = chips.of_kind(devices[0].device_kind)

    def measure(values, seconds):
        done = flops(values) / max(seconds, 1e-9)
        rates = {
            "tokens_per_second": values.get("tokens", 0.0) / max(seconds, 1e-9),
            "flops_per_second": done,
            **memory(devices),
        }
        return rates | ({"mfu": done / (chip.flops * len(devices))} if chip else {})

    return measure


def memory(devices) -> dict[str, float]:
    """Bytes in use now and at the most so far: of the fullest of this process's devices, or of the
    process itself where devices do not say (CPU). Asking does not wait for what they compute."""
    here = [
        device.memory_stats() for device in devices if device.process_index == jax.process_index()
    ]
    if here and all(here):
        names = {"memory_bytes": "bytes_in_use", "peak_memory_bytes": "peak_bytes_in_use"}
        return {
            name: float(max(stats.get(key, 0) for stats in here)) for name, key in names.items()
        }
    usage = {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}
    try:
        with open("/proc/self/statm") as file:
            usage["memory_bytes"] = float(int(file.read().split()[1]) * resource.getpagesize())
            usage["peak_memory_bytes"] = max(
                usage.values()
            )  # the kernel's two accounts differ by some pages
    except OSError:  # not Linux
        pass
    return usage


def training(
    mesh,
    model: ModelConfig,
    mean_length: float,
    adapters: lora.Adapters | None = None,
    head: bool = True,
) -> Meter:
    """The meter of a supervised step.

    Args:
        mesh: of the run.
        model: what is trained.
        mean_length: of a sequence.
        adapters: what is trained of it; None: everything.
        head: whether logits are computed, of the step's "count" learned tokens.

    Returns:
        A meter of the step's numbers, of which it reads "tokens" and "count".
    """
    share = arithmetic.trained_share(model, adapters)

    def flops(values):
        learned = values["count"] / max(values["tokens"], 1.0) if head else 0.0
        return Work(
            "train", model, values["tokens"] / mean_length, mean_length, head=learned, trained=share
        ).flops

    return meter(mesh, flops)


def ppo(
    mesh,
    policy: ModelConfig,
    value: ModelConfig | None,
    judges: Sequence[ModelConfig],
    *,
    num_rollouts: int,
    num_epochs: int,
    adapters: lora.Adapters | None = None,
) -> Meter:
    """The meter of a PPO update: rollouts are sampled, scored, run through policy, reference and
    value model, and learned in every epoch. Only responses have logits.

    Args:
        mesh: of the run.
        policy, value: the models; value None: there is none, or it is a head on the policy.
        judges: the preference models that score, one a term of the reward.
        num_rollouts: of an update.
        num_epochs: of learning on them.
        adapters: what is trained; None: everything.

    Returns:
        A meter that reads "tokens" and "response_tokens" (a rollout) from the update's numbers.
    """

    def flops(values):
        def work(kind, model, head):
            share = arithmetic.trained_share(model, adapters)
            answered = num_rollouts * values["response_tokens"] / values["tokens"] if head else 0.0
            return Work(
                kind,
                model,
                num_rollouts,
                values["tokens"] / num_rollouts,
                head=answered,
                trained=share,
            ).flops

        once = 3 * work("forward", policy, True)
        once += sum(work("forward", judge, False) for judge in judges)
        learned = work("train", policy, True)
        if value is not None:
            once, learned = (
                once + work("forward", value, False),
                learned + work("train", value, False),
            )
        return once + num_epochs * learned

    return meter(mesh, flops)
