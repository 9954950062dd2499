"""Rollouts: which prompts an update takes, its sampled responses as arrays, and their rewards."""

from __future__ import annotations

import dataclasses
import importlib
import io
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.seeds import row_key, row_rng
from cai_jax.structs import Completion, Dialogue, SampleRequest
from cai_jax.training import batching
from cai_jax.training.learner import Rollouts

LENGTH_MULTIPLE = 16


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """A prompt that fits: its id, dialogue, kind, and the token segments that a response
    continues."""

    id: str
    dialogue: Dialogue
    kind: str | None
    segments: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for segment in self.segments for token in segment)


def draw(
    prompts: Sequence[PromptTokens], update: int, count: int, seed: int, stage: str
) -> list[tuple[str, PromptTokens]]:
    """(rollout id, prompt) of update 0, 1, …: the prompts go round in epochs, each a new
    permutation of all of them. The position is `update · count`, so no state has to be saved, and
    no prompt is skipped after a restart."""
    drawn, orders = [], {}
    for place in range(update * count, (update + 1) * count):
        epoch, index = divmod(place, len(prompts))
        if epoch not in orders:
            orders[epoch] = row_rng(seed, stage, "epoch", epoch).permutation(len(prompts))
        prompt = prompts[int(orders[epoch][index])]
        drawn.append((f"{update + 1:06d}/{prompt.id}/{epoch:02d}", prompt))
    return drawn


def requests(
    drawn: Sequence[tuple[str, PromptTokens]], update: int, seed: int, stage: str
) -> list[SampleRequest]:
    """One request a rollout; its key is named by (seed, stage, update, prompt, epoch)."""
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
    rows = [prompt.tokens + completions[name].tokens for name, prompt in drawn]
    tokens, mask = batching.pad_tokens(rows, len(rows), length)
    actions = np.zeros(tokens.shape, bool)
    sampled = np.zeros(tokens.shape, np.float32)
    for index, (name, prompt) in enumerate(drawn):
        place = slice(len(prompt.tokens), len(rows[index]))
        actions[index, place] = True
        sampled[index, place] = completions[name].logprobs
    return Rollouts(
        [name for name, _ in drawn], tokens, mask, actions, sampled, np.zeros(len(rows), np.float32)
    )


def custom_reward(reference: str) -> Callable[[Sequence[Dialogue]], np.ndarray]:
    """The function that "python:package.module.function" names: dialogues, each ending in the
    answer, → scores.

    What it returns is checked: as many numbers as dialogues. Whoever knows the rows' ids checks
    that they are finite. Raises UserError where it is not found.
    """
    where = f"reward '{reference}'"
    module, _, name = reference.removeprefix("python:").rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing somebody else's module may raise anything
        raise UserError(
            f"{where}: {error}; expected python:package.module.function that can be imported here"
        ) from error

    def score(dialogues: Sequence[Dialogue]) -> np.ndarray:
        try:
            scores = np.asarray(list(function(dialogues)), np.float64)
        except UserError:
            raise
        except Exception as error:  # it is somebody else's code
            raise UserError(
                f"{where}: failed ({type(error).__name__}: {error}); expected a list of "
                "numbers back"
            ) from error
        if scores.shape != (len(dialogues),):
            raise UserError(
                f"{where}: expected {len(dialogues)} finite numbers, one a dialogue, not "
                f"{scores.shape}"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, which is refused
            return scores.astype(np.float32)

    return score


def save_arrays(path, rollouts: Rollouts, frozen: dict[str, np.ndarray]) -> None:
    """The per-token arrays of one update as .npz: `ids`, `start` and `end` of each response in
    `tokens` [R, T], and every array of `frozen` [R, T]. Written whole or not at all; the bytes
    depend on the numbers only."""
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
