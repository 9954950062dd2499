"""The workloads of `benchmarks.sampling`: each returns its ways of doing the same work, as
functions that time themselves. Those that run a complete stage are in `stage_workloads`."""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peer import Peer
from cai_jax import seeds
from cai_jax.constitution.loader import load_constitution
from cai_jax.data.dialogue import load_format
from cai_jax.data.prompts import read_prompts
from cai_jax.engine.engine import Engine, EngineOptions
from cai_jax.models import hf
from cai_jax.stages import revise as revise_stage
from cai_jax.structs import Message, SampleRequest, Sampling

PEER_BATCH = 16
OFFICIAL = (
    pathlib.Path(__file__).resolve().parent.parent.parent
    / "shared"
    / "data"
    / "official"
    / "prompts"
)
ANSWER = "Sure. The first thing that you need is a plan, and then a few simple tools. " * 2
LIMIT = 2048 + 1024  # of the cache: a header of 2,000 tokens, a dialogue, an answer


class Took(NamedTuple):
    """Seconds of the clock, and of processors (all threads of whoever did the work)."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> Took:
        return Took(time.perf_counter(), time.process_time())

    def since(self) -> Took:
        return Took(time.perf_counter() - self.wall, time.process_time() - self.cpu)

    def times(self, factor: float) -> Took:
        return Took(self.wall * factor, self.cpu * factor)


class Peers(NamedTuple):
    """A slow way whose work is `units` equal, independent parts: `run(parts)` does those (numbers
    below `units`). One after the other they are measured over the repeats, and the time is
    multiplied to that of all the work."""

    run: Callable[[list[int]], Took]
    units: int

    def parts(self, repeat: int, share: float) -> list[int]:
        """The parts of that repeat: as few as make up `share` of the work."""
        number = min(self.units, max(1, math.ceil(share * self.units - 1e-9)))
        return sorted((repeat * number + i) % self.units for i in range(number))


def even_parts(number: int) -> int:
    """How many complete batches of the peer `number` rows make; 1 where one would be smaller than
    the others."""
    return number // PEER_BATCH if number % PEER_BATCH == 0 else 1


class Workload(NamedTuple):
    """ways: name → function that does all the work once and says what it took, or Peers; units:
    tokens, labels or prompts done; about: what else is to be known of it; compiled: the ways that
    compile, and so are run once before they are measured; warm: called after these and before
    measuring."""

    ways: dict[str, Callable[[], Took] | Peers]
    units: int
    about: dict
    compiled: tuple[str, ...] = ("ours",)
    warm: Callable[[], None] = lambda: None


class Bench:
    """The model twice, and the texts."""

    def __init__(self, model: str, scale: float, dtype: str, options: dict | None = None):
        self.directory, self.dtype, self.options = model, dtype, options or {}
        self.config, self.params = hf.load_hf(model, dtype=jnp.dtype(dtype))
        self.format = load_format(model)
        self.scale, self._peer = scale, None
        self.prompts = read_prompts("embedded:red_team")[0]
        self.engines: dict[int, Engine] = {}

    @property
    def peer(self) -> Peer:
        if self._peer is None:
            self._peer = Peer(self.directory, self.dtype)
        return self._peer

    def close(self) -> None:
        if self._peer is not None:
            self._peer.close()

    def peer_peak(self) -> int:
        """Bytes; 0 where it was not started."""
        return self._peer.peak_bytes if self._peer is not None else 0

    def count(self, number: int) -> int:
        return max(round(number * self.scale), 2)

    def constitution(self):
        return load_constitution(str(OFFICIAL) if OFFICIAL.is_dir() else "embedded")

    def engine(self, batch_size: int) -> Engine:
        if batch_size not in self.engines:
            options = EngineOptions(
                batch_size=batch_size, **{"chunk_steps": 8, "max_length": LIMIT, **self.options}
            )
            self.engines[batch_size] = Engine(
                self.params, self.config, self.format, options=options
            )
            self.engines[batch_size].eos_ids = ()  # every row runs to its length, ours and theirs
        return self.engines[batch_size]

    def ours(self, segments, new_tokens, batch_size, lengths=None, forget=True) -> Took:
        """One completion of every prompt by our engine.

        Args:
            segments: the prompts' tokens.
            new_tokens: of each.
            batch_size: sequences that are decoded together.
            lengths: new tokens of each prompt, where they differ.
            forget: the shared prefix is prefilled again.

        Returns:
            The time taken.
        """
        engine = self.engine(batch_size)
        if forget:
            engine.update(self.params)
            jax.block_until_ready(engine.runner.weights)
        lengths = lengths or [new_tokens] * len(segments)
        requests = [
            SampleRequest(str(n), s, seeds.row_key(0, n), lengths[n])
            for n, s in enumerate(segments)
        ]
        before = Took.now()
        tokens = sum(len(done.tokens) for done in engine.generate(requests, Sampling(new_tokens)))
        took = before.since()
        assert tokens == sum(lengths)
        return took

    def theirs(self, segments, new_tokens, header=None, lengths=None, share=1.0) -> Took:
        """One completion of every prompt by `generate`, in static batches of PEER_BATCH.

        Args:
            segments: the prompts' tokens.
            new_tokens: of each.
            header: tokens of the shared prefix, which is then prefilled once.
            lengths: new tokens of each prompt, where they differ.
            share: how much of the prefix's prefill is counted, where these are not all its prompts.

        Returns:
            The time taken.
        """
        rows = [list(sum(s[1:] if header else s, ())) for s in segments]
        lengths = lengths or [new_tokens] * len(rows)
        batches = [
            {"prompts": rows[i : i + PEER_BATCH], "new_tokens": max(lengths[i : i + PEER_BATCH])}
            for i in range(0, len(rows), PEER_BATCH)
        ]
        answer = self.peer.ask(kind="generate", batches=batches, header=header and list(header))
        once = Took(*answer["header_seconds"])
        return Took(
            answer["seconds"] - (1 - share) * once.wall,
            answer["cpu_seconds"] - (1 - share) * once.cpu,
        )


def decode(bench: Bench) -> Workload:
    """Batch 16, 128 new tokens."""
    new = bench.count(128)
    segments = [bench.format.prompt(prompt.dialogue) for prompt in bench.prompts[:16]]
    ways = {
        "ours": lambda: bench.ours(segments, new, 16),
        "generate": lambda: bench.theirs(segments, new),
    }
    return Workload(ways, 16 * new, {"new_tokens": new, "rows": 16})


def latency(bench: Bench) -> Workload:
    """Batch 1: seconds a token."""
    new = bench.count(64)
    segments = [bench.format.prompt(bench.prompts[0].dialogue)]
    ways = {
        "ours": lambda: bench.ours(segments, new, 1),
        "generate": lambda: bench.theirs(segments, new),
    }
    return Workload(ways, new, {"new_tokens": new})


def critique_segments(bench: Bench, number: int) -> list:
    """Five worked examples, a dialogue, a critique request."""
    constitution = bench.constitution()
    header = sum(revise_stage.worked_examples(constitution.critique_examples[:5], True), ())
    result = []
    for row, prompt in enumerate(bench.prompts[:number]):
        request = constitution.critique_principles[
            row % len(constitution.critique_principles)
        ].critique_request
        turns = (
            *prompt.dialogue,
            Message("assistant", ANSWER),
            Message("critique_request", request),
        )
        result.append(bench.format.prompt(header + turns, reply="critique", shared=len(header)))
    assert len({segments[0] for segments in result}) == 1
    return result


def first_token(bench: Bench) -> Workload:
    """From the request to its first token, for one critique prompt: with the header new, and with
    the header kept."""
    segments = critique_segments(bench, 2)

    def kept():
        bench.ours(segments[:1], 1, 1)  # another dialogue behind the same header
        return bench.ours(segments[1:], 1, 1, forget=False)

    ways = {
        "ours": lambda: bench.ours(segments[1:], 1, 1),
        "ours, header kept": kept,
        "generate": lambda: bench.theirs(segments[1:], 1),
    }
    return Workload(
        ways,
        1,
        {"header_tokens": len(segments[1][0]), "own_tokens": sum(map(len, segments[1][1:]))},
        ("ours", "ours, header kept"),
    )


def critique(bench: Bench) -> Workload:
    """Few-shot header + dialogue + request, 32 dialogues, 64 new tokens; generate at batch 16, and
    with its prefix cache made by hand."""
    new, number = bench.count(64), bench.count(32)
    segments = critique_segments(bench, number)

    parts_in_all = even_parts(number)
    size = number // parts_in_all

    def batches(parts, header=None):
        chosen = [row for part in parts for row in segments[part * size :][:size]]
        return bench.theirs(chosen, new, header, share=len(parts) / parts_in_all)

    ways = {
        "ours": lambda: bench.ours(segments, new, min(32, number)),
        "generate": Peers(batches, parts_in_all),
        "generate, prefix cache by hand": Peers(
            lambda parts: batches(parts, segments[0][0]), parts_in_all
        ),
    }
    return Workload(
        ways,
        number * new,
        {"new_tokens": new, "rows": number, "header_tokens": len(segments[0][0])},
    )


def skewed(bench: Bench) -> Workload:
    """96 prompts, geometric lengths of mean 40, at most 256; generate and our own static batches
    run each batch to its longest row."""
    number = bench.count(96)
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 40, number), 256).tolist()
    segments = [bench.format.prompt(prompt.dialogue) for prompt in bench.prompts[:number]]

    def static():
        parts = [
            bench.ours(segments[i : i + 16], max(lengths[i : i + 16]), 16, lengths[i : i + 16])
            for i in range(0, number, 16)
        ]
        return Took(*map(sum, zip(*parts, strict=True)))

    ways = {
        "ours": lambda: bench.ours(segments, 256, 16, lengths),
        "ours, static batches": static,
        "generate": lambda: bench.theirs(segments, 256, lengths=lengths),
    }
    return Workload(
        ways,
        sum(lengths),
        {"rows": number, "longest": max(lengths)},
        ("ours", "ours, static batches"),
    )
