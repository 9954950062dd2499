"""The training loop, and what surrounds every loop that trains: resume, record, save, stop.

    with Session(ctx, num_steps, save_every, abstract) as session:
        state = session.restore(init)
        for step in session.steps():
            state, scalars = train_step(state, batch)
            session.finish(step, state, scalars, names)

The numbers of a step are fetched after the next step was dispatched, so that the device never waits
for the host and the next batch is made while it works. They are checked before anything is saved:
a checkpoint with a loss that is not finite cannot exist.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from cai_jax.core import sharding
from cai_jax.errors import UserError
from cai_jax.io import memory, preemption, progress
from cai_jax.io.checkpoints import Checkpoints
from cai_jax.training import profiling
from cai_jax.training import state as state_lib

SLOW_STEP = 100  # seconds; schedulers give about two minutes between SIGTERM and the end
CHECKED = ("loss", "grad_norm", "value_loss", "value_grad_norm")
SHOWN = ("reward", "kl", "loss")  # on the progress bar


def train(session: Session, state: dict, train_step: Callable, batches, rate: Callable) -> dict:
    """Takes all steps of `session`.

    Args:
      session: gives the steps, and records, saves and stops.
      state: what `session.restore` returned.
      train_step: (state, batch) → (state, scalars); the state is donated.
      batches: step → (names of its examples, batch on the host).
      rate: step → learning rate, for the metrics.
    Returns:
      The state after the last.
    """
    for step in session.steps():
        names, batch = batches[step]
        state, scalars = train_step(state, batch)
        session.finish(step, state, {**scalars, "learning_rate": rate(step)}, names)
    return state


class Session:
    """One stage's training from its newest intact checkpoint to its last step.

    A context manager: leaving it closes the metrics, the progress bar and a trace that is running;
    a SIGTERM that arrived while a step was sampling is answered there with a checkpoint.
    """

    def __init__(
        self,
        ctx,
        num_steps: int,
        save_every: int,
        abstract: Mapping,
        *,
        log_every: int = 1,
        snapshot_every: int = 0,
        unit: str = "step",
        look_back: bool = True,
        weights: tuple[str, ...] = ("params",),
        meter: Callable[[Mapping, float], dict] | None = None,
    ):
        """
        Args:
          ctx: the stage's context.
          num_steps: steps from the beginning of the stage to its end.
          save_every: a checkpoint every so many steps, and after the last one.
          abstract: ShapeDtypeStructs with shardings for every item of the state.
          log_every: a row of metrics every so many steps, and for the last one.
          snapshot_every: checkpoints of these steps are kept; 0: only the last one.
          unit: what a step is called in messages.
          look_back: fetch a step's numbers after the next step was dispatched.
          weights: items of the state that outlive the stage; the last checkpoint holds only these.
          meter: (numbers of a step, its seconds) → rates for timing.jsonl.
        """
        self.num_steps, self.start = num_steps, 0
        self._ctx, self._abstract, self._weights = ctx, abstract, weights
        self._save_every, self._snapshot_every = save_every, snapshot_every
        self._log_every, self._look_back = log_every, look_back
        self._unit, self._meter = unit, meter or _tokens_per_second
        self._checkpoints = Checkpoints(ctx.directory.path / "checkpoints")
        self._warnings = Warnings(f"[{ctx.name}]", unit)
        self._trace = profiling.Trace(
            ctx.run_config.get("profile_steps", ""), ctx.name, ctx.directory.path
        )
        self._state = self._waiting = self.writer = self._bar = None
        self._tokens = 0
        self._idle = time.monotonic()  # when the device had done everything before this step

    def restore(self, init: Callable[[], dict]) -> dict:
        """The state of the newest intact checkpoint, else of `init()`. Where all steps are done,
        only the weights."""
        restored = None
        if self._checkpoints.latest() == self.num_steps:
            weights = {name: self._abstract[name] for name in self._weights}
            restored = self._checkpoints.restore_latest(weights)
        if restored is None or restored[0] != self.num_steps:
            restored = self._checkpoints.restore_latest(self._abstract)
        if restored is None:
            restored = 0, state_lib.put_like(init(), self._abstract), {"tokens": 0, "metrics": ""}
        elif restored[0] < self.num_steps:
            progress.say(f"[{self._ctx.name}] goes on from {self._unit} {restored[0]}")
        self.start, state, meta = restored
        self.writer = self._ctx.metrics(self.start, meta["metrics"])
        self._tokens = meta["tokens"]
        return state

    def steps(self) -> Iterator[int]:
        """The steps that are left to do, counted from 0."""
        # Loading leaves the memory fragmented, and a step wants contiguous temporaries.
        memory.give_back()
        self._idle = time.monotonic()
        self._bar = progress.bar(self.num_steps, self._ctx.name, self.start, self._unit)
        for step in range(self.start, self.num_steps):
            self._trace.begin(step + 1)
            yield step

    def finish(self, step: int, state: dict, scalars: Mapping, names: Sequence[str]) -> None:
        """Records, saves and stops where that is due.

        Args:
          step: the step that was dispatched.
          state: the state after it.
          scalars: its numbers, on the device or the host; those called …_seconds are timing.
          names: its examples, for the message about a number that is not finite.

        Raises:
          UserError: a number is not finite; the last good checkpoint stays.
          Preempted: SIGTERM; the state is saved.
        """
        if self._waiting:
            self._look(*self._waiting)
        self._trace.end(step + 1, state)
        done, last = step + 1, step + 1 == self.num_steps
        stop = preemption.requested(step)
        snapshot = bool(self._snapshot_every) and done % self._snapshot_every == 0
        save = last or stop or snapshot or done % self._save_every == 0
        self._state, self._waiting = (done, state), (step, scalars, names)
        if save or not self._look_back:
            self._look(step, scalars, names)
            self._waiting = None
        if save:
            self._save(done, self._weights if last else tuple(state), snapshot)
            self._idle = time.monotonic()
        self._bar.update()
        if stop and not last:
            raise self._preempted(done)

    def _look(self, step: int, scalars: Mapping, names: Sequence[str]) -> None:
        """Checks and writes the numbers of a step; waits for the device."""
        values = {name: float(value) for name, value in sharding.fetch(scalars).items()}
        seconds, self._idle = time.monotonic() - self._idle, time.monotonic()
        timing = {name: values.pop(name) for name in tuple(values) if name.endswith("_seconds")}
        self._require_finite(step, values, names)
        self._tokens += int(values.get("tokens", 0))
        if (step + 1) % self._log_every == 0 or step + 1 == self.num_steps:
            rates = self._meter(values, seconds)
            self.writer.write(step + 1, values, {"seconds": seconds, **timing, **rates})
        self._warnings.check(values, seconds, step + 1)
        shown = [f"{name} {values[name]:.3g}" for name in SHOWN if name in values]
        self._bar.set_postfix_str(" ".join(shown))

    def _require_finite(self, step: int, values: Mapping, names: Sequence[str]) -> None:
        bad = [name for name in CHECKED if name in values and not math.isfinite(values[name])]
        if not bad:
            return
        ctx, good = self._ctx, self._checkpoints.latest()
        kept = f"the last good checkpoint is {self._unit} {good}" if good else "no checkpoint yet"
        advice = "try a smaller learning_rate, or float32"
        # Before the first update the initial weights or the dtype are at fault; an update of rl
        # has several steps.
        if step == 0 and self._unit == "step":
            initial = ctx.config.get("init") or ctx.config.get("policy") or "the initial model"
            advice = (
                f"no update was made yet: check the weights of '{initial}', these examples, and "
                "config.model.dtype"
            )
        raise UserError(
            f"stage '{ctx.name}': {bad[0]} is {values[bad[0]]} at {self._unit} {step + 1}, in the "
            f"batch of {', '.join(names)}; {kept} in {self._checkpoints.path}; {advice}"
        )

    def _save(self, done: int, items: Sequence[str], keep: bool = False) -> None:
        meta = {"tokens": self._tokens, "metrics": self.writer.written()}
        trees = {name: self._state[1][name] for name in items}
        self._checkpoints.save(done, trees, meta, keep=keep)

    def _preempted(self, done: int) -> preemption.Preempted:
        name = self._ctx.name
        return preemption.Preempted(f"stage '{name}': saved {self._unit} {done} and stopped")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is preemption.Preempted and self._state is not None:
                # While a step was sampling: nothing of that step is learned yet.
                done, state = self._state
                if self._waiting:
                    self._look(*self._waiting)
                if self._checkpoints.latest() != done:
                    self._save(done, tuple(state))
                raise self._preempted(done) from None
        finally:
            self._trace.close()
            if self._bar is not None:
                self._bar.close()
            if self.writer is not None:
                self.writer.close()
        if kind is None:
            self._ctx.count_tokens("trained", self._tokens)


class Warnings:
    """Warns once each about what stops no stage: a model that learns nothing any more, and steps
    too long to be interrupted."""

    def __init__(self, head: str, unit: str):
        self._head, self._unit, self._given = head, unit, set()

    def check(self, values: Mapping[str, float], seconds: float, step: int) -> None:
        """Looks at a step's numbers and how long it took."""
        for name in ("grad_norm", "value_grad_norm"):
            if values.get(name) == 0:
                self._warn(
                    name,
                    f"{name} is 0 at {self._unit} {step}: nothing is learned; is the model dead "
                    "(a smaller learning_rate), or are all rewards or labels the same?",
                )
        if seconds > SLOW_STEP and step > 1:  # the first step is compiled
            self._warn(
                "slow",
                f"{self._unit} {step} took {seconds:.0f} s: a SIGTERM is answered after it; where "
                "the scheduler gives less time, what was learned since the last checkpoint is lost",
            )

    def _warn(self, key: str, text: str) -> None:
        if key not in self._given:
            self._given.add(key)
            progress.warn(f"{self._head} {text}")


def _tokens_per_second(values: Mapping, seconds: float) -> dict:
    return {"tokens_per_second": values.get("tokens", 0.0) / max(seconds, 1e-9)}
