"""The loop that every training stage shares: resume, step, look, save, and stop for the right
reasons.

`advance(state, step) → (state, scalars)` is the stage's own. The numbers of a step are fetched
after the next one has been dispatched, so that the device never waits for the host and the next
batch is made while it works; they are looked at before anything is saved, so that a checkpoint with
a loss that is not finite cannot exist.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

from cai_jax.core import sharding
from cai_jax.errors import UserError
from cai_jax.io import memory, preemption, progress
from cai_jax.io.checkpoints import Checkpoints
from cai_jax.io.metrics import MetricsWriter, read_rows
from cai_jax.training import profiling
from cai_jax.training import state as state_lib

SLOW_STEP = 100  # seconds; schedulers give about two minutes between SIGTERM and the end
CHECKED = ("loss", "grad_norm", "value_loss", "value_grad_norm")


def _initial(config) -> str:
    """The field that names what a stage trains."""
    return config.get("init") or config.get("policy") or "the initial model"


@dataclasses.dataclass(frozen=True)
class Settings:
    """`weights`: the items of the state that outlive the stage; the last checkpoint holds nothing
    else."""

    num_steps: int
    save_every: int
    log_every: int = 1
    snapshot_every: int = 0
    unit: str = "step"
    look_back: bool = True  # fetch a step's numbers after the next one was dispatched
    weights: tuple[str, ...] = ("params",)


class Warnings:
    """Says once each what no number stops a stage for: a model that learns nothing any more, and
    steps too long to be stopped."""

    def __init__(self, head: str, unit: str):
        self._head, self._unit, self._given = head, unit, set()

    def __call__(self, values: Mapping[str, float], seconds: float, step: int) -> None:
        for name in ("grad_norm", "value_grad_norm"):
            if values.get(name) == 0:
                self._say(
                    name,
                    f"{name} is 0 at {self._unit} {step}: nothing is learned; is the model "
                    "dead (a smaller "
                    "learning_rate), or are all rewards or labels the same?",
                )
        if seconds > SLOW_STEP and step > 1:  # the first one is compiled
            self._say(
                "slow",
                f"{self._unit} {step} took {seconds:.0f} s: a SIGTERM is answered at the end "
                "of one; where the "
                "scheduler gives less time than that, what was learned since the last "
                "checkpoint is lost",
            )

    def _say(self, key: str, text: str) -> None:
        if key not in self._given:
            self._given.add(key)
            progress.warn(f"{self._head} {text}")


def fit(
    ctx,
    settings: Settings,
    abstract: Mapping,
    init: Callable[[], dict],
    advance: Callable,
    names: Callable[[int], Sequence[str]],
    on_start: Callable[[int, MetricsWriter], None],
    meter: Callable[[Mapping, float], dict] | None = None,
) -> dict:
    """Runs `advance` until `num_steps`, from the newest intact checkpoint or from `init()`; returns
    the last state.

    `abstract` has ShapeDtypeStructs with shardings for every item of the state. `names(step)` are
    the examples of a step, for the message of a loss that is not finite. `on_start(step, writer)`
    is called once the state is there, with the step that work goes on from: the place to let go of
    weights that were only needed for `init`. `meter(numbers, seconds)` are a step's rates; they,
    the seconds and numbers called …_seconds go to timing.jsonl. Raises UserError where a number is
    not finite (the last good checkpoint stays), Preempted after a SIGTERM.
    """
    checkpoints = Checkpoints(ctx.directory.path / "checkpoints")
    weights = {name: abstract[name] for name in settings.weights}
    if checkpoints.latest() == settings.num_steps:
        step, trees, meta = checkpoints.restore_latest(weights) or (0, {}, {})
        if step == settings.num_steps:
            ctx.metrics(step, meta["metrics"]).close()
            ctx.count_tokens("trained", meta["tokens"])
            return trees
    found = checkpoints.restore_latest(abstract)
    start, state, meta = found or (
        0,
        state_lib.placed(init(), abstract),
        {"tokens": 0, "metrics": ""},
    )
    if found:
        progress.say(f"[{ctx.name}] goes on from {settings.unit} {start}")
    writer = ctx.metrics(start, meta["metrics"])
    on_start(start, writer)
    # what loading and beginning have left lies in pieces, and a step wants its temporaries in one
    memory.give_back()
    tokens_seen = meta["tokens"]

    warn_once = Warnings(f"[{ctx.name}]", settings.unit)
    trace = profiling.Trace(ctx.run_config.get("profile_steps", ""), ctx.name, ctx.directory.path)
    free = time.monotonic()  # when the device had done all before

    def look(step: int, scalars) -> None:
        nonlocal free, tokens_seen
        values = {name: float(value) for name, value in sharding.fetch(scalars).items()}
        seconds, free = time.monotonic() - free, time.monotonic()
        timing = {name: values.pop(name) for name in tuple(values) if name.endswith("_seconds")}
        bad = [name for name in CHECKED if name in values and not math.isfinite(values[name])]
        if bad:
            good = checkpoints.latest()
            kept = (
                f"the last good checkpoint is {settings.unit} {good}"
                if good
                else "there is no checkpoint yet"
            )
            # Nothing was learned before the first step: what it starts from, or the dtype, is at
            # fault.
            advice = (
                "try a smaller learning_rate, or float32"
                if step or settings.unit != "step"  # an update of rl makes several
                else f"no update was made yet: check the weights of '{_initial(ctx.config)}', "
                "these rows, and "
                "config.model.dtype"
            )
            raise UserError(
                f"stage '{ctx.name}': {bad[0]} is {values[bad[0]]} at {settings.unit} "
                f"{step + 1}, in the batch of "
                f"{', '.join(names(step))}; {kept} in {checkpoints.path}; {advice}"
            )
        tokens_seen += int(values.get("tokens", 0))
        if (step + 1) % settings.log_every == 0 or step + 1 == settings.num_steps:
            rates = (
                meter(values, seconds)
                if meter
                else {"tokens_per_second": values.get("tokens", 0.0) / max(seconds, 1e-9)}
            )
            writer.write(step + 1, values, {"seconds": seconds, **timing, **rates})
        warn_once(values, seconds, step + 1)
        shown = [
            f"{name} {values[name]:.3g}" for name in ("reward", "kl", "loss") if name in values
        ]
        bar.set_postfix_str(" ".join(shown))

    def save_state(done: int, items: Sequence[str], keep: bool = False) -> None:
        checkpoints.save(
            done,
            {name: state[name] for name in items},
            {"tokens": tokens_seen, "metrics": writer.written()},
            keep=keep,
        )

    try:
        with ctx.progress(settings.num_steps, ctx.name, start, settings.unit) as bar:
            waiting = None
            for step in range(start, settings.num_steps):
                try:
                    with trace.step(step + 1):
                        state, scalars = advance(state, step)
                except (
                    preemption.Preempted
                ):  # while it sampled: nothing of this step is learned yet
                    if waiting:
                        look(*waiting)
                    if step > start and checkpoints.latest() != step:
                        save_state(step, tuple(state))
                    raise preemption.Preempted(
                        f"stage '{ctx.name}': saved {settings.unit} {step} and stopped"
                    ) from None
                if waiting:
                    look(*waiting)
                trace.after(step + 1, state)
                done, last = step + 1, step + 1 == settings.num_steps
                stop = preemption.requested(step)
                snapshot = bool(settings.snapshot_every) and done % settings.snapshot_every == 0
                save = last or stop or snapshot or done % settings.save_every == 0
                if save or not settings.look_back:
                    look(step, scalars)
                    waiting = None
                else:
                    waiting = step, scalars
                if save:
                    items = settings.weights if last else tuple(state)
                    save_state(done, items, snapshot)
                    free = time.monotonic()
                bar.update()
                if stop and not last:
                    raise preemption.Preempted(
                        f"stage '{ctx.name}': saved {settings.unit} {done} and stopped"
                    )
    finally:
        trace.close()
        writer.close()
    ctx.count_tokens("trained", tokens_seen)
    return {name: state[name] for name in settings.weights}


def summary(ctx, num_steps: int, more: Mapping) -> dict:
    """The stage's summary from its metrics file: steps, first and last loss."""
    rows = [row for row in read_rows(ctx.directory.path / "metrics.jsonl") if "loss" in row]
    first, last = (rows[0]["loss"], rows[-1]["loss"]) if rows else (None, None)
    told = f"loss {first:.3f} → {last:.3f} in {num_steps} steps" if rows else f"{num_steps} steps"
    return {"steps": num_steps, "loss_first": first, "loss_last": last, "headline": told, **more}
