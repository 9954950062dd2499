"""Asking models on behalf of a stage: results with a progress bar, counted and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from cai_jax import references
from cai_jax.data import fitting
from cai_jax.data.text_statistics import refusal_kind
from cai_jax.errors import require_finite
from cai_jax.io import artefacts, preemption, progress
from cai_jax.structs import FAILED, LENGTH, REFUSED, TOO_LONG, UNPARSABLE, Dialogue
from cai_jax.textmodels import recorded
from cai_jax.textmodels.protocol import Choice, Completion, Question, Sampling, TextModel, Turn

# Why requests have no answer, in manifests and summaries.
REASONS = {
    TOO_LONG: fitting.CONTEXT,
    REFUSED: "refused by the server",
    UNPARSABLE: "the server's answers are none of the options",
    FAILED: "no answer of the server could be read",
}
# Roles whose turns are not taken where they refuse without giving a reason: a critic that will not
# criticise. An assistant may refuse; that is what a policy answered.
WORKING_ROLES = ("critique", "revision")


class Asking:
    """What asks has a name, and counts what was left out (reason → number) and tokens (kind →
    number) for its manifest. `unanswered`: id of a request → why it has no answer."""

    name: str
    dropped: dict[str, int]
    tokens: dict[str, int]
    unanswered: dict[str, str]

    def drop(self, reason: str, count: int = 1) -> None:
        """Counts rows that are left out."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + int(count)

    def why(self, requests: Iterable[str]) -> str:
        """Why a row is left out, by the ids of its requests: the reason of the first that has no
        answer."""
        reasons = (self.unanswered.get(request) for request in requests)
        return next(filter(None, reasons), fitting.CONTEXT)

    def count_tokens(self, kind: str, count: int) -> None:
        """Adds tokens: "sampled", "scored", "trained", and where there is any "reasoning"."""
        if count or kind != "reasoning":
            self.tokens[kind] = self.tokens.get(kind, 0) + int(count)

    def recording(self, model: TextModel) -> artefacts.Journal | None:
        """The journal that keeps what a model answers, None where that is not kept."""
        return None

    def generate(
        self,
        model: TextModel,
        turns: Sequence[Turn],
        sampling: Sampling,
        label: str = "",
        wanted: Container[str] | None = None,
        count: bool = True,
    ) -> Iterator[Completion]:
        """Turns as they are finished.

        Args:
          model: who answers.
          turns: what is asked.
          sampling: how tokens are drawn.
          label: of the progress bar; by default the stage's name.
          wanted: ids of the turns that are to be answered, None for all.
          count: whether turns without an answer are counted here; a stage whose records are not its
            requests counts them itself.

        Yields:
          Completions of the turns that were answered; the others are counted by their reasons.

        Raises:
          UserError: a log-probability is not finite.
        """
        label, total = label or self.name, _num_wanted(turns, wanted)
        done = model.generate(turns, sampling, wanted) if total else ()
        done = recorded.keeping(self.recording(model), model.name, done, turns, sampling)
        if references.parse(model.name).kind in references.ANSWERING:
            done = _refusals_marked(done, turns)
        about = getattr(model, "progress", None)
        # Models answer what they can, and name what they cannot.
        unfinished = 0
        for completion in self.watched(done, total, label, about):
            if completion.answered:
                unfinished += self.note(completion, model.name)
                yield completion
            else:
                self._left_out(completion.id, completion.stop, count)
        if unfinished:
            progress.warn(
                f"{label}: {unfinished} of {total} answers were cut in their reasoning and are "
                "empty; give them more tokens, or switch the reasoning off "
                "(config.model.template_args)"
            )

    def choose(
        self,
        model: TextModel,
        questions: Sequence[Question],
        label: str = "",
        wanted: Container[str] | None = None,
        together: bool = False,
        count: bool = True,
    ) -> Iterator[Choice]:
        """Choices as they are made.

        Args:
          model: who chooses.
          questions: what is asked.
          label, wanted, count: as in `generate`.
          together: as in `TextModel.choose`.

        Yields:
          Choices of the questions that were answered; the others are counted by their reasons.

        Raises:
          UserError: a log-probability is not finite.
        """
        total = _num_wanted(questions, wanted)
        done = model.choose(questions, wanted, together) if total else ()
        done = recorded.keeping(self.recording(model), model.name, done, questions)
        about = getattr(model, "progress", None)
        for choice in self.watched(done, total, label, about):
            if choice.answered:
                self.count_tokens("scored", choice.num_tokens)
                what = f"the logits of '{model.name}'"
                self._require_finite(sum(choice.logprobs), choice.id, what)
                yield choice
            else:
                self._left_out(choice.id, choice.how, count)

    def score_each(
        self, model, dialogues: Sequence[Dialogue], label: str, ids: Sequence[str] = ()
    ) -> Iterator[tuple[int, float]]:
        """Scores as they are computed.

        Args:
          model: a `RewardModel`, or what else has `score_each`.
          dialogues: each ends in an answer.
          label: of the progress bar.
          ids: name the dialogues where a score is not finite; by default their numbers from 1 do.

        Yields:
          (index, score) of every dialogue.

        Raises:
          UserError: a score is not finite.
        """
        name = getattr(model, "name", "")
        scored = model.score_each(dialogues)
        if beyond := getattr(model, "num_beyond", 0):
            progress.warn(
                f"[{self.name}] {beyond} of {len(dialogues)} dialogues are {fitting.POSITIONS}: "
                f"their scores by '{name}' are guesses"
            )
        for index, score in self.watched(scored, len(dialogues), label):
            self._require_finite(score, ids[index] if ids else f"{index + 1}", f"'{name}'")
            yield index, score

    def _left_out(self, request: str, stop: str, count: bool) -> None:
        self.unanswered[request] = REASONS[stop]
        self.drop(REASONS[stop], int(count))

    def note(self, completion: Completion, model: str) -> bool:
        """Counts the tokens of a completion; whether it was cut before its answer began."""
        thoughts = completion.reasoning_tokens
        unfinished = 0 < thoughts == completion.num_tokens and completion.stop == LENGTH
        self.count_tokens("sampled", completion.num_tokens)
        self.count_tokens("reasoning", thoughts)
        if unfinished:
            self.count_tokens("answers cut in their reasoning", 1)
        self._require_finite(sum(completion.logprobs), completion.id, f"the logits of '{model}'")
        return unfinished

    def watched(
        self,
        results: Iterable,
        total: int,
        label: str = "",
        about: Callable[[], str] | None = None,
    ) -> Iterator:
        """Results with a progress bar; a SIGTERM ends the stage between two of them.

        Args:
          results: as they come.
          total: how many.
          label: of the bar; by default the stage's name.
          about: what the bar shows besides, such as tokens and cost.

        Yields:
          The results.

        Raises:
          Preempted: after a SIGTERM.
        """
        with progress.bar(total, label or self.name, 0, "row") as bar:
            for result in results:
                yield result
                bar.update()
                if about and not bar.disable:
                    bar.set_postfix_str(about(), refresh=False)
                if preemption.requested():
                    raise preemption.Preempted(f"stage '{self.name}': finished rows are saved")

    def _require_finite(self, value: float, name: str, what: str) -> None:
        require_finite([value], [name], f"stage '{self.name}': {what}")


def _refusals_marked(results: Iterable[Completion], turns: Sequence[Turn]) -> Iterator[Completion]:
    """The results, evasive critiques and revisions as refused: answers are kept without that mark,
    so that those of an earlier run get the rule of today."""
    roles = {turn.id: turn.role for turn in turns}
    for result in results:
        if roles[result.id] in WORKING_ROLES and refusal_kind(result.text) == "evasive":
            result = dataclasses.replace(result, stop=REFUSED)
        yield result


def _num_wanted(requests: Sequence, wanted: Container[str] | None) -> int:
    return sum(wanted is None or request.id in wanted for request in requests)
