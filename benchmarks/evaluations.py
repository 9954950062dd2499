"""The multiple-choice answers of a run against transformers, row by row: `python -m
benchmarks.evaluations RUN [--minutes 20]`.

RUN has an `evaluate` stage that a Hugging Face directory answered (configs/evaluations.py). Every
question is rendered, tokenised and read anew by transformers and torch in float32, and its options'
log-probabilities are compared with those in choices.jsonl. To make that affordable transformers
keeps the keys and values of what a question has in common with the one before it (few-shot headers,
the template's beginning), and reads the prompt once for all options; `--complete n` rows of each
set and mode are read without that as well, every option with its complete text in one forward pass.

Rows are kept in RUN/parity.jsonl (or --json FILE); the same command goes on where it was. Zero-shot
comes first. `--sample n` takes n rows of each set and mode only, drawn at random, the same in every
call.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping

import numpy as np

from cai_jax import references, seeds
from cai_jax.data import choices
from cai_jax.data.dialogue import load_format
from cai_jax.errors import UserError, command
from cai_jax.evals import items as items_lib
from cai_jax.evals.items import choice_sets
from cai_jax.models import hf
from cai_jax.report.run import Run
from cai_jax.textmodels.local import LocalTextModel

MODES = ("zero_shot", "few_shot")


class Peer:
    """transformers' model, which keeps the keys and values of the last prompt."""

    def __init__(self, directory: str):
        import torch
        import transformers

        self.torch, self.versions = (
            torch,
            {"torch": torch.__version__, "transformers": transformers.__version__},
        )
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32
        ).eval()
        self.new_cache = transformers.DynamicCache
        self.cache, self.kept = self.new_cache(), []

    def ask(self, shots, item, kind: str) -> tuple[list[int], list[list[int]]]:
        """The token ids of a question behind worked (item, answer) pairs, and those of its options
        where they go on from it, by transformers' own template and tokenizer."""
        lead, closed = choices.ANSWER_LEAD, items_lib.closed
        if kind == "text":
            text = ""
            for prompt, answer in [(shot.prompt, answer) for shot, answer in shots] + [
                (item.prompt, "")
            ]:
                blank = "\n\n" if text and not prompt.startswith("\n\n") else ""
                text += blank + closed(prompt) + answer
        else:
            turns = []
            for shot, answer in shots:
                question = choices.without_lead(shot.prompt)
                turns += [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": lead + answer},
                ]
            question = choices.without_lead(item.prompt)
            turns.append({"role": "user", "content": question})
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            text += lead
        special = kind == "text"
        ids, *joined = (
            self.tokenizer(text + option, add_special_tokens=special).input_ids
            for option in ("", *item.options)
        )
        common = len(os.path.commonprefix([ids, *joined]))
        return ids[:common], [other[common:] for other in joined]

    def _read(self, ids, cache=None, last: int = 0):
        """log-probabilities [positions, V] after each of `ids`, or after the last one only."""
        with self.torch.no_grad():
            logits = self.model(
                self.torch.tensor([ids]),
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=last,
            ).logits[0]
        return self.torch.log_softmax(logits, -1)

    def _keep(self, count: int) -> None:
        if (beyond := self.cache.get_seq_length() - count) > 0:
            self.cache.crop(-beyond)

    def logprobs(self, prompt: list[int], options: list[list[int]]) -> list[float]:
        """Of every option after the prompt."""
        common = min(len(os.path.commonprefix([self.kept, prompt])), len(prompt) - 1)
        if common:
            self._keep(common)
        else:
            self.cache = self.new_cache()
        first, sums = self._read(prompt[common:], self.cache, last=1)[-1], []
        for option in options:
            total = float(first[option[0]])
            if len(option) > 1:
                rows = self._read(option[:-1], self.cache)
                total += sum(float(row[token]) for row, token in zip(rows, option[1:], strict=True))
                self._keep(len(prompt))
            sums.append(total)
        self.kept = prompt
        return sums

    def logprobs_complete(self, prompt: list[int], options: list[list[int]]) -> list[float]:
        """The same without a cache: every option's complete text in a forward pass of its own."""
        sums = []
        for option in options:
            rows = self._read(prompt + option, last=len(option) + 1)
            sums.append(
                sum(float(row[token]) for row, token in zip(rows[:-1], option, strict=True))
            )
        return sums


def _fields(config: Mapping, stage: str) -> Mapping:
    return config["graph"][stage]["evals"]["multiple_choice"]


def questions(run: pathlib.Path, stage: str) -> Iterator[tuple[str, str, list, Mapping]]:
    """(set, mode, items, worked examples by item id) of a run's stage, zero-shot first."""
    config = Run(run).config
    fields = _fields(config, stage)
    sets = choice_sets(fields["choices"], fields["num_choices"], fields["big_bench"])
    for mode in MODES[: 1 + bool(fields["num_few_shot"])]:
        for on, items in sets.items():
            yield (
                on,
                mode,
                items,
                items_lib.draw_shots(
                    items, fields["num_few_shot"] * (mode != "zero_shot"), config["seed"]
                ),
            )


def drawn(count: int, sample: int, *where: str) -> list[int]:
    """The numbers of the rows of one set and mode that are compared, in order: all, or `sample` of
    them."""
    order = seeds.row_rng(0, "parity", *where).permutation(count)
    return sorted(order[:sample].tolist()) if sample else list(range(count))


def compare(
    run: pathlib.Path, stage: str, out: pathlib.Path, minutes: float, complete: int, sample: int = 0
) -> dict:
    """Appends the rows that `out` does not have yet.

    Args:
        run: the run directory.
        stage: of kind evaluate, or of an evaluation's records.
        out: JSON lines, a row a question.
        minutes: how long; a later call continues.
        complete: questions of each set and mode that are also read without a cache.
        sample: questions of each set and mode that are drawn; 0: all.

    Returns:
        Versions and settings that the rows were made with.

    Raises:
        UserError: the answers are not a Hugging Face directory's.
    """
    # --- the model that answered
    config = Run(run).config
    reference = references.resolve(config["models"], _fields(config, stage)["feedback"])
    if references.parse(reference).kind in (references.STAGE, references.RANDOM):
        raise UserError(
            f"{run}: '{reference}' answered there; transformers needs a Hugging Face directory"
        )
    directory = hf.resolve(reference)
    form = load_format(directory, config["graph"][stage]["format"])
    ours_of = LocalTextModel(reference, form, 0, None)  # for its tokens only
    # --- what is done already
    ours = {
        row["id"]: row for row in Run(run).records(stage, "choices")
    }  # those on disk so far, where the stage goes on
    done = {(row["set"], row["mode"], row["item"]) for row in read(out)}
    peer, start = Peer(directory), time.monotonic()
    # --- question by question
    with out.open("a") as file:
        for on, mode, items, shots in questions(run, stage):
            for number, index in enumerate(drawn(len(items), sample, on, mode)):
                item = items[index]
                row = ours.get(f"{on}/{mode}/{item.id}")
                if row is None or (on, mode, item.id) in done:
                    continue
                if time.monotonic() - start > 60 * minutes:
                    return peer.versions
                shown = shots.get(item.id, ())[: row.get("num_few_shot")]
                header = [(shot, shot.options[shot.correct]) for shot in shown]
                prompt, options = peer.ask(header, item, form.kind)
                began = time.process_time()
                theirs = peer.logprobs(prompt, options)
                took = time.process_time() - began
                segments, tokens = ours_of.question(items_lib.question(item, shown), len(shown))
                same = prompt == [t for s in segments for t in s] and options == [
                    list(o) for o in tokens
                ]
                answer = {
                    "set": on,
                    "mode": mode,
                    "item": item.id,
                    "correct": item.correct,
                    "tokens": len(prompt),
                    "same_tokens": same,
                    "ours": row["logprobs"],
                    "theirs": theirs,
                    "seconds": round(took, 3),
                }
                if number < complete:
                    answer["theirs_complete"] = peer.logprobs_complete(prompt, options)
                file.write(json.dumps(answer) + "\n")
                file.flush()
    return peer.versions


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summary(rows: list[dict]) -> dict:
    """Of some rows: how often both pick the same option, their accuracies, and how far
    log-probabilities lie apart."""
    apart = [np.abs(np.subtract(row["ours"], row["theirs"])) for row in rows]
    close = []  # the gap between the best two options where the picks differ
    for row in rows:
        if np.argmax(row["ours"]) != np.argmax(row["theirs"]):
            ordered = sorted(row["theirs"])
            close.append(ordered[-1] - ordered[-2])
    complete = [
        np.abs(np.subtract(row["ours"], row["theirs_complete"])).max()
        for row in rows
        if "theirs_complete" in row
    ]
    return {
        "rows": len(rows),
        "tokens": sum(row["tokens"] for row in rows),
        "same_tokens": sum(row["same_tokens"] for row in rows),
        "same_pick": len(rows) - len(close),
        "margins_of_other_picks": close,
        "accuracy": float(np.mean([np.argmax(row["ours"]) == row["correct"] for row in rows])),
        "accuracy_peer": float(
            np.mean([np.argmax(row["theirs"]) == row["correct"] for row in rows])
        ),
        "largest_difference": float(max(map(np.max, apart))),
        "mean_difference": float(np.mean(np.concatenate(apart))),
        "rows_read_complete": len(complete),
        "largest_difference_complete": float(max(complete)) if complete else None,
    }


def table(rows: list[dict]) -> str:
    """Markdown: a line a set and mode, and one of all."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["set"], row["mode"]].append(row)
    groups["all", ""] = rows
    out = [
        (
            "| set | mode | rows | same tokens | same pick | accuracy, ours / peer | logprobs "
            "apart: largest, mean | complete texts |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (on, mode), part in groups.items():
        s = summary(part)
        complete = (
            f"{s['largest_difference_complete']:.1e} ({s['rows_read_complete']} rows)"
            if s["rows_read_complete"]
            else ""
        )
        accuracies = f"{s['accuracy']:.1%} / {s['accuracy_peer']:.1%}" if mode else ""
        out.append(
            f"| {on} | {mode} | {s['rows']} | {s['same_tokens']} | {s['same_pick']} "
            f"({s['same_pick'] / s['rows']:.1%}) | "
            f"{accuracies} | {s['largest_difference']:.1e}, {s['mean_difference']:.1e} | "
            f"{complete} |"
        )
    return "\n".join(out)


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.evaluations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--stage", default="evaluate")
    parser.add_argument(
        "--json", type=pathlib.Path, help="where the rows are kept; RUN/parity.jsonl by default"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="after so many, it stops between two rows; 0: only the table",
    )
    parser.add_argument(
        "--complete",
        type=int,
        default=2,
        help="rows of each set and mode that are read without a cache, too",
    )
    parser.add_argument(
        "--sample", type=int, default=0, help="rows of each set and mode that are compared; 0: all"
    )
    arguments = parser.parse_args(argv[1:] if argv else None)
    if not (arguments.run / arguments.stage / "manifest.json").exists():
        raise UserError(
            f"{arguments.run / arguments.stage}: no such stage; run `python -m cai_jax.main "
            "--config=configs/evaluations.py` first"
        )
    out = arguments.json or arguments.run / "parity.jsonl"
    if arguments.minutes > 0:
        print(
            compare(
                arguments.run,
                arguments.stage,
                out,
                arguments.minutes,
                arguments.complete,
                arguments.sample,
            )
        )
    if rows := read(out):
        print(table(rows))
        print(
            f"margins where the picks differ: {summary(rows)['margins_of_other_picks']}; "
            f"processor seconds of transformers: {sum(row['seconds'] for row in rows):.0f}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
