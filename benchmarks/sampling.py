"""The sampling engine beside transformers' `generate`: `python -m benchmarks.sampling --json out.json`.

Both run the same weights and the same prompts in turns (ours, theirs, ours, …), so that whatever else the machine does
falls on both; medians are over the repeats. `--quick` cuts every workload to a quarter.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import statistics
import time

import jax
import numpy as np

from benchmarks.peer import Peer
from cai_jax import losses, seeds
from cai_jax.constitution.loader import load_constitution
from cai_jax.data.dialogue import load_format
from cai_jax.data.prompts import load_prompts
from cai_jax.models import decoder, hf
from cai_jax.sampling.engine import Engine, EngineOptions
from cai_jax.stages.revise import few_shot_messages
from cai_jax.structs import Message, SampleRequest, SamplingParams, ScoreRequest

PEER_BATCH = 16


class Bench:
    """The model twice, and the texts."""

    def __init__(self, model: str, quick: bool):
        self.config, self.params = hf.load_hf(model)
        self.format = load_format(model)
        self.peer, self.quick = Peer(model), quick
        self.prompts = load_prompts("embedded:red_team")
        self.engines: dict[int, Engine] = {}

    def count(self, number: int) -> int:
        return max(number // 4, 2) if self.quick else number

    def engine(self, batch_size: int) -> Engine:
        if batch_size not in self.engines:
            options = EngineOptions(batch_size=batch_size, chunk_steps=8)
            self.engines[batch_size] = Engine(self.params, self.config, self.format, options=options)
            self.engines[batch_size].eos_ids = ()  # every row runs to its length, ours and theirs
        return self.engines[batch_size]

    def ours(self, segments, new_tokens, batch_size, lengths=None) -> float:
        """Seconds for one completion of every prompt, header and prompt prefill included."""
        engine = self.engine(batch_size)
        engine.update(self.params)  # nothing is left from the last repeat
        jax.block_until_ready(engine.weights)
        lengths = lengths or [new_tokens] * len(segments)
        requests = [SampleRequest(str(n), s, seeds.row_key(0, n), lengths[n]) for n, s in enumerate(segments)]
        before = time.perf_counter()
        tokens = sum(len(done.tokens) for done in engine.generate(requests, SamplingParams(new_tokens)))
        seconds = time.perf_counter() - before
        assert tokens == sum(lengths)
        return seconds

    def theirs(self, segments, new_tokens, header=None, lengths=None) -> float:
        rows = [list(sum(s[1:] if header else s, ())) for s in segments]
        lengths = lengths or [new_tokens] * len(rows)
        batches = [
            {"prompts": rows[i : i + PEER_BATCH], "new_tokens": max(lengths[i : i + PEER_BATCH])}
            for i in range(0, len(rows), PEER_BATCH)
        ]
        return self.peer.ask(kind="generate", batches=batches, header=header and list(header))["seconds"]


def compare(ways: dict, repeats: int) -> dict:
    """Seconds of every way, in turns: {name: {median, all}}; the first round, which compiles, is reported apart."""
    first = {name: run() for name, run in ways.items()}
    rounds = [{name: run() for name, run in ways.items()} for _ in range(repeats)]
    return {
        name: {"median_s": statistics.median(r[name] for r in rounds), "all_s": [round(r[name], 3) for r in rounds],
               "first_s": first[name]}
        for name in ways
    }  # fmt: skip


def decode(bench: Bench) -> tuple[dict, int]:
    """Batch 16, 128 new tokens."""
    new = bench.count(128)
    segments = [bench.format.prompt(prompt.dialogue) for prompt in bench.prompts[:16]]
    return {
        "ours": lambda: bench.ours(segments, new, 16),
        "generate": lambda: bench.theirs(segments, new),
    }, 16 * new


def latency(bench: Bench) -> tuple[dict, int]:
    """Batch 1."""
    new = bench.count(64)
    segments = [bench.format.prompt(bench.prompts[0].dialogue)]
    return {"ours": lambda: bench.ours(segments, new, 1), "generate": lambda: bench.theirs(segments, new)}, new


def critique_segments(bench: Bench, number: int) -> list:
    """Five worked examples, a dialogue, a critique request."""
    constitution = load_constitution("embedded")
    header = few_shot_messages(constitution.critique_examples[:5], True)
    answer = Message("assistant", "Sure. The first thing that you need is a plan, and then a few simple tools. " * 2)
    result = []
    for row, prompt in enumerate(bench.prompts[:number]):
        request = constitution.critique_principles[row % len(constitution.critique_principles)].critique_request
        turns = (*prompt.dialogue, answer, Message("critique_request", request))
        result.append(bench.format.prompt(header + turns, reply="critique", shared=len(header)))
    assert len({segments[0] for segments in result}) == 1
    return result


def critique(bench: Bench) -> tuple[dict, int]:
    """Few-shot header + dialogue + request, 32 dialogues, 64 new tokens; generate at batch 16, and with its prefix
    cache made by hand."""
    new, number = bench.count(64), bench.count(32)
    segments = critique_segments(bench, number)
    return {
        "ours": lambda: bench.ours(segments, new, 32),
        "generate": lambda: bench.theirs(segments, new),
        "generate, prefix cache by hand": lambda: bench.theirs(segments, new, header=segments[0][0]),
    }, number * new


def skewed(bench: Bench) -> tuple[dict, int]:
    """96 prompts, geometric lengths of mean 40, at most 256; generate and our own static batches run each batch to its
    longest row."""
    number = bench.count(96)
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 40, number), 256).tolist()
    segments = [bench.format.prompt(prompt.dialogue) for prompt in bench.prompts[:number]]

    def static():
        return sum(
            bench.ours(segments[i : i + 16], max(lengths[i : i + 16]), 16, lengths[i : i + 16])
            for i in range(0, number, 16)
        )

    return {
        "ours": lambda: bench.ours(segments, 256, 16, lengths),
        "ours, static batches": static,
        "generate": lambda: bench.theirs(segments, 256, lengths=lengths),
    }, sum(lengths)


def labels(bench: Bench) -> tuple[dict, int]:
    """Feedback labels: comparisons in both orders behind one of four five-example headers, against a plain batched
    forward pass of every full text and option with the same decoder."""
    number = bench.count(64)
    question = "\n\nWhich of these answers is less harmful?\n\nOptions:\n (A) {}\n (B) {}\n\nThe answer is:"
    answers = ["I cannot help with that, but here is why it worries me. " * 3, "Sure, this is what you could do. " * 4]
    encode = bench.format.tokenizer.encode
    headers = [tuple(sum((encode(f"Example {h}.{i}: " + question.format(*answers) + " (A)\n\n") for i in range(5)), ()))
               for h in range(4)]  # fmt: skip
    options = (tuple(encode(" (A)")), tuple(encode(" (B)")))
    requests = []
    for n in range(number):
        for order in (1, -1):
            text = bench.prompts[n].dialogue[0].text + question.format(*answers[::order])
            requests.append(ScoreRequest(f"{n}/{order}", (headers[n % 4], tuple(encode(text))), options))
    engine = bench.engine(16)

    def ours():
        engine.update(bench.params)
        before = time.perf_counter()
        assert len(list(engine.score(requests))) == len(requests)
        return time.perf_counter() - before

    @jax.jit
    def forward(params, tokens, mask):
        hidden = decoder.hidden_states(params, tokens, mask, bench.config)
        return losses.next_token_logprobs(hidden, decoder.unembedding(params, bench.config), tokens)

    def plain():
        before = time.perf_counter()
        texts = [sum(request.segments, ()) + option for request in requests for option in request.options]
        longest = -(-max(map(len, texts)) // 64) * 64
        for i in range(0, len(texts), 4):
            batch = np.zeros((4, longest), np.int32)
            for row, text in enumerate(texts[i : i + 4]):
                batch[row, : len(text)] = text
            length = np.array([len(text) for text in texts[i : i + 4]] + [1] * 4)[:4]
            np.asarray(forward(bench.params, batch, np.arange(longest) < length[:, None]))
        return time.perf_counter() - before

    return {"ours": ours, "plain forward": plain}, len(requests)


WORKLOADS = {"decode": decode, "critique": critique, "skewed": skewed, "labels": labels, "latency": latency}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    bench = Bench(args.model, args.quick)
    results = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "quick": args.quick, "workloads": {}}
    for name in args.workloads:
        ways, units = WORKLOADS[name](bench)
        rows = compare(ways, args.repeats)
        for way, row in rows.items():
            row["per_second"] = units / row["median_s"]
            row["times_ours"] = row["median_s"] / rows["ours"]["median_s"]
            print(f"{name:10} {way:32} {row['median_s']:8.2f} s {row['per_second']:8.1f}/s  ours is "
                  f"{row['times_ours']:.2f}×  (first {row['first_s']:.1f} s)", flush=True)  # fmt: skip
        results["workloads"][name] = rows
    results["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results["peer_peak_bytes"] = bench.peer.ask(kind="ready")["peak_bytes"]
    bench.peer.close()
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
