"""Answers that a run has kept serve another run as a model: `recorded:DIR`, by the content of the
request.

A stage keeps what its models answer in STAGE/recorded.jsonl, where `config.record` asks for that or
the answers come from outside (`keeping`). DIR is such a stage, or a run with several. A turn that
is drawn is the same request where its draw is the same, too: of the seed, the stage's name, the
prompt and the sample.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Iterable, Iterator, Sequence

from etils import epath

from cai_jax.errors import UserError
from cai_jax.io import artefacts
from cai_jax.structs import FAILED, Completion, Dialogue, Sampling, dialogue_to_json
from cai_jax.textmodels.protocol import Choice, Question, Turn

RECORDED = "recorded"  # the journal's name


def turn_key(turn: Turn, sampling: Sampling) -> str:
    """The digest of all that decides what a model answers."""
    limit = min(turn.max_new_tokens or sampling.max_new_tokens, sampling.max_new_tokens)
    how = [limit, sampling.temperature, sampling.top_k, sampling.top_p]
    draw = [int(number) for number in turn.key] if sampling.temperature else None
    return _digest(turn, [turn.role, how, draw])


def question_key(question: Question) -> str:
    """The digest of all that decides what a model chooses."""
    return _digest(question, [question.role, question.form, question.options])


def _digest(request: Turn | Question, others: list) -> str:
    dialogues: list[Dialogue] = [request.dialogue, *request.examples]
    value = [[dialogue_to_json(each) for each in dialogues], request.lead, others]
    return artefacts.digest(artefacts.dump(value).encode())[:32]


def keeping(
    journal: artefacts.Journal | None,
    model: str,
    results: Iterable[Completion | Choice],
    requests: Sequence[Turn | Question],
    sampling: Sampling | None = None,
) -> Iterator:
    """The results, each of them in the journal before it is yielded.

    Args:
      journal: None where answers are not kept.
      model: who answers.
      results: as they come.
      requests: what was asked.
      sampling: of turns.

    Yields:
      The results.
    """
    if journal is None:
        yield from results
        return
    asked = {request.id: request for request in requests}
    for result in results:
        request = asked[result.id]
        key = turn_key(request, sampling) if sampling else question_key(request)
        kind = type(result).__name__.lower()
        name = f"{key} {model}{f' {FAILED}' * _has_failed(result)}"
        if name not in journal.finished:
            answer = {"key": key, "model": model, kind: dataclasses.asdict(result)}
            journal.append({"id": name, **answer})
        yield result


def _has_failed(result: Completion | Choice) -> bool:
    """Whether there is no answer for now: a later start may get one."""
    return (result.stop if isinstance(result, Completion) else result.how) == FAILED


def files(directory) -> list[epath.Path]:
    """The journals of a stage or a run."""
    directory, name = epath.Path(directory), f"{RECORDED}.jsonl"
    return [
        path for path in (directory / name, *sorted(directory.glob(f"*/{name}"))) if path.exists()
    ]


class RecordedTextModel:
    """`reference`: DIR, or DIR#MODEL where several models have answered there. It has the name of
    the model that answered."""

    def __init__(self, reference: str):
        self._reference = f"recorded:{reference}"
        self._directory, _, self._model = reference.partition("#")

    @property
    def name(self) -> str:
        return self._answers[0]

    def require(self) -> None:
        """Raises UserError where nothing is recorded there, or by several models."""
        self._answers  # noqa: B018

    @functools.cached_property
    def _answers(self) -> tuple[str, dict[str, dict]]:
        """(the model's name, key → record)."""
        stages = [artefacts.StageDirectory(path.parent) for path in files(self._directory)]
        answers = [answer for stage in stages for answer in stage.records(RECORDED)]
        models = sorted({answer["model"] for answer in answers})
        if not answers:
            raise UserError(
                f"'{self._reference}': no answers are recorded there; run that stage to its end "
                "with --config.record=True"
            )
        if self._model not in models and (self._model or len(models) > 1):
            raise UserError(
                f"'{self._reference}': models that answered there: {', '.join(models)}; name one "
                f"as recorded:{self._directory}#MODEL"
            )
        model = self._model or models[0]
        answers = [each for each in answers if each["model"] == model]
        answers.sort(key=lambda each: not each["id"].endswith(f" {FAILED}"))  # answers win
        return model, {each["key"]: each for each in answers}

    def generate(
        self, turns: Sequence[Turn], sampling: Sampling, wanted: Container[str] | None = None
    ) -> Iterator[Completion]:
        """See `TextModel.generate`."""
        for turn in turns:
            if wanted is None or turn.id in wanted:
                yield self._answer(turn, turn_key(turn, sampling), Completion)

    def choose(
        self,
        questions: Sequence[Question],
        wanted: Container[str] | None = None,
        together: bool = False,
    ) -> Iterator[Choice]:
        """See `TextModel.choose`."""
        for question in questions:
            if wanted is None or question.id in wanted:
                yield self._answer(question, question_key(question), Choice)

    def release(self) -> None:
        """See `TextModel.release`: nothing is on the device."""

    def _answer(self, request: Turn | Question, key: str, kind: type) -> Completion | Choice:
        record = self._answers[1].get(key)
        if record is None:
            raise UserError(
                f"'{self._reference}' never answered the request '{request.id}' (it ends in "
                f"{request.dialogue[-1].text[-80:]!r}); prompts, constitution and sampling must be "
                "as they were, and for turns that are drawn seed and the stage's name, too"
            )
        fields = record[kind.__name__.lower()] | {"id": request.id}
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
