"""The sampling engine: requests in, completions out as they finish; scores of given continuations.

Sequences decode in the slots of a batch, several tokens per device call; one that ends gives its
slot to the next request. The first of a request's segments is a prefix that is prefilled and kept
once; requests with equal segments share their prefill. A sequence's tokens depend on its request,
the sampling parameters and the engine's options only.

    engine = Engine(params, config, format, mesh)
    for completion in engine.generate(requests, Sampling(max_new_tokens=64)):
        …
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Container, Iterator, Sequence

import jax
from jax.sharding import Mesh

from cai_jax.core import sharding
from cai_jax.data import fitting
from cai_jax.engine import plan
from cai_jax.engine.decoding import TOP, Decoding, Running
from cai_jax.engine.prompts import Prompts
from cai_jax.engine.runner import Runner
from cai_jax.engine.scoring import Scorer
from cai_jax.errors import UserError
from cai_jax.models.config import ModelConfig
from cai_jax.structs import Completion, SampleRequest, Sampling, Score, ScoreRequest


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """batch_size: sequences that decode together, 0 = as many as fit into cache_bytes; chunk_steps:
    tokens per device call; max_length: longest prompt + completion in tokens, 0 = the model's;
    cache_bytes: for the sequences' keys and values; store_bytes: for the keys and values of
    prefixes and prompts that later requests may share; int8: weights rounded to 8 bits, one scale
    an output channel (benchmarks/README.md has what that costs); flash: TPUs and GPUs prefill and
    score by the kernels of `flash.py`."""

    batch_size: int = 0
    chunk_steps: int = 8
    max_length: int = 0
    cache_bytes: int = 4 * 2**30
    store_bytes: int = 2**30
    int8: bool = False
    flash: bool = True


class Engine:
    """Samples from and scores with a model. `format` is a DialogueFormat or a Tokenizer:
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
        mesh = mesh or sharding.make_mesh({"data": 1}, jax.local_devices()[:1])
        self.eos_ids, self.decode_text = tuple(format.eos_ids), format.decode
        self._reasoning_tokens = getattr(format, "reasoning_tokens", lambda tokens: 0)
        self.max_length = fitting.smallest(self.options.max_length, config.max_length)
        ways = sharding.batch_ways(mesh)
        self.batch_size = -(-self.options.batch_size // ways) * ways or plan.plan_batch(
            config,
            params["embed"].dtype,
            self.max_length,
            self.options.cache_bytes,
            mesh.devices.flat[0].platform,
            ways,
        )
        self.runner = Runner(params, config, mesh, self.options.int8, self.options.flash)
        self.prompts = Prompts(self.runner, self.options.store_bytes)
        self._scorer = Scorer(self.runner, self.prompts)

    def update(self, params: dict) -> None:
        """New parameters of the same shapes; what was prefilled with the old ones is forgotten."""
        self.prompts.store.clear()
        self.runner.update(params)

    @property
    def layout_seconds(self) -> float:
        """How long it took to lay the parameters out for decoding."""
        return self.runner.layout_seconds

    def fits(self, request: SampleRequest | ScoreRequest, new_tokens: int = 0) -> bool:
        """Whether the request's prompt is not empty and has room for `new_tokens` (or its options)
        after it."""
        length = sum(map(len, request.segments))
        options = getattr(request, "options", ())
        return length > 0 and length + max([new_tokens, *map(len, options)]) <= self.max_length

    def score(
        self,
        requests: Sequence[ScoreRequest],
        together: bool = False,
        wanted: Container[str] | None = None,
    ) -> Iterator[Score]:
        """Log-probabilities of every option's tokens after its prompt; all options of a request in
        one forward pass. Requests with the same prefix follow each other.

        Args:
          requests: prompts and options.
          together: short ones share forward passes, in groups that depend on all of `requests`, and
            in them what they begin with.
          wanted: ids of those whose scores are asked for, None for all; what is left of a list gets
            the same numbers as in the complete list where the complete list is given with it.
        Raises:
          UserError: a request does not fit; ask `fits` first.
        """
        for request in requests:
            self._require_fit(request, 0)
        yield from self._scorer.score(requests, together, wanted)

    def generate(
        self, requests: Sequence[SampleRequest], sampling: Sampling
    ) -> Iterator[Completion]:
        """Completions in the order in which they finish.

        Raises:
          UserError: a request does not fit; ask `fits` first.
        """
        if sampling.max_new_tokens < 1:
            raise UserError(
                f"sampling: max_new_tokens must be at least 1, not {sampling.max_new_tokens}"
            )
        groups: dict[tuple, list[Running]] = {}
        for request in requests:
            item = Running(request, plan.split_prompt(request.segments), sampling)
            self._require_fit(request, item.limit)
            groups.setdefault(item.prompt.prefix, []).append(item)
        for prefix, group in groups.items():
            for ended in self._decode(prefix, group, sampling):
                yield from map(self._completion, ended)

    def _decode(self, prefix, group: list[Running], sampling) -> Iterator[list[Running]]:
        """Decodes the requests of one prefix; yields what ended while the next device call runs."""
        size = 0
        # What is not reached is not read in blocks, so one size, and one program, for the group.
        if self.runner.block:
            longest = max(item.prompt.own_length for item in group)
            size = plan.block_size(longest + sampling.max_new_tokens)
        batch, ended = Decoding(self, prefix, sampling, size), []
        waiting = collections.deque(group)
        while waiting or batch.busy:
            sampled = batch.start(waiting)
            yield ended  # the consumer writes records while the device decodes
            ended = batch.collect(sampled)
        yield ended

    def _completion(self, item: Running) -> Completion:
        tokens, ending = tuple(item.tokens), item.ending
        return Completion(
            item.request.id,
            tokens,
            tuple(item.logprobs),
            ending.text,
            ending.stop,
            self._reasoning_tokens(tokens),
        )

    def prompt_logprobs(self, tokens: plan.Tokens, wants_top: bool) -> Iterator[tuple[list, list]]:
        """Log-probabilities, at temperature 1, of a text's tokens but the first, at most 512 tokens
        at a time; with each, if wanted, the (ids, log-probabilities) of the `num_top` most probable
        tokens there."""
        return self._scorer.prompt_logprobs(tokens, self.num_top if wants_top else 0)

    @property
    def num_top(self) -> int:
        return min(TOP, self.config.vocab_size)

    def _require_fit(self, request: SampleRequest | ScoreRequest, new_tokens: int) -> None:
        if not self.fits(request, new_tokens):
            length = sum(map(len, request.segments))
            raise UserError(
                f"sampling: request {request.id}: a prompt of {length} tokens and its "
                f"continuation do not fit into {self.max_length} tokens"
            )
