"""The sampling engine: requests in, completions out as they finish; scores of given continuations.

Rows decode in the slots of one batch, several tokens per device call; a row that ends gives its
slot to the next request. The first of a request's segments is a header that is prefilled and kept
once; requests with equal segments share their prefill. A row's tokens depend on its request, the
sampling parameters and the engine's options only.

    engine = Engine(params, config, format, mesh) for completion in engine.generate(requests,
    SamplingParams(max_new_tokens=64, stop_strings=("\\n\\nHuman:",))):
        …
"""

from __future__ import annotations

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Container, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from cai_jax.core import sharding
from cai_jax.data import fitting
from cai_jax.engine import cached, flash, packing, plan, row_reader, weights
from cai_jax.engine.stops import Ending, find_ending
from cai_jax.engine.store import Piece, Store
from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig
from cai_jax.structs import Completion, SampleRequest, SamplingParams, Score, ScoreRequest

BLOCK = 256  # positions of the cache read at a time, on CPU


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """batch_size: rows that decode together, 0 = as many as fit into cache_bytes; chunk_steps:
    tokens per device call; max_length: longest prompt + completion in tokens, 0 = the model's;
    cache_bytes: for the rows' keys and values; store_bytes: for the keys and values of headers and
    prompts that later requests may share; int8: weights rounded to 8 bits, one scale an output
    channel (benchmarks/README.md has what that costs); flash: TPUs and GPUs prefill and score by
    the kernels of `flash.py`."""

    batch_size: int = 0
    chunk_steps: int = 8
    max_length: int = 0
    cache_bytes: int = 4 * 2**30
    store_bytes: int = 2**30
    int8: bool = False
    flash: bool = True


@dataclasses.dataclass
class _Slot:
    request: SampleRequest
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)


class Engine:
    """Samples from and scores with one model. `format` is a DialogueFormat or a Tokenizer:
    `eos_ids`, `decode`."""

    def __init__(
        self,
        params: dict,
        config: ModelConfig,
        format,
        mesh: Mesh | None = None,
        options: EngineOptions | None = None,
    ):
        self.config, self.options = config, options or EngineOptions()
        self.mesh = mesh or sharding.make_mesh({"data": 1}, jax.local_devices()[:1])
        self.eos_ids, self._decode_text = tuple(format.eos_ids), format.decode
        self._reasoning_tokens = getattr(format, "reasoning_tokens", lambda tokens: 0)
        self.max_length = fitting.smallest(self.options.max_length, config.max_length)
        self.dtype = params["embed"].dtype
        platform = self.mesh.devices.flat[0].platform
        ways = sharding.batch_ways(self.mesh)
        self.batch_size = -(-self.options.batch_size // ways) * ways or plan.plan_batch(
            config, self.dtype, self.max_length, self.options.cache_bytes, platform, ways
        )
        # Reading in blocks costs a loop in each layer: cheap on a CPU, a round trip to the host on
        # a GPU.
        self._block = BLOCK if platform == "cpu" else 0
        if platform == "cpu":
            self._kernel = "by_head" if self.mesh.size == 1 else ""
        else:
            self._kernel = flash.choose(platform, self.dtype, config) if self.options.flash else ""
        self._row_size = packing.ROW if self._kernel == "by_head" else packing.PACK
        self._store = Store(self.options.store_bytes)
        self.update(params)

    def update(self, params: dict) -> None:
        """New parameters of the same shapes; what was prefilled with the old ones is forgotten.
        `layout_seconds` then says how long it took to lay them out for decoding, `layout_bytes` how
        much those layers take on this process's devices."""
        self._store.clear()
        began = time.monotonic()
        with jax.set_mesh(self.mesh):
            out_major = self._block > 0 and self.mesh.size == 1
            fuse = weights.fuses(self.mesh)
            self.weights = weights.prepare(params, self.config, fuse, out_major, self.options.int8)
            if self.mesh.shape["fsdp"] * self.mesh.shape["tensor"] > 1:
                layers = self.weights["layers"]
                self.weights["layers"] = [
                    jax.device_put(x, weights.layer_places(x, self.config, self.mesh))
                    for x in layers
                ]
        jax.block_until_ready(self.weights)
        self.layout_seconds = time.monotonic() - began
        copies = (leaf.addressable_shards for leaf in jax.tree.leaves(self.weights["layers"]))
        self.layout_bytes = sum(shard.data.nbytes for shards in copies for shard in shards)

    def fits(self, request: SampleRequest | ScoreRequest, new_tokens: int = 0) -> bool:
        """Whether the request's prompt is not empty and has room for `new_tokens` (or its options)
        after it."""
        length = sum(map(len, request.segments))
        options = getattr(request, "options", ())
        return length > 0 and length + max([new_tokens, *map(len, options)]) <= self.max_length

    # ------------------------------------------------------------ generate

    def generate(
        self,
        requests: Sequence[SampleRequest],
        sampling: SamplingParams,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Completion]:
        """Completions in the order in which they finish. `on_progress(finished, all)` after each
        device call.

        Raises UserError for a request that does not fit: ask `fits` first.
        """
        if sampling.max_new_tokens < 1:
            raise UserError(
                f"sampling: max_new_tokens must be at least 1, not {sampling.max_new_tokens}"
            )
        groups: dict[tuple, list] = {}
        for request in requests:
            self._check(request, _limit(request, sampling))
            prompt = plan.split_prompt(request.segments)
            groups.setdefault(prompt.header, []).append((request, prompt))
        finished = 0
        for header, group in groups.items():
            for done in self._run(header, group, sampling):
                finished += len(done)
                if on_progress:
                    on_progress(finished, len(requests))
                yield from done

    def _run(self, header, group, sampling: SamplingParams) -> Iterator[list[Completion]]:
        """Decodes the requests of one header; yields what finished while the next device call
        runs."""
        waiting = collections.deque(group)
        slots: list[_Slot | None] = [None] * self.batch_size
        rows = _idle_rows(self.batch_size)
        cache, size, ended = None, 0, []
        if (
            self._block
        ):  # what is not reached is not read, so one size, and one program, for the whole group
            size = plan.cache_size(
                [prompt.own_length for _, prompt in group], sampling.max_new_tokens
            )
            cache = self._empty(self.batch_size, size, turned=True)
        static = dict(
            config=self.config,
            sampling=dataclasses.replace(sampling, max_new_tokens=0, stop_strings=()),
            steps=self.options.chunk_steps,
            eos_ids=self.eos_ids,
            block=self._block,
        )
        while waiting or any(slots):
            entering = []
            for place, slot in enumerate(slots):
                if slot is None and waiting:
                    request, prompt = waiting.popleft()
                    *before, tail = prompt.segments
                    pieces = self._pieces(
                        header, [*before, tail[:-1]]
                    )  # decoding feeds the last token
                    entering.append((place, pieces))
                    slots[place] = _Slot(request, _limit(request, sampling))
                    _set_row(
                        rows,
                        place,
                        prompt.own_length - 1,
                        tail[-1],
                        slots[place].limit,
                        request.key,
                    )
            wanted = self._cache_size(rows, entering)
            if cache is None or wanted > size or (2 * wanted < size and not self._block):
                size = wanted
                cache = (
                    self._on_mesh(cached.resize, cache, size)
                    if cache
                    else self._empty(self.batch_size, size)
                )
            for place, pieces in entering:
                start = 0
                for piece in pieces:
                    cache = self._on_mesh(
                        cached.insert, cache, piece.arrays, place, start, turned=self._block > 0
                    )
                    start += piece.count
            cache, *out = self._on_mesh(
                cached.decode,
                self.weights,
                self._header(header),
                cache,
                self._put_rows(rows),
                **static,
            )
            yield ended  # the consumer writes records while the device decodes
            ended = self._collect(slots, rows, *sharding.fetch(out), sampling)
        yield ended

    def _collect(
        self, slots, rows, tokens, logprobs, count, sampling: SamplingParams
    ) -> list[Completion]:
        """Adds one device call's tokens to their rows; frees the slots of those that ended."""
        ended = []
        for place, slot in enumerate(slots):
            if slot is None:
                continue
            checked, new = len(slot.tokens), int(count[place])
            slot.tokens += map(int, tokens[:new, place])
            slot.logprobs += map(float, logprobs[:new, place])
            ending = find_ending(
                slot.tokens,
                checked,
                slot.limit,
                self.eos_ids,
                sampling.stop_strings,
                self._decode_text,
            )
            if ending is None:
                rows.length[place] += new
                rows.index[place] += new
                rows.left[place] -= new
                rows.token[place] = slot.tokens[-1]
            else:
                thoughts = self._reasoning_tokens(slot.tokens[: ending.count])
                ended.append(_completion(slot, ending, thoughts))
                slots[place] = None
                for field in rows:
                    field[place] = 0
        return ended

    def _cache_size(self, rows: cached.Rows, entering) -> int:
        """Room for every row's next device call, and for the padding of the pieces that enter."""
        need = int(np.max(np.where(rows.left > 0, rows.length, 0))) + self.options.chunk_steps
        for _, pieces in entering:
            need = max(
                need, sum(piece.count for piece in pieces[:-1]) + (pieces[-1].size if pieces else 0)
            )
        return plan.round_size(need)

    # ------------------------------------------------------------ score

    def score(
        self,
        requests: Sequence[ScoreRequest],
        on_progress: Callable[[int, int], None] | None = None,
        together: bool = False,
        wanted: Container[str] | None = None,
    ) -> Iterator[Score]:
        """Log-probabilities of every option's tokens after its prompt; all options of a request in
        one forward pass.

        Requests with the same header follow each other; the order is otherwise that of `requests`.
        `together`: short ones share forward passes, in groups that depend on all of `requests`, and
        in them what they begin with. `wanted`: ids of those whose scores are asked for, None for
        all; what is left of a list gets the same numbers as in the whole list where the whole list
        is given with it.
        """
        groups: dict[tuple, list] = {}
        for request in requests:
            self._check(request, 0)
            prompt = plan.split_prompt(request.segments)
            groups.setdefault(prompt.header, []).append((request, prompt))
        batches = [batch for group in groups.values() for batch in self._batches(group, together)]
        asked = {request.id for request in requests if wanted is None or request.id in wanted}
        batches = [batch for batch in batches if any(request.id in asked for request, _ in batch)]
        finished = 0
        started = ((batch, *self._start_score(batch, together)) for batch in batches)
        for batch, *found in _ahead(started, max(2, row_reader.AT_ONCE)):
            for score in _finish_scores([request for request, _ in batch], *found):
                if score.id in asked:
                    finished += 1
                    if on_progress:
                        on_progress(finished, len(asked))
                    yield score

    def _batches(self, group: list, together: bool) -> list[list]:
        """Requests of one header in batches: those that fit share a row, longer ones stand
        alone."""
        found = (
            packing.together([_question(pair) for pair in group], self._row_size)
            if together
            else []
        )
        shared = {index for batch in found for index in batch}
        alone = [[pair] for index, pair in enumerate(group) if index not in shared]
        return [[group[index] for index in batch] for batch in found] + alone

    def _start_score(
        self, batch: list[tuple[ScoreRequest, plan.Prompt]], together: bool
    ) -> tuple[packing.Row, jax.Array]:
        header = batch[0][1].header
        row = packing.several([_question(pair) for pair in batch]) if together else None
        if row and len(row.tokens) <= self._row_size:
            if self._kernel == "by_head":
                return row, self._read_row(self._row_header(header), row)[0]
            return row, self._score_row(header, None, row, self._row_size)
        ((request, prompt),) = batch
        *before, last = prompt.segments
        fed = packing.fed(request.options)
        cuts = list(plan.cut(len(last) + fed))
        while (
            len(cuts) > 1 and cuts[-1][0] <= fed
        ):  # the last piece holds all options and the token before them
            count, _ = cuts.pop()
            cuts[-1] = (cuts[-1][0] + count, plan.round_size(cuts[-1][0] + count))
        count, size = cuts[-1]
        lead = len(last) - (count - fed)
        past = self._pieces(header, [*before, last[:lead]])
        row = packing.single(last[lead:], request.options)
        return row, self._score_row(header, self._past(past), row, size)

    def _score_row(
        self, header: plan.Tokens, past: cached.KeyValues | None, row: packing.Row, size: int
    ) -> jax.Array:
        arrays = row.padded(size, plan.round_size(len(row.targets)))
        return self._on_mesh(
            cached.score,
            self.weights,
            self._header(header),
            past,
            *arrays,
            config=self.config,
            kernel=self._kernel,
        )

    def _read_row(self, header: cached.KeyValues | None, row: packing.Row):
        """A row on a CPU: the targets' log-probabilities, and the row's keys and values [K, T,
        Dh]."""
        arrays = (array[0] for array in row.padded(self._row_size, self._row_size))
        counts = np.int32(len(row.tokens)), np.int32(len(row.targets))
        return self._on_mesh(
            row_reader.read, self.weights, header, *arrays, *counts, config=self.config
        )

    def _row_header(self, header: plan.Tokens) -> cached.KeyValues | None:
        """Keys and values of a header as rows are read behind it: itself read in rows, by the
        program that reads questions."""

        def make():
            found = None
            for start in range(0, len(header), self._row_size):
                part = header[start : start + self._row_size]
                _, *new = self._read_row(found, packing.single(part))
                if found:
                    new = jax.tree.map(_joined, [found.keys, found.values], new)
                found = cached.KeyValues(*new, np.int32(start + len(part)))
            return found

        return self._store.get(("row", header), make) if header else None

    # ------------------------------------------------------------ prompts

    def _check(self, request, new_tokens: int) -> None:
        if not self.fits(request, new_tokens):
            length = sum(map(len, request.segments))
            raise UserError(
                f"sampling: request {request.id}: a prompt of {length} tokens and its "
                "continuation do not fit into "
                f"{self.max_length} tokens"
            )

    def _header(self, header: plan.Tokens) -> cached.KeyValues | None:
        """Keys and values [K, P, Dh] of a header, prefilled at its first use."""
        if not header:
            return None

        def make():
            rows = self._past(self._pieces((), [header]))
            keys, values = (tuple(x[0] for x in part) for part in (rows.keys, rows.values))
            return cached.KeyValues(keys, values, np.int32(len(header)))

        return self._store.get(("header", header), make)

    def _pieces(self, header: plan.Tokens, segments: Sequence[plan.Tokens]) -> list[Piece]:
        """Segments that follow one another (and `header`) as prefilled pieces. What begins with the
        same pieces shares them: the samples of a prompt, and a critique's prompt with its
        revision's."""
        pieces: list[Piece] = []
        tokens, cuts = (), ()
        for segment in segments:
            start = 0
            for count, size in plan.cut(len(segment)):
                new = tuple(segment[start : start + count])
                start, tokens, cuts = start + count, tokens + new, (*cuts, (count, size))
                pieces.append(
                    self._store.get(
                        (header, tokens, cuts),
                        lambda new=new, size=size: self._prefill(header, pieces, new, size),
                    )
                )
        return pieces

    def _prefill(
        self, header: plan.Tokens, past: list[Piece], tokens: plan.Tokens, size: int
    ) -> Piece:
        arrays = self._on_mesh(
            cached.prefill,
            self.weights,
            self._header(header),
            self._past(past),
            packing.padded(tokens, size),
            config=self.config,
            kernel=self._kernel,
        )
        return Piece(arrays, len(tokens), size)

    def _past(self, pieces: list[Piece]) -> cached.KeyValues | None:
        """The pieces as one row of a cache, [1, K, S, Dh]."""
        if not pieces:
            return None
        need = sum(piece.count for piece in pieces[:-1]) + pieces[-1].size
        cache, start = self._empty(1, plan.round_size(need)), 0
        for piece in pieces:
            cache = self._on_mesh(cached.insert, cache, piece.arrays, 0, start)
            start += piece.count
        return cached.KeyValues(*cache, np.array([start], np.int32))

    # ------------------------------------------------------------ device

    def _on_mesh(self, program, *args, **static):
        with jax.set_mesh(self.mesh):
            return program(*args, **static)

    def _empty(self, batch: int, size: int, turned: bool = False):
        return self._on_mesh(cached.empty_cache, self.config, batch, size, self.dtype, turned)

    def _put_rows(self, rows: cached.Rows) -> cached.Rows:
        if self.mesh.size == 1:
            return cached.Rows(*(field.copy() for field in rows))
        return sharding.put_batch(cached.Rows(*(field.copy() for field in rows)), self.mesh)


def _limit(request: SampleRequest, sampling: SamplingParams) -> int:
    return min(request.max_new_tokens or sampling.max_new_tokens, sampling.max_new_tokens)


def _joined(one: jax.Array, other: jax.Array) -> np.ndarray:
    return np.concatenate(sharding.fetch([one, other]), axis=1)


def _idle_rows(batch: int) -> cached.Rows:
    return cached.Rows(
        *(np.zeros(batch, np.int32) for _ in range(4)), np.zeros((batch, 2), np.uint32)
    )


def _set_row(rows: cached.Rows, place: int, length: int, token: int, left: int, key) -> None:
    rows.length[place], rows.token[place], rows.index[place], rows.left[place] = (
        length,
        token,
        0,
        left,
    )
    rows.key[place] = np.asarray(key, np.uint32)


def _completion(slot: _Slot, ending: Ending, thoughts: int) -> Completion:
    tokens, logprobs = tuple(slot.tokens[: ending.count]), tuple(slot.logprobs[: ending.count])
    return Completion(slot.request.id, tokens, logprobs, ending.text, ending.stop, thoughts)


def _question(pair: tuple[ScoreRequest, plan.Prompt]) -> packing.Question:
    return sum(pair[1].segments, ()), pair[0].options


def _ahead(items: Iterator, count: int) -> Iterator:
    """The items, `count` of them prepared ahead: the host makes the next while the device works."""
    running: collections.deque = collections.deque()
    for item in items:
        running.append(item)
        if len(running) > count:
            yield running.popleft()
    yield from running


def _finish_scores(requests: list[ScoreRequest], row: packing.Row, logprobs) -> Iterator[Score]:
    values = sharding.fetch(logprobs).reshape(-1).tolist()
    for request, options in zip(requests, row.found, strict=True):
        yield Score(
            request.id, tuple(tuple(values[index] for index in option) for option in options)
        )


def use_compilation_cache(directory: str | None = None) -> None:
    """Keeps compiled programs on disk between runs (default ~/.cache/cai_jax/compiled;
    JAX_COMPILATION_CACHE_DIR overrides it, and an empty one turns it off)."""
    directory = os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", directory or os.path.expanduser("~/.cache/cai_jax/compiled")
    )
    if directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
