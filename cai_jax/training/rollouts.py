"""Rollouts: which prompts an update takes, and its sampled responses as arrays."""

from __future__ import annotations

import dataclasses
import io
import math
import zipfile
from collections.abc import Sequence

import numpy as np

from cai_jax.data import fitting
from cai_jax.data.prompts import read_prompts
from cai_jax.io import artefacts
from cai_jax.seeds import row_key, row_rng
from cai_jax.structs import Completion, Dialogue, SampleRequest
from cai_jax.training import batching

LENGTH_MULTIPLE = 16


@dataclasses.dataclass
class Rollouts:
    """One update's responses, on the host. All arrays [R, T]: tokens int32; mask, the real tokens;
    actions, those that were sampled; sampled, the sampler's log-probabilities of the actions.
    scores float32 [R]. ids: R names. groups int32 [R]: responses to one prompt have one number."""

    ids: list[str]
    tokens: np.ndarray
    mask: np.ndarray
    actions: np.ndarray
    sampled: np.ndarray
    scores: np.ndarray
    groups: np.ndarray | None = None

    def __post_init__(self):
        if self.groups is None:
            self.groups = np.arange(len(self.ids), dtype=np.int32)

    @property
    def lengths(self) -> np.ndarray:
        return self.mask.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """A prompt that fits: its id, dialogue, kind, the token segments that a response continues, and
    whether it is one of the helpful set."""

    id: str
    dialogue: Dialogue
    kind: str | None
    segments: tuple[tuple[int, ...], ...]
    helpful: bool = False

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for segment in self.segments for token in segment)


def fitting_prompts(ctx, policy, judges: Sequence = ()) -> list[PromptTokens]:
    """The prompts of an rl stage. Left out and counted are those longer than max_prompt_tokens, and
    those whose answer might exceed the sampler's context or the positions of one of the preference
    models `judges`: that is known before any update."""
    config, format, kept = ctx.config, policy.format, []
    limit = fitting.smallest(ctx.run_config.sampling.max_length, policy.config.max_length)
    for prompt, helpful in _prompts(ctx):
        segments = format.prompt(prompt.dialogue)
        item = PromptTokens(prompt.id, prompt.dialogue, prompt.kind, segments, helpful)
        if len(item.tokens) > config.max_prompt_tokens:
            ctx.drop(fitting.MAX_PROMPT_TOKENS)
        elif len(item.tokens) + config.max_new_tokens > limit:
            ctx.drop(fitting.CONTEXT)
        elif not all(_can_judge(judge, prompt, config.max_new_tokens) for judge in judges):
            ctx.drop(fitting.POSITIONS)
        else:
            kept.append(item)
    ctx.require_rows(kept, "prompts")
    if config.helpful_fraction is not None:
        for what, helpful in (("prompts", False), ("helpful prompts", True)):
            ctx.require_rows([item for item in kept if item.helpful == helpful], what)
    return kept


def _prompts(ctx):
    """(prompt, whether it is of `helpful_prompts`) of both fields; one that both have is of the
    first."""
    seen = set()
    for name in ("prompts", "helpful_prompts"):
        fields = ctx.config[name]
        prompts = ctx.load(read_prompts, fields, "prompt") if fields.source else []
        ctx.drop("prompt: in both sets", sum(prompt.id in seen for prompt in prompts))
        yield from ((p, name != "prompts") for p in prompts if p.id not in seen)
        seen |= {prompt.id for prompt in prompts}


def _can_judge(judge, prompt, max_new_tokens: int) -> bool:
    """Whether an answer fits the preference model's positions, as that reads it: with the token
    that ends the answer."""
    num_tokens = fitting.num_tokens(judge.format.prompt(prompt.dialogue)) + 1
    return num_tokens + max_new_tokens <= judge.config.max_length


def draw(
    prompts: Sequence[PromptTokens], update: int, config, seed: int, stage: str
) -> list[tuple[str, PromptTokens]]:
    """The prompts of update 0, 1, …: they go round in epochs, each a new
    permutation of all of them, and each is answered `group_size` times. The position is
    `update · count`, so no state has to be saved, and no prompt is skipped after a restart. With a
    `helpful_fraction` helpful prompts and the others go round each for themselves, in turns that
    give that share.

    Args:
      prompts: those of the stage.
      update: its number, from 0.
      config: the stage's fields.
      seed, stage: what the permutations depend on, with the epoch.
    Returns:
      (rollout id, prompt) of every response.
    """
    drawn, orders, size = [], {}, config.group_size
    count, fraction = config.rollouts_per_update // size, config.helpful_fraction
    pools = {"epoch": prompts}
    if fraction is not None:
        pools = {"epoch": [prompt for prompt in prompts if not prompt.helpful]}
        pools["helpful epoch"] = [prompt for prompt in prompts if prompt.helpful]
    for position in range(update * count, (update + 1) * count):
        pool, before = "epoch", position
        if fraction is not None:
            num_helpful = math.floor(position * fraction)  # of those before this one
            before -= num_helpful
            if math.floor((position + 1) * fraction) > num_helpful:
                pool, before = "helpful epoch", num_helpful
        epoch, index = divmod(before, len(pools[pool]))
        if (pool, epoch) not in orders:
            order = row_rng(seed, stage, pool, epoch).permutation(len(pools[pool]))
            orders[pool, epoch] = order
        prompt = pools[pool][int(orders[pool, epoch][index])]
        name = f"{update + 1:06d}/{prompt.id}/{epoch:02d}"
        names = [name] if size == 1 else [f"{name}.{sample:02d}" for sample in range(size)]
        drawn += [(name, prompt) for name in names]
    return drawn


def requests(
    drawn: Sequence[tuple[str, PromptTokens]], update: int, seed: int, stage: str
) -> list[SampleRequest]:
    """What the sampler is asked.

    Args:
      drawn: what `draw` returned.
      update: its number, from 0.
      seed, stage: what a key depends on, with update, prompt and epoch.
    Returns:
      A request for each rollout.
    """
    return [
        SampleRequest(
            name, prompt.segments, row_key(seed, stage, update, prompt.id, name.rpartition("/")[2])
        )
        for name, prompt in drawn
    ]


def longest(prompts: Sequence[PromptTokens], max_new_tokens: int) -> int:
    """The one sequence length of a stage: every rollout fits, and every program is compiled
    once."""
    return rounded(max(len(prompt.tokens) for prompt in prompts) + max_new_tokens)


def rounded(length: int) -> int:
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def assemble(
    drawn: Sequence[tuple[str, PromptTokens]], completions: dict[str, Completion], length: int
) -> Rollouts:
    """Arrays of the rollouts, right-padded. All sampled tokens are actions: EOS, and those that
    complete a stop string."""
    sequences = [prompt.tokens + completions[name].tokens for name, prompt in drawn]
    tokens, mask = batching.pad_tokens(sequences, len(sequences), length)
    actions = np.zeros(tokens.shape, bool)
    sampled = np.zeros(tokens.shape, np.float32)
    for index, (name, prompt) in enumerate(drawn):
        response = slice(len(prompt.tokens), len(sequences[index]))
        actions[index, response] = True
        sampled[index, response] = completions[name].logprobs
    names, prompt_ids = [name for name, _ in drawn], [prompt.id for _, prompt in drawn]
    groups = np.unique(prompt_ids, return_inverse=True)[1].astype(np.int32)
    scores = np.zeros(len(names), np.float32)
    return Rollouts(names, tokens, mask, actions, sampled, scores, groups)


def save_arrays(path, rollouts: Rollouts, frozen: dict[str, np.ndarray]) -> None:
    """The per-token arrays of one update as .npz: `ids`, `start` and `end` of each response in
    `tokens` [R, T], and every array of `frozen` [R, T]. Written completely or not at all; the
    bytes depend on the numbers only."""
    if not artefacts.is_writer():
        return
    start = np.argmax(rollouts.actions, axis=1)
    arrays = {
        "ids": np.array(rollouts.ids),
        "tokens": rollouts.tokens,
        "scores": rollouts.scores,
        "start": start,
        "end": start + rollouts.actions.sum(axis=1),
        "sampled": rollouts.sampled,
        **frozen,
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    artefacts.write_bytes(path, buffer.getvalue())


def intact(path) -> bool:
    """Whether an update's arrays can be read back: the members of an .npz have checksums."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as members:
            return members.testzip() is None and "tokens.npy" in members.namelist()
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False
